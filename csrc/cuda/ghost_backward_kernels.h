// The backward pass of ghost_skip_add: what the gradients depend on is added up, then they are written. The sum before the
// activation, z, is worked out again in both passes.
#pragma once

#include "ghost_parts.h"

namespace tost {

// Rows of `partial`: the sums over a channel of dz, of dz * (x - center) for each part, and of dbeta's terms. With a ghost that is
// switched off, its sum is of dz * norm(ghost), of what is finite; or, where the batch normalises it, of dz * (ghost - pivot), and
// two more rows have its moments, which forward did not take.
enum Sum { kDz = 0, kProduct = 1, kDbeta = kProduct + kParts, kMoments, kSums = kMoments + 2 };

struct Gradients {
  void* part[kParts];           // null: absent
  float *affine, *alpha, *beta;  // (3, 2, C): dweight and dbias of each part; as the arguments
};

// Several channels take so many registers that an SM runs one block. With 4, its threads have room for more loads on their way.
template <int K>
constexpr int kBlocksAtOnce = K == 1 ? kBlocksPerSM : 1;
template <int K>
constexpr int kMovesAtOnce = K == 4 ? 2 : 1;

__device__ inline bool is_off(const Tail& t, int p) { return t.part[p].x && !t.is_live(p); }

// Some moves of the parts that are read, and dz there: the gradient before the activation. in_z: the parts that z needs.
template <class T, int V, int U, int K, class AtChannel>
__device__ inline void load_and_differentiate(
    Vector<T, V> (&x)[kParts][U], float (&dz)[U][V], const T* dy, const Tail& t, const bool (&reads)[kParts],
    const bool (&in_z)[kParts], const int64_t (&at)[U], const AtChannel& at_channel, float (&dbeta)[K]) {
  Vector<T, V> given[U];
#pragma unroll
  for (int u = 0; u < U; ++u) {
    if (is_move(at, u)) given[u] = load<V>(dy + at[u]);
  }
  load_parts<V>(x, t, reads, at);
  float z[U][V];
#pragma unroll
  for (int u = 0; u < U; ++u) {
    if (!is_move(at, u)) continue;
#pragma unroll
    for (int v = 0; v < V; ++v) {
      dz[u][v] = given[u][v];
      z[u][v] = at_channel(kShift, v);
    }
  }
#pragma unroll
  for (int p = 0; p < kParts; ++p) {
    if (!in_z[p]) continue;
#pragma unroll
    for (int u = 0; u < U; ++u) {
      if (!is_move(at, u)) continue;
#pragma unroll
      for (int v = 0; v < V; ++v) z[u][v] += (x[p][u][v] - at_channel(kCenter + p, v)) * at_channel(kScale + p, v);
    }
  }
#pragma unroll
  for (int u = 0; u < U; ++u) {
    if (is_move(at, u)) activation_gradient(dz[u], z[u], t.activation, [&](int v) { return at_channel(kBeta, v); }, dbeta);
  }
}

// Without batch statistics the gradients wait for no sum: `write` says that they are written here.
template <class T, int V, int K>
__global__ void __launch_bounds__(kThreads, kBlocksAtOnce<K>)
ghost_sums_kernel(Tail t, Walk w, const T* dy, const float* stats, double* partial, Gradients gradients, bool write) {
  constexpr int U = kMovesAtOnce<K>;
  constexpr int kOffShift = kRows, kAllRows = kRows + 1;
  SHARED(Table<K>, rows, kAllRows);
  const bool off = is_off(t, kGhost);
  fill_rows<K>(rows, w, blockIdx.x, [&](const Team& team, int64_t c, bool exists, const auto& row) {
    if (!exists || !team.first()) return;
    float shift = 0.f;
#pragma unroll 1
    for (int p = 0; p < kParts; ++p) {
      const Part& part = t.part[p];
      Affine a{};
      if (p == kGhost && off) {  // not part of z: its scale and shift are those of norm(ghost) itself
        if (part.norm == kBatchStats) {
          a = {load<1>(static_cast<const T*>(part.x) + c * w.inner)[0], 1.f, 0.f, 1.f};
        } else {
          a = saved_affine(t, p, stats, w.channels, c, 1.f);
        }
        row(kOffShift) = a.shift;
      } else if (part.x) {
        a = saved_affine(t, p, stats, w.channels, c, t.strength(p));
        shift += a.shift;
      }
      row(kCenter + p) = a.center;
      row(kScale + p) = a.scale;
    }
    row(kShift) = shift;
    row(kBeta) = t.activation == kPSwish ? t.beta[c * t.beta_stride] : 0.f;
  });
  const Coefficients<K, kAllRows> at_channel(rows, w);
  bool reads[kParts], in_z[kParts];
#pragma unroll
  for (int p = 0; p < kParts; ++p) {
    reads[p] = t.part[p].x && (p == kGhost || t.activation != kNone || t.part[p].norm != kNoNorm);
    in_z[p] = reads[p] && t.is_live(p);
  }
  float dz_sum[K] = {}, product[kParts][K] = {}, dbeta[K] = {};
  walk<V, K, U, false>(w, blockIdx.x, [&](const int64_t (&at)[U]) {
    Vector<T, V> x[kParts][U];
    float dz[U][V];
    load_and_differentiate(x, dz, dy, t, reads, in_z, at, at_channel, dbeta);
#pragma unroll
    for (int u = 0; u < U; ++u) {
      if (!is_move(at, u)) continue;
#pragma unroll
      for (int v = 0; v < V; ++v) dz_sum[v % K] += dz[u][v];
    }
#pragma unroll
    for (int p = 0; p < kParts; ++p) {
      if (!reads[p]) continue;
#pragma unroll
      for (int u = 0; u < U; ++u) {
        if (!is_move(at, u)) continue;
        if (p == kGhost && off) {
#pragma unroll
          for (int v = 0; v < V; ++v) {
            const float y = (x[p][u][v] - at_channel(kCenter + p, v)) * at_channel(kScale + p, v) + at_channel(kOffShift, v);
            product[p][v % K] += is_finite(y) ? dz[u][v] * y : 0.f;
          }
        } else {
#pragma unroll
          for (int v = 0; v < V; ++v) product[p][v % K] += dz[u][v] * (x[p][u][v] - at_channel(kCenter + p, v));
        }
      }
    }
    if (!write) return;
#pragma unroll
    for (int p = 0; p < kParts; ++p) {
      if (!t.part[p].x) continue;
#pragma unroll
      for (int u = 0; u < U; ++u) {
        if (!is_move(at, u)) continue;
        float grad[V];
#pragma unroll
        for (int v = 0; v < V; ++v) grad[v] = p == kGhost && off ? 0.f : dz[u][v] * at_channel(kScale + p, v);
        store<V>(static_cast<T*>(gradients.part[p]) + at[u], grad);
      }
    }
  });
  const auto put = [&](int sum, const float(&of)[K]) {
    double sums[K];
#pragma unroll
    for (int k = 0; k < K; ++k) sums[k] = of[k];
    write_partial<K>(partial + sum * w.channels * w.splits, w, blockIdx.x, sums);
  };
  put(kDz, dz_sum);
#pragma unroll
  for (int p = 0; p < kParts; ++p) {
    if (reads[p]) put(kProduct + p, product[p]);
  }
  if (t.activation == kPSwish) put(kDbeta, dbeta);
  if (off && t.part[kGhost].norm == kBatchStats) {
    write_moments<T, V, K>(static_cast<const T*>(t.part[kGhost].x), w, blockIdx.x, partial + kMoments * w.channels * w.splits);
  }
}

// What channel c adds to dalpha: the sum of dz * norm(ghost). product, dz: the channel's totals.
__device__ inline double alpha_term(
    const Tail& t, const Walk& w, const float* stats, const double* partial, int64_t c, double product, double dz, const Team& team) {
  const Part& part = t.part[kGhost];
  const bool off = is_off(t, kGhost);
  if (part.norm == kNoNorm || (off && part.norm == kRunningStats)) return product;
  const double bias = part.bias ? part.bias[c] : 0.f;
  if (!off) {
    const Affine a = saved_affine(t, kGhost, stats, w.channels, c, 1.f);
    return a.scale * product + bias * dz;
  }
  const Moments m = moments_of(partial + kMoments * w.channels * w.splits, w, c, team);
  const Affine a = affine_of(part, c, 0, m.variance, 1.f);
  // One NaN spoils the statistics, so all of the normalised channel: none of it counts.
  const bool sound = is_finite(a.scale) && is_finite(static_cast<float>(m.relative)) && is_finite(static_cast<float>(bias));
  return sound ? a.scale * (product - m.relative * dz) + bias * dz : 0;
}

// The sum of x over the block, for its first thread.
__device__ inline double block_sum(double x) {
  SHARED(double, of_warps, kThreads / 32);
  for (int bits = 16; bits; bits /= 2) x += __shfl_xor_sync(0xffffffffu, x, bits);
  if (threadIdx.x % 32 == 0) of_warps[threadIdx.x / 32] = x;
  __syncthreads();
  x = 0;
  if (threadIdx.x == 0) {
    for (int warp = 0; warp < static_cast<int>(blockDim.x) / 32; ++warp) x += of_warps[warp];
  }
  __syncthreads();
  return x;
}

// The small gradients, of all channels, by one block.
__device__ inline void write_small(
    const Tail& t, const Walk& w, const float* stats, const double* partial, const Gradients& gradients) {
  double dalpha = 0, dbeta = 0;
  share_out_totals(w.channels, w.splits, [&](const Team& team, int64_t c, bool exists) {
    exists = exists && team.first();
    const auto total = [&](int sum) { return team.total(partial + (sum * w.channels + c) * w.splits, w.splits); };
    const double dz = total(kDz);
#pragma unroll 1
    for (int p = 0; p < kParts; ++p) {
      double weight = 0, bias = 0, product = 0;
      if (t.part[p].x && (p == kGhost || t.part[p].norm != kNoNorm)) product = total(kProduct + p);
      if (t.is_live(p) && t.part[p].norm != kNoNorm) {
        const float strength = t.strength(p);
        weight = strength * saved_affine(t, p, stats, w.channels, c, strength).invstd * product;
        bias = strength * dz;
      }
      if (p == kGhost && t.part[p].x) {
        const double term = alpha_term(t, w, stats, partial, c, product, dz, team);
        if (exists) dalpha += term;
      }
      if (!exists) continue;
      gradients.affine[2 * p * w.channels + c] = static_cast<float>(weight);
      gradients.affine[(2 * p + 1) * w.channels + c] = static_cast<float>(bias);
    }
    if (t.activation != kPSwish) return;
    const double term = total(kDbeta);
    if (!exists) return;
    dbeta += term;
    if (t.beta_stride) gradients.beta[c] = static_cast<float>(term);
  });
  dalpha = block_sum(dalpha);
  dbeta = block_sum(dbeta);
  if (threadIdx.x != 0) return;
  if (t.part[kGhost].x) *gradients.alpha = static_cast<float>(dalpha);
  if (t.activation == kPSwish && !t.beta_stride) *gradients.beta = static_cast<float>(dbeta);
}

// Block 0 writes the small gradients; the others, if there are any, those of the parts.
template <class T, int V, int K>
__global__ void __launch_bounds__(kThreads, kBlocksAtOnce<K>)
ghost_gradients_kernel(Tail t, Walk w, const T* dy, const float* stats, const double* partial, Gradients gradients) {
  constexpr int U = kMovesAtOnce<K>;
  constexpr int kSlope = kRows, kMean = kSlope + kParts, kAllRows = kMean + kParts;  // of the terms that batch statistics add
  if (blockIdx.x == 0) {
    write_small(t, w, stats, partial, gradients);
    return;
  }
  const unsigned block = blockIdx.x - 1;
  SHARED(Table<K>, rows, kAllRows);
  fill_rows<K>(rows, w, block, [&](const Team& team, int64_t c, bool exists, const auto& row) {
    exists = exists && team.first();
    const double dz = team.total(partial + c * w.splits, w.splits) * w.share;
    float shift = 0.f;
#pragma unroll 1
    for (int p = 0; p < kParts; ++p) {
      Affine a{};
      double slope = 0, mean = 0;
      if (t.is_live(p)) {
        a = saved_affine(t, p, stats, w.channels, c, t.strength(p));
        shift += a.shift;
        if (t.part[p].norm == kBatchStats) {
          const double product = team.total(partial + ((kProduct + p) * w.channels + c) * w.splits, w.splits) * w.share;
          slope = -a.scale * product * a.invstd * a.invstd;
          mean = -a.scale * dz;
        }
      }
      if (!exists) continue;
      row(kCenter + p) = a.center;
      row(kScale + p) = a.scale;
      row(kSlope + p) = static_cast<float>(slope);
      row(kMean + p) = static_cast<float>(mean);
    }
    if (!exists) return;
    row(kShift) = shift;
    row(kBeta) = t.activation == kPSwish ? t.beta[c * t.beta_stride] : 0.f;
  });
  const Coefficients<K, kAllRows> at_channel(rows, w);
  bool live[kParts], reads[kParts];
#pragma unroll
  for (int p = 0; p < kParts; ++p) {
    live[p] = t.is_live(p);
    reads[p] = live[p] && (t.activation != kNone || t.part[p].norm == kBatchStats);
  }
  float unused[K] = {};
  walk<V, K, U, true>(w, block, [&](const int64_t (&at)[U]) {
    Vector<T, V> x[kParts][U];
    float dz[U][V];
    load_and_differentiate(x, dz, dy, t, reads, reads, at, at_channel, unused);
#pragma unroll
    for (int p = 0; p < kParts; ++p) {
      if (!t.part[p].x) continue;
#pragma unroll
      for (int u = 0; u < U; ++u) {
        if (!is_move(at, u)) continue;
        float grad[V];
#pragma unroll
        for (int v = 0; v < V; ++v) grad[v] = live[p] ? dz[u][v] * at_channel(kScale + p, v) : 0.f;
        if (reads[p] && t.part[p].norm == kBatchStats) {  // else x does not count, and must not: an infinite x times 0 is NaN
#pragma unroll
          for (int v = 0; v < V; ++v) {
            grad[v] += (x[p][u][v] - at_channel(kCenter + p, v)) * at_channel(kSlope + p, v) + at_channel(kMean + p, v);
          }
        }
        store<V>(static_cast<T*>(gradients.part[p]) + at[u], grad);
      }
    }
  });
}

}  // namespace tost
