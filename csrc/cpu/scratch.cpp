#include "scratch.h"

#include <cstdlib>
#include <limits>
#include <memory>
#include <new>

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

}  // namespace

float* thread_scratch(int64_t floats) {
  if (floats <= buffer.floats) return buffer.memory.get();
  if (floats > std::numeric_limits<int64_t>::max() / 8) throw std::bad_alloc();
  const std::size_t bytes = (static_cast<std::size_t>(floats) * sizeof(float) + kAlignment - 1) / kAlignment * kAlignment;
  buffer.memory.reset();
  buffer.floats = 0;
  buffer.memory.reset(static_cast<float*>(std::aligned_alloc(kAlignment, bytes)));
  if (buffer.memory == nullptr) throw std::bad_alloc();
  buffer.floats = floats;
  return buffer.memory.get();
}

}  // namespace tost
