// What a batch normalisation does to its buffers after a batch. Schema: tost_kernels/ops/running_stats.py.

#include <algorithm>
#include <optional>

#include <torch/csrc/stable/library.h>

#include "../checks.h"
#include "tensor.h"

namespace tost {
namespace {

constexpr const char* kOp = "running_stats_cpu";

// towards + weight * (value - towards), as torch's lerp rounds it.
inline void lerp(float& running, float value, float weight) {
  const float difference = value - running;
  running = weight < 0.5f ? running + weight * difference : value - difference * (1.0f - weight);
}

void running_stats(
    Tensor mean, Tensor var, std::optional<Tensor> batches, Tensor stats, int64_t row, int64_t count,
    std::optional<double> momentum, std::optional<Tensor> alpha) {
  check_cpu(kOp, "stats", stats);
  check_dtype(kOp, "stats", stats, ScalarType::Float);
  check_dim(kOp, "stats", stats, 3);
  const int64_t channels = stats.size(2);
  check_shape(kOp, "stats", stats, {3, 2, channels});
  TOST_CHECK(row >= 0 && row < 3, kOp, "row: expected 0, 1 or 2, got ", row);
  for (const auto& [name, tensor] : {std::pair<const char*, const Tensor&>{"mean", mean}, {"var", var}}) {
    check_cpu(kOp, name, tensor);
    check_dtype(kOp, name, tensor, ScalarType::Float);
    check_shape(kOp, name, tensor, {channels});
  }
  if (alpha.has_value()) {
    check_cpu(kOp, "alpha", *alpha);
    check_dtype(kOp, "alpha", *alpha, ScalarType::Float);
    check_dim(kOp, "alpha", *alpha, 0);
    if (*static_cast<const float*>(alpha->const_data_ptr()) == 0.0f) return;
  }
  double factor = momentum.value_or(0.0);
  if (batches.has_value()) {
    check_cpu(kOp, "batches", *batches);
    check_dtype(kOp, "batches", *batches, ScalarType::Long);
    check_dim(kOp, "batches", *batches, 0);
    const int64_t seen = ++*static_cast<int64_t*>(batches->mutable_data_ptr());
    if (!momentum.has_value()) factor = 1.0 / static_cast<double>(seen);
  }
  if (count == 0) return;
  const float weight = static_cast<float>(factor);
  const float unbiased = static_cast<float>(static_cast<double>(count) / static_cast<double>(std::max<int64_t>(count - 1, 1)));
  const float* from = static_cast<const float*>(stats.const_data_ptr()) + row * stats.stride(0);
  float* to_mean = static_cast<float*>(mean.mutable_data_ptr());
  float* to_var = static_cast<float*>(var.mutable_data_ptr());
  const int64_t step = stats.stride(2), step_mean = mean.stride(0), step_var = var.stride(0), to_variance = stats.stride(1);
  for (int64_t c = 0; c < channels; ++c) {
    lerp(to_mean[c * step_mean], from[c * step], weight);
    lerp(to_var[c * step_var], from[to_variance + c * step] * unbiased, weight);
  }
}

}  // namespace
}  // namespace tost

STABLE_TORCH_LIBRARY_IMPL(tost, CPU, m) { m.impl("running_stats_cpu", TORCH_BOX(&tost::running_stats)); }
