// Row groups on tensor cores: 16 or 32 rows of the weight share one condensed list of columns (tost_kernels/gather.py), and a
// warp multiplies it with what these columns read of the patch (conv_patch.h): forward, and by the transposed view the gradient
// of the input.
//
// A block does some row groups times a tile of pixels times images; a warp one group times `kPixels` of the pixels, so it keeps
// 64 or 128 sums a lane in registers. Source channels come in chunks, `stages` of them at once on their way from L2 to shared
// memory by cp.async; chunks of which no group of the block keeps anything are left out. A k-step, 8 columns of TF32 or 16 of
// bfloat16:
//   A  the weights, one 16-byte load a lane for each 16 rows, from L2 or L1, a k-step ahead; and the columns' offsets, 4 or 8 bytes
//   B  from the patch. TF32: one 16-byte load has four images of a column for each lane, one for each of four mma (so these take
//      every fourth image): 8 bytes of shared memory an mma and lane, the least there is. bfloat16: ldmatrix.trans, each lane of
//      which names the row of one column.
// The columns of a load lie in different banks (conv_patch.h), as far as the index could order them so. 32 rows take twice the
// products out of each load of B, and need more columns for it: see docs/notes/cuda-gather.md for which wins where.
//
// The sums leave through shared memory, 16 rows of 128 bytes a warp and pixel, padded by 16 bytes against bank conflicts, so that
// global memory gets whole rows of 128 bytes.
#pragma once

#include "conv_prepare.h"

namespace tost {

struct GatherArguments {
  Patch patch;
  GatherView view;
  PreparedWeight weight;
  const void *source, *bias;
  void* target;
  int groups_per_block, row_blocks, stages;
  int64_t rows;  // of the weight: channels of the target
  bool wide;     // rows of the target's batch are whole pieces of 16 bytes
};

constexpr int kMostPixels = 16;  // of a tile
constexpr int kPaddedRow = kRowBytes + 16;
constexpr int kSumBytes = 16 * kPaddedRow;  // of a warp: the sums of 16 rows and a pixel

// B and the products of one k-step and one pixel; where the sums are.
struct Tf32Product : Tf32Step {
  static constexpr int kTiles = 4;  // mma for the images of a pixel

  struct Columns {
    int32_t offset[2];
  };
  // What is added to the patch's address for this lane.
  __device__ static int lane_offset(int lane) { return lane / 4 * 16; }
  __device__ static Columns columns(const int32_t* table, int lane) {
    const uint2 two = reinterpret_cast<const uint2*>(table)[lane % 4];
    return {{static_cast<int32_t>(two.x), static_cast<int32_t>(two.y)}};
  }
  template <int kRowTiles>
  __device__ static void multiply(
      float (&sum)[kRowTiles][kTiles][4], const uint4 (&a)[kRowTiles], const char* pixel, const Columns& columns) {
    const uint4 low = *reinterpret_cast<const uint4*>(pixel + columns.offset[0]);
    const uint4 high = *reinterpret_cast<const uint4*>(pixel + columns.offset[1]);
    const uint32_t b[kTiles][2] = {{low.x, high.x}, {low.y, high.y}, {low.z, high.z}, {low.w, high.w}};
#pragma unroll
    for (int m = 0; m < kRowTiles; ++m) {
      const uint32_t words[4] = {a[m].x, a[m].y, a[m].z, a[m].w};
#pragma unroll
      for (int j = 0; j < kTiles; ++j) mma_tf32(sum[m][j], words, b[j]);
    }
  }
  // Column c of tile j is image 4 c + j: this lane has images 8 t .. 8 t + 7 of rows g and g + 8.
  __device__ static void put(char* sums, const float (&sum)[kTiles][4], const float (&bias)[2], int lane) {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      char* row = sums + (lane / 4 + half * 8) * kPaddedRow + lane % 4 * 32;
#pragma unroll
      for (int c = 0; c < 2; ++c) {
        const int i = half * 2 + c;
        reinterpret_cast<float4*>(row)[c] = make_float4(
            sum[0][i] + bias[half], sum[1][i] + bias[half], sum[2][i] + bias[half], sum[3][i] + bias[half]);
      }
    }
  }
};

struct Bf16Product : Bf16Step {
  static constexpr int kTiles = 8;

  struct Columns {
    int32_t offset;
  };
  __device__ static int lane_offset(int lane) { return lane / 16 * 16; }
  __device__ static Columns columns(const int32_t* table, int lane) { return {table[lane % 16]}; }
  template <int kRowTiles>
  __device__ static void multiply(
      float (&sum)[kRowTiles][kTiles][4], const uint4 (&a)[kRowTiles], const char* pixel, const Columns& columns) {
#pragma unroll
    for (int pair = 0; pair < kTiles / 2; ++pair) {
      uint32_t both[4];
      ldmatrix_x4_trans(both, pixel + columns.offset + pair * 32);
      const uint32_t first[2] = {both[0], both[1]}, second[2] = {both[2], both[3]};
#pragma unroll
      for (int m = 0; m < kRowTiles; ++m) {
        const uint32_t words[4] = {a[m].x, a[m].y, a[m].z, a[m].w};
        mma_bf16(sum[m][pair * 2], words, first);
        mma_bf16(sum[m][pair * 2 + 1], words, second);
      }
    }
  }
  // Column c of tile j is image 8 j + c.
  __device__ static void put(char* sums, const float (&sum)[kTiles][4], const float (&bias)[2], int lane) {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      auto* row = reinterpret_cast<__nv_bfloat162*>(sums + (lane / 4 + half * 8) * kPaddedRow) + lane % 4;
#pragma unroll
      for (int j = 0; j < kTiles; ++j) {
        __nv_bfloat162 two;
        two.x = __float2bfloat16_rn(sum[j][half * 2] + bias[half]);
        two.y = __float2bfloat16_rn(sum[j][half * 2 + 1] + bias[half]);
        row[j * 4] = two;
      }
    }
  }
};

// The chunks that any group of this block keeps something of, in their order.
class Chunks {
 public:
  __device__ Chunks(const GatherView& view, int64_t first_group, int groups, int mine, int phase)
      : mine_(mine), count_(static_cast<int>(view.chunks)), ptr_(nullptr) {
    const int lane = threadIdx.x % 32;
    if (lane < groups && first_group + lane < view.groups) {
      ptr_ = view.ptr + ((first_group + lane) * view.phases + phase) * view.chunks;
    }
  }
  // The next one from `chunk` on; count() if there is none. end: of the columns of this warp's group there.
  __device__ int next(int chunk, int& end) const {
    for (; chunk < count_; ++chunk) {
      const int from = ptr_ ? ptr_[chunk] : 0, to = ptr_ ? ptr_[chunk + 1] : 0;
      if (!__any_sync(0xffffffffu, to > from)) continue;
      end = __shfl_sync(0xffffffffu, to, mine_);
      return chunk;
    }
    return chunk;
  }
  // Where the columns of this warp's group begin.
  __device__ int begin() const { return __shfl_sync(0xffffffffu, ptr_ ? *ptr_ : 0, mine_); }
  __device__ int count() const { return count_; }

 private:
  int mine_, count_;
  const int32_t* ptr_;
};

template <class Product, int kRowTiles, int kPixels, int kMostThreads>
__global__ void __launch_bounds__(kMostThreads) gather_kernel(GatherArguments g) {
  using T = typename Product::T;
  constexpr int kSteps = Product::kDepth;
  SHARED_DYNAMIC(char, shared);
  const Patch& patch = g.patch;
  SHARED(int, targets, kMostPixels);  // the tile's pixels of the target: where they are, -1: nowhere
  int* table = reinterpret_cast<int*>(shared + g.stages * patch.stage_bytes());
  const PatchTile tile = tile_of<T>(patch, blockIdx.x / g.row_blocks);
  if (tile.empty) return;
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  const int64_t first_group = int64_t{blockIdx.x % g.row_blocks} * g.groups_per_block;
  const int mine = warp % g.groups_per_block, part = warp / g.groups_per_block;
  write_pixel_table(patch, tile, table);
  if (threadIdx.x < kMostPixels) targets[threadIdx.x] = tile.target_pixel(patch, threadIdx.x);
  __syncthreads();

  const Chunks chunks(g.view, first_group, g.groups_per_block, mine, tile.phase(patch));
  const T* source = static_cast<const T*>(g.source);
  int ahead = 0, unused;
  const auto stage_next = [&](int stage) {
    ahead = chunks.next(ahead, unused);
    if (ahead < chunks.count()) {
      const int64_t first = int64_t{ahead} * patch.chunk;
      stage_patch<T>(patch, tile, table, source, shared + stage * patch.stage_bytes(), patch.chunk, [&](int i) { return first + i; });
      ++ahead;
    }
    commit_copies();
  };
  for (int stage = 0; stage + 1 < g.stages; ++stage) stage_next(stage);

  float sum[kPixels][kRowTiles][Product::kTiles][4] = {};
  int place[kPixels];
#pragma unroll
  for (int p = 0; p < kPixels; ++p) place[p] = patch.pixel_place(part * kPixels + p) + Product::lane_offset(lane);

  // The weights and columns of the k-step at `k`, and those that follow.
  int k = chunks.begin();
  const uint4* packed = g.weight.packed + int64_t{k} / kSteps * (kRowTiles * 32) + lane;
  const int32_t* columns = g.weight.table + k;
  uint4 weights[kRowTiles];
  typename Product::Columns offsets;
  const auto load = [&] {
#pragma unroll
    for (int m = 0; m < kRowTiles; ++m) weights[m] = packed[m * 32];
    offsets = Product::columns(columns, lane);
    packed += kRowTiles * 32;
    columns += kSteps;
  };
  load();
  int end = 0, stage = 0;
  for (int chunk = chunks.next(0, end); chunk < chunks.count(); chunk = chunks.next(chunk + 1, end)) {
    if (g.stages == 1) {
      __syncthreads();  // all have read the chunk before
      stage_next(0);
    }
    if (g.stages == 3) {
      wait_for_copies<1>();
    } else {
      wait_for_copies<0>();
    }
    __syncthreads();
    if (g.stages > 1) stage_next(stage == 0 ? g.stages - 1 : stage - 1);
    const char* patch_of_chunk = shared + stage * patch.stage_bytes();
    for (; k < end; k += kSteps) {
      uint4 a[kRowTiles];
#pragma unroll
      for (int m = 0; m < kRowTiles; ++m) a[m] = weights[m];
      const typename Product::Columns at = offsets;
      load();
#pragma unroll
      for (int p = 0; p < kPixels; ++p) Product::multiply(sum[p], a, patch_of_chunk + place[p], at);
    }
    stage = stage + 1 == g.stages ? 0 : stage + 1;
  }

  __syncthreads();  // all have read the last chunk, where the sums go now
  char* sums = shared + warp * kSumBytes;
  T* target = static_cast<T*>(g.target);
  constexpr int kRows = kRowTiles * 16, kPieces = kRowBytes / 16, kElements = 16 / sizeof(T);
  if (first_group + mine >= g.view.groups) return;
  const int32_t* order = g.view.order + (first_group + mine) * kRows;
  const int64_t pixels = int64_t{patch.y.target} * patch.x.target;
#pragma unroll
  for (int m = 0; m < kRowTiles; ++m) {
    float bias[2] = {0.f, 0.f};
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const int row = order[m * 16 + lane / 4 + half * 8];
      if (g.bias != nullptr && row >= 0) bias[half] = Product::widen(static_cast<const T*>(g.bias)[row]);
    }
#pragma unroll
    for (int p = 0; p < kPixels; ++p) {
      const int at = part * kPixels + p, pixel = targets[at];
      Product::put(sums, sum[p][m], bias, lane);
      __syncwarp();
      const int64_t image = tile.first_image<T>(patch, at) + lane % kPieces * kElements;
      for (int r = lane / kPieces; r < 16; r += 32 / kPieces) {
        const int row = order[m * 16 + r];
        if (row < 0 || pixel < 0 || image >= patch.batch) continue;
        const auto* from = reinterpret_cast<const T*>(sums + r * kPaddedRow) + lane % kPieces * kElements;
        T* to = target + (row * pixels + pixel) * patch.batch + image;
        if (g.wide) {
          *reinterpret_cast<uint4*>(to) = *reinterpret_cast<const uint4*>(from);
        } else {
          for (int e = 0; e < kElements && image + e < patch.batch; ++e) to[e] = from[e];
        }
      }
      __syncwarp();
    }
  }
}

}  // namespace tost
