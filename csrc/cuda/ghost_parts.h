// What the kernels of ghost_skip_add know of its parts (u, ghost, shortcut): their parameters, their moments, and the
// coefficients of a channel that follow.
//
// A part is (x - center) * scale + shift. Whatever a channel's coefficients need (the totals of partial sums; a root; a few
// divisions) is worked out once a block, by its first threads, into a table in shared memory. From there they go to the
// registers of a thread with one channel; a thread with 4 or 8 reads them 16 bytes at a time, move by move: 14 coefficients of 8
// channels would be 112 registers, and leave too few threads to keep the memory busy.
#pragma once

#include <limits>

#include "activation.h"
#include "channels.h"

namespace tost {

constexpr int kParts = 3;  // u, ghost, shortcut
constexpr int kGhost = 1;
enum Norm { kNoNorm = 0, kRunningStats = 1, kBatchStats = 2 };

struct Part {
  const void* x = nullptr;  // null: absent
  const float *weight = nullptr, *bias = nullptr, *mean = nullptr, *var = nullptr;  // one number a channel, or null
  int norm = kNoNorm;
  double eps = 0;
};

struct Tail {
  Part part[kParts];
  const float *alpha = nullptr, *beta = nullptr;
  int beta_stride = 0;  // 0: one for all channels
  int activation = kNone;

  // The kernels read alpha themselves: a CUDA graph sees it move. At 0 the ghost is skipped, not multiplied.
  __device__ float strength(int p) const { return p == kGhost ? *alpha : 1.f; }
  __device__ bool is_live(int p) const { return part[p].x && (p != kGhost || *alpha != 0.f); }
  bool any_batch_stats() const { return std::any_of(part, part + kParts, [](const Part& p) { return p.norm == kBatchStats; }); }
};

__device__ inline bool is_finite(float x) { return fabsf(x) < std::numeric_limits<float>::infinity(); }

// All loads of some moves, of the parts that are wanted.
template <int V, class T, int U>
__device__ inline void load_parts(
    Vector<T, V> (&x)[kParts][U], const Tail& t, const bool (&wanted)[kParts], const int64_t (&at)[U]) {
#pragma unroll
  for (int p = 0; p < kParts; ++p) {
    if (!wanted[p]) continue;
#pragma unroll
    for (int u = 0; u < U; ++u) {
      if (is_move(at, u)) x[p][u] = load<V>(static_cast<const T*>(t.part[p].x) + at[u]);
    }
  }
}

// ---- moments

// The sums of x - pivot and of its square, of this block's elements, into the first two rows of `partial`. The pivot is the
// channel's first element. A thread goes by Welford's running mean, which no outlier and no large mean makes inexact in float32. The
// sums of its results are float64: with the pivot one of n elements, the squares are at most n times what they are around
// the mean, and of 16 digits enough is left.
template <class T, int V, int K>
__device__ inline void write_moments(const T* x, const Walk& w, unsigned block, double* partial) {
  constexpr int U = K <= 4 ? 4 : 2;
  const int64_t c = first_channel<K>(w, block);
  float pivot[K], mean[V] = {}, squares[V] = {}, count = 0.f;
#pragma unroll
  for (int k = 0; k < K; ++k) pivot[k] = c < w.channels ? load<1>(x + (c + k) * w.inner)[0] : 0.f;
  walk<V, K, U, false>(w, block, [&](const int64_t (&at)[U]) {
    Vector<T, V> given[U];
#pragma unroll
    for (int u = 0; u < U; ++u) {
      if (is_move(at, u)) given[u] = load<V>(x + at[u]);
    }
#pragma unroll
    for (int u = 0; u < U; ++u) {
      if (!is_move(at, u)) continue;
      count += 1.f;
      const float share = __fdividef(1.f, count);
#pragma unroll
      for (int v = 0; v < V; ++v) {
        const float y = given[u][v] - pivot[v % K], off = y - mean[v];
        mean[v] += off * share;
        squares[v] += off * (y - mean[v]);
      }
    }
  });
  double first[K] = {}, second[K] = {};
#pragma unroll
  for (int v = 0; v < V; ++v) {
    const double m = mean[v], n = count;
    first[v % K] += n * m;
    second[v % K] += squares[v] + n * m * m;
  }
  write_partial<K>(partial, w, block, first);
  write_partial<K>(partial + w.channels * w.splits, w, block, second);
}

struct Moments {
  double relative, variance;  // the mean less the pivot; biased
};

// From what write_moments left in the two rows at `partial`.
__device__ inline Moments moments_of(const double* partial, const Walk& w, int64_t c, const Team& team) {
  const double first = team.total(partial + c * w.splits, w.splits) * w.share;
  const double second = team.total(partial + (w.channels + c) * w.splits, w.splits) * w.share - first * first;
  return {first, second < 0 ? 0 : second};  // (NaN stays)
}

// ---- coefficients

struct Affine {
  float center, scale, shift, invstd;
};

// `strength` multiplies all of the part; mean and variance are unused without a norm.
__device__ inline Affine affine_of(const Part& part, int64_t c, double mean, double variance, float strength) {
  if (part.norm == kNoNorm) return {0.f, strength, 0.f, 1.f};
  const float invstd = rsqrtf(static_cast<float>(variance + part.eps)), center = static_cast<float>(mean);
  const float scale = strength * (part.weight ? part.weight[c] : 1.f) * invstd;
  // What rounding the mean leaves over goes into the shift.
  const float lost = static_cast<float>(center - mean) * scale;
  return {center, scale, (part.bias ? strength * part.bias[c] : 0.f) + lost, invstd};
}

// As backward has them: the batch's statistics are in `stats`.
__device__ inline Affine saved_affine(const Tail& t, int p, const float* stats, int64_t channels, int64_t c, float strength) {
  const Part& part = t.part[p];
  const float* mean = part.norm == kBatchStats ? stats + 2 * p * channels : part.mean;
  const float* var = part.norm == kBatchStats ? mean + channels : part.var;
  return part.norm == kNoNorm ? affine_of(part, c, 0, 0, strength) : affine_of(part, c, mean[c], var[c], strength);
}

// Rows of the table, one number a channel each.
enum Row { kCenter = 0, kScale = kParts, kShift = 2 * kParts, kBeta, kRows };

// Of K = 8 channels, the first four of every lane come first: the 16 bytes that 8 lanes read are then 128 in a row.
template <int K>
struct Table {
  static constexpr int kEach = K == 1 ? 1 : 4;
  static constexpr int kLanes = K == 1 ? kMostLanes : kLanesAcross;
  struct alignas(4 * kEach) Entry {
    float of[kEach];
  };
  Entry entry[K / kEach][kLanes];

  __device__ float& operator()(int lane, int k) { return entry[k / kEach][lane].of[k % kEach]; }
  __device__ float operator()(int lane, int k) const { return entry[k / kEach][lane].of[k % kEach]; }
};

// A thread's coefficients: row by row one table of the block's channels.
template <int K, int N>
class Coefficients {
 public:
  __device__ Coefficients(const Table<K>* rows, const Walk& w) : rows_(rows), lane_(threadIdx.x % w.lanes) {
    if constexpr (K == 1) {
#pragma unroll
      for (int row = 0; row < N; ++row) own_[row] = rows[row](lane_, 0);
    }
  }
  __device__ float operator()(int row, int v) const { return K == 1 ? own_[row] : rows_[row](lane_, v % K); }

 private:
  const Table<K>* rows_;
  int lane_;
  float own_[K == 1 ? N : 1];
};

// Calls use(team, c, exists, row -> where its entry of the table is) for the channels of this block.
template <int K, class Use>
__device__ inline void fill_rows(Table<K>* rows, const Walk& w, unsigned block, const Use& use) {
  const int64_t most = w.lanes * K, first = block % w.tiles * most;
  share_out_totals(std::min(most, w.channels - first), w.splits, [&](const Team& team, int64_t i, bool exists) {
    use(team, first + i, exists, [&](int row) -> float& { return rows[row](static_cast<int>(i) / K, i % K); });
  });
  __syncthreads();
}

}  // namespace tost
