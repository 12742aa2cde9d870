// Checks and views that masked_conv2d and masked_linear share at the op boundary.
#pragma once

#include <cstdint>
#include <vector>

#include "../checks.h"
#include "conv_engine.h"

namespace tost {

inline std::vector<int64_t> sizes_of(const Tensor& tensor) {
  const auto sizes = tensor.sizes();
  return {sizes.begin(), sizes.end()};
}

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
