// The forward pass of ghost_skip_add: the moments of the parts with batch statistics, then all parts in one pass.
#pragma once

#include "ghost_parts.h"

namespace tost {

// Rows 2 p and 2 p + 1 of `partial` are of part p.
template <class T, int V, int K>
__global__ void __launch_bounds__(kThreads, kBlocksPerSM) ghost_moments_kernel(Tail t, Walk w, double* partial) {
#pragma unroll 1
  for (int p = 0; p < kParts; ++p) {
    if (t.part[p].norm != kBatchStats || !t.is_live(p)) continue;
    write_moments<T, V, K>(static_cast<const T*>(t.part[p].x), w, blockIdx.x, partial + 2 * p * w.channels * w.splits);
  }
}

// Also writes `stats`, each channel by the block with its first split.
template <class T, int V, int K>
__global__ void __launch_bounds__(kThreads, kBlocksPerSM)
ghost_apply_kernel(Tail t, Walk w, const double* partial, T* out, float* stats) {
  constexpr int U = K <= 4 ? 2 : 1;
  SHARED(Table<K>, rows, kRows);
  fill_rows<K>(rows, w, blockIdx.x, [&](const Team& team, int64_t c, bool exists, const auto& row) {
    exists = exists && team.first();
    float shift = 0.f;
#pragma unroll 1
    for (int p = 0; p < kParts; ++p) {
      const Part& part = t.part[p];
      double mean = 0, variance = 0;
      Affine a{};
      if (t.is_live(p)) {
        if (part.norm == kBatchStats) {
          const Moments m = moments_of(partial + 2 * p * w.channels * w.splits, w, c, team);
          mean = load<1>(static_cast<const T*>(part.x) + c * w.inner)[0] + m.relative;
          variance = m.variance;
        }
        a = part.norm == kRunningStats ? affine_of(part, c, part.mean[c], part.var[c], t.strength(p))
                                       : affine_of(part, c, mean, variance, t.strength(p));
        shift += a.shift;
      }
      if (!exists) continue;
      row(kCenter + p) = a.center;
      row(kScale + p) = a.scale;
      if (static_cast<int>(blockIdx.x) >= w.tiles) continue;
      stats[2 * p * w.channels + c] = static_cast<float>(mean);
      stats[(2 * p + 1) * w.channels + c] = static_cast<float>(variance);
    }
    if (!exists) return;
    row(kShift) = shift;
    row(kBeta) = t.activation == kPSwish ? t.beta[c * t.beta_stride] : 0.f;
  });
  const Coefficients<K, kRows> at_channel(rows, w);
  const bool live[kParts] = {true, t.is_live(1), t.is_live(2)};
  walk<V, K, U, true>(w, blockIdx.x, [&](const int64_t (&at)[U]) {
    Vector<T, V> x[kParts][U];
    load_parts<V>(x, t, live, at);
#pragma unroll
    for (int u = 0; u < U; ++u) {
      if (!is_move(at, u)) continue;
      float z[V];
#pragma unroll
      for (int v = 0; v < V; ++v) z[v] = at_channel(kShift, v);
#pragma unroll
      for (int p = 0; p < kParts; ++p) {
        if (!live[p]) continue;
#pragma unroll
        for (int v = 0; v < V; ++v) z[v] += (x[p][u][v] - at_channel(kCenter + p, v)) * at_channel(kScale + p, v);
      }
      activate(z, t.activation, [&](int v) { return at_channel(kBeta, v); });
      store<V>(out + at[u], z);
    }
  });
}

}  // namespace tost
