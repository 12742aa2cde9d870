// Work for several threads.
#pragma once

#include <algorithm>
#include <atomic>
#include <cstdint>

#include <torch/csrc/stable/ops.h>

namespace tost {

// Calls work(begin, end) for runs of [0, count), in any order and on any thread: a thread that is done takes the next run, so
// that one which the machine slows down does not hold up the others. Runs are long enough for a few per thread.
template <class Work>
void share_out(int64_t count, const Work& work) {
  constexpr int64_t kRunsPerThread = 8;
  const int64_t threads = std::min<int64_t>(torch::stable::get_num_threads(), count);
  if (threads <= 1) {
    if (count > 0) work(0, count);
    return;
  }
  const int64_t run = std::max<int64_t>(1, count / (threads * kRunsPerThread));
  std::atomic<int64_t> next{0};
  torch::stable::parallel_for(0, threads, 1, [&](int64_t, int64_t) {
    for (int64_t begin; (begin = next.fetch_add(run)) < count;) work(begin, std::min(begin + run, count));
  });
}

}  // namespace tost
