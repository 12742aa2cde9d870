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

constexpr int kHeldSums = 64;  // of a lane
template <class T, int kRows>
constexpr int kHeldLines = kHeldSums / (kQuads * kImages<T> * kRows);

template <class T, int kRows>
__global__ void __launch_bounds__(16 * kWarp)
multiply(Patch patch, Lines<kRows> lines, const T* source, const T* bias, T* target, int line_tiles, int stages, bool wide) {
  constexpr int kLines = kHeldLines<T, kRows>;
  SHARED_DYNAMIC(char, shared);
  int* table = reinterpret_cast<int*>(shared + stages * patch.stage_bytes());
  const PatchTile tile = tile_of<T>(patch, blockIdx.x / line_tiles);
  if (tile.empty) return;
  write_pixel_table(patch, tile, table);
  __syncthreads();

  const int octets = (patch.y.tile * patch.x.tile << patch.row_bits) / kOctet;
  const int warp = threadIdx.x / kWarp, lane_of_warp = threadIdx.x % kWarp;
  const int block_lines = blockDim.x / kWarp / octets * kLines, first = blockIdx.x % line_tiles * block_lines;
  const int last = std::min(first + block_lines, lines.count), mine = first + warp / octets * kLines;
  const Run* runs = lines.runs + int64_t{tile.phase(patch)} * lines.chunks * lines.count;

  // The first chunk from `chunk` on of which the block keeps anything.
  const auto next_kept = [&](int chunk) {
    for (; chunk < lines.chunks; ++chunk) {
      bool any = false;
      for (int line = first + lane_of_warp; line < last; line += kWarp) {
        const Run run = runs[int64_t{chunk} * lines.count + line];
        any |= run.begin < run.end;
      }
      if (__any_sync(kAllLanes, any)) break;
    }
    return chunk;
  };

  int staged = next_kept(0), to = 0;
  const auto stage_next = [&] {
    if (staged < lines.chunks) {
      const int64_t channel = int64_t{staged} * patch.chunk;
      const int count = static_cast<int>(std::min<int64_t>(patch.chunk, patch.channels - channel));
      stage_patch(patch, tile, table, source, shared + to * patch.stage_bytes(), count, [&](int i) { return channel + i; });
      staged = next_kept(staged + 1);
      to = to + 1 == stages ? 0 : to + 1;
    }
    commit_copies();
  };

  const Lane<T> lane(warp % octets);
  const int places[kQuads] = {lane.place(patch, 0), lane.place(patch, 1)};
  Octet<T> sums[kLines][kRows] = {};
  for (int s = 1; s < stages; ++s) stage_next();
  int from = 0;
  for (int chunk = next_kept(0); chunk < lines.chunks; chunk = next_kept(chunk + 1)) {
    if (stages == 1) {
      __syncthreads();
      stage_next();
    }
    wait_for_all_but(std::max(stages - 2, 0));
    __syncthreads();  // this chunk is there, and nobody reads the one before any more
    if (stages > 1) stage_next();

    const char* stage = shared + from * patch.stage_bytes();
    from = from + 1 == stages ? 0 : from + 1;
    Run of_lane{0, 0};
    if (lane_of_warp < kLines && mine + lane_of_warp < lines.count) {
      of_lane = runs[int64_t{chunk} * lines.count + mine + lane_of_warp];
    }
#pragma unroll
    for (int l = 0; l < kLines; ++l) {
      const int begin = __shfl_sync(kAllLanes, of_lane.begin, l), end = __shfl_sync(kAllLanes, of_lane.end, l);
#pragma unroll 2
      for (int k = begin; k < end; ++k) {
        const Kept<kRows> kept = lines.kept[k];
        Octet<T> x;
        lane.load(x, stage, places, kept.place);
#pragma unroll
        for (int r = 0; r < kRows; ++r) for_each(sums[l][r], x, [&](float& sum, float of_x) { sum += kept.weight[r] * of_x; });
      }
    }
  }

  const LaneTargets<T> targets(patch, tile, lane, wide);
#pragma unroll
  for (int l = 0; l < kLines; ++l) {
#pragma unroll
    for (int r = 0; r < kRows; ++r) {
      const int line = mine + l;
      if (line >= lines.count) continue;
      const int64_t channel = lines.order ? lines.order[int64_t{line} * kRows + r] : line;
      if (channel < 0) continue;
      const float added = bias ? widen(bias[channel]) : 0.f;
      for_each(sums[l][r], sums[l][r], [&](float& sum, float) { sum += added; });
      targets.store(target, channel, sums[l][r]);
    }
  }
}

template <class T, int kRows>
void run(const ConvCall& call, bool transposed, const T* source, const T* values, const T* bias, T* target) {
  const DirectPatch fitted(call, transposed, source);
  const Patch& patch = fitted.patch;
  const Lines<kRows> lines = decode<T, kRows>(call, patch, values);
  const int octets = fitted.pixels / kOctet;
  const int line_tiles = ceil_divide(lines.count, call.options.warps / octets * kHeldLines<T, kRows>);
  const bool wide = patch.batch % kImages<T> == 0 && reinterpret_cast<uintptr_t>(target) % 16 == 0;
  const Grid grid{{blocks_of(call, patch.tiles() * line_tiles)}, {static_cast<unsigned>(call.options.warps * kWarp)}, fitted.shared_bytes};
  launch(call.op, multiply<T, kRows>, grid, call.stream, patch, lines, source, bias, target, line_tiles, fitted.stages, wide);
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
