// Numbers as they are stored: float32 or bfloat16. Kernels compute in float32.
#pragma once

#include <cstdint>

#include "launch.h"

namespace tost {

__device__ inline float widen(float x) { return x; }
__device__ inline float widen(__nv_bfloat16 x) { return __bfloat162float(x); }
__device__ inline void narrow(float& to, float x) { to = x; }
__device__ inline void narrow(__nv_bfloat16& to, float x) { to = __float2bfloat16_rn(x); }

// What 16 bytes hold.
template <class T>
inline constexpr int kOf16Bytes = 16 / static_cast<int>(sizeof(T));

template <class T>
__device__ inline void load_16_bytes(float (&to)[kOf16Bytes<T>], const void* from) {
  const auto loaded = *static_cast<const uint4*>(from);
  const unsigned words[4] = {loaded.x, loaded.y, loaded.z, loaded.w};
#pragma unroll
  for (int w = 0; w < 4; ++w) {
    if constexpr (sizeof(T) == 4) {
      to[w] = __uint_as_float(words[w]);
    } else {  // bfloat16 is the upper half of a float32
      to[2 * w] = __uint_as_float(words[w] << 16);
      to[2 * w + 1] = __uint_as_float(words[w] & 0xffff0000u);
    }
  }
}

template <class T>
__device__ inline void store_16_bytes(T* to, const float (&from)[kOf16Bytes<T>]) {
  struct alignas(16) {
    T element[kOf16Bytes<T>];
  } stored;
#pragma unroll
  for (int i = 0; i < kOf16Bytes<T>; ++i) narrow(stored.element[i], from[i]);
  *reinterpret_cast<decltype(stored)*>(to) = stored;
}

}  // namespace tost
