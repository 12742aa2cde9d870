// Turns around each run of 64 numbers, through shared memory. With the right BARRIER and nothing PAST the end it is correct.
#include "launch.h"

__global__ void turn_around(const float* x, float* y) {
  SHARED(float, run, 64);
  const unsigned begin = blockIdx.x * 64;
  run[threadIdx.x] = x[begin + threadIdx.x];
  BARRIER;
  y[(SAME_PLACE ? 0 : begin) + threadIdx.x] = run[63 - static_cast<int>(threadIdx.x) + PAST];
}

int main() {
  float x[128], y[128];
  for (int i = 0; i < 128; ++i) x[i] = static_cast<float>(i);
  tost::launch("turn_around", turn_around, {{2}, {64}}, nullptr, x, y);
  for (int i = 0; i < 128; ++i) {
    if (y[i] != x[i / 64 * 64 + 63 - i % 64]) return 3;
  }
  return 0;
}
