// The op running_stats on CUDA: its arguments, checked, for the kernel of running_stats_kernels.h. Schema:
// tost_kernels/ops/running_stats.py.

#include <algorithm>
#include <optional>

#include "running_stats_kernels.h"
#include "tensor.h"

namespace tost {
namespace {

void update(
    Tensor mean, Tensor var, std::optional<Tensor> batches, Tensor stats, int64_t row, int64_t count,
    std::optional<double> momentum, std::optional<Tensor> alpha) {
  const char* op = "running_stats_cuda";
  check_device(op, "stats", stats);
  check_dtype(op, "stats", stats, ScalarType::Float);
  check_dim(op, "stats", stats, 3);
  const int64_t channels = stats.size(2);
  check_shape(op, "stats", stats, {3, 2, channels});
  TOST_CHECK(row >= 0 && row < 3, op, "row: expected 0, 1 or 2, got ", row);
  const auto check = [&](const char* name, const Tensor& tensor, ScalarType dtype, const std::vector<int64_t>& shape) {
    check_same_device(op, name, tensor, stats);
    check_dtype(op, name, tensor, dtype);
    check_shape(op, name, tensor, shape);
  };
  check("mean", mean, ScalarType::Float, {channels});
  check("var", var, ScalarType::Float, {channels});
  if (alpha.has_value()) check("alpha", *alpha, ScalarType::Float, {});
  if (batches.has_value()) check("batches", *batches, ScalarType::Long, {});
  const OnDeviceOf device(stats);
  const RunningStats r{
      .mean = static_cast<float*>(mean.mutable_data_ptr()),
      .var = static_cast<float*>(var.mutable_data_ptr()),
      .batches = batches.has_value() ? static_cast<int64_t*>(batches->mutable_data_ptr()) : nullptr,
      .stats = static_cast<const float*>(stats.const_data_ptr()) + row * stats.stride(0),
      .alpha = alpha.has_value() ? static_cast<const float*>(alpha->const_data_ptr()) : nullptr,
      .channels = channels,
      .mean_stride = mean.stride(0),
      .var_stride = var.stride(0),
      .stats_stride = stats.stride(2),
      .to_var = stats.stride(1),
      .momentum = static_cast<float>(momentum.value_or(0.)),
      .unbiased = static_cast<float>(static_cast<double>(count) / static_cast<double>(std::max<int64_t>(count - 1, 1))),
      .average = !momentum.has_value(),
      .empty = count == 0,
  };
  running_stats(op, device.stream(), r);
}

}  // namespace
}  // namespace tost

STABLE_TORCH_LIBRARY_IMPL(tost, TOST_CUDA_KEY, m) { m.impl("running_stats_cuda", TORCH_BOX(&tost::update)); }
