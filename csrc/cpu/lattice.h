// The geometry of a convolution, seen from its result, so that one kernel serves forward and input gradient.
//
// On each axis the result's pixels are  out_step * y + out_phase  (y = 0 .. count-1), and the source pixel that tap t
// reads for y is  src_step * y + shift(t).
//   forward            out_step 1, one phase;          src_step = stride;  shift = t * dilation - padding
//   input gradient     out_step = stride, one Axis a phase; src_step 1;    shift = (phase + padding - t * dilation) / stride
//                      for the taps that hit this phase (the division has no remainder)
//
// A tile of the source is copied into scratch so that neighbouring y are neighbours there whatever src_step is: taps
// whose shifts are congruent modulo src_step share a "plane", in which y + 1 is one step further. A dilation wider than
// the tile would leave holes in a plane, so such taps get planes of their own.
//
// On a small image the tile is the whole axis. Where no tap reaches further than one pixel, the kernels are compiled for each
// shift -1, 0, +1 ("classes"): products with the zero padding, 3 of 10 on a 4x4 image, are left out, and so is the halo.
#pragma once

#include <algorithm>
#include <cstdint>
#include <utility>
#include <vector>

namespace tost {

struct Axis {
  int64_t out_step = 1, out_phase = 0, count = 0;
  int64_t src_step = 1, src_size = 0;
  int64_t tile = 1;      // result pixels of a tile
  int64_t tiles = 0;
  int64_t planes = 1;
  int64_t extent = 1;    // elements of a plane: tile + the largest offset of a tap
  // Element e of plane p, for a tile that starts at y0, is source pixel src_step * (y0 + e) + start[p].
  std::vector<int64_t> start;
  // For each tap of the kernel: its plane (-1: it never meets this phase), its offset there, and its class.
  std::vector<int64_t> tap_plane, tap_offset, tap_class;
  int64_t classes = 1;   // 3: by shift
};

namespace detail {

inline void finish_axis(Axis& axis, std::vector<std::pair<int64_t, int64_t>> shifts, int64_t taps) {
  const int64_t step = axis.src_step;
  const auto phase = [step](int64_t shift) { return ((shift % step) + step) % step; };
  std::sort(shifts.begin(), shifts.end(), [&](const auto& a, const auto& b) {
    return phase(a.first) != phase(b.first) ? phase(a.first) < phase(b.first) : a.first < b.first;
  });
  axis.tap_plane.assign(taps, -1);
  axis.tap_offset.assign(taps, 0);
  axis.tap_class.assign(taps, 0);
  axis.start.clear();
  int64_t last = 0, largest = 0;
  for (const auto& [shift, tap] : shifts) {
    const bool same_plane =
        !axis.start.empty() && phase(axis.start.back()) == phase(shift) && (shift - last) / step <= axis.tile;
    if (!same_plane) axis.start.push_back(shift);
    last = shift;
    axis.tap_plane[tap] = static_cast<int64_t>(axis.start.size()) - 1;
    axis.tap_offset[tap] = (shift - axis.start.back()) / step;
    largest = std::max(largest, axis.tap_offset[tap]);
  }
  axis.planes = static_cast<int64_t>(axis.start.size());
  axis.extent = axis.tile + largest;
  axis.tiles = (axis.count + axis.tile - 1) / axis.tile;
}

}  // namespace detail

// The axis without halo, its taps classed by their shift. Needs the conditions of shifts_known (conv_plan.h).
inline void class_by_shift(Axis& axis) {
  for (size_t t = 0; t < axis.tap_offset.size(); ++t) axis.tap_class[t] = axis.start[0] + axis.tap_offset[t] + 1;
  axis.tap_offset.assign(axis.tap_offset.size(), 0);
  axis.start = {0};
  axis.extent = axis.tile;
  axis.classes = 3;
}

inline Axis forward_axis(
    int64_t out_size, int64_t src_size, int64_t taps, int64_t stride, int64_t padding, int64_t dilation, int64_t tile) {
  Axis axis;
  axis.count = out_size;
  axis.src_step = stride;
  axis.src_size = src_size;
  axis.tile = tile;
  std::vector<std::pair<int64_t, int64_t>> shifts;
  for (int64_t t = 0; t < taps; ++t) shifts.emplace_back(t * dilation - padding, t);
  detail::finish_axis(axis, shifts, taps);
  return axis;
}

// Result: the gradient of the input, `out_size` pixels; source: the gradient of the output, `src_size` pixels.
inline Axis input_grad_axis(
    int64_t out_size, int64_t src_size, int64_t taps, int64_t stride, int64_t padding, int64_t dilation, int64_t tile,
    int64_t phase) {
  Axis axis;
  axis.out_step = stride;
  axis.out_phase = phase;
  axis.count = out_size > phase ? (out_size - phase + stride - 1) / stride : 0;
  axis.src_size = src_size;
  axis.tile = tile;
  std::vector<std::pair<int64_t, int64_t>> shifts;
  for (int64_t t = 0; t < taps; ++t) {
    const int64_t shift = phase + padding - t * dilation;
    if (shift % stride == 0) shifts.emplace_back(shift / stride, t);
  }
  detail::finish_axis(axis, shifts, taps);
  return axis;
}

}  // namespace tost
