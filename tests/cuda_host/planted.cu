// Two small kernels that turn around the rows of each run of 128 numbers, through shared memory. KERNEL says which one runs; with
// the right BARRIER and nothing PAST the end both are correct.
#include "mma.h"

constexpr int kRun = 128;

// Rows of one number, by loads and stores.
__global__ void turn_around(const float* x, float* y) {
  SHARED(float, run, kRun);
  const int begin = blockIdx.x * kRun;
  run[threadIdx.x] = x[begin + threadIdx.x];
  BARRIER;
  y[(SAME_PLACE ? 0 : begin) + threadIdx.x] = run[kRun - 1 + PAST - static_cast<int>(threadIdx.x)];
}

// Rows of four, copied asynchronously and fetched by ldmatrix: every warp all of them, of which it writes a quarter.
__global__ void turn_rows(const float* x, float* y) {
  SHARED(uint4, run, kRun / 4);
  const int begin = blockIdx.x * kRun;
  tost::copy_async<4>(reinterpret_cast<float*>(run) + threadIdx.x, x + begin + threadIdx.x);
  tost::commit_copies();
  tost::wait_for_copies<0>();
  BARRIER;
  uint32_t words[4];
  tost::ldmatrix_x4(words, run + 31 + PAST - static_cast<int>(threadIdx.x % 32));
  y[(SAME_PLACE ? 0 : begin) + threadIdx.x] = __uint_as_float(words[threadIdx.x / 32]);
}

int main() {
  const auto kernel = KERNEL;
  const int row = kernel == turn_around ? 1 : 4;
  float x[2 * kRun], y[2 * kRun];
  for (int i = 0; i < 256; ++i) x[i] = static_cast<float>(i);
  tost::launch("planted", kernel, {{2}, {kRun}}, nullptr, x, y);
  for (int i = 0; i < 256; ++i) {
    const int begin = i / 128 * 128, rows_on = i % 128 / row;
    if (y[i] != x[begin + 128 - row - rows_on * row + i % row]) return 3;
  }
  return 0;
}
