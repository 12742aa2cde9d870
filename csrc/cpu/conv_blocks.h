// Small batches: the kernels take their lanes from the batch, so blocks of an image, each with what its taps read around it, are
// made items of a larger batch first (docs/notes/depthwise.md has the figures).
#pragma once

#include <algorithm>
#include <array>
#include <cstdint>

#include "conv_engine.h"
#include "packed_index.h"
#include "tensor.h"

namespace tost {

// An image of a convolution's result as down x across blocks of height x width pixels; the last ones may stand over.
struct ConvBlocks {
  int64_t down = 1, across = 1;
  int64_t height = 0, width = 0;
  int64_t count() const { return down * across; }
};

// Blocks for a result of n images of h x w pixels: at most 16 lanes, the most of any instruction set.
inline ConvBlocks conv_blocks(const PackedIndex& index, const ConvGeometry& geometry, int64_t n, int64_t h, int64_t w) {
  constexpr int64_t kMostLanes = 16, kSmallestSide = 2, kFewestKept = 1;
  ConvBlocks blocks{1, 1, h, w};
  const bool dense_steps = geometry.stride[0] == 1 && geometry.stride[1] == 1;
  // Few kept weights a channel are less work than the copies.
  if (n < 1 || !dense_steps || index.nnz < kFewestKept * (index.outputs + index.inputs * geometry.groups)) return blocks;
  while (2 * blocks.count() * n <= kMostLanes && std::max(blocks.height, blocks.width) >= 2 * kSmallestSide) {
    (blocks.height > blocks.width ? blocks.down : blocks.across) *= 2;
    blocks.height = (h + blocks.down - 1) / blocks.down;
    blocks.width = (w + blocks.across - 1) / blocks.across;
  }
  return blocks;
}

// How much further than one pixel the taps reach on each axis.
inline std::array<int64_t, 2> reach_of(const PackedIndex& index, const ConvGeometry& geometry) {
  return {(index.kh - 1) * geometry.dilation[0], (index.kw - 1) * geometry.dilation[1]};
}

// Block b of image i becomes item b * n + i, batch-last, with `before` pixels of `whole` above and to the left of the block
// and `around` more pixels than the block's on each axis. What lies outside `whole` is 0.
template <class T>
Tensor cut(
    const View<const T>& whole, const ConvBlocks& blocks, const std::array<int64_t, 2>& before,
    const std::array<int64_t, 2>& around, ScalarType dtype) {
  const int64_t height = blocks.height + around[0], width = blocks.width + around[1];
  Tensor result = empty({blocks.count() * whole.n, whole.c, height, width}, Layout::batch_last, dtype);
  T* data = static_cast<T*>(result.mutable_data_ptr());
  const int64_t lanes = blocks.count() * whole.n;
  torch::stable::parallel_for(0, whole.c * height, 16, [&](int64_t begin, int64_t end) {
    for (int64_t row = begin; row < end; ++row) {
      const T* channel = whole.data + row / height * whole.stride_c;
      for (int64_t block = 0; block < blocks.count(); ++block) {
        T* to = data + row * width * lanes + block * whole.n;
        const int64_t y = block / blocks.across * blocks.height + row % height - before[0];
        const int64_t x0 = block % blocks.across * blocks.width - before[1];
        for (int64_t x = x0; x < x0 + width; ++x, to += lanes) {
          if (y < 0 || y >= whole.h || x < 0 || x >= whole.w) {
            for (int64_t i = 0; i < whole.n; ++i) to[i] = T{};
          } else {
            const T* from = channel + y * whole.stride_h + x * whole.stride_w;
            for (int64_t i = 0; i < whole.n; ++i) to[i] = from[i];
          }
        }
      }
    }
  });
  return result;
}

// The inverse, for blocks without surroundings.
template <class T>
void join(const Tensor& parts, const ConvBlocks& blocks, const View<T>& whole) {
  const View<const T> from_view = view<T>(parts);
  const int64_t lanes = blocks.count() * whole.n;
  torch::stable::parallel_for(0, whole.c * whole.h, 16, [&](int64_t begin, int64_t end) {
    for (int64_t row = begin; row < end; ++row) {
      const int64_t c = row / whole.h, y = row % whole.h;
      const T* from = from_view.data + (c * blocks.height + y % blocks.height) * blocks.width * lanes;
      T* to = whole.data + c * whole.stride_c + y * whole.stride_h;
      for (int64_t x = 0; x < whole.w; ++x, to += whole.stride_w) {
        const int64_t block = y / blocks.height * blocks.across + x / blocks.width;
        const T* pixel = from + x % blocks.width * lanes + block * whole.n;
        for (int64_t i = 0; i < whole.n; ++i) to[i] = pixel[i];
      }
    }
  });
}

}  // namespace tost
