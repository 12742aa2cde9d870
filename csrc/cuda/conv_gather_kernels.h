// Row groups on tensor cores: 16 or 32 rows of the weight share one condensed list of columns (tost_kernels/gather.py), and a
// warp multiplies it with what these columns read of the patch (conv_patch.h): forward, and by the transposed view the gradient
// of the input.
//
// A block does some row groups times a tile of pixels times images; a warp one group times `kPixels` of the pixels, so it keeps
// 64 or 128 sums a lane in registers. Source channels come in chunks, `stages` of them at once on their way from L2 to shared
// memory by cp.async; chunks of which no group of the block keeps anything are left out. A k-step, 8 columns of TF32 or 16 of
// bfloat16:
//   weights  one 16-byte load a lane for each 16 rows, from L2 or L1, a k-step ahead; with them the columns' offsets
//   images   from the patch, 2 clocks of shared memory an mma. TF32: an 8-byte load has two images of a column, which are half of
//            operand A of an mma in the order of its registers. bfloat16: ldmatrix.trans, each lane naming the row of one column
// The columns of a load lie in different banks (conv_patch.h), as far as the index could order them so. 32 rows take twice the
// products out of each load, and need more columns for it: docs/notes/cuda-gather.md says which should win where.
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
  bool wide;  // rows of the target's batch are whole pieces of 16 bytes
};

constexpr int kMostPixels = 16;  // of a tile
constexpr int kPaddedRow = kRowBytes + 16;
constexpr int kSumBytes = 16 * kPaddedRow;  // of a warp: the sums of 16 rows and a pixel

// Of a block's dynamic shared memory: the stages and the table of source pixels.
inline size_t staging_bytes(const Patch& p, int stages) { return static_cast<size_t>(stages * p.stage_bytes() + p.table_bytes()); }

// What differs between the dtypes: how a k-step of a pixel is multiplied, and which sums a lane has. `pixel` is an address in the
// patch with the lane's own offset.

// Images times rows: mma (i, j) has images 16 i .. and rows 8 j .. .
struct Tf32Product : Tf32Step {
  static constexpr int kTiles = 4;  // mma for the images of a pixel and 16 rows
  static constexpr int kLaneRows = 4;

  struct Columns {
    int32_t offset[2];
  };
  __device__ static int lane_offset(int lane) { return lane / 4 * 8; }
  __device__ static Columns columns(const int32_t* table, int lane) {
    const uint2 two = reinterpret_cast<const uint2*>(table)[lane % 4];
    return {{static_cast<int32_t>(two.x), static_cast<int32_t>(two.y)}};
  }
  template <int kRowTiles>
  __device__ static void multiply(
      float (&sum)[kRowTiles][kTiles][4], const uint4 (&weights)[kRowTiles], const char* pixel, const Columns& columns) {
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      // Images 16 i + 2 g and the next one, which are rows g and g + 8 of A.
      const uint2 low = *reinterpret_cast<const uint2*>(pixel + columns.offset[0] + i * 64);
      const uint2 high = *reinterpret_cast<const uint2*>(pixel + columns.offset[1] + i * 64);
      const uint32_t images[4] = {low.x, low.y, high.x, high.y};
#pragma unroll
      for (int m = 0; m < kRowTiles; ++m) {
        const uint32_t first[2] = {weights[m].x, weights[m].y}, second[2] = {weights[m].z, weights[m].w};
        mma_tf32(sum[m][i * 2], images, first);
        mma_tf32(sum[m][i * 2 + 1], images, second);
      }
    }
  }
  // The row, of 16, of the lane's bias number i.
  __device__ static int row(int lane, int i) { return i / 2 * 8 + lane % 4 * 2 + i % 2; }
  // Where its first sum lies in the row, in bytes.
  __device__ static int lane_column(int lane) { return lane / 4 * 8; }
  __device__ static void put(char* sums, const float (&sum)[kTiles][4], const float (&bias)[kLaneRows], int lane) {
#pragma unroll
    for (int r = 0; r < kLaneRows; ++r) {
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        const float(&d)[4] = sum[i * 2 + r / 2];
        *reinterpret_cast<float2*>(sums + row(lane, r) * kPaddedRow + i * 64 + lane_column(lane)) =
            make_float2(d[r % 2] + bias[r], d[r % 2 + 2] + bias[r]);
      }
    }
  }
};

// Rows times images: mma j has images 8 j .. .
struct Bf16Product : Bf16Step {
  static constexpr int kTiles = 8;
  static constexpr int kLaneRows = 2;

  struct Columns {
    int32_t offset;
  };
  __device__ static int lane_offset(int lane) { return lane / 16 * 16; }
  __device__ static Columns columns(const int32_t* table, int lane) { return {table[lane % 16]}; }
  template <int kRowTiles>
  __device__ static void multiply(
      float (&sum)[kRowTiles][kTiles][4], const uint4 (&weights)[kRowTiles], const char* pixel, const Columns& columns) {
#pragma unroll
    for (int pair = 0; pair < kTiles / 2; ++pair) {
      uint32_t both[4];
      ldmatrix_x4_trans(both, pixel + columns.offset + pair * 32);
      const uint32_t first[2] = {both[0], both[1]}, second[2] = {both[2], both[3]};
#pragma unroll
      for (int m = 0; m < kRowTiles; ++m) {
        const uint32_t words[4] = {weights[m].x, weights[m].y, weights[m].z, weights[m].w};
        mma_bf16(sum[m][pair * 2], words, first);
        mma_bf16(sum[m][pair * 2 + 1], words, second);
      }
    }
  }
  __device__ static int row(int lane, int i) { return lane / 4 + i * 8; }
  __device__ static int lane_column(int lane) { return lane % 4 * 4; }
  __device__ static void put(char* sums, const float (&sum)[kTiles][4], const float (&bias)[kLaneRows], int lane) {
#pragma unroll
    for (int r = 0; r < kLaneRows; ++r) {
#pragma unroll
      for (int j = 0; j < kTiles; ++j) {
        __nv_bfloat162 two;
        two.x = __float2bfloat16_rn(sum[j][r * 2] + bias[r]);
        two.y = __float2bfloat16_rn(sum[j][r * 2 + 1] + bias[r]);
        *reinterpret_cast<__nv_bfloat162*>(sums + row(lane, r) * kPaddedRow + j * 16 + lane_column(lane)) = two;
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
      char* to = shared + stage * patch.stage_bytes();
      stage_patch<T>(patch, tile, table, source, to, patch.chunk, [&](int i) { return first + i; });
      ++ahead;
    }
    commit_copies();
  };
  for (int stage = 0; stage + 1 < g.stages; ++stage) stage_next(stage);

  float sum[kPixels][kRowTiles][Product::kTiles][4] = {};
  int place[kPixels];
#pragma unroll
  for (int p = 0; p < kPixels; ++p) place[p] = patch.pixel_place(part * kPixels + p) + Product::lane_offset(lane);

  // Weights and columns are loaded a k-step ahead, also from one chunk to the next: the group's columns are one run.
  uint4 weights[kRowTiles];
  typename Product::Columns offsets;
  const auto load = [&](int at) {
    const uint4* from = g.weight.packed + int64_t{at} * (kRowTiles * 32 / kSteps) + lane;
#pragma unroll
    for (int m = 0; m < kRowTiles; ++m) weights[m] = from[m * 32];
    offsets = Product::columns(g.weight.table + at, lane);
  };
  int k = chunks.begin();
  load(k);
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
    while (k < end) {
      uint4 a[kRowTiles];
#pragma unroll
      for (int m = 0; m < kRowTiles; ++m) a[m] = weights[m];
      const typename Product::Columns at = offsets;
      load(k += kSteps);
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
    float bias[Product::kLaneRows] = {};
#pragma unroll
    for (int i = 0; i < Product::kLaneRows; ++i) {
      const int row = order[m * 16 + Product::row(lane, i)];
      if (g.bias != nullptr && row >= 0) bias[i] = Product::widen(static_cast<const T*>(g.bias)[row]);
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
