// The op pswish on CUDA: its arguments, checked, for the kernels of pswish_kernels.h. Schema: tost_kernels/ops/pswish.py.

#include <tuple>

#include "elementwise_tensor.h"
#include "pswish_kernels.h"

namespace tost {
namespace {

Layout check(const char* op, const Tensor& input, const Tensor& beta) {
  check_device(op, "input", input);
  check_same_device(op, "beta", beta, input);
  check_kernel_dtype(op, "input", input);
  check_dtype(op, "beta", beta, ScalarType::Float);
  if (beta.dim() != 0) {
    TOST_CHECK(input.dim() >= 2, op, "input: expected shape (N, C, ...) with a beta per channel, got ", shape_string(input));
    check_shape(op, "beta", beta, {input.size(1)});
  }
  return output_layout(input);
}

// With one beta for all, everything is one channel.
ElementwiseCall call_of(const char* op, const Tensor& x, Layout layout, const Tensor& beta, const OnDeviceOf& device, Scratch& scratch) {
  ElementwiseCall call = elementwise_call(op, x, layout, device, scratch);
  if (beta.dim() == 0) call.outer = call.channels = 1, call.inner = x.numel();
  return call;
}

Tensor forward(Tensor input, Tensor beta, Text /*plan*/) {
  const char* op = "pswish_cuda";
  const Layout layout = check(op, input, beta);
  const OnDeviceOf device(input);
  Scratch scratch(input);
  const Tensor x = in_layout(input, layout), b = in_layout(beta, Layout::contiguous);
  Tensor y = empty_like(x, layout);
  if (x.numel() == 0) return y;
  pswish_forward(call_of(op, x, layout, beta, device, scratch), x.const_data_ptr(), floats(b), y.mutable_data_ptr());
  return y;
}

std::tuple<Tensor, Tensor> backward(Tensor grad_output, Tensor input, Tensor beta, Text /*plan*/) {
  const char* op = "pswish_backward_cuda";
  const Layout layout = check(op, input, beta);
  check_same_device(op, "grad_output", grad_output, input);
  check_shape(op, "grad_output", grad_output, sizes_of(input));
  check_same_dtype(op, "grad_output", grad_output, "input", input);
  const OnDeviceOf device(input);
  Scratch scratch(input);
  const Tensor x = in_layout(input, layout), dy = in_layout(grad_output, layout), b = in_layout(beta, Layout::contiguous);
  Tensor dx = empty_like(x, layout), dbeta = empty_like(b, Layout::contiguous);
  if (x.numel() == 0) {
    torch::stable::zero_(dbeta);
    return {dx, dbeta};
  }
  pswish_backward(
      call_of(op, x, layout, beta, device, scratch), dy.const_data_ptr(), x.const_data_ptr(), floats(b), dx.mutable_data_ptr(),
      static_cast<float*>(dbeta.mutable_data_ptr()));
  return {dx, dbeta};
}

}  // namespace
}  // namespace tost

STABLE_TORCH_LIBRARY_IMPL(tost, TOST_CUDA_KEY, m) {
  m.impl("pswish_cuda", TORCH_BOX(&tost::forward));
  m.impl("pswish_backward_cuda", TORCH_BOX(&tost::backward));
}
