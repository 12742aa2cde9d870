// Copies between layouts, and to_batch_last on the CPU. Schema: tost_kernels/layout.py.
#include "to_batch_last.h"

#include <algorithm>
#include <cstdint>
#include <vector>

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>

#include "../checks.h"
#include "tensor.h"

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

constexpr int64_t kPixels = 64, kBatch = 16;

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

// In blocks that pass through a buffer: both sides then use a cache line as a whole at once. (Batch strides are
// often powers of two, and lines that far apart evict each other from the first cache.)
template <class T>
void copy_blocks(const Tensor& input, Tensor& output) {
  const T* source = static_cast<const T*>(input.const_data_ptr());
  T* result = static_cast<T*>(output.mutable_data_ptr());
  const int64_t batch = input.size(0), from_n = input.stride(0), to_n = output.stride(0);
  const std::vector<Axis> axes = joined_axes(input, output);
  const Axis inner = axes.back();
  const int64_t blocks = (inner.size + kPixels - 1) / kPixels;
  int64_t tasks = blocks;
  for (size_t a = 0; a + 1 < axes.size(); ++a) tasks *= axes[a].size;
  const int64_t grain = std::max<int64_t>(1, 32768 / (kPixels * batch));
  torch::stable::parallel_for(0, tasks, grain, [&](int64_t begin, int64_t end) {
    for (int64_t task = begin; task < end; ++task) {
      int64_t rest = task / blocks;
      const int64_t first = task % blocks * kPixels;
      const T* from = source + first * inner.from;
      T* to = result + first * inner.to;
      for (size_t a = axes.size() - 1; a-- > 0;) {
        from += rest % axes[a].size * axes[a].from;
        to += rest % axes[a].size * axes[a].to;
        rest /= axes[a].size;
      }
      const int64_t count = std::min(kPixels, inner.size - first);
      for (int64_t n0 = 0; n0 < batch; n0 += kBatch) {
        const int64_t n1 = std::min(batch, n0 + kBatch);
        copy_block(from + n0 * from_n, inner.from, from_n, to + n0 * to_n, inner.to, to_n, count, n1 - n0);
      }
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
