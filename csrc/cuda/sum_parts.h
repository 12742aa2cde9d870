// Partial sums added up, always in the same order: out[j] = sum over p of parts[p][place[j]].
//
// Kernels that split a sum over blocks leave a row of numbers for each part, [count][size]; `place` says where in a row that of
// output j lies (null: at j). A few lanes of a warp share out the parts of one output, and the warp's outputs are neighbours, so
// that rows are read in whole sectors. How many lanes follows from the sizes alone: the same bits every time, without atomics.
// Where a second kernel reads all parts of an output (ghost_skip_add), these lie side by side, [output][count]: `apart` is then
// `count`, the distance of two outputs, and `size`, the distance of two parts, 1. That is a few hundred numbers.
#pragma once

#include <algorithm>

#include "stored.h"

namespace tost {

constexpr int kSumThreads = 256;

// Part: float, or double where a part is one.
template <class Part, class T>
__global__ void __launch_bounds__(kSumThreads)
add_parts(const Part* parts, int count, int64_t size, int64_t apart, const int32_t* place, T* out, int64_t outputs, int lanes) {
  const int neighbours = 32 / lanes, lane = threadIdx.x % 32;  // outputs of a warp
  const int64_t warp = int64_t{blockIdx.x} * (kSumThreads / 32) + threadIdx.x / 32;
  const int64_t j = warp * neighbours + lane % neighbours;
  Part sum = 0;
  if (j < outputs) {
    const Part* from = parts + (place ? place[j] : j) * apart;
    for (int p = lane / neighbours; p < count; p += lanes) sum += from[p * size];
  }
  for (int bits = neighbours; bits < 32; bits *= 2) sum += __shfl_xor_sync(0xffffffffu, sum, bits);
  if (j >= outputs || lane >= neighbours) return;
  narrow(out[j], static_cast<float>(sum));
}

// parts: [count][size], or as said above. With no parts the sums are zeros.
template <class Part, class T>
void sum_parts(
    const char* op, const Part* parts, int count, int64_t size, const int32_t* place, T* out, int64_t outputs,
    cudaStream_t stream, int64_t apart = 1) {
  if (outputs == 0) return;
  constexpr int64_t kEnough = 1 << 18;  // threads that fill a GPU
  int lanes = 1;
  while (lanes < 32 && lanes < count && lanes * outputs < kEnough) lanes *= 2;
  const auto blocks = static_cast<unsigned>(ceil_div(outputs * lanes, kSumThreads));
  launch(op, add_parts<Part, T>, {{blocks}, {kSumThreads}}, stream, parts, count, size, apart, place, out, outputs, lanes);
}

}  // namespace tost
