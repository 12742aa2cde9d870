// What masked_conv2d and masked_linear do at the op boundary: checks, layouts, scratch memory, and the choice of the kernels that
// the plan names. A linear layer is a convolution of 1x1 images.
#pragma once

#include <optional>

#include "../conv_geometry.h"
#include "conv_call.h"
#include "gather_index.h"
#include "tensor.h"

namespace tost {

using Ints = std::vector<int64_t>;

// What the arguments say about a call before its tensors are looked at.
struct ConvArguments {
  const char* op;
  int dims;  // of the activations and of weight_shape: 4, or 2
  const Ints& weight_shape;
  ConvGeometry geometry;
  ConvOptions options;
};

inline void check_activation(const ConvArguments& a, const char* name, const Tensor& tensor) {
  check_device(a.op, name, tensor);
  check_kernel_dtype(a.op, name, tensor);
  check_dim(a.op, name, tensor, a.dims);
}

// values, bias: 1-D, of the activation's dtype and device.
inline void check_numbers(const char* op, const char* name, const Tensor& tensor, const char* like, const Tensor& other) {
  check_same_device(op, name, tensor, other);
  check_dim(op, name, tensor, 1);
  check_same_dtype(op, name, tensor, like, other);
}

inline ConvArguments read_arguments(
    const char* op, int dims, const Ints& weight_shape, const Ints& stride, const Ints& padding, const Ints& dilation,
    int64_t groups, const Text& plan, ConvPass pass) {
  TOST_CHECK(
      static_cast<int>(weight_shape.size()) == dims && *std::min_element(weight_shape.begin(), weight_shape.end()) > 0,
      op, "weight_shape: expected ", dims, " sizes, got ", shape_string(weight_shape));
  // Columns of the index are 32 bits.
  constexpr int64_t kMost = std::numeric_limits<int32_t>::max();
  int64_t columns = 1;
  for (size_t d = weight_shape.size(); d-- > 0;) {
    columns *= d == 0 ? 1 : d == 1 ? std::max(weight_shape[0], weight_shape[1]) : weight_shape[d];
    TOST_CHECK(columns <= kMost, op, "weight_shape: expected max(O, I) * kh * kw below 2^31, got ", shape_string(weight_shape));
  }
  const ConvGeometry geometry = read_geometry(op, weight_shape[0], stride, padding, dilation, groups);
  const int64_t inputs = weight_shape[1] * groups, phases = stride[0] * stride[1];
  TOST_CHECK(
      inputs <= kMost / (columns / std::max(weight_shape[0], weight_shape[1])), op,
      "weight_shape: expected I * groups * kh * kw below 2^31, got ", shape_string(weight_shape), " and groups ", groups);
  TOST_CHECK(phases <= kMost, op, "stride: expected a product below 2^31, got ", shape_string(stride));
  return {op, dims, weight_shape, geometry, parse_options(op, plan, pass)};
}

// Whether there is a kernel for what the plan says of `call`, and what can be said about the index without reading it.
inline void check_precision_and_index(const ConvCall& call) {
  const ConvOptions& o = call.options;
  const bool gather = o.algo == ConvAlgorithm::gather;
  TOST_CHECK(
      !gather || call.bf16 != o.tf32, call.op, "plan: expected precision=", call.bf16 ? "ieee" : "tf32", " with algo=gather for ",
      call.bf16 ? "bfloat16" : "float32");
  if (o.rows > 1) {
    gather_view(call, false, !gather ? 1 : call.bf16 ? kDepthBf16 : kDepthTf32);
    return;
  }
  const int64_t base = base_index_length(call.shape);
  TOST_CHECK(
      call.index_length >= base, call.op, "index: expected at least ", base, " numbers for this weight shape and ",
      call.shape.nnz, " values, got ", call.index_length);
}

// The call whose input has `input_shape`. Its output's shape goes to `output`.
inline ConvCall conv_call(
    const ConvArguments& a, const Ints& input_shape, const Tensor& index, int64_t nnz, const Tensor& like, Ints& output) {
  const bool image = a.dims == 4;
  const int64_t kh = image ? a.weight_shape[2] : 1, kw = image ? a.weight_shape[3] : 1;
  Ints input = input_shape;
  input.resize(4, 1);
  if (image) {
    output = conv_output_shape(a.op, input, a.weight_shape[0], a.weight_shape[1], kh, kw, a.geometry);
  } else {
    TOST_CHECK(
        input[1] == a.weight_shape[1], a.op, "input: expected shape (N, ", a.weight_shape[1], "), got ",
        shape_string(input_shape));
    output = {input[0], a.weight_shape[0], 1, 1};
  }
  ConvCall call{};
  call.op = a.op;
  call.shape = {input[0], input[1], input[2], input[3], output[1], output[2], output[3], {}, {}, {}, {}, a.geometry.groups, nnz};
  // Pixels, and sums and products of these, are 32 bits in the kernels.
  constexpr int64_t kMost = int64_t{1} << 30;
  for (int axis = 0; axis < 2; ++axis) {
    const int64_t kernel = axis ? kw : kh, dilation = kernel == 1 ? 1 : a.geometry.dilation[axis];
    TOST_CHECK(
        a.geometry.stride[axis] * dilation < kMost && input[2 + axis] + 2 * a.geometry.padding[axis] < kMost, a.op,
        "input: expected stride * dilation, and height and width with their padding, below 2^30, got shape ",
        shape_string(input_shape), ", stride ", shape_string(a.geometry.stride), ", padding ", shape_string(a.geometry.padding),
        ", dilation ", shape_string(a.geometry.dilation));
    call.shape.kernel[axis] = static_cast<int>(kernel);
    call.shape.stride[axis] = static_cast<int>(a.geometry.stride[axis]);
    call.shape.padding[axis] = static_cast<int>(a.geometry.padding[axis]);
    call.shape.dilation[axis] = static_cast<int>(dilation);
  }
  for (const Ints* shape : {&input, &output}) {
    TOST_CHECK(
        (*shape)[2] * (*shape)[3] < 2 * kMost, a.op, "input: expected images of fewer than 2^31 pixels, got shape ",
        shape_string(input_shape), ", output ", shape_string(output));
  }
  output.resize(static_cast<size_t>(a.dims));
  check_same_device(a.op, "index", index, like);
  check_dim(a.op, "index", index, 1);
  check_dtype(a.op, "index", index, ScalarType::Int);
  TOST_CHECK(index.is_contiguous(), a.op, "index: expected a contiguous tensor, got stride ", index.stride(0));
  call.index = static_cast<const int32_t*>(index.const_data_ptr());
  call.index_length = index.numel();
  call.bf16 = like.scalar_type() == ScalarType::BFloat16;
  call.options = a.options;
  check_precision_and_index(call);
  return call;
}

inline Tensor new_tensor(const Ints& shape, Layout layout, const Tensor& like) {
  return empty_strided(shape, strides_of(shape, layout), like.scalar_type(), like.device());
}

// Runs one pass: new tensor of `shape` in `layout`, filled by multiply(batch-last source, ..., batch-last target).
inline Tensor multiply(
    ConvCall& call, bool transposed, const Tensor& source, const Tensor& values, const std::optional<Tensor>& bias,
    const Ints& shape, Layout layout) {
  const OnDeviceOf device(source);
  call.stream = device.stream();
  call.processors = device.processors();
  call.shared_bytes = device.shared_bytes();
  Scratch scratch(source);
  call.scratch = std::ref(scratch);
  Tensor result = new_tensor(shape, layout, source);
  if (result.numel() == 0) return result;
  const bool direct = has_layout(result, Layout::batch_last);
  Tensor target = direct ? result : new_tensor(shape, Layout::batch_last, source);
  const Tensor from = in_layout(source, Layout::batch_last), numbers = in_layout(values, Layout::contiguous);
  const Tensor added = bias.has_value() ? in_layout(*bias, Layout::contiguous) : numbers;
  (call.options.algo == ConvAlgorithm::gather ? gather_multiply : direct_multiply)(
      call, transposed, from.const_data_ptr(), numbers.const_data_ptr(), bias.has_value() ? added.const_data_ptr() : nullptr,
      target.mutable_data_ptr());
  if (!direct) torch::stable::copy_(result, target);
  return result;
}

inline Tensor conv_forward(
    const ConvArguments& a, const Tensor& input, const Tensor& values, const std::optional<Tensor>& bias, const Tensor& index) {
  check_activation(a, "input", input);
  check_numbers(a.op, "values", values, "input", input);
  if (bias.has_value()) {
    check_numbers(a.op, "bias", *bias, "input", input);
    check_shape(a.op, "bias", *bias, {a.weight_shape[0]});
  }
  Ints shape;
  ConvCall call = conv_call(a, sizes_of(input), index, values.numel(), input, shape);
  return multiply(call, false, input, values, bias, shape, layout_of(input));
}

inline Tensor conv_input_grad(
    const ConvArguments& a, const Tensor& grad_output, const Tensor& values, const Tensor& index, const Ints& input_shape,
    const Text& input_layout) {
  check_activation(a, "grad_output", grad_output);
  check_numbers(a.op, "values", values, "grad_output", grad_output);
  if (a.dims == 4) {
    check_input_shape(a.op, input_shape);
  } else {
    TOST_CHECK(
        (input_shape == Ints{grad_output.size(0), a.weight_shape[1]}), a.op, "input_shape: expected (", grad_output.size(0), ", ",
        a.weight_shape[1], "), got ", shape_string(input_shape));
  }
  Ints shape;
  ConvCall call = conv_call(a, input_shape, index, values.numel(), grad_output, shape);
  check_shape(a.op, "grad_output", grad_output, shape);
  return multiply(
      call, true, grad_output, values, std::nullopt, input_shape, layout_named(a.op, "input_layout", input_layout));
}

inline Tensor conv_values_grad(
    const ConvArguments& a, const Tensor& grad_output, const Tensor& input, const Tensor& index, int64_t nnz) {
  check_activation(a, "input", input);
  check_activation(a, "grad_output", grad_output);
  check_same_device(a.op, "grad_output", grad_output, input);
  check_same_dtype(a.op, "grad_output", grad_output, "input", input);
  TOST_CHECK(nnz >= 0, a.op, "nnz: expected a number of kept weights, got ", nnz);
  Ints shape;
  ConvCall call = conv_call(a, sizes_of(input), index, nnz, input, shape);
  check_shape(a.op, "grad_output", grad_output, shape);
  const OnDeviceOf device(input);
  call.stream = device.stream();
  call.processors = device.processors();
  call.shared_bytes = device.shared_bytes();
  Scratch scratch(input);
  call.scratch = std::ref(scratch);
  Tensor result = new_tensor({nnz}, Layout::contiguous, input);
  if (nnz == 0) return result;
  if (input.numel() == 0) return torch::stable::zero_(result);
  const Tensor x = in_layout(input, Layout::batch_last), grad = in_layout(grad_output, Layout::batch_last);
  (call.options.algo == ConvAlgorithm::gather ? gather_values_grad : direct_values_grad)(
      call, grad.const_data_ptr(), x.const_data_ptr(), result.mutable_data_ptr());
  return result;
}

}  // namespace tost
