// Where the elements of one channel lie, and tensors brought into one layout.
#pragma once

#include <algorithm>
#include <cstdint>

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>

#include "tensor.h"
#include "to_batch_last.h"

namespace tost {

// Channel c of an activation (N, C, ...): `segments` runs of `length` elements, `stride` apart, from c * channel_stride on.
// One run when batch-last, one for each image when contiguous.
struct Channels {
  int64_t count;  // C
  int64_t channel_stride;
  int64_t segments;
  int64_t stride;
  int64_t length;
  int64_t size() const { return segments * length; }
};

inline Channels channels_of(const Tensor& x, Layout layout) {
  const auto sizes = x.sizes();
  int64_t inner = 1;
  for (size_t d = 2; d < sizes.size(); ++d) inner *= sizes[d];
  if (layout == Layout::batch_last) return {sizes[1], inner * sizes[0], 1, 0, inner * sizes[0]};
  return {sizes[1], inner, sizes[0], sizes[1] * inner, inner};
}

// layout_of for any number of dimensions: only 2-D and 4-D tensors have another layout than contiguous.
inline Layout output_layout(const Tensor& x) {
  return x.dim() == 2 || x.dim() == 4 ? layout_of(x) : Layout::contiguous;
}

// The layout to compute in, channel by channel: in channels_last every cache line holds all channels.
inline Layout planar(Layout layout) { return layout == Layout::batch_last ? layout : Layout::contiguous; }

// `x` in `layout`, itself if it is so already.
inline Tensor in_layout(const Tensor& x, Layout layout) {
  if (has_layout(x, layout)) return x;
  if (layout == Layout::batch_last) return to_batch_last(x);
  Tensor y = empty(sizes_of(x), layout, x.scalar_type());
  torch::stable::copy_(y, x);
  return y;
}

// How many channels a thread takes at least, so that none is started for less than it costs.
inline int64_t channel_grain(const Channels& channels) {
  return std::max<int64_t>(1, 32768 / std::max<int64_t>(channels.size(), 1));
}

}  // namespace tost
