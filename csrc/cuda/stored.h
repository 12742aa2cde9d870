// Numbers as they are stored, float32 or bfloat16, and how they are moved. Kernels compute in float32.
#pragma once

#include <bit>
#include <cstdint>
#include <type_traits>

#include "launch.h"

namespace tost {

__device__ inline float widen(float x) { return x; }
__device__ inline float widen(__nv_bfloat16 x) { return __bfloat162float(x); }
__device__ inline void narrow(float& to, float x) { to = x; }
__device__ inline void narrow(__nv_bfloat16& to, float x) { to = __float2bfloat16_rn(x); }

// What 16 bytes hold.
template <class T>
inline constexpr int kOf16Bytes = 16 / static_cast<int>(sizeof(T));

// V elements, loaded in one move and kept as they were stored: bfloat16, widened at once, would take twice the registers.
template <class T, int V>
struct alignas(sizeof(T) * V) Vector {
  static constexpr int kEach = sizeof(T) * V < 4 ? 1 : 4 / sizeof(T);  // elements of a word
  using Word = std::conditional_t<sizeof(T) * V < 4, uint16_t, uint32_t>;
  Word word[V / kEach];

  __device__ float operator[](int v) const {
    const uint32_t bits = word[v / kEach];
    if (sizeof(T) == 4) return __uint_as_float(bits);
    return __uint_as_float(v % kEach ? bits & 0xffff0000u : bits << 16);  // bfloat16: the upper half of a float
  }
};

// `from` is aligned to the move.
template <int V, class T>
__device__ inline Vector<T, V> load(const T* from) {
  return *reinterpret_cast<const Vector<T, V>*>(from);
}

// V: 1, or of 16 bytes. `to` is aligned to the move.
template <int V, class T>
__device__ inline void store(T* to, const float (&from)[V]) {
  static_assert(V == 1 || V == kOf16Bytes<T>);
  constexpr int kEach = Vector<T, V>::kEach;
  struct alignas(sizeof(T) * kEach) Pack {
    T element[kEach];
  } packs[V / kEach];
#pragma unroll
  for (int v = 0; v < V; ++v) narrow(packs[v / kEach].element[v % kEach], from[v]);
  if constexpr (V == 1) {
    *to = packs[0].element[0];
  } else {  // said outright: nvcc 13 makes four stores of an assignment inside of a loop like channels.h's walk
    const auto word = [&](int i) { return std::bit_cast<uint32_t>(packs[i]); };
    __stcg(reinterpret_cast<uint4*>(to), make_uint4(word(0), word(1), word(2), word(3)));
  }
}

}  // namespace tost
