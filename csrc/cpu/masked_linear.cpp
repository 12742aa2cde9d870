// masked_linear on the CPU: a 1x1 convolution of a 1x1 image. Schemas: tost_kernels/ops/masked_linear.py.

#include <cstdint>
#include <optional>
#include <vector>

#include <torch/csrc/stable/library.h>

#include "../checks.h"
#include "conv_arguments.h"
#include "conv_engine.h"
#include "packed_index.h"
#include "tensor.h"

namespace tost {

namespace {

using Ints = std::vector<int64_t>;

Tensor masked_linear(
    const Tensor& input, const Tensor& values, const std::optional<Tensor>& bias, const Tensor& index, const Ints& weight_shape,
    const Text& plan) {
  constexpr const char* op = "masked_linear_cpu";
  check_activation(op, "input", input, 2);
  check_numbers(op, "values", values, "input", input);
  const PackedIndex packed = read_index(op, index, weight_shape, 2, values.numel());
  check_shape(op, "input", input, {input.size(0), packed.inputs});
  if (bias.has_value()) {
    check_numbers(op, "bias", *bias, "input", input);
    check_shape(op, "bias", *bias, {packed.outputs});
  }
  const ConvOptions options = parse_options(op, plan, ConvPass::forward);
  const Tensor source = with_dense_lanes(input);
  const Ints shape{input.size(0), packed.outputs};
  return compute_in_layout(op, shape, layout_of(input), input.scalar_type(), [&](Tensor& result) {
    for_dtype(source, [&](auto zero) {
      using T = decltype(zero);
      conv_forward<T>(
          op, view<T>(source), numbers<T>(values), bias.has_value() ? numbers<T>(*bias) : Numbers<T>{}, packed, ConvGeometry{},
          options, mutable_view<T>(result));
    });
  });
}

Tensor masked_linear_input_grad(
    const Tensor& grad_output, const Tensor& values, const Tensor& index, const Ints& input_shape,
    const Text& input_layout, const Ints& weight_shape, const Text& plan) {
  constexpr const char* op = "masked_linear_input_grad_cpu";
  check_activation(op, "grad_output", grad_output, 2);
  check_numbers(op, "values", values, "grad_output", grad_output);
  const PackedIndex packed = read_index(op, index, weight_shape, 2, values.numel());
  check_shape(op, "grad_output", grad_output, {grad_output.size(0), packed.outputs});
  const ConvOptions options = parse_options(op, plan, ConvPass::input_grad);
  const Tensor source = with_dense_lanes(grad_output);
  TOST_CHECK(
      (input_shape == Ints{grad_output.size(0), packed.inputs}), op, "input_shape: expected (", grad_output.size(0), ", ",
      packed.inputs, "), got ", shape_string(input_shape));
  const Layout layout = layout_named(op, "input_layout", input_layout);
  return compute_in_layout(op, input_shape, layout, grad_output.scalar_type(), [&](Tensor& result) {
    for_dtype(source, [&](auto zero) {
      using T = decltype(zero);
      conv_input_grad<T>(
          op, view<T>(source), numbers<T>(values), packed, ConvGeometry{}, options, mutable_view<T>(result));
    });
  });
}

Tensor masked_linear_values_grad(
    const Tensor& grad_output, const Tensor& input, const Tensor& index, int64_t nnz, const Ints& weight_shape,
    const Text& plan) {
  constexpr const char* op = "masked_linear_values_grad_cpu";
  check_activation(op, "input", input, 2);
  check_activation(op, "grad_output", grad_output, 2);
  check_same_dtype(op, "grad_output", grad_output, "input", input);
  const PackedIndex packed = read_index(op, index, weight_shape, 2, nnz);
  check_shape(op, "input", input, {input.size(0), packed.inputs});
  check_shape(op, "grad_output", grad_output, {input.size(0), packed.outputs});
  const ConvOptions options = parse_options(op, plan, ConvPass::values_grad);
  Tensor grad_values = empty({nnz}, Layout::contiguous, input.scalar_type());
  const Tensor source = with_dense_lanes(input), grad = with_dense_lanes(grad_output);
  for_dtype(input, [&](auto zero) {
    using T = decltype(zero);
    conv_values_grad<T>(
        op, view<T>(grad), view<T>(source), packed, ConvGeometry{}, options,
        static_cast<T*>(grad_values.mutable_data_ptr()));
  });
  return grad_values;
}

}  // namespace

}  // namespace tost

STABLE_TORCH_LIBRARY_IMPL(tost, CPU, m) {
  m.impl("masked_linear_cpu", TORCH_BOX(&tost::masked_linear));
  m.impl("masked_linear_input_grad_cpu", TORCH_BOX(&tost::masked_linear_input_grad));
  m.impl("masked_linear_values_grad_cpu", TORCH_BOX(&tost::masked_linear_values_grad));
}
