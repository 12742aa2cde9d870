// pswish: x * sigmoid(beta * x) and its gradients, beta one number or one for each channel.
// Work is cut into pieces of a fixed size, and sums are taken in their order: no bit depends on the number of threads.

#include <algorithm>
#include <tuple>
#include <vector>

#include "channels.h"
#include "isa.h"
#define TOST_KERNELS "pswish_kernels.h"
#include "per_isa.h"

namespace tost {
namespace {

constexpr int64_t kPiece = 16384;

// The runs of x that share one beta: all of it in pieces, or channel by channel.
struct Runs {
  Layout output, compute;
  Channels channels;
  bool shared;  // one beta for all
};

Runs check(const char* op, const Tensor& input, const Tensor& beta) {
  check_cpu(op, "input", input);
  check_cpu(op, "beta", beta);
  check_kernel_dtype(op, "input", input);
  check_dtype(op, "beta", beta, ScalarType::Float);
  Runs runs;
  runs.output = output_layout(input);
  runs.shared = beta.dim() == 0;
  if (runs.shared) {
    runs.compute = runs.output;
    runs.channels = {(input.numel() + kPiece - 1) / kPiece, kPiece, 1, 0, kPiece};
    return runs;
  }
  TOST_CHECK(input.dim() >= 2, op, "input: expected shape (N, C, ...) with a beta per channel, got ", shape_string(input));
  check_shape(op, "beta", beta, {input.size(1)});
  runs.compute = planar(runs.output);
  runs.channels = channels_of(input, runs.compute);
  return runs;
}

float beta_of(const Tensor& beta, int64_t channel) {
  const float* data = static_cast<const float*>(beta.const_data_ptr());
  return beta.dim() == 0 ? *data : data[channel * beta.stride(0)];
}

template <class T>
void forward(const Runs& runs, const Tensor& x, const Tensor& beta, Tensor& y) {
  const auto run = TOST_PER_ISA(pswish_forward_run<T>);
  const T* from = static_cast<const T*>(x.const_data_ptr());
  T* to = static_cast<T*>(y.mutable_data_ptr());
  const Channels& k = runs.channels;
  const int64_t numel = x.numel();
  const bool streams = past_the_caches(x);
  torch::stable::parallel_for(0, k.count, channel_grain(k), [&](int64_t begin, int64_t end) {
    for (int64_t c = begin; c < end; ++c) {
      const float b = beta_of(beta, c);
      for (int64_t s = 0; s < k.segments; ++s) {
        const int64_t at = c * k.channel_stride + s * k.stride;
        run(from + at, b, to + at, std::min(k.length, numel - at), streams);
      }
    }
  });
}

template <class T>
void backward(
    const Runs& runs, const Tensor& dy, const Tensor& x, const Tensor& beta, Tensor& dx, std::vector<double>& dbeta) {
  const auto run = TOST_PER_ISA(pswish_backward_run<T>);
  const T* grad = static_cast<const T*>(dy.const_data_ptr());
  const T* from = static_cast<const T*>(x.const_data_ptr());
  T* to = static_cast<T*>(dx.mutable_data_ptr());
  const Channels& k = runs.channels;
  const int64_t numel = x.numel();
  const bool streams = past_the_caches(x);
  torch::stable::parallel_for(0, k.count, channel_grain(k), [&](int64_t begin, int64_t end) {
    for (int64_t c = begin; c < end; ++c) {
      const float b = beta_of(beta, c);
      for (int64_t s = 0; s < k.segments; ++s) {
        const int64_t at = c * k.channel_stride + s * k.stride;
        dbeta[c] += run(grad + at, from + at, b, to + at, std::min(k.length, numel - at), streams);
      }
    }
  });
}

Tensor pswish(Tensor input, Tensor beta, Text /*plan*/) {
  const Runs runs = check("pswish_cpu", input, beta);
  const Tensor x = in_layout(input, runs.compute);
  Tensor y = empty(sizes_of(x), runs.compute, x.scalar_type());
  x.scalar_type() == ScalarType::Float ? forward<float>(runs, x, beta, y) : forward<bf16>(runs, x, beta, y);
  return in_layout(y, runs.output);
}

std::tuple<Tensor, Tensor> pswish_backward(Tensor grad_output, Tensor input, Tensor beta, Text /*plan*/) {
  const char* op = "pswish_backward_cpu";
  const Runs runs = check(op, input, beta);
  check_cpu(op, "grad_output", grad_output);
  check_shape(op, "grad_output", grad_output, sizes_of(input));
  check_same_dtype(op, "grad_output", grad_output, "input", input);
  const Tensor x = in_layout(input, runs.compute);
  const Tensor dy = in_layout(grad_output, runs.compute);
  Tensor dx = empty(sizes_of(x), runs.compute, x.scalar_type());
  std::vector<double> sums(runs.channels.count, 0.0);
  x.scalar_type() == ScalarType::Float ? backward<float>(runs, dy, x, beta, dx, sums)
                                       : backward<bf16>(runs, dy, x, beta, dx, sums);
  Tensor dbeta = empty(sizes_of(beta), Layout::contiguous, ScalarType::Float);
  float* to = static_cast<float*>(dbeta.mutable_data_ptr());
  if (runs.shared) {
    double total = 0;
    for (const double part : sums) total += part;
    *to = static_cast<float>(total);
  } else {
    std::copy(sums.begin(), sums.end(), to);
  }
  return {in_layout(dx, runs.output), dbeta};
}

}  // namespace
}  // namespace tost

STABLE_TORCH_LIBRARY_IMPL(tost, CPU, m) {
  m.impl("pswish_cpu", TORCH_BOX(&tost::pswish));
  m.impl("pswish_backward_cpu", TORCH_BOX(&tost::pswish_backward));
}
