// A convolution with one input channel a group, on batch-last memory.
#pragma once

#include <cstdint>

#include "conv_engine.h"
#include "packed_index.h"
#include "tensor.h"

namespace tost {

// Whether the functions below may run it. Their lists of taps grow with the kernel and with the outputs of a channel.
inline bool is_depthwise(const PackedIndex& index, const ConvGeometry& geometry) {
  return index.inputs == 1 && geometry.groups > 1 && index.taps() <= 49 && index.outputs / geometry.groups <= 4;
}

// As conv_forward, conv_input_grad and conv_values_grad, which they stand in for.
template <class T>
void depthwise(
    const char* op, View<const T> input, Numbers<T> values, Numbers<T> bias, const PackedIndex& index,
    const ConvGeometry& geometry, View<T> output);

template <class T>
void depthwise_input_grad(
    const char* op, View<const T> grad_output, Numbers<T> values, const PackedIndex& index, const ConvGeometry& geometry,
    View<T> grad_input);

// grad_values: nnz numbers, contiguous.
template <class T>
void depthwise_values_grad(
    const char* op, View<const T> grad_output, View<const T> input, const PackedIndex& index, const ConvGeometry& geometry,
    T* grad_values);

}  // namespace tost
