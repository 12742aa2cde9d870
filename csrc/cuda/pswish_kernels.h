// pswish: y = x s, s = sigmoid(beta x), and its gradients, beta one number or one for each channel.
//
// Forward reads x and writes y, 8 bytes an element of float32: the floor. Backward reads dy and x, writes dx = dy (s + beta x s
// (1 - s)) and keeps its share of dbeta = sum dy x^2 s (1 - s) in registers: 12 bytes, the floor too. A block leaves one partial
// sum of dbeta a channel, and a second, tiny, kernel adds them up in order. One beta for all: the tensor is one channel.
#pragma once

#include "activation.h"
#include "channels.h"
#include "sum_parts.h"

namespace tost {

template <int K>
__device__ inline void load_beta(float (&to)[K], const float* beta, const Walk& w) {
  const int64_t c = first_channel<K>(w, blockIdx.x);
#pragma unroll
  for (int k = 0; k < K; ++k) to[k] = c < w.channels ? beta[c + k] : 0.f;
}

template <class T, int V, int K>
__global__ void __launch_bounds__(kThreads, kBlocksPerSM) pswish_forward_kernel(const T* x, const float* beta, T* y, Walk w) {
  constexpr int U = 4;
  float b[K];
  load_beta<K>(b, beta, w);
  walk<V, K, U, false>(w, blockIdx.x, [&](const int64_t (&at)[U]) {
    Vector<T, V> given[U];
#pragma unroll
    for (int u = 0; u < U; ++u) {
      if (is_move(at, u)) given[u] = load<V>(x + at[u]);
    }
#pragma unroll
    for (int u = 0; u < U; ++u) {
      if (!is_move(at, u)) continue;
      float value[V];
#pragma unroll
      for (int v = 0; v < V; ++v) value[v] = given[u][v];
      activate(value, kPSwish, [&](int v) { return b[v % K]; });
      store<V>(y + at[u], value);
    }
  });
}

template <class T, int V, int K>
__global__ void __launch_bounds__(kThreads, kBlocksPerSM)
pswish_backward_kernel(const T* dy, const T* x, const float* beta, T* dx, double* partial, Walk w) {
  constexpr int U = K <= 4 ? 2 : 1;
  float b[K], dbeta[K] = {};
  load_beta<K>(b, beta, w);
  walk<V, K, U, false>(w, blockIdx.x, [&](const int64_t (&at)[U]) {
    Vector<T, V> grad[U], given[U];
#pragma unroll
    for (int u = 0; u < U; ++u) {
      if (!is_move(at, u)) continue;
      grad[u] = load<V>(dy + at[u]);
      given[u] = load<V>(x + at[u]);
    }
#pragma unroll
    for (int u = 0; u < U; ++u) {
      if (!is_move(at, u)) continue;
      float d[V], z[V];
#pragma unroll
      for (int v = 0; v < V; ++v) d[v] = grad[u][v], z[v] = given[u][v];
      activation_gradient(d, z, kPSwish, [&](int v) { return b[v % K]; }, dbeta);
      store<V>(dx + at[u], d);
    }
  });
  double sums[K];
#pragma unroll
  for (int k = 0; k < K; ++k) sums[k] = dbeta[k];
  write_partial<K>(partial, w, blockIdx.x, sums);
}

inline void pswish_forward(const ElementwiseCall& call, const void* x, const float* beta, void* y) {
  const Walk w = share_out(call, {x, y});
  with_constants(call.bf16, w, [&]<class T, int V, int K>() {
    launch(call.op, pswish_forward_kernel<T, V, K>, w.grid(), call.stream, static_cast<const T*>(x), beta, static_cast<T*>(y), w);
  });
}

inline void pswish_backward(
    const ElementwiseCall& call, const void* dy, const void* x, const float* beta, void* dx, float* dbeta) {
  const Walk w = share_out(call, {dy, x, dx});
  auto* partial = static_cast<double*>(call.scratch(sizeof(double) * w.channels * w.splits));
  with_constants(call.bf16, w, [&]<class T, int V, int K>() {
    launch(
        call.op, pswish_backward_kernel<T, V, K>, w.grid(), call.stream, static_cast<const T*>(dy), static_cast<const T*>(x), beta,
        static_cast<T*>(dx), partial, w);
  });
  sum_parts(call.op, partial, w.splits, 1, nullptr, dbeta, w.channels, call.stream, w.splits);
}

}  // namespace tost
