// The values' gradient on tensor cores: for each row group, dY[rows, q] x X[columns, q]^T over all q = (target pixel, image),
// where the columns are those that the group keeps, by the forward view of the gathered index (tost_kernels/gather.py).
//
// A block has a chunk of source channels and up to `warps` times 16 rows, over a part of all tiles (target pixels x a row of
// images). For each tile it stages the patch of x (conv_patch.h), `stages` tiles deep; then a warp multiplies its 16 rows by
// every column that these keep in the chunk. Its sums stay in registers over all tiles of the part, 4 a lane for 8 columns, so
// nothing is written but the sums at the end: parts[part][column][slot], of which a second kernel adds up the places that are
// kept (sum_parts.h).
//
// - The sum goes over images, and its order is free: lane t of four takes the 16 bytes at 16 t of each 64 bytes of a row, of
//   both operands, as the k of two products (TF32: four images, bfloat16: eight). So both come by 16 bytes, without any
//   transposition.
// - x, the product's B (8 columns): one 16-byte read of shared memory a lane for two products. Lanes of two columns share a
//   wavefront, and read 64 bytes each, so they go to columns whose channels lie 64 bytes apart (`lane_column`): no conflicts as
//   long as the index finds neighbours with different channels modulo 4 (float32) or 8 (bfloat16). 2 wavefronts a product: what
//   decides.
// - dY, the product's A (16 rows): no other warp of the block wants it, so it passes shared memory by. It comes from L2
//   straight to registers one pixel ahead, and stays there while the warp goes through all its columns.
// - Bytes from L2: dY once for each chunk, and x once for each `warps` * 16 rows, times the patch's overlap (3 for 3x3, 2x4
//   pixels).
// - With fewer rows than warps, warps share out the pixels of a tile instead, and leave a part each.
//
// Arithmetic a layer, and what to try: docs/notes/cuda-values-grad.md.
#pragma once

#include <algorithm>
#include <type_traits>

#include "conv_patch.h"

namespace tost {

constexpr int kProductRows = 16, kProductColumns = 8;

// Warps of a block whose sums are of kTiles * 8 columns, and who have that many registers.
template <int kTiles>
constexpr int kMostWarps = kTiles <= 8 ? 12 : 8;

struct ValuesGradArguments {
  Patch patch;
  const int32_t *order, *ptr, *column;  // of the index
  int taps, rows, chunks;
  int row_tiles, row_blocks, across;  // 16 rows are a tile: all of them, blocks that these take, tiles of such a block
  int shares;                         // warps that share the pixels of a tile
  int split, passes, stages;
  int stage_bytes, table_bytes, pixels;  // of the patch, a TileTable, a tile
  int steps, per_part;  // tiles of pixels and images: all, and of a part
  int64_t size;         // of a part
  int64_t row_size;     // of dY: target pixels times images
  bool wide;            // 16 bytes divide the rows of dY
};

// What the block knows of a tile, in a ring of stages + 1 of them.
struct TileTable {
  char* memory;
  __device__ int64_t& image() const { return *reinterpret_cast<int64_t*>(memory); }
  __device__ int* target() const { return reinterpret_cast<int*>(memory + 16); }  // [pixel of the tile], -1: none
};

inline int tile_pixels(const Patch& p) { return p.y.tile * p.x.tile << p.row_bits; }
inline int64_t pixels_bytes(const Patch& p) { return (tile_pixels(p) * 4 + 15) / 16 * 16; }
inline int64_t table_bytes(const Patch& p) { return 16 + pixels_bytes(p) + p.table_bytes(); }

// Of a block: the stages, the tables, and where in the patch the window of each pixel of a tile begins.
inline size_t shared_bytes(const Patch& p, int stages) {
  return static_cast<size_t>(stages * p.stage_bytes() + (stages + 1) * table_bytes(p) + pixels_bytes(p));
}

// Which of 8 neighbours in the index the lanes 4 g .. 4 g + 3 read: pairs of g get columns 2 (float32) or 4 (bfloat16) apart.
template <class T>
__device__ inline int lane_column(int g) {
  return sizeof(T) == 4 ? (g & 4) | (g & 1) << 1 | (g & 2) >> 1 : (g & 1) << 2 | g >> 1;
}

// 16 bytes of a row that has `left` elements more, element by element; zeros past its end.
template <class T>
__device__ inline uint4 load_elements(const T* from, int64_t left) {
  using Bits = std::conditional_t<sizeof(T) == 4, uint32_t, uint16_t>;
  constexpr int kOfWord = 4 / sizeof(T);
  uint32_t words[4] = {};
#pragma unroll
  for (int e = 0; e < 4 * kOfWord; ++e) {
    if (e < left) words[e / kOfWord] |= uint32_t{reinterpret_cast<const Bits*>(from)[e]} << e % kOfWord * 16;
  }
  return make_uint4(words[0], words[1], words[2], words[3]);
}

__device__ inline uint32_t word_of(const uint4& v, int i) { return i == 0 ? v.x : i == 1 ? v.y : i == 2 ? v.z : v.w; }

template <class T>
__device__ inline uint32_t rounded(uint32_t word) {
  if constexpr (sizeof(T) == 4) return to_tf32(__uint_as_float(word));
  return word;
}

template <class T>
__device__ inline void multiply(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
  if constexpr (sizeof(T) == 4) {
    mma_tf32(d, a, b);
  } else {
    mma_bf16(d, a, b);
  }
}

// Adds the products of one pixel: 16 rows of dY (`a`, by half and step) times kCount tiles of columns from n on, which this lane
// reads at place[].
template <class T, int kCount, int kTiles>
__device__ inline void multiply_columns(
    float (&sum)[kTiles][4], int n, const uint32_t (&a)[4][4], const char* at, const int (&place)[kTiles]) {
  uint4 b[kCount][2];
#pragma unroll
  for (int c = 0; c < kCount; ++c) {
#pragma unroll
    for (int half = 0; half < 2; ++half) b[c][half] = *reinterpret_cast<const uint4*>(at + place[n + c] + 64 * half);
  }
#pragma unroll
  for (int k = 0; k < 4; ++k) {
#pragma unroll
    for (int c = 0; c < kCount; ++c) {
      const uint32_t words[2] = {word_of(b[c][k / 2], k % 2 * 2), word_of(b[c][k / 2], k % 2 * 2 + 1)};
      multiply<T>(sum[n + c], a[k], words);
    }
  }
}

// 16 bytes of each half of a pixel's 128, of the two rows of dY that this lane has: zeros where there is no row or no image. Not
// waited for.
template <class T>
__device__ inline void load_rows(
    uint4 (&to)[2][2], const T* pixel, const int (&row)[2], int64_t row_size, int64_t image, int64_t batch, bool wide) {
  constexpr int kHalf = 64 / sizeof(T);
#pragma unroll
  for (int half = 0; half < 2; ++half) {
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      const T* from = pixel + row[r] * row_size + image + half * kHalf;
      const int64_t left = row[r] < 0 ? 0 : batch - image - half * kHalf;
      to[r][half] = make_uint4(0, 0, 0, 0);
      if (!wide) {
        to[r][half] = load_elements(from, left);
      } else if (left > 0) {
        to[r][half] = *reinterpret_cast<const uint4*>(from);
      }
    }
  }
}

template <class T, int kTiles>
__global__ void __launch_bounds__(kMostWarps<kTiles> * 32)
values_grad_kernel(const T* grad, const T* x, float* parts, ValuesGradArguments w) {
  constexpr int kElements = 16 / sizeof(T);
  SHARED_DYNAMIC(char, shared);
  const Patch& patch = w.patch;
  const int lane = threadIdx.x % 32, g = lane / 4, t = lane % 4;
  const int warp = threadIdx.x / 32, share = warp / w.across;
  const int chunk = blockIdx.x % w.chunks;  // blocks of one part side by side: they read the same dY and x
  unsigned rest = blockIdx.x / w.chunks;
  const int row_block = rest % w.row_blocks;
  rest /= w.row_blocks;
  const int pass = rest % w.passes, part = rest / w.passes;

  // The columns of a tile of rows in this pass: as many as in the others, for all blocks to have the same to do.
  struct Columns {
    int begin, tiles;
  };
  const auto columns_of = [&](int row_tile) -> Columns {
    if (row_tile >= w.row_tiles) return {0, 0};
    const int* ptr = w.ptr + int64_t{row_tile * kProductRows / w.rows} * w.chunks + chunk;
    const int all = (ptr[1] - ptr[0]) / kProductColumns;
    const int each = ceil_div(all, std::max(1, ceil_div(all, kTiles)));
    return {ptr[0] + pass * each * kProductColumns, std::max(0, std::min(each, all - pass * each))};
  };
  bool any = false;
  for (int r = 0; r < w.across; ++r) any |= columns_of(row_block * w.across + r).tiles > 0;
  if (!any) return;
  const int row_tile = row_block * w.across + warp % w.across;
  const auto [begin, tiles] = columns_of(row_tile);

  // Where in the patch this lane reads of its column of each 8. Lanes find the places of different columns, and hand them round.
  int place[kTiles];
#pragma unroll
  for (int n = 0; n < kTiles; n += 4) {
    int found = 0;
    if (tiles > 0) {
      const int column = w.column[begin + std::min(n * kProductColumns + lane, tiles * kProductColumns - 1)];
      found = patch.column_place(column / w.taps - chunk * patch.chunk, column % w.taps);
    }
#pragma unroll
    for (int i = 0; i < 4; ++i) place[n + i] = __shfl_sync(0xffffffffu, found, i * kProductColumns + lane_column<T>(g)) + 16 * t;
  }
  int row[2];  // of dY, negative: an empty slot
#pragma unroll
  for (int r = 0; r < 2; ++r) row[r] = tiles > 0 ? w.order[row_tile * kProductRows + g + 8 * r] : -1;

  const int first = part * w.per_part, count = std::min(w.per_part, w.steps - first);
  const int pixels = w.pixels;
  char* const tables = shared + w.stages * w.stage_bytes;
  int* const window = reinterpret_cast<int*>(tables + (w.stages + 1) * w.table_bytes);
  const auto stage_of = [&](int i) { return shared + i % w.stages * w.stage_bytes; };
  const auto table_of = [&](int i) { return TileTable{tables + i % (w.stages + 1) * w.table_bytes}; };
  const auto source_of = [&](const TileTable& table) { return table.target() + pixels; };  // [pixel of the patch]
  const auto write_table = [&](int i) {
    if (i >= count) return;
    const TileTable table = table_of(i);
    const PatchTile tile = tile_of<T>(patch, first + i);
    if (threadIdx.x == 0) table.image() = tile.image;
    for (int p = threadIdx.x; p < pixels; p += blockDim.x) table.target()[p] = tile.target_pixel(patch, p);
    write_pixel_table(patch, tile, source_of(table));
  };
  const auto stage = [&](int i) {
    if (i < count) {
      const TileTable table = table_of(i);
      PatchTile tile{};
      tile.image = table.image();
      const int here = static_cast<int>(std::min(int64_t{patch.chunk}, patch.channels - int64_t{chunk} * patch.chunk));
      stage_patch(patch, tile, source_of(table), x, stage_of(i), here, [&](int c) { return int64_t{chunk} * patch.chunk + c; });
    }
    commit_copies();
  };

  // dY of pixel p of a tile.
  const auto fetch = [&](uint4(&to)[2][2], TileTable table, int p) {
    const int pixel = table.target()[p], row_of_images = p & ((1 << patch.row_bits) - 1);
    if (pixel < 0) return;
    const int64_t image = table.image() + row_of_images * (kRowBytes / static_cast<int>(sizeof(T))) + t * kElements;
    const T* from = grad + pixel * patch.batch;
    if (w.wide) {
      load_rows(to, from, row, w.row_size, image, patch.batch, true);
    } else {
      load_rows(to, from, row, w.row_size, image, patch.batch, false);
    }
  };

  float sum[kTiles][4] = {};
  uint4 next[2][2] = {};
  for (int p = threadIdx.x; p < pixels; p += blockDim.x) window[p] = patch.pixel_place(p);
  write_table(0);
  for (int i = 0; i + 1 < w.stages; ++i) {
    __syncthreads();
    stage(i);
    write_table(i + 1);
  }
  __syncthreads();
  if (tiles > 0) fetch(next, table_of(0), share);

  for (int i = 0; i < count; ++i) {
    if (w.stages == 2) wait_for_copies<0>();
    if (w.stages == 3) wait_for_copies<1>();
    __syncthreads();  // tile i is there, and nobody reads tile i - 1 any more
    stage(i + w.stages - 1);
    write_table(i + w.stages);
    if (w.stages == 1) {
      wait_for_copies<0>();
      __syncthreads();
    }
    if (tiles == 0) continue;
    const TileTable table = table_of(i), after = table_of(i + 1);
    const char* here = stage_of(i);
    for (int p = share; p < pixels; p += w.shares) {
      uint32_t a[4][4];  // of four products: (half, step)
#pragma unroll
      for (int k = 0; k < 4; ++k) {
#pragma unroll
        for (int j = 0; j < 4; ++j) a[k][j] = rounded<T>(word_of(next[j % 2][k / 2], k % 2 * 2 + j / 2));
      }
      const bool last = p + w.shares >= pixels;
      if (!last || i + 1 < count) fetch(next, {last ? after.memory : table.memory}, last ? share : p + w.shares);
      if (table.target()[p] < 0) continue;

      const char* at = here + window[p];
      // Four tiles at a time, for their products not to wait for one another: reads do not move ahead of a branch.
#pragma unroll
      for (int n = 0; n < kTiles; n += 4) {
        if (n + 2 < tiles) {
          multiply_columns<T, 4>(sum, n, a, at, place);
        } else if (n < tiles) {
          multiply_columns<T, 2>(sum, n, a, at, place);
        }
      }
    }
  }
  wait_for_copies<0>();

  float* to = parts + (int64_t{part} * w.shares + share) * w.size;
#pragma unroll
  for (int n = 0; n < kTiles; ++n) {
    if (n >= tiles) break;
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const int64_t column = begin + n * kProductColumns + lane_column<T>(2 * t + i % 2);
      to[column * w.rows + row_tile * kProductRows % w.rows + g + i / 2 * 8] = sum[n][i];
    }
  }
}

}  // namespace tost
