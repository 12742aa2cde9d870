#include "scratch.h"

#include <cstdlib>
#include <limits>
#include <memory>
#include <new>

#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/asan_interface.h>
#define TOST_POISON(from, bytes) __asan_poison_memory_region(from, bytes)
#define TOST_UNPOISON(from, bytes) __asan_unpoison_memory_region(from, bytes)
#else
#define TOST_POISON(from, bytes)
#define TOST_UNPOISON(from, bytes)
#endif

namespace tost {

namespace {

constexpr std::size_t kAlignment = 64;

struct Free {
  void operator()(float* memory) const { std::free(memory); }
};

struct Buffer {
  std::unique_ptr<float, Free> memory;
  int64_t floats = 0;
};

thread_local Buffer buffer;

// A build with ASan reports any use of what an earlier call asked for and this one did not.
float* hand_out(int64_t floats) {
  TOST_UNPOISON(buffer.memory.get(), floats * sizeof(float));
  TOST_POISON(buffer.memory.get() + floats, (buffer.floats - floats) * sizeof(float));
  return buffer.memory.get();
}

}  // namespace

float* thread_scratch(int64_t floats) {
  if (floats <= buffer.floats) return hand_out(floats);
  if (floats > std::numeric_limits<int64_t>::max() / 8) throw std::bad_alloc();
  const std::size_t bytes = (static_cast<std::size_t>(floats) * sizeof(float) + kAlignment - 1) / kAlignment * kAlignment;
  buffer.memory.reset();
  buffer.floats = 0;
  buffer.memory.reset(static_cast<float*>(std::aligned_alloc(kAlignment, bytes)));
  if (buffer.memory == nullptr) throw std::bad_alloc();
  buffer.floats = floats;
  return hand_out(floats);
}

}  // namespace tost
