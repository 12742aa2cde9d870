// to_batch_last on the CPU: a copy into memory [C][H][W][N] (or [F][B]), in square blocks so that both sides use whole
// cache lines. Schema: tost_kernels/layout.py.

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

// Axes of the input but the batch's, joined where both sides walk them as one, the input's densest one last.
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
  std::stable_sort(axes.begin(), axes.end(), [](const Axis& a, const Axis& b) { return a.from > b.from; });
  return axes;
}

template <class T>
void convert(const Tensor& input, Tensor& output) {
  constexpr int64_t kBlock = 16;
  const T* source = static_cast<const T*>(input.const_data_ptr());
  T* result = static_cast<T*>(output.mutable_data_ptr());
  const int64_t batch = input.size(0), stride_n = input.stride(0);
  const std::vector<Axis> axes = joined_axes(input, output);
  const Axis inner = axes.back();
  const int64_t blocks = (inner.size + kBlock - 1) / kBlock;
  int64_t tasks = blocks;
  for (size_t a = 0; a + 1 < axes.size(); ++a) tasks *= axes[a].size;
  const int64_t grain = std::max<int64_t>(1, 32768 / (kBlock * batch));
  torch::stable::parallel_for(0, tasks, grain, [&](int64_t begin, int64_t end) {
    for (int64_t task = begin; task < end; ++task) {
      int64_t rest = task / blocks;
      const int64_t first = task % blocks * kBlock;
      const T* from = source + first * inner.from;
      T* to = result + first * inner.to;
      for (size_t a = axes.size() - 1; a-- > 0;) {
        from += rest % axes[a].size * axes[a].from;
        to += rest % axes[a].size * axes[a].to;
        rest /= axes[a].size;
      }
      const int64_t count = std::min(kBlock, inner.size - first);
      for (int64_t n0 = 0; n0 < batch; n0 += kBlock) {
        const int64_t n1 = std::min(batch, n0 + kBlock);
        for (int64_t i = 0; i < count; ++i) {
          for (int64_t n = n0; n < n1; ++n) to[i * inner.to + n] = from[i * inner.from + n * stride_n];
        }
      }
    }
  });
}

struct Sixteen {
  uint64_t low, high;
};

Tensor to_batch_last(const Tensor& input) {
  constexpr const char* op = "to_batch_last_cpu";
  check_cpu(op, "input", input);
  TOST_CHECK(
      input.dim() == 2 || input.dim() == 4,
      op, "input: expected shape (N, C, H, W) or (N, F), got ", shape_string(input));
  const auto sizes = input.sizes();
  Tensor output =
      empty(std::vector<int64_t>(sizes.begin(), sizes.end()), Layout::batch_last, input.scalar_type());
  if (input.numel() == 0) return output;
  switch (input.element_size()) {
    case 1: convert<uint8_t>(input, output); break;
    case 2: convert<uint16_t>(input, output); break;
    case 4: convert<uint32_t>(input, output); break;
    case 8: convert<uint64_t>(input, output); break;
    case 16: convert<Sixteen>(input, output); break;
    default: fail(op, "input: expected elements of 1, 2, 4, 8 or 16 bytes, got ", dtype_name(input.scalar_type()));
  }
  return output;
}

}  // namespace

}  // namespace tost

STABLE_TORCH_LIBRARY_IMPL(tost, CPU, m) { m.impl("to_batch_last_cpu", TORCH_BOX(&tost::to_batch_last)); }
