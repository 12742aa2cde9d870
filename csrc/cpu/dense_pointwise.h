// A convolution with a full 1x1 kernel (a ghost's): a dense matrix product on batch-last memory.
#pragma once

#include <cstdint>

#include "conv_engine.h"
#include "packed_index.h"
#include "tensor.h"

namespace tost {

// Whether the functions below may run it: every weight of a 1x1 kernel kept, one group, no padding. `values` is then the
// dense (O, I) matrix.
inline bool is_dense_pointwise(const PackedIndex& index, const ConvGeometry& geometry) {
  return index.taps() == 1 && index.nnz == index.outputs * index.inputs && geometry.groups == 1 && geometry.padding[0] == 0 &&
         geometry.padding[1] == 0;
}

// As conv_forward, conv_input_grad and conv_values_grad, which they stand in for.
template <class T>
void dense_pointwise(
    View<const T> input, Numbers<T> values, Numbers<T> bias, const ConvGeometry& geometry, View<T> output);

template <class T>
void dense_pointwise_input_grad(
    View<const T> grad_output, Numbers<T> values, const ConvGeometry& geometry, View<T> grad_input);

// grad_values: O * I numbers, contiguous.
template <class T>
void dense_pointwise_values_grad(
    View<const T> grad_output, View<const T> input, const ConvGeometry& geometry, T* grad_values);

}  // namespace tost
