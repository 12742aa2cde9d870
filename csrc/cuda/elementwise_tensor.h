// From tensors to what the elementwise kernels are called with.
#pragma once

#include <vector>

#include "channels.h"
#include "tensor.h"

namespace tost {

// Device memory for as long as it lives. Torch's allocator reuses it in the order of the stream, also in a captured graph.
class Scratch {
 public:
  explicit Scratch(const Tensor& like) : device_(like.device()) {}
  void* operator()(size_t bytes) {
    const auto count = static_cast<int64_t>(bytes);
    held_.push_back(empty_strided({count}, {1}, ScalarType::Byte, device_));
    return held_.back().mutable_data_ptr();
  }

 private:
  torch::stable::Device device_;
  std::vector<Tensor> held_;
};

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
