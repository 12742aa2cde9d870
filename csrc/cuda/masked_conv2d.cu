// masked_conv2d on the GPU: the ops. Schemas: tost_kernels/ops/masked_conv2d.py.

#include "conv_entry.h"

namespace tost {
namespace {

Tensor forward(
    Tensor input, Tensor values, std::optional<Tensor> bias, Tensor index, Ints weight_shape, Ints stride, Ints padding,
    Ints dilation, int64_t groups, Text plan) {
  const ConvArguments a =
      read_arguments("masked_conv2d_cuda", 4, weight_shape, stride, padding, dilation, groups, plan, ConvPass::forward);
  return conv_forward(a, input, values, bias, index);
}

Tensor input_grad(
    Tensor grad_output, Tensor values, Tensor index, Ints input_shape, Text input_layout, Ints weight_shape, Ints stride,
    Ints padding, Ints dilation, int64_t groups, Text plan) {
  const ConvArguments a =
      read_arguments("masked_conv2d_input_grad_cuda", 4, weight_shape, stride, padding, dilation, groups, plan, ConvPass::input_grad);
  return conv_input_grad(a, grad_output, values, index, input_shape, input_layout);
}

Tensor values_grad(
    Tensor grad_output, Tensor input, Tensor index, int64_t nnz, Ints weight_shape, Ints stride, Ints padding, Ints dilation,
    int64_t groups, Text plan) {
  const ConvArguments a = read_arguments(
      "masked_conv2d_values_grad_cuda", 4, weight_shape, stride, padding, dilation, groups, plan, ConvPass::values_grad);
  return conv_values_grad(a, grad_output, input, index, nnz);
}

}  // namespace
}  // namespace tost

STABLE_TORCH_LIBRARY_IMPL(tost, TOST_CUDA_KEY, m) {
  m.impl("masked_conv2d_cuda", TORCH_BOX(&tost::forward));
  m.impl("masked_conv2d_input_grad_cuda", TORCH_BOX(&tost::input_grad));
  m.impl("masked_conv2d_values_grad_cuda", TORCH_BOX(&tost::values_grad));
}
