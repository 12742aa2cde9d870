// How the kernels of conv_gather_values_grad_kernels.h are launched.

#include "conv_gather_values_grad_kernels.h"
#include "gather_index.h"
#include "sum_parts.h"

namespace tost {
namespace {

constexpr int kMostSplits = 256;

// The fewest parts with which at most a tenth of the device waits for the rest, or else the best.
int split_of(int64_t blocks, int64_t places, int64_t most) {
  int best = 1;
  double filled = 0;
  for (int split = 1; split <= most; ++split) {
    const int64_t all = blocks * split, rounds = (all + places - 1) / places;
    const double fill = static_cast<double>(all) / static_cast<double>(rounds * places);
    if (fill > filled + 1e-9) best = split, filled = fill;
    if (filled >= 0.9) break;
  }
  return best;
}

template <class T, int kTiles>
void run(const ConvCall& call, const T* grad, const T* x, T* values_grad, ValuesGradArguments w, const int32_t* place) {
  const ConvShape& s = call.shape;
  const int warps = std::min(call.options.warps, kMostWarps<kTiles>);
  w.row_blocks = ceil_divide(w.row_tiles, warps);
  w.across = ceil_divide(w.row_tiles, w.row_blocks);
  w.shares = std::min(warps / w.across, tile_pixels(w.patch));
  const int64_t columns = std::min<int64_t>(std::min<int64_t>(w.patch.chunk, s.channels) * w.taps + 15, w.size / w.rows);
  w.passes = static_cast<int>((columns + kTiles * kColumns - 1) / (kTiles * kColumns));
  const int64_t blocks = int64_t{w.chunks} * w.row_blocks, most = std::min(w.steps, kMostSplits);
  w.split = call.options.split ? static_cast<int>(std::min<int64_t>(call.options.split, most))
                               : split_of(blocks, call.processors, most);
  w.per_part = ceil_divide(w.steps, w.split);
  w.split = ceil_divide(w.steps, w.per_part);  // no part is empty
  const int count = w.split * w.shares;
  auto* parts = static_cast<float*>(call.scratch(static_cast<size_t>(w.size) * count * sizeof(float)));
  const int64_t grid = blocks * w.passes * w.split;
  if (grid > INT32_MAX) throw std::runtime_error(std::string(call.op) + ": values_grad.split: too many blocks, " + std::to_string(grid));
  const auto threads = static_cast<unsigned>(w.across * w.shares * 32);
  launch(call.op, values_grad_kernel<T, kTiles>, {{static_cast<unsigned>(grid)}, {threads}, shared_bytes(w.patch, w.stages)}, call.stream, grad, x, parts, w);
  sum_parts(call.op, parts, count, w.size, place, values_grad, s.nnz, call.stream);
}

template <class T>
void run(const ConvCall& call, const T* grad, const T* x, T* values_grad) {
  const ConvShape& s = call.shape;
  const ConvOptions& o = call.options;
  if (s.nnz == 0) return;
  const int64_t targets = s.out_height * s.out_width;
  if (s.batch * targets == 0) return sum_parts<float>(call.op, nullptr, 0, 0, nullptr, values_grad, s.nnz, call.stream);
  const GatherView at = gather_view(call, false, sizeof(T) == 4 ? kDepthTf32 : kDepthBf16);
  ValuesGradArguments w{};
  w.patch = fitting_patch(call, false, x, w.stages, shared_bytes);
  w.order = at.order, w.ptr = at.ptr, w.column = at.column;
  w.taps = s.taps(), w.rows = o.rows, w.chunks = static_cast<int>(at.chunks);
  w.row_tiles = static_cast<int>(at.groups) * (o.rows / kRows);
  w.steps = static_cast<int>(w.patch.tiles());
  w.size = at.columns * o.rows;
  w.row_size = targets * s.batch;
  w.wide = s.batch * static_cast<int64_t>(sizeof(T)) % 16 == 0 && reinterpret_cast<uintptr_t>(grad) % 16 == 0;
  // Registers for the columns of a mean segment, and some more, so that hardly any block has to come twice.
  const double mean = static_cast<double>(at.columns) / kColumns / (static_cast<double>(at.groups) * at.chunks);
  if (mean <= 7) {
    run<T, 8>(call, grad, x, values_grad, w, at.place);
  } else if (mean <= 14) {
    run<T, 16>(call, grad, x, values_grad, w, at.place);
  } else {
    run<T, 24>(call, grad, x, values_grad, w, at.place);
  }
}

}  // namespace

void gather_values_grad(const ConvCall& call, const void* grad, const void* x, void* values_grad) {
  if (call.bf16) {
    run(call, static_cast<const __nv_bfloat16*>(grad), static_cast<const __nv_bfloat16*>(x), static_cast<__nv_bfloat16*>(values_grad));
  } else {
    run(call, static_cast<const float*>(grad), static_cast<const float*>(x), static_cast<float*>(values_grad));
  }
}

}  // namespace tost
