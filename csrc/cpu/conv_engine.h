// The masked convolution on raw views: what masked_conv2d and masked_linear (a 1x1 convolution) have in common.
#pragma once

#include <cstdint>
#include <vector>

#include "../conv_geometry.h"
#include "conv_plan.h"
#include "packed_index.h"
#include "tensor.h"

namespace tost {

// A 1-D tensor; null for an absent bias.
template <class T>
struct Numbers {
  const T* data = nullptr;
  int64_t stride = 1;
};

// All views are checked by the caller; their batch stride is 1 (see View). The result must not overlap itself.
template <class T>
void conv_forward(
    const char* op, View<const T> input, Numbers<T> values, Numbers<T> bias, const PackedIndex& index,
    const ConvGeometry& geometry, const ConvOptions& options, View<T> output);

template <class T>
void conv_input_grad(
    const char* op, View<const T> grad_output, Numbers<T> values, const PackedIndex& index, const ConvGeometry& geometry,
    const ConvOptions& options, View<T> grad_input);

// grad_values: nnz numbers, contiguous.
template <class T>
void conv_values_grad(
    const char* op, View<const T> grad_output, View<const T> input, const PackedIndex& index, const ConvGeometry& geometry,
    const ConvOptions& options, T* grad_values);

}  // namespace tost
