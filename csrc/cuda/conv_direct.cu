// Convolutions on the CUDA cores: exactly one multiply-add a kept weight, image and pixel, float32 sums. Forward and the gradient
// of the input are one kernel, on the two views of the mask.
//
// A block computes a tile of pixels x 128 bytes of images (conv_patch.h) for as many channels of the target as its warps hold sums
// of: each lane 64, for 8 pixels of one row of images that is 8 channels a warp in float32 and 4 in bfloat16. It walks over the
// source in chunks of channels. A chunk's patch comes once from L2, for all of these channels, while the chunk before is worked
// on; chunks of which none of them keeps anything are skipped. Then each warp runs through what its channels keep of the chunk
// (conv_direct_lines.h): a kept weight is one load of its place and value, the same for all lanes, two loads of x of 16 bytes a
// lane, and a multiply-add for each number in them.
//
// Shared memory is the limit: 8 + 1 clocks a kept weight and warp in float32, of which the 8 multiply-adds fill the four
// schedulers for 2; bfloat16 has twice the images in as many bytes, and pays for it by unpacking them. With kRows channels that
// share columns the x of one load serves kRows channels from registers.

#include "conv_direct_lines.h"
#include "conv_direct_tile.h"

namespace tost {
namespace {

constexpr int kMostWarps = 16, kHeldSums = 64;  // of a block, of a lane
constexpr int kEnoughWarps = 6;                // an SM
template <class T, int kRows>
constexpr int kHeldLines = kHeldSums / (kQuads * kImages<T> * kRows);
template <class T, int kRows>
__global__ void __launch_bounds__(kMostWarps * kWarp)
multiply(Patch patch, Lines<kRows> lines, const T* source, const T* bias, T* target, int line_tiles, int held, int stages, bool wide) {
  constexpr int kLines = kHeldLines<T, kRows>;
  // A stage: the patch, then the runs of the block's lines.
  SHARED_DYNAMIC(char, shared);
  const int patch_bytes = patch.stage_bytes(), warp = threadIdx.x / kWarp;
  const int octets = (patch.y.tile * patch.x.tile << patch.row_bits) / kOctet;
  const int most_lines = blockDim.x / kWarp / octets * held, stage_bytes = patch_bytes + most_lines * static_cast<int>(sizeof(Run));
  int* table = reinterpret_cast<int*>(shared + stages * stage_bytes);
  SHARED(PatchTile, tile_of_block, 1);
  if (threadIdx.x == 0) tile_of_block[0] = tile_of<T>(patch, blockIdx.x / line_tiles);
  __syncthreads();
  const PatchTile& tile = tile_of_block[0];
  if (tile.empty) return;
  write_pixel_table(patch, tile, table);
  const int first = blockIdx.x % line_tiles * most_lines, here = std::min(most_lines, lines.count - first);
  const int mine = warp / octets * held, own = std::min(held, here - mine);  // of the block's lines those of the warp
  const Run* runs = lines.runs + int64_t{tile.phase(patch)} * lines.chunks * lines.count + first;

  // One warp looks ahead for the next chunk of which the block keeps anything, and brings its weights to the L1 cache.
  SHARED(int, upcoming, 2);
  SHARED(Run, brought, 2 * kWarp);  // not used: it is the cache that matters
  const auto look = [&](int chunk, int turn) {
    for (; chunk < lines.chunks; ++chunk) {
      bool any = false;
      for (int line = threadIdx.x; line < here; line += kWarp) {
        const Run run = runs[int64_t{chunk} * lines.count + line];
        if (run.begin == run.end) continue;
        any = true;
        copy_async<sizeof(Run)>(brought + threadIdx.x, lines.kept + run.begin);
        copy_async<sizeof(Run)>(brought + kWarp + threadIdx.x, lines.kept + (run.end - 1));
      }
      if (__any_sync(kAllLanes, any)) break;
    }
    if (threadIdx.x == 0) upcoming[turn] = chunk;
  };
  int turn = 0;
  if (warp == 0) look(0, turn);
  const auto stage = [&](char* to) {
    const int chunk = upcoming[turn];
    if (chunk == lines.chunks) return false;
    turn ^= 1;
    const int64_t channel = int64_t{chunk} * patch.chunk;
    const int count = static_cast<int>(std::min<int64_t>(patch.chunk, patch.channels - channel));
    stage_patch(patch, tile, table, source, to, count, [&](int i) { return channel + i; });
    for (int line = threadIdx.x; line < here; line += blockDim.x) {
      copy_async<sizeof(Run)>(reinterpret_cast<Run*>(to + patch_bytes) + line, runs + int64_t{chunk} * lines.count + line);
    }
    if (warp == 0) look(chunk + 1, turn);
    return true;
  };

  const Lane<T> lane(warp % octets);
  const int places[kQuads] = {lane.place(patch, 0), lane.place(patch, 1)};
  Octet<T> sums[kLines][kRows] = {};
  const auto use = [&](const char* from) {
    const Run* of_warp = reinterpret_cast<const Run*>(from + patch_bytes) + mine;
#pragma unroll
    for (int l = 0; l < kLines; ++l) {
      if (l >= own) break;
      const Run run = of_warp[l];
#pragma unroll 2
      for (int k = run.begin; k < run.end; ++k) {
        const Kept<kRows> kept = lines.kept[k];
        Octet<T> x;
        lane.load(x, from, places, kept.place);
#pragma unroll
        for (int r = 0; r < kRows; ++r) for_each(sums[l][r], x, [&](float& sum, float of_x) { sum += kept.weight[r] * of_x; });
      }
    }
  };
  pipeline(shared, stages, stage_bytes, stage, use);

  const LaneTargets<T> targets(patch, tile, lane, wide);
  const int64_t plane = int64_t{patch.y.target} * patch.x.target * patch.batch;
#pragma unroll
  for (int l = 0; l < kLines; ++l) {
#pragma unroll
    for (int r = 0; r < kRows; ++r) {
      if (l >= own) break;
      const int line = first + mine + l;
      const int64_t channel = lines.order ? lines.order[int64_t{line} * kRows + r] : line;
      if (channel < 0) break;
      const float added = bias ? widen(bias[channel]) : 0.f;
      for_each(sums[l][r], sums[l][r], [&](float& sum, float) { sum += added; });
      targets.store(target + channel * plane, sums[l][r]);
    }
  }
}

template <class T, int kRows>
void run(const ConvCall& call, bool transposed, const T* source, const T* values, const T* bias, T* target) {
  const DirectPatch fitted(call, transposed, source, 1, call.options.warps * kHeldLines<T, kRows> * sizeof(Run), 1 << 10);
  const Patch& patch = fitted.patch;
  const Lines<kRows> lines = decode<T, kRows>(call, patch, values);
  // Small layers: fewer lines a warp, until there are enough warps to hide each other's latencies.
  int held = kHeldLines<T, kRows>;
  const auto line_tiles_for = [&](int lines_of_warp) { return ceil_div(lines.count, call.options.warps / fitted.octets * lines_of_warp); };
  while (held > 1 && patch.tiles() * line_tiles_for(held) * call.options.warps < int64_t{kEnoughWarps} * call.processors) held /= 2;
  const int line_tiles = line_tiles_for(held);
  const bool wide = on_16_bytes(patch.batch, sizeof(T), target);
  const Grid grid{{blocks_of(call, patch.tiles() * line_tiles)}, {static_cast<unsigned>(call.options.warps * kWarp)}, fitted.shared_bytes};
  launch(call.op, multiply<T, kRows>, grid, call.stream, patch, lines, source, bias, target, line_tiles, held, fitted.stages, wide);
}

template <class T>
void run(const ConvCall& call, bool transposed, const void* source, const void* values, const void* bias, void* target) {
  const auto with = [&](auto chosen) {
    chosen(
        call, transposed, static_cast<const T*>(source), static_cast<const T*>(values), static_cast<const T*>(bias),
        static_cast<T*>(target));
  };
  switch (call.options.rows) {
    case 1: return with(run<T, 1>);
    case 2: return with(run<T, 2>);
    case 4: return with(run<T, 4>);
  }
  throw std::runtime_error(
      std::string(call.op) + ": plan: expected rows=1, 2 or 4 with algo=direct, got " + std::to_string(call.options.rows));
}

}  // namespace

void direct_multiply(
    const ConvCall& call, bool transposed, const void* source, const void* values, const void* bias, void* target) {
  (call.bf16 ? run<__nv_bfloat16> : run<float>)(call, transposed, source, values, bias, target);
}

}  // namespace tost
