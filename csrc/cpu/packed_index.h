// Reads and checks the packed index of a Pattern (specified in tost_kernels/packed_index.py).
#pragma once

#include <algorithm>
#include <cstdint>
#include <limits>
#include <vector>

#include "../checks.h"

namespace tost {

// One way to walk the kept weights: by output channel (forward) or by input channel (transposed).
struct IndexView {
  int64_t rows;
  int64_t channels;         // what `col` counts: col = channel * taps + tap
  int64_t blocks;           // blocks of `block` channels in a row
  const int32_t* ptr;       // rows * blocks + 1
  const int32_t* col;       // nnz
  const int32_t* position;  // nnz: where the weight is in `values`; null if in this very order
};

struct PackedIndex {
  int64_t outputs, inputs, kh, kw, nnz, block;
  int64_t identity;  // no two patterns of a process have the same; 0: unknown
  IndexView forward, transposed;
  int64_t taps() const { return kh * kw; }
};

// weight_shape: (O, I, kh, kw), or (O, I) of a linear layer. Checks all that can be checked in constant time; the
// entries themselves are checked by build_stream, which reads them anyway.
inline PackedIndex read_index(
    const char* op, const Tensor& index, const std::vector<int64_t>& weight_shape, size_t weight_dims, int64_t nnz) {
  constexpr int64_t kHeader = 16;
  check_cpu(op, "index", index);
  check_dim(op, "index", index, 1);
  check_dtype(op, "index", index, ScalarType::Int);
  TOST_CHECK(index.is_contiguous(), op, "index: expected a contiguous tensor, got stride ", index.stride(0));
  TOST_CHECK(
      weight_shape.size() == weight_dims,
      op, "weight_shape: expected ", weight_dims, " numbers, got ", shape_string(weight_shape));
  const int64_t length = index.numel();
  TOST_CHECK(length >= kHeader, op, "index: expected a packed Pattern index, got ", length, " numbers");
  const int32_t* data = static_cast<const int32_t*>(index.const_data_ptr());
  TOST_CHECK(data[0] == 1, op, "index: expected version 1, got ", data[0]);

  const std::vector<int64_t> shape{data[1], data[2], data[3], data[4]};
  std::vector<int64_t> wanted = weight_shape;
  wanted.resize(4, 1);
  TOST_CHECK(
      shape == wanted,
      op, "index: expected the index of a weight of shape ", shape_string(weight_shape), ", got one of shape ",
      shape_string(shape));
  PackedIndex packed{shape[0], shape[1], shape[2], shape[3], data[5], data[6], data[15], {}, {}};
  TOST_CHECK(
      packed.outputs > 0 && packed.inputs > 0 && packed.kh > 0 && packed.kw > 0 && packed.block > 0 && packed.nnz >= 0,
      op, "index: damaged header: weight shape ", shape_string(shape), ", nnz ", packed.nnz, ", block ", packed.block);
  // Columns of the index, and what is computed from them, are 32 bits.
  constexpr int64_t kMost = std::numeric_limits<int32_t>::max();
  TOST_CHECK(
      packed.taps() <= kMost && std::max(packed.outputs, packed.inputs) * packed.taps() <= kMost,
      op, "weight_shape: expected max(O, I) * kh * kw below 2^31, got ", shape_string(weight_shape));
  TOST_CHECK(packed.nnz == nnz, op, "values: expected ", packed.nnz, " numbers, one a kept weight, got ", nnz);

  const int64_t blocks = (packed.inputs + packed.block - 1) / packed.block;
  const int64_t t_blocks = (packed.outputs + packed.block - 1) / packed.block;
  const int64_t ptr = kHeader;
  const int64_t col = ptr + packed.outputs * blocks + 1;
  const int64_t t_ptr = col + packed.nnz;
  const int64_t t_col = t_ptr + packed.inputs * t_blocks + 1;
  const int64_t t_perm = t_col + packed.nnz;
  const int64_t end = t_perm + packed.nnz;
  TOST_CHECK(
      data[7] == blocks && data[8] == t_blocks && data[9] == ptr && data[10] == col && data[11] == t_ptr &&
          data[12] == t_col && data[13] == t_perm && data[14] == end && length == end,
      op, "index: damaged header: expected ", end, " numbers for this weight shape and nnz, got ", length);
  packed.forward = {packed.outputs, packed.inputs, blocks, data + ptr, data + col, nullptr};
  packed.transposed = {packed.inputs, packed.outputs, t_blocks, data + t_ptr, data + t_col, data + t_perm};
  return packed;
}

}  // namespace tost
