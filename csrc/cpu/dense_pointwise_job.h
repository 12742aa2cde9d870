// What the dense 1x1 kernels get: plain numbers and raw pointers, the same for every instruction set.
#pragma once

#include <cstdint>

#include "bf16.h"

namespace tost {

// Pixels and batch of an activation counted through as columns of a matrix with one row a channel: column p is element
// p % run of run p / run, and there are `inner` runs in a line. One run holds everything where the memory has no gaps.
template <class T>
struct Columns {
  T* data;
  int64_t stride_c;  // elements from one row to the next, as the steps below
  int64_t run, inner;
  int64_t inner_step, outer_step;
};

// result = weight x source (+ bias). weight[row][k] is at weight[row * depth + k], or, packed in groups of six rows, at
// weight[row - row % 6][k * 6 + row % 6] of the same rows of `depth`: what row_step and depth_step say.
template <class T>
struct PointwiseJob {
  Columns<const T> source;
  Columns<T> result;
  int64_t rows, depth, columns;
  const float* weight;
  int64_t row_step, depth_step;
  const float* bias;       // (rows,), or null
  int64_t row_chunks;      // tasks: column blocks x row chunks, the latter fastest
};

// grad_weight = grad x source^T, in chunks of columns with partial sums of their own, so that the bits do not depend on the
// number of threads. Work items: chunk x row segment, the latter fastest.
template <class T>
struct PointwiseValuesJob {
  Columns<const T> grad, source;
  int64_t rows, inputs, columns;
  int64_t chunks, segments;
  int64_t pitch;   // of a row of `partial`, at least `inputs` rounded up to whole vectors
  float* partial;  // (chunks, rows, pitch)
};

}  // namespace tost
