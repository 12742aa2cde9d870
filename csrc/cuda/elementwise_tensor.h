// From tensors to what the elementwise kernels are called with.
#pragma once

#include "channels.h"
#include "tensor.h"

namespace tost {

inline const float* floats(const Tensor& x) { return static_cast<const float*>(x.const_data_ptr()); }

// x (N, C, ...) or any shape of one channel, in `layout`.
inline ElementwiseCall elementwise_call(const char* op, const Tensor& x, Layout layout, const OnDeviceOf& device, Scratch& scratch) {
  ElementwiseCall call{
      op, 1, 1, x.numel(), x.scalar_type() == ScalarType::BFloat16, device.stream(), device.processors(), std::ref(scratch)};
  if (x.dim() < 2 || x.size(1) == 1) return call;
  call.channels = x.size(1);
  const int64_t positions = call.channels == 0 ? 0 : x.numel() / call.channels;
  call.outer = layout == Layout::batch_last ? 1 : layout == Layout::channels_last ? positions : x.size(0);
  call.inner = call.outer == 0 ? 0 : positions / call.outer;
  return call;
}

}  // namespace tost
