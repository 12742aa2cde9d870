// Launching kernels. What differs between nvcc and the tests' shim that runs the same kernels on the CPU (tests/cuda_host) is here
// and in mma.h: kernels take shared memory through SHARED and SHARED_DYNAMIC, hosts launch through `launch`.
#pragma once

#include <cstddef>
#include <cstdint>
#include <stdexcept>
#include <string>
#include <type_traits>

#ifdef TOST_CUDA_HOST
#include "cuda_host.h"

// type (&name)[count] in shared memory
#define SHARED(type, name, count)     \
  static const char name##_site = 0;  \
  auto& name = *reinterpret_cast<type(*)[count]>(cuda_host::shared_array(&name##_site, sizeof(type) * (count), alignof(type)))
// type* name: the shared memory whose size the launch says
#define SHARED_DYNAMIC(type, name) type* name = cuda_host::dynamic_shared<type>()
#else
#include <cuda_bf16.h>
#include <cuda_runtime.h>

#include <map>
#include <mutex>
#include <utility>

extern __shared__ uint4 tost_dynamic_shared[];
#define SHARED(type, name, count) __shared__ type name[count]
#define SHARED_DYNAMIC(type, name) type* name = reinterpret_cast<type*>(tost_dynamic_shared)
#endif

namespace tost {

// a / b, rounded up: how many pieces of b cover a.
template <class A, class B>
__host__ __device__ constexpr auto ceil_div(A a, B b) {
  return (a + b - 1) / b;
}

struct Grid {
  dim3 blocks, threads;
  size_t shared_bytes = 0;  // dynamic
};

#ifndef TOST_CUDA_HOST
// Allows `kernel` so much dynamic shared memory on the current device. Never less than before: another thread may be about to
// launch it with that.
inline cudaError_t allow_shared_memory(const void* kernel, size_t bytes) {
  constexpr size_t without_asking = 48 << 10;
  if (bytes <= without_asking) return cudaSuccess;
  static std::mutex mutex;
  static std::map<std::pair<const void*, int>, size_t> allowed;
  int device = 0;
  cudaError_t error = cudaGetDevice(&device);
  if (error != cudaSuccess) return error;
  const std::lock_guard lock(mutex);
  size_t& most = allowed[{kernel, device}];
  if (bytes <= most) return cudaSuccess;
  error = cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, static_cast<int>(bytes));
  if (error == cudaSuccess) most = bytes;
  return error;
}
#endif

// Starts kernel(args...) on `stream`; `op` names it in errors. Throws std::runtime_error where it cannot be started.
template <class... Parameters>
void launch(
    const char* op, void (*kernel)(Parameters...), const Grid& grid, [[maybe_unused]] cudaStream_t stream,
    std::type_identity_t<Parameters>... args) {
#ifdef TOST_CUDA_HOST
  try {
    cuda_host::launch(kernel, grid.blocks, grid.threads, grid.shared_bytes, args...);
  } catch (const std::runtime_error& error) {
    throw std::runtime_error(std::string(op) + ": " + error.what());
  }
#else
  const auto check = [&](cudaError_t error) {
    if (error == cudaSuccess) return;
    cudaGetLastError();  // or the next launch would report it again
    // more shared memory or registers than there are: `tost_kernels.tune` leaves such a variant out, other errors it raises
    const bool fits = error != cudaErrorInvalidValue && error != cudaErrorLaunchOutOfResources;
    throw std::runtime_error(
        std::string(op) + ": the kernel " + (fits ? "could not be launched" : "does not fit this device") + ": " +
        cudaGetErrorString(error) + " (" +
        std::to_string(grid.blocks.x) + " x " + std::to_string(grid.blocks.y) + " x " + std::to_string(grid.blocks.z) +
        " blocks of " + std::to_string(grid.threads.x * grid.threads.y * grid.threads.z) + " threads, " +
        std::to_string(grid.shared_bytes) + " bytes of shared memory)");
  };
  check(allow_shared_memory(reinterpret_cast<const void*>(kernel), grid.shared_bytes));
  kernel<<<grid.blocks, grid.threads, grid.shared_bytes, stream>>>(args...);
  check(cudaGetLastError());
#endif
}

}  // namespace tost
