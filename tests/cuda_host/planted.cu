// Two small kernels that turn around the rows of each run of 128 numbers, through shared memory:
//   planted KERNEL BARRIER PAST SAME_PLACE
// With the barrier of the block, nothing read past the end, and a place for each block, both are correct.
#include <cstdlib>
#include <cstring>

#include "mma.h"

constexpr int kRun = 128;

struct Mistakes {
  char barrier;  // 'b' of the block, 'w' of the warp, 'n' none
  int past;
  bool same_place;  // for both blocks
};

__device__ void barrier_of(const Mistakes& m) {
  if (m.barrier == 'b') __syncthreads();
  if (m.barrier == 'w') __syncwarp();
}

// Rows of one number, by loads and stores.
__global__ void turn_around(const float* x, float* y, Mistakes m) {
  SHARED(float, run, kRun);
  const int begin = blockIdx.x * kRun;
  run[threadIdx.x] = x[begin + threadIdx.x];
  barrier_of(m);
  const float* last = run + kRun - 1;  // (UBSan knows the end of `run` itself)
  y[(m.same_place ? 0 : begin) + threadIdx.x] = last[m.past - static_cast<int>(threadIdx.x)];
}

// Rows of four, copied asynchronously and fetched by ldmatrix: every warp all of them, of which it writes a quarter.
__global__ void turn_rows(const float* x, float* y, Mistakes m) {
  SHARED(uint4, run, kRun / 4);
  const int begin = blockIdx.x * kRun;
  tost::copy_async<4>(reinterpret_cast<float*>(run) + threadIdx.x, x + begin + threadIdx.x);
  tost::commit_copies();
  tost::wait_for_copies<0>();
  barrier_of(m);
  uint32_t words[4];
  tost::ldmatrix_x4(words, run + 31 + m.past - static_cast<int>(threadIdx.x % 32));
  y[(m.same_place ? 0 : begin) + threadIdx.x] = __uint_as_float(words[threadIdx.x / 32]);
}

int main(int, char** arguments) {
  const auto kernel = std::strcmp(arguments[1], "turn_around") == 0 ? turn_around : turn_rows;
  const Mistakes mistakes{arguments[2][0], std::atoi(arguments[3]), arguments[4][0] == '1'};
  const int row = kernel == turn_around ? 1 : 4;
  float x[2 * kRun], y[2 * kRun];
  for (int i = 0; i < 256; ++i) x[i] = static_cast<float>(i);
  tost::launch("planted", kernel, {{2}, {kRun}}, nullptr, x, y, mistakes);
  for (int i = 0; i < 256; ++i) {
    const int begin = i / 128 * 128, rows_on = i % 128 / row;
    if (y[i] != x[begin + 128 - row - rows_on * row + i % row]) return 3;
  }
  return 0;
}
