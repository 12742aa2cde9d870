// One pass of a convolution as its kernels get it: checked, batch-last, raw pointers. Nothing of torch, so that the kernels
// also run without it (tests/cuda_host).
#pragma once

#include <cstdint>
#include <functional>

#include "conv_options.h"
#include "launch.h"

namespace tost {

// The convolution of x (batch, channels, height, width) to y (batch, outputs, out_height, out_width). A linear layer is one of
// 1x1 images. Channels and outputs count all groups.
struct ConvShape {
  int64_t batch, channels, height, width, outputs, out_height, out_width;
  int kernel[2], stride[2], padding[2], dilation[2];
  int64_t groups, nnz;
  int taps() const { return kernel[0] * kernel[1]; }
};

struct ConvCall {
  const char* op;  // for errors
  ConvShape shape;
  bool bf16;             // what is stored; sums are float32
  const int32_t* index;  // on the device, as the plan asks for it (tost_kernels/packed_index.py, gather.py)
  int64_t index_length;
  ConvOptions options;  // of this pass
  cudaStream_t stream;
  int processors;                              // of the device
  size_t shared_bytes;                         // that a block may have at most
  std::function<void*(size_t bytes)> scratch;  // device memory until the call ends, aligned to 256 bytes, uninitialised
};

// Forward: source is x and target y, memory [C][H][W][N]. transposed: source is the gradient of y, target that of x.
// bias: one number an output, or null.
using Multiply = void(
    const ConvCall& call, bool transposed, const void* source, const void* values, const void* bias, void* target);
// values_grad[j] = sum over images and pixels of grad times x, where value j is kept.
using Correlate = void(const ConvCall& call, const void* grad, const void* x, void* values_grad);

Multiply gather_multiply, direct_multiply;
Correlate gather_values_grad, direct_values_grad;

}  // namespace tost
