// What the depthwise kernels get: plain numbers and raw pointers, the same for every instruction set.
#pragma once

#include <cstdint>

#include "bf16.h"

namespace tost {

// A channel of the source: H x W pixels of N numbers. Where `packed`, the kernels first copy it to floats without gaps.
template <class T>
struct Planes {
  const T* data;
  int64_t stride_c, stride_h, stride_w;  // elements
  int64_t n, h, w;
  bool packed;
  int64_t floats() const { return h * w * n; }
};

// `count` pixels along an axis whose taps read the same way: pixel k lies k * (result step) elements beyond `result`, and tap t
// reads what lies at source + k * (source step) + (offset of t).
struct DepthwiseRun {
  int64_t result, source, count;
  int64_t kind;    // which taps are inside the source, and at which offsets
  int64_t length;  // elements of one pixel; of a whole row of pixels where they lie together, `count` is 1 then
};

constexpr int64_t kOutside = INT64_MIN / 2;  // an offset may be added to it

// Result = the sum over the kept taps of weight x source, one channel of the result at a time.
//   forward          result channel r reads the plane r / share; the weights of output r (fan 1)
//   input gradient   result channel r reads the planes r * fan + m, m < fan, with the weights of those outputs
template <class T>
struct DepthwiseJob {
  Planes<T> source;
  T* result;
  int64_t result_stride_c;
  int64_t fan, share;
  const DepthwiseRun *rows, *runs;    // along y, each of one pixel, and along x
  int64_t row_count, run_count;
  int64_t row_kinds, run_kinds;
  int64_t result_step, source_step;   // between the pixels of a run
  const int64_t* offsets;             // (row_kinds, run_kinds, taps); kOutside: reads padding
  int64_t taps;
  const int32_t *ptr, *tap;           // the kept taps of output o: tap[ptr[o]] up to tap[ptr[o + 1]]
  const T* values;
  int64_t values_stride;
  const T* bias;                      // or null
  int64_t bias_stride;
  bool streaming;                     // the result goes past the caches
  int64_t row_chunks;                 // work items: channel x chunk of rows, the latter fastest
};

// grad_values[k] = the sum over the pixels of grad x source at tap k. Work items: output channels.
template <class T>
struct DepthwiseValuesJob {
  Planes<T> source;
  const T* grad;
  int64_t grad_stride_c;
  int64_t share;
  const DepthwiseRun *rows, *runs;
  int64_t row_count, run_count;
  int64_t run_kinds;
  int64_t grad_row_step, source_row_step;
  int64_t grad_step, source_step;
  const int64_t* offsets;
  int64_t taps;
  const int32_t *ptr, *tap;
  T* grad_values;
};

}  // namespace tost
