// How the kernels of conv_gather_values_grad_kernels.h are launched.

#include <cmath>
#include <limits>

#include "conv_gather_values_grad_kernels.h"
#include "gather_index.h"
#include "sum_parts.h"

namespace tost {
namespace {

constexpr int kMostSplits = 256;

// How many parts: those with which the device needs the least rounds times steps of a part, or fewer that are nearly as good.
int split_of(int64_t blocks, int64_t places, int64_t steps) {
  int best = 1;
  double least = std::numeric_limits<double>::infinity();
  for (int split = 1; split <= std::min<int64_t>(steps, kMostSplits); ++split) {
    const auto time = static_cast<double>(ceil_div(blocks * split, places) * ceil_div(steps, split));
    if (time < 0.97 * least) best = split, least = time;
  }
  return best;
}

// mean: columns of a segment, in tiles of kProductColumns.
template <class T, int kTiles>
void run(
    const ConvCall& call, const T* grad, const T* x, T* values_grad, ValuesGradArguments w, const GatherView& view, double mean) {
  const int warps = std::min(call.options.warps, kMostWarps<kTiles>);
  w.row_blocks = ceil_div(w.row_tiles, warps);
  w.across = ceil_div(w.row_tiles, w.row_blocks);
  w.shares = std::min(warps / w.across, w.pixels);
  const int64_t dense = std::min<int64_t>(w.patch.chunk, call.shape.channels) * w.taps;
  const int64_t most = std::min(ceil_div(dense, kDepthBf16) * kDepthBf16, view.columns);  // columns of a segment
  w.passes = static_cast<int>(ceil_div(most, kTiles * kProductColumns));
  const int64_t blocks = int64_t{w.chunks} * w.row_blocks;  // of a pass: for the longest list there can be; most end at once
  const auto passes = static_cast<int64_t>(std::ceil(mean / kTiles));
  const int split = call.options.split ? call.options.split : split_of(blocks * passes, call.processors, w.steps);
  w.per_part = ceil_div(w.steps, split);
  w.split = ceil_div(w.steps, w.per_part);  // no part is empty
  const int64_t grid = blocks * w.passes * w.split;
  if (grid > INT32_MAX) throw std::runtime_error(std::string(call.op) + ": more blocks than a grid has");
  const int count = w.split * w.shares;
  auto* parts = static_cast<float*>(call.scratch(static_cast<size_t>(w.size) * count * sizeof(float)));
  const auto threads = static_cast<unsigned>(w.across * w.shares * 32);
  const Grid size{{static_cast<unsigned>(grid)}, {threads}, shared_bytes(w.patch, w.stages)};
  launch(call.op, values_grad_kernel<T, kTiles>, size, call.stream, grad, x, parts, w);
  sum_parts(call.op, parts, count, w.size, view.place, values_grad, call.shape.nnz, call.stream);
}

template <class T>
void run(const ConvCall& call, const T* grad, const T* x, T* values_grad) {
  const ConvShape& s = call.shape;
  if (s.nnz == 0) return;
  const int64_t targets = s.out_height * s.out_width;
  if (s.batch * targets == 0) return sum_parts<float>(call.op, nullptr, 0, 0, nullptr, values_grad, s.nnz, call.stream);
  const GatherView view = gather_view(call, false, sizeof(T) == 4 ? kDepthTf32 : kDepthBf16);
  ValuesGradArguments w{};
  w.patch = fitting_patch(call, false, x, w.stages, shared_bytes);
  w.stage_bytes = static_cast<int>(w.patch.stage_bytes()), w.table_bytes = static_cast<int>(table_bytes(w.patch));
  w.pixels = tile_pixels(w.patch);
  if (w.patch.tiles() > INT32_MAX) throw std::runtime_error(std::string(call.op) + ": more than 2^31 tiles of pixels and images");
  w.steps = static_cast<int>(w.patch.tiles());
  w.order = view.order, w.ptr = view.ptr, w.column = view.column;
  w.taps = s.taps(), w.rows = call.options.rows, w.chunks = static_cast<int>(view.chunks);
  w.row_tiles = static_cast<int>(view.groups) * (w.rows / kProductRows);
  w.size = view.columns * w.rows;
  w.row_size = targets * s.batch;
  w.wide = on_16_bytes(s.batch, sizeof(T), grad);
  // Registers for nearly every segment of a random mask at once: those of more columns take another pass over dY and x.
  const double mean = static_cast<double>(view.columns) / kProductColumns / static_cast<double>(view.groups * view.chunks);
  const auto fits = [&](int tiles) { return mean * 1.2 + 1 <= tiles; };
  (fits(8) ? run<T, 8> : fits(16) ? run<T, 16> : run<T, 24>)(call, grad, x, values_grad, w, view, mean);
}

}  // namespace

void gather_values_grad(const ConvCall& call, const void* grad, const void* x, void* values_grad) {
  const auto of_type = [&]<class T>(T) {
    run(call, static_cast<const T*>(grad), static_cast<const T*>(x), static_cast<T*>(values_grad));
  };
  call.bf16 ? of_type(__nv_bfloat16{}) : of_type(float{});
}

}  // namespace tost
