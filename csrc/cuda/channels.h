// How the elementwise kernels walk over a tensor: as (outer, channels, inner), row-major, which fits all three layouts.
//
// batch-last [C][H][W][N] is outer = 1, inner = H W N; contiguous is outer = N, inner = H W; channels_last is outer = N H W,
// inner = 1. A thread moves 16 bytes of each tensor at a time, which are neighbours of one channel where inner > 1 (kPlanar), and
// of as many channels where inner = 1: a thread then stays with its channels and walks over the positions, so what it needs of a
// channel stays in its registers. Sizes that 16 bytes do not divide are moved element by element.
//
// Sums over a channel: `splits` blocks share out its positions and leave one partial sum each; `sum_splits` adds them up in
// their order. No atomics: the same bits every time.
#pragma once

#include <algorithm>

#include "launch.h"

namespace tost {

constexpr int kThreads = 256;

// Some elements in one move.
template <class T, int V>
struct alignas(sizeof(T) * V) Vector {
  T element[V];
};

__device__ inline float widen(float x) { return x; }
__device__ inline float widen(__nv_bfloat16 x) { return __bfloat162float(x); }
__device__ inline void narrow(float& to, float x) { to = x; }
__device__ inline void narrow(__nv_bfloat16& to, float x) { to = __float2bfloat16_rn(x); }

template <class T, int V>
__device__ inline void load(float (&to)[V], const T* from) {
  const auto vector = *reinterpret_cast<const Vector<T, V>*>(from);
#pragma unroll
  for (int v = 0; v < V; ++v) to[v] = widen(vector.element[v]);
}

template <class T, int V>
__device__ inline void store(T* to, const float (&from)[V]) {
  Vector<T, V> vector;
#pragma unroll
  for (int v = 0; v < V; ++v) narrow(vector.element[v], from[v]);
  *reinterpret_cast<Vector<T, V>*>(to) = vector;
}

// A tensor, and how its blocks share it out: block b has the channels of tile b % tiles and the split b / tiles.
struct Walk {
  int64_t outer, channels, inner;
  int tiles, splits;
  int lanes;  // threads side by side on the channels: a power of two; 1 where inner > 1
};

// Calls visit(offset) for each of this thread's vectors, and returns its first channel (with inner > 1: its only one).
// A thread past the last channel has none.
template <int V, bool kPlanar, class Visit>
__device__ inline int64_t walk(const Walk& w, const Visit& visit) {
  const int tile = blockIdx.x % w.tiles;
  const int64_t split = blockIdx.x / w.tiles;
  if (kPlanar) {
    const int64_t c = tile, row = w.inner / V;  // vectors
    for (int64_t q = split * kThreads + threadIdx.x; q < w.outer * row; q += int64_t{w.splits} * kThreads) {
      const int64_t o = w.outer == 1 ? 0 : q / row;
      visit((o * w.channels + c) * w.inner + (q - o * row) * V);
    }
    return c;
  }
  const int64_t c = (int64_t{tile} * w.lanes + threadIdx.x % w.lanes) * V;
  const int step = kThreads / w.lanes;
  if (c < w.channels) {
    for (int64_t p = split * step + threadIdx.x / w.lanes; p < w.outer; p += int64_t{w.splits} * step) visit(p * w.channels + c);
  }
  return c;
}

// The sum of a whole warp, in every lane.
__device__ inline float warp_sum(float x) {
  for (int bits = 16; bits; bits /= 2) x += __shfl_xor_sync(0xffffffffu, x, bits);
  return x;
}

// Adds up what this block's threads have of each channel, and writes it to partial[split][channel].
template <int V, bool kPlanar>
__device__ inline void write_partial(float* partial, const Walk& w, int64_t c, const float (&sum)[V]) {
  float* to = partial + int64_t{blockIdx.x / w.tiles} * w.channels;
  if (kPlanar) {
    SHARED(float, warps, kThreads / 32);
    float mine = 0;
#pragma unroll
    for (int v = 0; v < V; ++v) mine += sum[v];
    mine = warp_sum(mine);
    if (threadIdx.x % 32 == 0) warps[threadIdx.x / 32] = mine;
    __syncthreads();
    if (threadIdx.x == 0) {
      float total = 0;
      for (int i = 0; i < kThreads / 32; ++i) total += warps[i];
      to[c] = total;
    }
  } else {
    SHARED(float, sums, kThreads* V);
#pragma unroll
    for (int v = 0; v < V; ++v) sums[v * kThreads + threadIdx.x] = sum[v];
    __syncthreads();
    if (static_cast<int>(threadIdx.x) < w.lanes && c < w.channels) {
#pragma unroll
      for (int v = 0; v < V; ++v) {
        float total = 0;
        for (int i = threadIdx.x; i < kThreads; i += w.lanes) total += sums[v * kThreads + i];
        to[c + v] = total;
      }
    }
  }
}

// out[c] = sum over s of partial[s][c]: a warp a channel.
static __global__ void __launch_bounds__(kThreads) sum_splits(const float* partial, float* out, int64_t channels, int splits) {
  const int64_t c = int64_t{blockIdx.x} * (kThreads / 32) + threadIdx.x / 32;
  if (c >= channels) return;
  float sum = 0;
  for (int s = threadIdx.x % 32; s < splits; s += 32) sum += partial[s * channels + c];
  sum = warp_sum(sum);
  if (threadIdx.x % 32 == 0) out[c] = sum;
}

}  // namespace tost
