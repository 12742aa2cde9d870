// What a batch normalisation does to its buffers after a batch, in one launch instead of five to nine.
//
// One block does it all: the counter of batches is read by every thread and written by one, behind a barrier. Whether alpha is 0 is
// decided here, from device memory.
#pragma once

#include <algorithm>

#include "launch.h"

namespace tost {

constexpr int kRunningStatsThreads = 1024;  // at most

struct RunningStats {
  float *mean, *var;
  int64_t* batches;  // or null
  const float* stats;
  const float* alpha;  // or null
  int64_t channels, mean_stride, var_stride, stats_stride, to_var;  // to_var: from a channel's batch mean to its variance
  float momentum, unbiased;  // unbiased: n / (n - 1)
  bool average, empty;       // momentum is 1 / batches; the batch only counts
};

// As torch's lerp rounds it: exact at weight 0 and at 1.
__device__ inline void lerp(float& running, float value, float weight) {
  const float difference = value - running;
  running = weight < 0.5f ? running + weight * difference : value - difference * (1.f - weight);
}

static __global__ void __launch_bounds__(kRunningStatsThreads) running_stats_kernel(RunningStats r) {
  if (r.alpha && *r.alpha == 0.f) return;
  float weight = r.momentum;
  if (r.batches) {
    const int64_t seen = *r.batches + 1;
    __syncthreads();
    if (threadIdx.x == 0) *r.batches = seen;
    if (r.average) weight = 1.f / static_cast<float>(seen);
  }
  if (r.empty) return;
  for (int64_t c = threadIdx.x; c < r.channels; c += blockDim.x) {
    lerp(r.mean[c * r.mean_stride], r.stats[c * r.stats_stride], weight);
    lerp(r.var[c * r.var_stride], r.stats[r.to_var + c * r.stats_stride] * r.unbiased, weight);
  }
}

inline void running_stats(const char* op, cudaStream_t stream, const RunningStats& r) {
  const int64_t warps = std::clamp<int64_t>((r.channels + 31) / 32, 1, kRunningStatsThreads / 32);
  launch(op, running_stats_kernel, {{1}, {static_cast<unsigned>(32 * warps)}}, stream, r);
}

}  // namespace tost
