// The gradient of a masked convolution's values on the CUDA cores: one multiply-add a kept weight, image and pixel. For each kept
// weight it is a dot product, over all images and pixels, of a channel of the output's gradient and a shifted one of x.
//
// The patch of x is that of the forward pass (conv_patch.h), but here a block stays with one chunk of channels of x and some
// output channels, and walks over the tiles of its part of pixels and images; the next tiles are on their way meanwhile. What an
// output channel keeps of the chunk are tasks of up to eight weights. A warp has up to eight tasks, which makes 64 sums a lane,
// that stay in registers until the part is done: at every tile it loads the gradient's 8 pixels of a task's channel from L2, 16
// bytes a lane and quad, and then for each weight x, as forward. Tasks instead of channels, because then each warp has as much
// to do as the others, however the kept weights lie. At the end the lanes add up what they have, and every block leaves its sums
// in its part of a buffer which `sum_parts` adds up: no atomics, always the same bits.

#include <algorithm>

#include "conv_direct_lines.h"
#include "conv_direct_tile.h"
#include "sum_parts.h"

namespace tost {
namespace {

constexpr int kTaskWeights = 8, kWarpTasks = 8, kTaskSums = kTaskWeights * kWarpTasks;
constexpr int kMostWarps = 16, kMostLines = 128;  // of a block
static_assert(kTaskSums == 2 * kWarp);
constexpr int kRounds = 4, kMostParts = 256;  // blocks an SM, if there is so much to share out

struct Task {
  int line, begin, count;  // the weights begin, begin + 1, ...
};
constexpr int kTileRing = 8;  // more tiles than are under way at once
constexpr size_t kTableBytes = kTileRing * sizeof(PatchTile) +
    kMostLines * (sizeof(Run) + sizeof(int)) + sizeof(int) + kMostWarps * (kWarpTasks * sizeof(Task) + kTaskSums * sizeof(int));

// What the blocks share out: block b has the chunk b % chunks, then the lines of a tile, then a part of the patch's tiles.
struct Work {
  int chunks, block_lines, line_tiles, tiles, parts, stages;
  int64_t plane;  // elements of a channel of the gradient
  bool wide;      // it can be loaded by 16 bytes
};

// Sums over the warp of 4 * kBits numbers with kBits = 16: lane l gets those of sums[2 l] and sums[2 l + 1], as the first two. Each
// step halves what a lane has to carry.
template <int kBits>
__device__ inline void add_up(float* sums) {
  const bool upper = threadIdx.x & kBits;
#pragma unroll
  for (int i = 0; i < 2 * kBits; ++i) {
    const float keep = upper ? sums[i + 2 * kBits] : sums[i], give = upper ? sums[i] : sums[i + 2 * kBits];
    sums[i] = keep + __shfl_xor_sync(kAllLanes, give, kBits);
  }
  if constexpr (kBits > 1) add_up<kBits / 2>(sums);
}

template <class T>
__global__ void __launch_bounds__(kMostWarps * kWarp)
correlate(Patch patch, MaskWalk walk, Work work, const T* grad, const T* x, float* parts, int64_t nnz) {
  SHARED_DYNAMIC(char, shared);
  SHARED(Run, runs, kMostLines);
  SHARED(int, tasks_before, kMostLines + 1);
  SHARED(Task, task, kMostWarps* kWarpTasks);
  SHARED(int, place, kMostWarps* kTaskSums);
  SHARED(PatchTile, tile_ring, kTileRing);
  const int warp = threadIdx.x / kWarp, warps = blockDim.x / kWarp, lane_of_warp = threadIdx.x % kWarp;
  const int chunk = blockIdx.x % work.chunks;
  const int first_line = blockIdx.x / work.chunks % work.line_tiles * work.block_lines;
  const int lines = std::min(work.block_lines, walk.lines - first_line);
  const auto part = [&] { return int64_t{blockIdx.x / (work.chunks * work.line_tiles)}; };
  const auto tile_of_part = [&](int64_t p) { return static_cast<int>(p * work.tiles / work.parts); };
  const int last_tile = tile_of_part(part() + 1);

  for (int i = warp; i < lines; i += warps) {
    const Run run = walk.run(first_line + i, chunk * patch.chunk, (chunk + 1) * patch.chunk);
    if (lane_of_warp == 0) runs[i] = run;
  }
  __syncthreads();
  for (int i = threadIdx.x; i <= lines; i += blockDim.x) {
    int before = 0;
    for (int other = 0; other < i; ++other) before += ceil_div(runs[other].end - runs[other].begin, kTaskWeights);
    tasks_before[i] = before;
  }
  __syncthreads();

  const int all_tasks = tasks_before[lines];
  Task* my_task = task + warp * kWarpTasks;
  int* my_place = place + warp * kTaskSums;
  const int octets = (patch.y.tile * patch.x.tile << patch.row_bits) / kOctet;
  for (int done = 0; done < all_tasks; done += warps * kWarpTasks) {  // seldom more than once
    // Every warp has as many tasks as the others, neighbours in the list: several of one channel share its gradient.
    const int left = all_tasks - done, each = left < warps * kWarpTasks ? ceil_div(left, warps) : kWarpTasks;
    const int tasks = std::clamp(left - warp * each, 0, each);
    if (lane_of_warp < tasks) {
      const int number = done + warp * each + lane_of_warp;
      int line = 0, end = lines;  // the last line with tasks_before <= number
      while (end - line > 1) {
        const int middle = (line + end) / 2;
        (tasks_before[middle] <= number ? line : end) = middle;
      }
      const int begin = runs[line].begin + (number - tasks_before[line]) * kTaskWeights;
      my_task[lane_of_warp] = {first_line + line, begin, std::min(runs[line].end - begin, +kTaskWeights)};
    }
    __syncwarp();
    for (int i = lane_of_warp; i < tasks * kTaskWeights; i += kWarp) {
      const Task of = my_task[i / kTaskWeights];
      if (i % kTaskWeights >= of.count) continue;
      const int column = walk.column[of.begin + i % kTaskWeights];
      const int channel = column / walk.taps + walk.first_channel(of.line) - chunk * patch.chunk;
      my_place[i] = patch.column_place(channel, column % walk.taps);
    }
    __syncwarp();

    const int first_channel = chunk * patch.chunk, channels = std::min(patch.chunk, static_cast<int>(patch.channels) - first_channel);
    // To find a tile takes many instructions: one thread does it, two tiles ahead. Which source pixels it needs is written one ahead.
    int staged = tile_of_part(part()), used = staged;
    const auto find = [&](int t) {
      if (threadIdx.x == 0 && t < last_tile) tile_ring[t % kTileRing] = tile_of<T>(patch, t);
    };
    const auto table = [&](int t) {
      return reinterpret_cast<int*>(shared + work.stages * patch.stage_bytes() + t % 2 * patch.table_bytes());
    };
    const auto stage = [&](char* to) {
      if (staged == last_tile) return false;
      const PatchTile& tile = tile_ring[staged % kTileRing];
      stage_patch(patch, tile, table(staged), x, to, channels, [&](int i) { return first_channel + i; });
      ++staged;
      if (staged < last_tile) write_pixel_table(patch, tile_ring[staged % kTileRing], table(staged));
      find(staged + 1);
      return true;
    };

    float sums[kTaskSums] = {};
    const auto use = [&](const char* from) {
      const PatchTile& tile = tile_ring[used++ % kTileRing];
      if (tile.empty) return;
      for (int octet = 0; octet < octets; ++octet) {
        const Lane<T> lane(octet);
        const LaneTargets<T> targets(patch, tile, lane, work.wide);
        // Pixels that the target does not have: their gradient is 0, but an infinity that no other pixel reads must not count.
        const auto window = [&](int quad) { return targets.images[quad] ? lane.place(patch, quad) : lane.piece * 16; };
        const int places[kQuads] = {window(0), window(1)};
        Octet<T> of_grad;
        int loaded = -1;
#pragma unroll
        for (int i = 0; i < kWarpTasks; ++i) {
          if (i >= tasks) break;
          const Task of = my_task[i];
          if (of.line != loaded) targets.load(of_grad, grad + of.line * work.plane);
          loaded = of.line;
#pragma unroll
          for (int j = 0; j < kTaskWeights; ++j) {
            if (j >= of.count) break;
            Octet<T> of_x;
            lane.load(of_x, from, places, my_place[i * kTaskWeights + j]);
            for_each(of_x, of_grad, [&](float a, float b) { sums[i * kTaskWeights + j] += a * b; });
          }
        }
      }
    };
    __syncthreads();  // nobody reads the last round's tiles and tables any more
    find(staged);
    find(staged + 1);
    __syncthreads();
    if (staged < last_tile) write_pixel_table(patch, tile_ring[staged % kTileRing], table(staged));
    pipeline(shared, work.stages, patch.stage_bytes(), stage, use);

    add_up<kWarp / 2>(sums);
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      const int number = 2 * lane_of_warp + i, j = number % kTaskWeights;
      if (number / kTaskWeights >= tasks || j >= my_task[number / kTaskWeights].count) continue;
      parts[part() * nnz + my_task[number / kTaskWeights].begin + j] = sums[i];
    }
    __syncwarp();
  }
}

template <class T>
void run(const ConvCall& call, const T* grad, const T* x, T* values_grad) {
  const ConvShape& s = call.shape;
  ConvCall base = call;  // any chunk will do: the packed index at the head of every index is enough
  base.options.rows = 1;
  const DirectPatch fitted(base, false, x, 2, 0, kTableBytes);
  const Patch& patch = fitted.patch;
  const MaskWalk walk(s, call.index, false);
  const int warps = call.options.warps;
  Work work{};
  work.chunks = static_cast<int>(ceil_div(s.channels, patch.chunk));
  work.stages = fitted.stages;
  work.tiles = static_cast<int>(blocks_of(call, patch.tiles()));
  work.plane = s.out_height * s.out_width * s.batch;
  work.wide = on_16_bytes(s.batch, sizeof(T), grad);
  // So many lines that their tasks, if the mask is random, are just done at once.
  const double weights = static_cast<double>(s.nnz) / (static_cast<double>(s.outputs) * work.chunks);
  const double tasks = weights / kTaskWeights + std::min(weights, 0.5);
  work.block_lines = static_cast<int>(std::clamp(0.9 * warps * kWarpTasks / tasks, 1., 1. * kMostLines));
  work.line_tiles = ceil_div(walk.lines, work.block_lines);
  work.block_lines = ceil_div(walk.lines, work.line_tiles);
  const int64_t blocks = int64_t{work.chunks} * work.line_tiles;
  const int64_t parts = call.options.split ? call.options.split : ceil_div(kRounds * call.processors, blocks);
  work.parts = static_cast<int>(std::min({parts, int64_t{work.tiles}, int64_t{kMostParts}}));
  auto* buffer = static_cast<float*>(call.scratch(static_cast<size_t>(work.parts * s.nnz) * sizeof(float)));
  const Grid grid{{blocks_of(call, blocks * work.parts)}, {static_cast<unsigned>(warps * kWarp)}, fitted.shared_bytes};
  launch(call.op, correlate<T>, grid, call.stream, patch, walk, work, grad, x, buffer, s.nnz);
  sum_parts(call.op, buffer, work.parts, s.nnz, nullptr, values_grad, s.nnz, call.stream);
}

}  // namespace

void direct_values_grad(const ConvCall& call, const void* grad, const void* x, void* values_grad) {
  const auto with = [&]<class T>(T) {
    run(call, static_cast<const T*>(grad), static_cast<const T*>(x), static_cast<T*>(values_grad));
  };
  call.bf16 ? with(__nv_bfloat16{}) : with(float{});
}

}  // namespace tost
