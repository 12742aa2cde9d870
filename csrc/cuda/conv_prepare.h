// What each pass of the row groups begins with: the weight's values in the order of the kernel's fragments, zeros between them,
// and where in the patch each column lies. Values change with every step, so this is done anew at every call: one kernel writes
// the zeros and the table, a second one puts each value in its place.
#pragma once

#include "conv_patch.h"
#include "gather_index.h"

namespace tost {

constexpr int kPrepareThreads = 256;

// How the tensor cores want the weights of a k-step of columns and 16 rows (mma.h): four words a lane, loaded as 16 bytes.

// As B of two mma, 8 rows each: the images are A, for then one 8-byte load of two images is half of its registers in their order.
struct Tf32Step {
  using T = float;
  static constexpr int kDepth = kDepthTf32;
  // Which column of the k-step entry i of the table is: a lane reads the two that it needs, t and t + 4, as 8 bytes.
  __host__ __device__ static int column(int i) { return i % 2 * 4 + i / 2; }
  // Where the weight of a column and a row is, among the 16 * kDepth elements of a k-step.
  __host__ __device__ static int place(int k, int row) { return (row % 8 * 4 + k % 4) * 4 + row / 8 * 2 + k / 4; }
  __device__ static float widen(float value) { return value; }
  __device__ static float packed(float value) { return __uint_as_float(to_tf32(value)); }
};

// As A.
struct Bf16Step {
  using T = __nv_bfloat16;
  static constexpr int kDepth = kDepthBf16;
  __host__ __device__ static int column(int i) { return i; }
  __host__ __device__ static int place(int k, int row) {
    return ((row % 8 * 4 + k % 8 / 2) * 4 + row / 8 + k / 8 * 2) * 2 + k % 2;
  }
  __device__ static float widen(__nv_bfloat16 value) { return __bfloat162float(value); }
  __device__ static __nv_bfloat16 packed(__nv_bfloat16 value) { return value; }
};

// What a kernel reads of the weight: `packed`, for each k-step and each 16 rows of the group 32 lanes of 16 bytes; `table`, the
// byte offsets of the columns. Both have one k-step more than there are columns, so that a lane may load ahead of the last.
struct PreparedWeight {
  uint4* packed;
  int32_t* table;
};

template <class Step>
__global__ void __launch_bounds__(kPrepareThreads)
clear_and_tabulate(Patch patch, GatherView view, PreparedWeight to, int64_t words) {
  const int64_t i = int64_t{blockIdx.x} * kPrepareThreads + threadIdx.x;
  if (i < words) to.packed[i] = make_uint4(0, 0, 0, 0);
  if (i < view.columns) {
    const int taps = patch.y.kernel * patch.x.kernel;
    const int at = static_cast<int>(i % Step::kDepth);
    const int column = view.column[i - at + Step::column(at)];
    to.table[i] = patch.column_place(column / taps % patch.chunk, column % taps);
  }
}

template <class Step>
__global__ void __launch_bounds__(kPrepareThreads)
put_values(GatherView view, const typename Step::T* values, typename Step::T* packed, int64_t nnz, int rows) {
  const int64_t i = int64_t{blockIdx.x} * kPrepareThreads + threadIdx.x;
  if (i >= nnz) return;
  const int32_t place = view.place[i];
  const int slot = place % rows, column = place / rows, k = column % Step::kDepth;
  const int64_t step = int64_t{column / Step::kDepth} * (rows / 16) + slot / 16;
  packed[step * (16 * Step::kDepth) + Step::place(k, slot % 16)] = Step::packed(values[i]);
}

// Host.
template <class Step>
PreparedWeight prepare(const ConvCall& call, const Patch& patch, const GatherView& view, const void* values) {
  using T = typename Step::T;
  const int rows = call.options.rows;
  const int64_t columns = view.columns + Step::kDepth, words = columns * rows * static_cast<int64_t>(sizeof(T)) / 16;
  auto* const memory = static_cast<uint4*>(call.scratch(static_cast<size_t>(words * 16 + columns * 4)));
  const PreparedWeight to{memory, reinterpret_cast<int32_t*>(memory + words)};
  const auto blocks = [](int64_t count) {
    return Grid{{static_cast<unsigned>(ceil_div(count, kPrepareThreads))}, {kPrepareThreads}};
  };
  launch(call.op, clear_and_tabulate<Step>, blocks(words), call.stream, patch, view, to, words);
  if (call.shape.nnz > 0) {
    launch(
        call.op, put_values<Step>, blocks(call.shape.nnz), call.stream, view, static_cast<const T*>(values),
        reinterpret_cast<T*>(to.packed), call.shape.nnz, rows);
  }
  return to;
}

}  // namespace tost
