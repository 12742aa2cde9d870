// The part of a specialised convolution that no mask changes: stride 1, float32, memory [C][H][W][N].
//
// A block is a tile of target pixels, a warp for each, and 32 or 64 images, one or two a lane. Chunk after chunk of the source
// channels, every source pixel that the tile reads comes to shared memory by 16-byte cp.async, [channel][y][x][images], zeros
// outside of the image; the next chunk is on its way meanwhile. What a thread does with a chunk is generated: it loads each of
// its inputs once, at an offset known when it is compiled, and multiplies it into every output row that keeps it. The rows' sums
// are in registers, the weights in the constant bank: no index is ever loaded.
#pragma once

#include "mma.h"

#ifdef TOST_CUDA_HOST
#include <cstring>
#define CONSTANT static
#else
#define CONSTANT __constant__
#endif

namespace tost {

// What a lane has of one place.
template <int V>
struct alignas(sizeof(float) * V) Images {
  float of[V];
};

template <int V>
__device__ inline Images<V> load(const float* from) {
  return *reinterpret_cast<const Images<V>*>(from);
}

template <int V>
__device__ inline void store(float* to, const float (&from)[V]) {
  Images<V> images;
#pragma unroll
  for (int v = 0; v < V; ++v) images.of[v] = from[v];
  *reinterpret_cast<Images<V>*>(to) = images;
}

template <int V>
__device__ inline void add(float (&sum)[V], const Images<V>& x, float weight) {
#pragma unroll
  for (int v = 0; v < V; ++v) sum[v] += x.of[v] * weight;
}

template <int C, int H, int W, int N, int V, int kKernel, int kTileHeight, int kTileWidth, int kChunk>
struct Conv {
  static constexpr int kImages = 32 * V, kLane = V;
  static constexpr int kThreads = kTileHeight * kTileWidth * 32, kPadding = (kKernel - 1) / 2;
  static constexpr int kPatchWidth = kTileWidth + kKernel - 1, kPatch = (kTileHeight + kKernel - 1) * kPatchWidth;
  static constexpr int kChunks = (C + kChunk - 1) / kChunk;
  static constexpr int kTilesAcross = (W + kTileWidth - 1) / kTileWidth, kTilesDown = (H + kTileHeight - 1) / kTileHeight;
  static constexpr size_t kSharedBytes = 2 * sizeof(float) * kChunk * kPatch * kImages;
  static constexpr int kRow = H * W * N;  // from one channel to the next
  static_assert(N % kImages == 0);

  static Grid grid() { return {{kTilesAcross * kTilesDown, N / kImages}, {kThreads}, kSharedBytes}; }

  // The threads copy kAtOnce pixels of a channel at once, kCopies times.
  static constexpr int kPieces = kImages / 4, kAtOnce = kThreads / kPieces, kCopies = (kPatch + kAtOnce - 1) / kAtOnce;

  int y, x;  // of this warp's pixel
  int images;
  const float* from[kCopies];  // what this thread copies of the next chunk's first channel
  bool there[kCopies];         // in the image

  __device__ explicit Conv(const float* source)
      : y(static_cast<int>(blockIdx.x) / kTilesAcross * kTileHeight + warp() / kTileWidth),
        x(static_cast<int>(blockIdx.x) % kTilesAcross * kTileWidth + warp() % kTileWidth),
        images(static_cast<int>(blockIdx.y) * kImages) {
    const int top = y - warp() / kTileWidth - kPadding, left = x - warp() % kTileWidth - kPadding;
#pragma unroll
    for (int i = 0; i < kCopies; ++i) {
      const int sy = top + pixel(i) / kPatchWidth, sx = left + pixel(i) % kPatchWidth;
      there[i] = sy >= 0 && sy < H && sx >= 0 && sx < W;
      from[i] = source + (there[i] ? (int64_t{sy} * W + sx) * N + images + piece() * 4 : 0);
    }
  }

  __device__ static int warp() { return static_cast<int>(threadIdx.x) / 32; }
  __device__ static int piece() { return static_cast<int>(threadIdx.x) % kPieces; }
  __device__ static int pixel(int copy) { return static_cast<int>(threadIdx.x) / kPieces + copy * kAtOnce; }
  __device__ bool inside() const { return y < H && x < W; }
  // Of output row 0.
  __device__ int64_t target() const { return (int64_t{y} * W + x) * N + images + threadIdx.x % 32 * V; }

  // Starts the copy of a chunk, if there is one. To be called for each, in their order.
  __device__ void stage(float* shared, int chunk) {
    float* to = shared + (chunk % 2 * kChunk * kPatch + pixel(0)) * kImages + piece() * 4;
    if (chunk < kChunks) {
#pragma unroll
      for (int i = 0; i < kCopies; ++i) {
        if (pixel(i) < kPatch) {
#pragma unroll
          for (int c = 0; c < kChunk; ++c) {
            const bool exists = C % kChunk == 0 || chunk * kChunk + c < C;
            const float* at = from[i] + (exists ? int64_t{c} * kRow : 0);
            copy_async<16>(to + (c * kPatch + i * kAtOnce) * kImages, at, there[i] && exists ? 16 : 0);
          }
        }
        if (there[i]) from[i] += int64_t{kChunk} * kRow;
      }
    }
    commit_copies();
  }

  // Waits for a chunk and starts the next; where this lane's images of the first tap of the chunk's first channel lies.
  __device__ const float* next(float* shared, int chunk) {
    __syncthreads();  // all are done with the chunk before, whose place the next one takes
    stage(shared, chunk + 1);
    wait_for_copies<1>();
    __syncthreads();
    const int first = warp() / kTileWidth * kPatchWidth + warp() % kTileWidth;
    return shared + (chunk % 2 * kChunk * kPatch + first) * kImages + threadIdx.x % 32 * V;
  }
};

// packed[k] = values[place[k]]: the weights in the order of the code.
static __global__ void __launch_bounds__(256) pack(const float* values, const int* place, float* packed, int weights) {
  const int k = static_cast<int>(blockIdx.x * 256 + threadIdx.x);
  if (k < weights) packed[k] = values[place[k]];
}

// constant[...] = values[place[...]], all of it on the device and on `stream`. scratch: as many floats.
template <int kWeights>
void set_weights(const float* values, const int* place, float* scratch, float (&constant)[kWeights], cudaStream_t stream) {
  launch("pack", pack, {{(kWeights + 255) / 256}, {256}}, stream, values, place, scratch, kWeights);
#ifdef TOST_CUDA_HOST
  std::memcpy(constant, scratch, sizeof(constant));
#else
  cudaMemcpyToSymbolAsync(constant, scratch, sizeof(constant), 0, cudaMemcpyDeviceToDevice, stream);
#endif
}

}  // namespace tost
