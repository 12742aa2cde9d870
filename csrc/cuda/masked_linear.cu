// masked_linear on the GPU: the ops. Schemas: tost_kernels/ops/masked_linear.py.

#include "conv_entry.h"

namespace tost {
namespace {

ConvArguments read_linear(const char* op, const Ints& weight_shape, const Text& plan, ConvPass pass) {
  return read_arguments(op, 2, weight_shape, {1, 1}, {0, 0}, {1, 1}, 1, plan, pass);
}

Tensor forward(Tensor input, Tensor values, std::optional<Tensor> bias, Tensor index, Ints weight_shape, Text plan) {
  return conv_forward(read_linear("masked_linear_cuda", weight_shape, plan, ConvPass::forward), input, values, bias, index);
}

Tensor input_grad(
    Tensor grad_output, Tensor values, Tensor index, Ints input_shape, Text input_layout, Ints weight_shape, Text plan) {
  const ConvArguments a = read_linear("masked_linear_input_grad_cuda", weight_shape, plan, ConvPass::input_grad);
  return conv_input_grad(a, grad_output, values, index, input_shape, input_layout);
}

Tensor values_grad(Tensor grad_output, Tensor input, Tensor index, int64_t nnz, Ints weight_shape, Text plan) {
  const ConvArguments a = read_linear("masked_linear_values_grad_cuda", weight_shape, plan, ConvPass::values_grad);
  return conv_values_grad(a, grad_output, input, index, nnz);
}

}  // namespace
}  // namespace tost

STABLE_TORCH_LIBRARY_IMPL(tost, TOST_CUDA_KEY, m) {
  m.impl("masked_linear_cuda", TORCH_BOX(&tost::forward));
  m.impl("masked_linear_input_grad_cuda", TORCH_BOX(&tost::input_grad));
  m.impl("masked_linear_values_grad_cuda", TORCH_BOX(&tost::values_grad));
}
