// The activations of the elementwise kernels, and their gradients.
#pragma once

#include "launch.h"

namespace tost {

enum Activation { kNone = 0, kRelu = 1, kPSwish = 2 };

__device__ inline float sigmoid(float z) { return __fdividef(1.f, 1.f + __expf(-z)); }

// What an activation does to V numbers; beta(v) is what belongs to number v. Which one it is differs between calls, never between
// threads: a branch around the loop costs nothing.

// NaN stays NaN, as in torch.
template <int V, class Beta>
__device__ inline void activate(float (&z)[V], int activation, const Beta& beta) {
  if (activation == kRelu) {
#pragma unroll
    for (int v = 0; v < V; ++v) z[v] = z[v] < 0.f ? 0.f : z[v];
  } else if (activation == kPSwish) {
#pragma unroll
    for (int v = 0; v < V; ++v) z[v] *= sigmoid(beta(v) * z[v]);
  }
}

// Makes of the gradients behind the activation, in `d`, those before it. Adds what they give to dbeta, number v to dbeta[v % K].
template <int V, int K, class Beta>
__device__ inline void activation_gradient(
    float (&d)[V], const float (&z)[V], int activation, const Beta& beta, float (&dbeta)[K]) {
  if (activation == kRelu) {
#pragma unroll
    for (int v = 0; v < V; ++v) d[v] = z[v] <= 0.f ? 0.f : d[v];
  } else if (activation == kPSwish) {
#pragma unroll
    for (int v = 0; v < V; ++v) {
      const float s = sigmoid(beta(v) * z[v]), slope = s * (1.f - s);
      dbeta[v % K] += d[v] * z[v] * (z[v] * slope);
      d[v] *= z[v] * (beta(v) * slope) + s;  // (beta * z) * slope would be inf * 0 where beta * z overflows
    }
  }
}

}  // namespace tost
