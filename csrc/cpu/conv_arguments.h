// Checks and views that masked_conv2d and masked_linear share at the op boundary.
#pragma once

#include <cstdint>
#include <vector>

#include "../checks.h"
#include "conv_engine.h"
#include "to_batch_last.h"

namespace tost {

inline void check_activation(const char* op, const char* name, const Tensor& tensor, int64_t dim) {
  check_cpu(op, name, tensor);
  check_kernel_dtype(op, name, tensor);
  check_dim(op, name, tensor, dim);
}

// values, bias: 1-D, of the activation's dtype.
inline void check_numbers(const char* op, const char* name, const Tensor& tensor, const char* like, const Tensor& other) {
  check_cpu(op, name, tensor);
  check_dim(op, name, tensor, 1);
  check_same_dtype(op, name, tensor, like, other);
}

template <class T>
inline Numbers<T> numbers(const Tensor& tensor) {
  return {static_cast<const T*>(tensor.const_data_ptr()), tensor.stride(0)};
}

// The kernels take SIMD lanes from the batch. Gathering and scattering lanes tile by tile was slower for linear layers and no
// faster for convolutions (docs/notes/cpu-masked-conv2d.md), so other layouts are converted as a whole first.
inline bool lanes_are_dense(const Tensor& tensor) { return tensor.size(0) == 1 || tensor.stride(0) == 1; }

inline Tensor with_dense_lanes(const Tensor& tensor) { return lanes_are_dense(tensor) ? tensor : to_batch_last(tensor); }

// Calls compute(result) with a new tensor that is batch-last, or is the one to return if its lanes are dense.
template <class Compute>
inline Tensor compute_in_layout(
    const char* op, const std::vector<int64_t>& shape, Layout layout, ScalarType dtype, const Compute& compute) {
  Tensor result = empty(shape, layout, dtype);
  if (lanes_are_dense(result)) {
    compute(result);
    return result;
  }
  Tensor batch_last = empty(shape, Layout::batch_last, dtype);
  compute(batch_last);
  copy_layout(op, batch_last, result);
  return result;
}

// Calls run(T{}) with T = float or bf16.
template <class Run>
inline void for_dtype(const Tensor& tensor, const Run& run) {
  if (tensor.scalar_type() == ScalarType::Float) {
    run(float{});
  } else {
    run(bf16{});
  }
}

}  // namespace tost
