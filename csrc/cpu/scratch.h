// Working memory of one thread.
#pragma once

#include <cstdint>

namespace tost {

// At least `floats` floats, aligned to 64 bytes, contents undefined; the same memory at the next call on this thread, so
// one kernel at a time. It grows and is kept until the thread ends. Throws std::bad_alloc (which parallel_for carries to
// the caller). Not inline: kernels compiled for one instruction set must not emit code that others might be linked to.
float* thread_scratch(int64_t floats);

}  // namespace tost
