// Errors of the compiled ops: every message names the op, the tensor, what was expected and what came.
//
// They are thrown as std::runtime_error, which the dispatcher hands to Python as RuntimeError. STD_TORCH_CHECK is not
// used because it prepends the source path of the machine that built the library.
#pragma once

#include <cstdint>
#include <sstream>
#include <stdexcept>
#include <string>
#include <vector>

#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>

namespace tost {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

// Throws "<op>: <parts...>".
template <class... Parts>
[[noreturn]] inline void fail(const char* op, const Parts&... parts) {
  std::ostringstream message;
  message << op << ": ";
  ((message << parts), ...);
  throw std::runtime_error(message.str());
}

#define TOST_CHECK(condition, op, ...)                 \
  do {                                                 \
    if (__builtin_expect(!(condition), 0)) {           \
      ::tost::fail(op, __VA_ARGS__);                   \
    }                                                  \
  } while (false)

inline std::string dtype_name(ScalarType dtype) {
  switch (dtype) {
    case ScalarType::Float: return "float32";
    case ScalarType::BFloat16: return "bfloat16";
    case ScalarType::Half: return "float16";
    case ScalarType::Double: return "float64";
    case ScalarType::Bool: return "bool";
    case ScalarType::Byte: return "uint8";
    case ScalarType::Char: return "int8";
    case ScalarType::Short: return "int16";
    case ScalarType::Int: return "int32";
    case ScalarType::Long: return "int64";
    default: return torch::headeronly::toString(dtype);
  }
}

template <class Sizes>
inline std::string shape_string(const Sizes& sizes) {
  std::ostringstream text;
  text << "(";
  for (size_t d = 0; d < sizes.size(); ++d) text << (d ? ", " : "") << sizes[d];
  text << ")";
  return text.str();
}

inline std::string shape_string(const Tensor& tensor) { return shape_string(tensor.sizes()); }

inline void check_dim(const char* op, const char* name, const Tensor& tensor, int64_t dim) {
  TOST_CHECK(tensor.dim() == dim, op, name, ": expected ", dim, " dimensions, got shape ", shape_string(tensor));
}

inline void check_shape(const char* op, const char* name, const Tensor& tensor, const std::vector<int64_t>& shape) {
  bool same = tensor.dim() == static_cast<int64_t>(shape.size());
  for (size_t d = 0; same && d < shape.size(); ++d) same = tensor.size(static_cast<int64_t>(d)) == shape[d];
  TOST_CHECK(same, op, name, ": expected shape ", shape_string(shape), ", got ", shape_string(tensor));
}

// float32 or bfloat16: what the kernels store. (They always accumulate in float32.)
inline void check_kernel_dtype(const char* op, const char* name, const Tensor& tensor) {
  const ScalarType dtype = tensor.scalar_type();
  TOST_CHECK(
      dtype == ScalarType::Float || dtype == ScalarType::BFloat16,
      op, name, ": expected float32 or bfloat16, got ", dtype_name(dtype));
}

inline void check_dtype(const char* op, const char* name, const Tensor& tensor, ScalarType expected) {
  TOST_CHECK(
      tensor.scalar_type() == expected,
      op, name, ": expected ", dtype_name(expected), ", got ", dtype_name(tensor.scalar_type()));
}

inline void check_same_dtype(
    const char* op, const char* name, const Tensor& tensor, const char* other_name, const Tensor& other) {
  TOST_CHECK(
      tensor.scalar_type() == other.scalar_type(),
      op, name, ": expected the dtype of ", other_name, " (", dtype_name(other.scalar_type()), "), got ",
      dtype_name(tensor.scalar_type()));
}

inline void check_cpu(const char* op, const char* name, const Tensor& tensor) {
  TOST_CHECK(tensor.is_cpu(), op, name, ": expected a CPU tensor, got one on another device");
}

}  // namespace tost
