// Copies between layouts, and to_batch_last on the CPU. Schema: tost_kernels/layout.py.
#include "to_batch_last.h"

#include <algorithm>
#include <cstdint>
#include <vector>

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>

#include "../checks.h"
#include "isa.h"
#include "scratch.h"
#include "tensor.h"

#define TOST_KERNELS "transpose_kernels.h"
#include "per_isa.h"

namespace tost {

namespace {

struct Axis {
  int64_t size, from, to;  // elements, and elements from one to the next in input and output
};

// Axes of the input but the batch's, joined where both sides walk them as one. The last one is the densest of the side
// that is not batch-last, so that it uses whole lines as well.
std::vector<Axis> joined_axes(const Tensor& input, const Tensor& output) {
  std::vector<Axis> axes;
  for (int64_t d = 1; d < input.dim(); ++d) {
    const Axis axis{input.size(d), input.stride(d), output.stride(d)};
    if (axis.size == 1) continue;
    if (!axes.empty() && axes.back().from == axis.size * axis.from && axes.back().to == axis.size * axis.to) {
      axes.back() = {axes.back().size * axis.size, axis.from, axis.to};
    } else {
      axes.push_back(axis);
    }
  }
  if (axes.empty()) axes.push_back({1, 0, 0});
  const bool by_input = input.stride(0) != 1;
  std::stable_sort(axes.begin(), axes.end(), [=](const Axis& a, const Axis& b) {
    return by_input ? a.from > b.from : a.to > b.to;
  });
  return axes;
}

constexpr int64_t kPixels = 64, kBatch = 16;  // of a block in a buffer
constexpr int64_t kChunk = 256;  // elements of the inner axis a task takes

template <class T>
inline void copy_block(
    const T* from, int64_t from_i, int64_t from_n, T* to, int64_t to_i, int64_t to_n, int64_t count, int64_t batch) {
  T buffer[kPixels][kBatch];
  if (from_n == 1) {
    for (int64_t i = 0; i < count; ++i) {
      for (int64_t n = 0; n < batch; ++n) buffer[i][n] = from[i * from_i + n];
    }
  } else {
    for (int64_t n = 0; n < batch; ++n) {
      for (int64_t i = 0; i < count; ++i) buffer[i][n] = from[i * from_i + n * from_n];
    }
  }
  if (to_n == 1) {
    for (int64_t i = 0; i < count; ++i) {
      for (int64_t n = 0; n < batch; ++n) to[i * to_i + n] = buffer[i][n];
    }
  } else {
    for (int64_t n = 0; n < batch; ++n) {
      for (int64_t i = 0; i < count; ++i) to[i * to_i + n * to_n] = buffer[i][n];
    }
  }
}

template <class T>
inline void copy_edge(
    const T* from, int64_t from_i, int64_t from_n, T* to, int64_t to_i, int64_t to_n, int64_t count, int64_t batch) {
  for (int64_t i0 = 0; i0 < count; i0 += kPixels) {
    for (int64_t n0 = 0; n0 < batch; n0 += kBatch) {
      copy_block(
          from + i0 * from_i + n0 * from_n, from_i, from_n, to + i0 * to_i + n0 * to_n, to_i, to_n,
          std::min(kPixels, count - i0), std::min(kBatch, batch - n0));
    }
  }
}

// One task of `copy_blocks`: `count` elements of the inner axis, the whole batch. Squares of vectors are transposed in registers
// where the elements have 4 bytes and each side has stride 1 along one of the two axes; the rest passes through a buffer.
template <class T>
void copy_task(
    const T* from, int64_t from_i, int64_t from_n, T* to, int64_t to_i, int64_t to_n, int64_t count, int64_t batch, bool streaming) {
  int64_t whole_count = 0, whole_batch = 0;
  if constexpr (sizeof(T) == sizeof(float)) {
    const bool into = from_i == 1 && to_n == 1, out_of = from_n == 1 && to_i == 1;
    if (into || out_of) {
      const int64_t square = TOST_PER_ISA(square)();
      whole_count = count / square * square;
      whole_batch = batch / square * square;
      float* buffer = thread_scratch((whole_batch + square) * (whole_count + square));
      const float* source = reinterpret_cast<const float*>(from);
      float* result = reinterpret_cast<float*>(to);
      if (into) {
        TOST_PER_ISA(transpose_near)(source, from_n, result, to_i, whole_batch, whole_count, buffer, streaming);
      } else {
        TOST_PER_ISA(transpose_far)(source, from_i, result, to_n, whole_count, whole_batch, buffer, streaming);
      }
    }
  }
  if (whole_batch < batch) {
    copy_edge(
        from + whole_batch * from_n, from_i, from_n, to + whole_batch * to_n, to_i, to_n, whole_count, batch - whole_batch);
  }
  if (whole_count < count) {
    copy_edge(from + whole_count * from_i, from_i, from_n, to + whole_count * to_i, to_i, to_n, count - whole_count, batch);
  }
}

// In blocks, so that both sides use a cache line as a whole at once. (Batch strides are often powers of two, and lines that far
// apart evict each other from the first cache.)
template <class T>
void copy_blocks(const Tensor& input, Tensor& output) {
  const T* source = static_cast<const T*>(input.const_data_ptr());
  T* result = static_cast<T*>(output.mutable_data_ptr());
  const int64_t batch = input.size(0), from_n = input.stride(0), to_n = output.stride(0);
  const std::vector<Axis> axes = joined_axes(input, output);
  const Axis inner = axes.back();
  const int64_t blocks = (inner.size + kChunk - 1) / kChunk;
  int64_t tasks = blocks;
  for (size_t a = 0; a + 1 < axes.size(); ++a) tasks *= axes[a].size;
  const bool streaming = past_the_caches(output);
  const int64_t grain = std::max<int64_t>(1, 32768 / (kChunk * batch));
  torch::stable::parallel_for(0, tasks, grain, [&](int64_t begin, int64_t end) {
    for (int64_t task = begin; task < end; ++task) {
      int64_t rest = task / blocks;
      const int64_t first = task % blocks * kChunk;
      const T* from = source + first * inner.from;
      T* to = result + first * inner.to;
      for (size_t a = axes.size() - 1; a-- > 0;) {
        from += rest % axes[a].size * axes[a].from;
        to += rest % axes[a].size * axes[a].to;
        rest /= axes[a].size;
      }
      const int64_t count = std::min(kChunk, inner.size - first);
      copy_task(from, inner.from, from_n, to, inner.to, to_n, count, batch, streaming);
    }
  });
}

struct Sixteen {
  uint64_t low, high;
};

}  // namespace

void copy_layout(const char* op, const Tensor& input, Tensor& output) {
  if (input.numel() == 0) return;
  switch (input.element_size()) {
    case 1: return copy_blocks<uint8_t>(input, output);
    case 2: return copy_blocks<uint16_t>(input, output);
    case 4: return copy_blocks<uint32_t>(input, output);
    case 8: return copy_blocks<uint64_t>(input, output);
    case 16: return copy_blocks<Sixteen>(input, output);
    default: fail(op, "input: expected elements of 1, 2, 4, 8 or 16 bytes, got ", dtype_name(input.scalar_type()));
  }
}

Tensor to_batch_last(const Tensor& input) {
  constexpr const char* op = "to_batch_last_cpu";
  check_cpu(op, "input", input);
  TOST_CHECK(
      input.dim() == 2 || input.dim() == 4,
      op, "input: expected shape (N, C, H, W) or (N, F), got ", shape_string(input));
  const auto sizes = input.sizes();
  Tensor output = empty(std::vector<int64_t>(sizes.begin(), sizes.end()), Layout::batch_last, input.scalar_type());
  copy_layout(op, input, output);
  return output;
}

}  // namespace tost

STABLE_TORCH_LIBRARY_IMPL(tost, CPU, m) { m.impl("to_batch_last_cpu", TORCH_BOX(&tost::to_batch_last)); }
