// bfloat16 in memory. Arithmetic is float32, but for products that some kernels leave to instructions for bfloat16.
#pragma once

#include <cstdint>
#include <cstring>

namespace tost {

struct bf16 {
  uint16_t bits;
};

static inline float to_float(float x) { return x; }

static inline float to_float(bf16 x) {
  const uint32_t bits = static_cast<uint32_t>(x.bits) << 16;
  float y;
  std::memcpy(&y, &bits, sizeof(y));
  return y;
}

static inline void assign(float& to, float x) { to = x; }

// Rounds to nearest even, as torch does; any NaN becomes 0x7fc0.
static inline void assign(bf16& to, float x) {
  uint32_t bits;
  std::memcpy(&bits, &x, sizeof(bits));
  to.bits = x != x ? uint16_t{0x7fc0} : static_cast<uint16_t>((bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16);
}

}  // namespace tost
