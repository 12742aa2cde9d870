// masked_conv2d on the CPU: checks at the boundary, then conv_engine. Schemas: tost_kernels/ops/masked_conv2d.py.

#include <algorithm>
#include <array>
#include <cmath>
#include <cstdint>
#include <optional>
#include <vector>

#include <torch/csrc/stable/library.h>

#include "../checks.h"
#include "../conv_geometry.h"
#include "conv_arguments.h"
#include "conv_blocks.h"
#include "conv_engine.h"
#include "dense_pointwise.h"
#include "depthwise.h"
#include "packed_index.h"
#include "tensor.h"

namespace tost {

namespace {

using Ints = std::vector<int64_t>;

Ints output_shape(const char* op, const Ints& input, const PackedIndex& index, const ConvGeometry& geometry) {
  return conv_output_shape(op, input, index.outputs, index.inputs, index.kh, index.kw, geometry);
}

ConvGeometry without_padding(ConvGeometry geometry) {
  geometry.padding = {0, 0};
  return geometry;
}

Tensor masked_conv2d(
    const Tensor& input, const Tensor& values, const std::optional<Tensor>& bias, const Tensor& index, const Ints& weight_shape,
    const Ints& stride, const Ints& padding, const Ints& dilation, int64_t groups, const Text& plan) {
  constexpr const char* op = "masked_conv2d_cpu";
  check_activation(op, "input", input, 4);
  check_numbers(op, "values", values, "input", input);
  const PackedIndex packed = read_index(op, index, weight_shape, 4, values.numel());
  const ConvGeometry geometry = read_geometry(op, packed.outputs, stride, padding, dilation, groups);
  if (bias.has_value()) {
    check_numbers(op, "bias", *bias, "input", input);
    check_shape(op, "bias", *bias, {packed.outputs});
  }
  const ConvOptions options = parse_options(op, plan, ConvPass::forward);
  const bool pointwise = plan.empty() && is_dense_pointwise(packed, geometry);
  const bool by_channel = plan.empty() && is_depthwise(packed, geometry);
  const Tensor source = with_dense_lanes(input);
  const Ints shape = output_shape(op, sizes_of(input), packed, geometry);
  return compute_in_layout(op, shape, layout_of(input), input.scalar_type(), [&](Tensor& result) {
    for_dtype(source, [&](auto zero) {
      using T = decltype(zero);
      const Numbers<T> added = bias.has_value() ? numbers<T>(*bias) : Numbers<T>{};
      if (pointwise) return dense_pointwise<T>(view<T>(source), numbers<T>(values), added, geometry, mutable_view<T>(result));
      if (by_channel) {
        return depthwise<T>(op, view<T>(source), numbers<T>(values), added, packed, geometry, mutable_view<T>(result));
      }
      const ConvBlocks blocks = conv_blocks(packed, geometry, shape[0], shape[2], shape[3]);
      if (plan.empty() && blocks.count() > 1) {
        const Tensor parts = cut(view<T>(source), blocks, geometry.padding, reach_of(packed, geometry), source.scalar_type());
        Tensor sums = empty(
            {parts.size(0), shape[1], blocks.height, blocks.width}, Layout::batch_last, source.scalar_type());
        conv_forward<T>(
            op, view<T>(parts), numbers<T>(values), added, packed, without_padding(geometry), options, mutable_view<T>(sums));
        return join(sums, blocks, mutable_view<T>(result));
      }
      conv_forward<T>(
          op, view<T>(source), numbers<T>(values), added, packed, geometry, options, mutable_view<T>(result));
    });
  });
}

Tensor masked_conv2d_input_grad(
    const Tensor& grad_output, const Tensor& values, const Tensor& index, const Ints& input_shape,
    const Text& input_layout, const Ints& weight_shape, const Ints& stride, const Ints& padding, const Ints& dilation,
    int64_t groups, const Text& plan) {
  constexpr const char* op = "masked_conv2d_input_grad_cpu";
  check_activation(op, "grad_output", grad_output, 4);
  check_numbers(op, "values", values, "grad_output", grad_output);
  const PackedIndex packed = read_index(op, index, weight_shape, 4, values.numel());
  const ConvGeometry geometry = read_geometry(op, packed.outputs, stride, padding, dilation, groups);
  check_input_shape(op, input_shape);
  check_shape(op, "grad_output", grad_output, output_shape(op, input_shape, packed, geometry));
  const ConvOptions options = parse_options(op, plan, ConvPass::input_grad);
  const bool pointwise = plan.empty() && is_dense_pointwise(packed, geometry);
  const bool by_channel = plan.empty() && is_depthwise(packed, geometry);
  const Tensor source = with_dense_lanes(grad_output);
  const Layout layout = layout_named(op, "input_layout", input_layout);
  return compute_in_layout(op, input_shape, layout, grad_output.scalar_type(), [&](Tensor& result) {
    for_dtype(source, [&](auto zero) {
      using T = decltype(zero);
      if (pointwise) {
        return dense_pointwise_input_grad<T>(view<T>(source), numbers<T>(values), geometry, mutable_view<T>(result));
      }
      if (by_channel) {
        return depthwise_input_grad<T>(
            op, view<T>(source), numbers<T>(values), packed, geometry, mutable_view<T>(result));
      }
      const ConvBlocks blocks = conv_blocks(packed, geometry, input_shape[0], input_shape[2], input_shape[3]);
      if (plan.empty() && blocks.count() > 1) {
        // Item by item the gradient of a convolution that is padded by all its reach: every tap meets a gradient, or a 0 of cut.
        const std::array<int64_t, 2> reach = reach_of(packed, geometry);
        const Tensor parts = cut(
            view<T>(source), blocks, {reach[0] - geometry.padding[0], reach[1] - geometry.padding[1]}, reach,
            source.scalar_type());
        Tensor sums = empty(
            {parts.size(0), input_shape[1], blocks.height, blocks.width}, Layout::batch_last, source.scalar_type());
        ConvGeometry padded = geometry;
        padded.padding = reach;
        conv_input_grad<T>(op, view<T>(parts), numbers<T>(values), packed, padded, options, mutable_view<T>(sums));
        return join(sums, blocks, mutable_view<T>(result));
      }
      conv_input_grad<T>(
          op, view<T>(source), numbers<T>(values), packed, geometry, options, mutable_view<T>(result));
    });
  });
}

Tensor masked_conv2d_values_grad(
    const Tensor& grad_output, const Tensor& input, const Tensor& index, int64_t nnz, const Ints& weight_shape,
    const Ints& stride, const Ints& padding, const Ints& dilation, int64_t groups, const Text& plan) {
  constexpr const char* op = "masked_conv2d_values_grad_cpu";
  check_activation(op, "input", input, 4);
  check_activation(op, "grad_output", grad_output, 4);
  check_same_dtype(op, "grad_output", grad_output, "input", input);
  const PackedIndex packed = read_index(op, index, weight_shape, 4, nnz);
  const ConvGeometry geometry = read_geometry(op, packed.outputs, stride, padding, dilation, groups);
  check_shape(op, "grad_output", grad_output, output_shape(op, sizes_of(input), packed, geometry));
  const ConvOptions options = parse_options(op, plan, ConvPass::values_grad);
  const bool pointwise = plan.empty() && is_dense_pointwise(packed, geometry);
  const bool by_channel = plan.empty() && is_depthwise(packed, geometry);
  Tensor grad_values = empty({nnz}, Layout::contiguous, input.scalar_type());
  const Tensor source = with_dense_lanes(input), grad = with_dense_lanes(grad_output);
  for_dtype(input, [&](auto zero) {
    using T = decltype(zero);
    T* numbers = static_cast<T*>(grad_values.mutable_data_ptr());
    if (pointwise) return dense_pointwise_values_grad<T>(view<T>(grad), view<T>(source), geometry, numbers);
    if (by_channel) return depthwise_values_grad<T>(op, view<T>(grad), view<T>(source), packed, geometry, numbers);
    const ConvBlocks blocks = conv_blocks(packed, geometry, grad.size(0), grad.size(2), grad.size(3));
    if (plan.empty() && blocks.count() > 1) {
      const Tensor parts = cut(view<T>(source), blocks, geometry.padding, reach_of(packed, geometry), source.scalar_type());
      const Tensor grads = cut(view<T>(grad), blocks, {0, 0}, {0, 0}, source.scalar_type());
      conv_values_grad<T>(op, view<T>(grads), view<T>(parts), packed, without_padding(geometry), options, numbers);
      // Pixels of the last blocks that stand over have gradient 0, but may read an inf of the input that no other one reads.
      const bool stand_over = blocks.down * blocks.height != grad.size(2) || blocks.across * blocks.width != grad.size(3);
      if (!stand_over || std::all_of(numbers, numbers + nnz, [](T x) { return std::isfinite(to_float(x)); })) return;
    }
    conv_values_grad<T>(op, view<T>(grad), view<T>(source), packed, geometry, options, numbers);
  });
  return grad_values;
}

}  // namespace

}  // namespace tost

STABLE_TORCH_LIBRARY_IMPL(tost, CPU, m) {
  m.impl("masked_conv2d_cpu", TORCH_BOX(&tost::masked_conv2d));
  m.impl("masked_conv2d_input_grad_cpu", TORCH_BOX(&tost::masked_conv2d_input_grad));
  m.impl("masked_conv2d_values_grad_cpu", TORCH_BOX(&tost::masked_conv2d_values_grad));
}
