// Tensors as the CUDA kernels get them: checked, on one device, in one of the three layouts.
#pragma once

#include <vector>

#include "../cpu/tensor.h"
#include "launch.h"

#ifdef TOST_CUDA_HOST
#define TOST_CUDA_KEY CPU
#else
#define TOST_CUDA_KEY CUDA
extern "C" {
// of torch's stable C interface, whose header shows them only where torch itself is built with CUDA
int32_t aoti_torch_get_current_cuda_stream(int32_t device_index, void** stream);
}
#include <torch/csrc/stable/accelerator.h>
#endif

namespace tost {

inline void check_device(const char* op, const char* name, const Tensor& tensor) {
#ifdef TOST_CUDA_HOST
  check_cpu(op, name, tensor);
#else
  TOST_CHECK(tensor.is_cuda(), op, name, ": expected a CUDA tensor, got one on another device");
#endif
}

inline void check_same_device(const char* op, const char* name, const Tensor& tensor, const Tensor& other) {
  check_device(op, name, tensor);
  TOST_CHECK(
      tensor.get_device_index() == other.get_device_index(), op, name, ": expected a tensor on CUDA device ",
      other.get_device_index(), ", got one on device ", tensor.get_device_index());
}

// Makes the device of a tensor the current one for as long as it lives; its current stream, and what it has.
class OnDeviceOf {
 public:
#ifdef TOST_CUDA_HOST
  explicit OnDeviceOf(const Tensor&) {}
  cudaStream_t stream() const { return nullptr; }
  int processors() const { return 4; }
  size_t shared_bytes() const { return 227 << 10; }
#else
  explicit OnDeviceOf(const Tensor& tensor) : index_(tensor.get_device_index()), guard_(index_) {}
  cudaStream_t stream() const {
    void* stream = nullptr;
    if (aoti_torch_get_current_cuda_stream(index_, &stream) != 0) throw std::runtime_error("no current CUDA stream");
    return static_cast<cudaStream_t>(stream);
  }
  int processors() const { return attribute(cudaDevAttrMultiProcessorCount, 1); }
  // Of shared memory, that a block may have at most.
  size_t shared_bytes() const { return static_cast<size_t>(attribute(cudaDevAttrMaxSharedMemoryPerBlockOptin, 48 << 10)); }

 private:
  int attribute(cudaDeviceAttr which, int otherwise) const {
    int value = otherwise;
    if (cudaDeviceGetAttribute(&value, which, index_) != cudaSuccess) cudaGetLastError();
    return value;
  }

  int32_t index_;
  torch::stable::accelerator::DeviceGuard guard_;
#endif
};

// What a call allocates for its kernels. It goes back to torch's allocator when the call returns, while they may still run: that is
// safe, for the allocator gives it to work on the same stream alone, the current one, which comes after them; also in a graph.
class Scratch {
 public:
  explicit Scratch(const Tensor& like) : device_(like.device()) {}
  // Uninitialised, aligned to 256 bytes.
  void* operator()(size_t bytes) {
    constexpr uintptr_t kAlign = 256;
    held_.push_back(empty_strided({static_cast<int64_t>(bytes + kAlign)}, {1}, ScalarType::Byte, device_));
    const auto address = reinterpret_cast<uintptr_t>(held_.back().mutable_data_ptr());
    return reinterpret_cast<void*>((address + kAlign - 1) / kAlign * kAlign);
  }

 private:
  torch::stable::Device device_;
  std::vector<Tensor> held_;
};

inline Tensor empty_like(const Tensor& tensor, Layout layout) {
  return empty_strided(sizes_of(tensor), strides_of(sizes_of(tensor), layout), tensor.scalar_type(), tensor.device());
}

inline Tensor in_layout(const Tensor& x, Layout layout) {
  if (has_layout(x, layout)) return x;
  Tensor y = empty_like(x, layout);
  torch::stable::copy_(y, x);
  return y;
}

// layout_of for any number of dimensions: only 2-D and 4-D tensors have another layout than contiguous.
inline Layout output_layout(const Tensor& x) {
  return x.dim() == 2 || x.dim() == 4 ? layout_of(x) : Layout::contiguous;
}

}  // namespace tost
