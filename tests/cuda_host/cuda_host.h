// CUDA on the CPU: compiles a .cu file with g++ (-x c++ -std=c++20 -DTOST_CUDA_HOST) and runs its kernels, for tests.
//
// The threads of a block are fibers of one OS thread; a fiber runs until it has to wait for others: at a barrier, a
// shuffle, a vote, an mma. Blocks run one after the other. So every run is the same run, and a debugger can follow it.
// The sanitizers know of the fibers:
// - TSan takes each for a thread. Barriers order what their threads do; a shuffle, as in the CUDA manual, does not, and neither
//   does one block another. So an access that only the order of this run made safe is reported as a race, shared memory or global.
// - ASan guards both ends of each shared array.
// Shared memory is NaN when a block begins. An asynchronous copy is done when it is waited for, and its target is NaN until then.
// What a GPU would hang or go wrong on (threads of a block at different barriers, a lane that never comes to a shuffle) throws
// std::runtime_error from the launch, which names what the threads wait for.
#pragma once

#include <sys/mman.h>
#include <ucontext.h>

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <exception>
#include <functional>
#include <memory>
#include <source_location>
#include <stdexcept>
#include <string>
#include <type_traits>
#include <utility>
#include <vector>

#ifdef __SANITIZE_THREAD__
extern "C" {
void* __tsan_get_current_fiber(void);
void* __tsan_create_fiber(unsigned flags);
void __tsan_destroy_fiber(void* fiber);
void __tsan_switch_to_fiber(void* fiber, unsigned flags);
void __tsan_acquire(void* address);
void __tsan_release(void* address);
}
#define HOST_TSAN(...) __VA_ARGS__
#else
#define HOST_TSAN(...)
#endif
#ifdef __SANITIZE_ADDRESS__
#include <sanitizer/asan_interface.h>
#include <sanitizer/common_interface_defs.h>
#define HOST_ASAN(...) __VA_ARGS__
#else
#define HOST_ASAN(...)
#endif
// What belongs to the shim: its own accesses are no accesses of the kernel's threads.
#define HOST_UNSEEN __attribute__((noinline, no_sanitize("thread"), no_sanitize("address")))

// The language.
#define __global__
#define __device__
#define __host__
#define __forceinline__ inline
#define __launch_bounds__(...)
#define __align__(n) alignas(n)

struct dim3 {
  unsigned x = 1, y = 1, z = 1;
};
struct uint2 {
  unsigned x, y;
};
struct alignas(16) uint4 {
  unsigned x, y, z, w;
};
struct alignas(8) float2 {
  float x, y;
};
struct alignas(16) float4 {
  float x, y, z, w;
};
inline float2 make_float2(float x, float y) { return {x, y}; }
inline float4 make_float4(float x, float y, float z, float w) { return {x, y, z, w}; }
inline uint4 make_uint4(unsigned x, unsigned y, unsigned z, unsigned w) { return {x, y, z, w}; }
using cudaStream_t = void*;

namespace cuda_host {

constexpr int kLanes = 32, kThreads = 1024;
constexpr int kWords = 16;  // that a lane gives to a collective at most
constexpr size_t kStack = size_t{256} << 10;
constexpr size_t kSharedMemory = size_t{227} << 10;  // of a block on sm_90: static and dynamic together, guards not counted
constexpr size_t kArena = size_t{512} << 10;
constexpr size_t kGuard = 64;  // bytes between shared arrays
constexpr int kArrays = 32, kCopies = 512;  // shared arrays of a kernel, and copies on their way in a thread: one warp may fill all
constexpr unsigned kAll = 0xffffffffu;

enum class Wait { none, block, warp, done };

using Where = std::source_location;

inline std::string text(const Where& where) { return std::string(where.file_name()) + ":" + std::to_string(where.line()); }

// Memory straight from the system: TSan then knows that nobody has touched it.
struct Pages {
  explicit Pages(size_t bytes)
      : size(bytes), data(static_cast<char*>(mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0))) {
    if (data == MAP_FAILED) throw std::runtime_error("cuda_host: out of memory");
  }
  Pages(const Pages&) = delete;
  ~Pages() {
    HOST_ASAN(ASAN_UNPOISON_MEMORY_REGION(data, size);)
    munmap(data, size);
  }
  size_t size;
  char* data;
};

struct Copy {
  char* to;
  const char* from;
  unsigned bytes, read;  // bytes past the first `read` are zeros
  int group;
};

struct Block;

// Where to go on: what __builtin_setjmp leaves. (swapcontext would do as well, with two system calls each time.)
using Place = void* [5];

// A thread. What changes while it runs is written and read by functions that no sanitizer sees.
struct Fiber {
  Place at;  // where it waits
  bool started = false;
  Block* block = nullptr;
  char* stack = nullptr;
  dim3 thread, index, size, grid;
  unsigned place = 0;  // in the block
  Wait wait = Wait::none;
  Where where;
  unsigned mask = 0;
  int words = 0;  // given to a collective
  uint32_t given[kWords];
  uint32_t got[kWords * kLanes];  // by lane, `words` each
  char barrier[2] = {};  // TSan's names of the last two __syncwarp
  unsigned barriers = 0, warp_barriers = 0;
  Copy copies[kCopies];
  int pending = 0, group = 0;
  HOST_TSAN(void* tsan = nullptr;)
  HOST_ASAN(void* fake = nullptr;)
};

struct Array {
  const void* site;
  char* data;
};

struct Block {
  HOST_TSAN(~Block();)
  std::function<void()> body;
  std::exception_ptr* failure = nullptr;  // of the thread that ran last
  std::vector<std::unique_ptr<Fiber>> fibers;
  Place scheduler;
  std::unique_ptr<Pages> stacks, arena;
  char* shared = nullptr;          // the arena's memory
  Fiber* members[kThreads] = {};  // the fibers, as fibers may read them
  size_t used = 0, guarded = 0, dynamic_bytes = 0;
  Array arrays[kArrays];
  int count = 0;
  char barrier[2] = {};  // TSan's names of the last two __syncthreads
  char begin = 0, finish = 0;  // and of the begin of a block, and the end of the launch
  HOST_TSAN(void* tsan = nullptr; std::vector<std::unique_ptr<Fiber>> finished;)
  HOST_ASAN(const void* stack = nullptr; size_t stack_size = 0; void* fake = nullptr;)
};

inline thread_local Fiber* running = nullptr;

#ifdef __SANITIZE_THREAD__
// TSan's threads that wait for another launch: to make one takes half a millisecond.
constexpr size_t kIdle = 512;
inline thread_local std::vector<void*> idle;

inline void* new_thread() {
  if (idle.empty()) return __tsan_create_fiber(0);
  void* thread = idle.back();
  idle.pop_back();
  return thread;
}

inline Block::~Block() {
  __tsan_acquire(&finish);
  for (auto& fiber : fibers) finished.push_back(std::move(fiber));
  for (const auto& fiber : finished) {
    if (!fiber->tsan) continue;
    if (fiber->wait == Wait::done && idle.size() < kIdle) {
      idle.push_back(fiber->tsan);
    } else {
      __tsan_destroy_fiber(fiber->tsan);
    }
  }
}
#endif

HOST_UNSEEN inline Fiber& self() { return *running; }

[[noreturn]] HOST_UNSEEN inline void go_to(Place place) { __builtin_longjmp(place, 1); }

void enter();

[[noreturn]] HOST_UNSEEN inline void start(Fiber& fiber) {
  ucontext_t context;
  getcontext(&context);
  context.uc_stack.ss_sp = fiber.stack;
  context.uc_stack.ss_size = kStack;
  context.uc_link = nullptr;
  makecontext(&context, enter, 0);
  fiber.started = true;
  setcontext(&context);
  std::abort();
}

HOST_UNSEEN inline void resume(Fiber& fiber) {
  Block& block = *fiber.block;
  running = &fiber;
  HOST_TSAN(__tsan_switch_to_fiber(fiber.tsan, 1);)
  HOST_ASAN(__sanitizer_start_switch_fiber(&block.fake, fiber.stack, kStack);)
  if (__builtin_setjmp(block.scheduler) == 0) fiber.started ? go_to(fiber.at) : start(fiber);
  HOST_ASAN(__sanitizer_finish_switch_fiber(block.fake, nullptr, nullptr);)
  running = nullptr;
}

HOST_UNSEEN inline void back_to_scheduler(Fiber& fiber) {
  Block& block = *fiber.block;
  HOST_TSAN(__tsan_switch_to_fiber(block.tsan, 1);)
  HOST_ASAN(__sanitizer_start_switch_fiber(&fiber.fake, block.stack, block.stack_size);)
  if (__builtin_setjmp(fiber.at) == 0) go_to(block.scheduler);
  HOST_ASAN(__sanitizer_finish_switch_fiber(fiber.fake, &block.stack, &block.stack_size);)
}

[[noreturn]] inline void die(const std::string& why) { throw std::runtime_error("cuda_host: " + why); }

// Runs a thread. Returns what it threw, or null.
inline std::exception_ptr* run(const std::function<void()>& body) {
  try {
    body();
  } catch (...) {
    return new std::exception_ptr(std::current_exception());
  }
  return nullptr;
}

// A fiber runs one thread of a block after the other, in the same place of each.
HOST_UNSEEN inline void enter() {
  Fiber& fiber = self();
  HOST_ASAN(__sanitizer_finish_switch_fiber(nullptr, &fiber.block->stack, &fiber.block->stack_size);)
  for (;;) {
    HOST_TSAN(__tsan_acquire(&fiber.block->begin);)
    fiber.block->failure = run(fiber.block->body);
    HOST_TSAN(__tsan_release(&fiber.block->finish);)
    fiber.wait = Wait::done;
    back_to_scheduler(fiber);
  }
}

HOST_UNSEEN inline void wait_for(Wait what, unsigned mask, const volatile uint32_t* words, int count, const Where& where) {
  Fiber& fiber = self();
  fiber.wait = what;
  fiber.mask = mask;
  fiber.where = where;
  fiber.words = count;
  HOST_TSAN(__tsan_release(&fiber.block->finish);)  // should it never go on
  for (int w = 0; w < count; ++w) fiber.given[w] = words[w];
  back_to_scheduler(fiber);
}

[[noreturn]] inline void stuck(const Block& block, const std::string& why) {
  const dim3 index = block.fibers[0]->index;
  std::string message = "cuda_host: " + why + " in block (" + std::to_string(index.x) + ", " + std::to_string(index.y) + ", " +
                        std::to_string(index.z) + "):";
  const char* names[] = {"running", "at the block's barrier of ", "with its warp at ", "finished"};
  std::string last;
  for (const auto& fiber : block.fibers) {
    std::string state = names[static_cast<int>(fiber->wait)];
    if (fiber->wait != Wait::done) state += text(fiber->where);
    if (state != last) message += " thread " + std::to_string(fiber->place) + " on is " + state + ";";
    last = state;
  }
  throw std::runtime_error(message);
}

// Lets those go on whom the others have joined. Returns whether there are any.
inline bool release(Block& block) {
  const size_t count = block.fibers.size();
  size_t at_barrier = 0, done = 0;
  const Fiber* first = nullptr;
  bool any = false;
  for (size_t begin = 0; begin < count; begin += kLanes) {
    const size_t end = std::min(begin + kLanes, count);
    for (size_t i = begin; i < end; ++i) {
      Fiber& fiber = *block.fibers[i];
      done += fiber.wait == Wait::done;
      if (fiber.wait == Wait::block) {
        ++at_barrier;
        if (!first) first = &fiber;
        if (first->where.line() != fiber.where.line()) stuck(block, "threads wait at different barriers");
      }
      if (fiber.wait != Wait::warp) continue;
      if (!(fiber.mask >> (i - begin) & 1)) stuck(block, "a lane is not in the mask that it gives");
      bool all = true;
      for (size_t j = begin; j < end && all; ++j) {
        const Fiber& other = *block.fibers[j];
        if (!(fiber.mask >> (j - begin) & 1)) continue;
        all = other.wait == Wait::warp && other.mask == fiber.mask && other.where.line() == fiber.where.line();
      }
      if (!all) continue;
      // Every lane gets a table of its own: the next collective may come before the last lane has read it.
      uint32_t table[kWords * kLanes];
      std::memset(table, 0xff, sizeof(table));
      std::vector<Fiber*> members;
      const int words = fiber.words;
      for (size_t j = begin; j < end; ++j) {
        Fiber& other = *block.fibers[j];
        if (!(fiber.mask >> (j - begin) & 1)) continue;
        for (int w = 0; w < words; ++w) table[(j - begin) * words + w] = other.given[w];
        members.push_back(&other);
      }
      for (Fiber* member : members) {
        std::memcpy(member->got, table, sizeof(uint32_t) * kLanes * words);
        member->wait = Wait::none;
      }
      any = true;
    }
  }
  if (at_barrier && at_barrier + done == count) {
    for (const auto& fiber : block.fibers) {
      if (fiber->wait == Wait::block) fiber->wait = Wait::none;
    }
    any = true;
  }
  return any;
}

// Throws what a thread has thrown.
[[noreturn]] inline void end_with(Block& block) {
  HOST_TSAN(__tsan_acquire(&block.finish);)
  const std::unique_ptr<std::exception_ptr> failure(block.failure);
  std::rethrow_exception(*failure);
}

// Room for a shared array, NaN, with guards that ASan watches at both ends.
HOST_UNSEEN inline char* shared_array(const void* site, size_t bytes, size_t align) {
  Block& block = *self().block;
  for (int a = 0; a < block.count; ++a) {
    if (block.arrays[a].site == site) return block.arrays[a].data;
  }
  const size_t begin = (block.guarded + kGuard + align - 1) / align * align;
  block.guarded = begin + (bytes + 7) / 8 * 8;
  block.used += bytes;
  if (block.used > kSharedMemory || block.count == kArrays) die("more shared memory than a block has, or too many shared arrays");
  char* data = block.shared + begin;
  HOST_ASAN(ASAN_UNPOISON_MEMORY_REGION(data, bytes);)
  block.arrays[block.count++] = {site, data};
  return data;
}

inline const char kDynamic = 0;  // the site of the dynamic shared memory

template <class T>
T* dynamic_shared() {
  return reinterpret_cast<T*>(shared_array(&kDynamic, self().block->dynamic_bytes, 128));
}

inline void begin_block(Block& block, dim3 index, dim3 size, dim3 grid, bool first) {
  const unsigned threads = size.x * size.y * size.z;
  bool fresh = first;
#ifdef __SANITIZE_THREAD__
  // No order between blocks, so nothing of this one may lie where something of another one lay.
  for (auto& fiber : block.fibers) {
    if (block.finished.size() >= kIdle) __tsan_destroy_fiber(std::exchange(fiber->tsan, nullptr));
    block.finished.push_back(std::move(fiber));
  }
  block.fibers.clear();
  fresh = true;
#endif
  if (fresh) {
    block.arena = nullptr;  // (one after the other, or a new one would have another address)
    block.arena = std::make_unique<Pages>(kArena);
    block.stacks = nullptr;
    block.stacks = std::make_unique<Pages>(kStack * threads);
  }
  block.shared = block.arena->data;
  HOST_ASAN(ASAN_UNPOISON_MEMORY_REGION(block.arena->data, kArena);)
  std::memset(block.arena->data, 0xff, fresh ? kArena : block.guarded);
  HOST_ASAN(ASAN_POISON_MEMORY_REGION(block.arena->data, kArena);)
  HOST_ASAN(ASAN_UNPOISON_MEMORY_REGION(block.stacks->data, block.stacks->size);)
  block.used = block.guarded = 0;
  block.count = 0;
  for (unsigned t = 0; t < threads; ++t) {
    if (block.fibers.size() <= t) block.fibers.push_back(std::make_unique<Fiber>());
    Fiber& fiber = *(block.members[t] = block.fibers[t].get());
    fiber.block = &block;
    fiber.stack = block.stacks->data + kStack * t;
    fiber.thread = {t % size.x, t / size.x % size.y, t / size.x / size.y};
    fiber.index = index;
    fiber.size = size;
    fiber.grid = grid;
    fiber.place = t;
    fiber.wait = Wait::none;
    fiber.pending = fiber.group = 0;
    fiber.barriers = fiber.warp_barriers = 0;
    HOST_TSAN(fiber.tsan = new_thread();)
  }
  HOST_TSAN(__tsan_release(&block.begin);)
}

template <class... Parameters>
void launch(void (*kernel)(Parameters...), dim3 grid, dim3 size, size_t dynamic_bytes, std::type_identity_t<Parameters>... args) {
  const uint64_t threads = uint64_t{size.x} * size.y * size.z;
  const uint64_t blocks = uint64_t{grid.x} * grid.y * grid.z;
  if (threads == 0 || threads > kThreads) throw std::runtime_error("cuda_host: a block of " + std::to_string(threads) + " threads");
  if (blocks == 0 || grid.x > 0x7fffffffu || grid.y > 65535 || grid.z > 65535) throw std::runtime_error("cuda_host: bad grid");
  Block block;
  block.dynamic_bytes = dynamic_bytes;
  block.body = [&] { kernel(args...); };
  HOST_TSAN(block.tsan = __tsan_get_current_fiber();)
  for (uint64_t b = 0; b < blocks; ++b) {
    const dim3 index{static_cast<unsigned>(b % grid.x), static_cast<unsigned>(b / grid.x % grid.y),
                     static_cast<unsigned>(b / grid.x / grid.y)};
    begin_block(block, index, size, grid, b == 0);
    for (uint64_t done = 0; done < threads;) {
      for (const auto& fiber : block.fibers) {
        if (fiber->wait != Wait::none) continue;
        resume(*fiber);
        if (block.failure) end_with(block);
        if (fiber->wait == Wait::done && fiber->pending) die("a thread ends before its asynchronous copies");
        done += fiber->wait == Wait::done;
      }
      if (done < threads && !release(block)) stuck(block, "threads wait for others that never come");
    }
  }
}

struct Table {
  uint32_t words[kWords * kLanes];
};

HOST_UNSEEN inline void take(volatile uint32_t* table, int count) {
  const Fiber& fiber = self();
  for (int w = 0; w < count; ++w) table[w] = fiber.got[w];
}

// What the lanes of `mask` give, `count` words each, to all of them: [lane * count + word].
inline Table exchange(unsigned mask, const uint32_t* words, int count, const Where& where) {
  wait_for(Wait::warp, mask, words, count, where);
  Table table;
  take(table.words, kLanes * count);
  return table;
}

inline int lane() { return static_cast<int>(self().place % kLanes); }

// A shuffle. A source outside of the group of `width` lanes: the lane's own value; one outside of the mask: all ones (undefined).
template <class T>
T shuffle(unsigned mask, T value, int source, int width, const Where& where) {
  constexpr int count = (sizeof(T) + 3) / 4;
  uint32_t words[count] = {};
  std::memcpy(words, &value, sizeof(T));
  const Table all = exchange(mask, words, count, where);
  const int first = lane() / width * width;
  if (source < first || source >= first + width) source = lane();
  T result;
  std::memcpy(&result, all.words + source * count, sizeof(T));
  return result;
}

HOST_UNSEEN inline unsigned next_barrier(unsigned Fiber::*counter) { return (self().*counter)++ & 1; }
HOST_UNSEEN inline char* block_barrier(unsigned turn) { return &self().block->barrier[turn]; }
HOST_UNSEEN inline char* warp_barrier(unsigned of_lane, unsigned turn) {
  const Fiber& fiber = self();
  return &fiber.block->members[fiber.place / kLanes * kLanes + of_lane]->barrier[turn];
}

HOST_UNSEEN inline bool in_shared_memory(const void* address) {
  const char* begin = self().block->shared;
  return static_cast<const char*>(address) >= begin && static_cast<const char*>(address) < begin + kArena;
}

// Instructions of aligned `bytes` in shared memory; ASan sees whether they are in bounds.
inline void check_shared(const void* address, unsigned bytes, const char* what) {
  if (!in_shared_memory(address)) die(std::string(what) + ": an address outside of shared memory");
  if (reinterpret_cast<uintptr_t>(address) % bytes) die(std::string(what) + ": an address off its alignment");
}

HOST_UNSEEN inline void start_copy(void* to, const void* from, unsigned bytes, unsigned read) {
  Fiber& fiber = self();
  if (fiber.pending == kCopies) die("too many asynchronous copies on their way");
  check_shared(to, bytes, "an asynchronous copy");
  if (in_shared_memory(from)) die("an asynchronous copy: its source is shared memory");
  if (reinterpret_cast<uintptr_t>(from) % bytes) die("an asynchronous copy: a source off its alignment");
  if (read > bytes) die("an asynchronous copy: more bytes read than copied");
  fiber.copies[fiber.pending++] = {static_cast<char*>(to), static_cast<const char*>(from), bytes, read, fiber.group};
}
HOST_UNSEEN inline void commit_copies() { ++self().group; }
// The next copy of a group older than the newest `left`, or false.
HOST_UNSEEN inline bool next_copy(int left, Copy& copy) {
  Fiber& fiber = self();
  if (!fiber.pending || fiber.copies[0].group >= fiber.group - left) return false;
  copy = fiber.copies[0];
  --fiber.pending;
  for (int c = 0; c < fiber.pending; ++c) fiber.copies[c] = fiber.copies[c + 1];
  return true;
}

}  // namespace cuda_host

#define threadIdx (::cuda_host::self().thread)
#define blockIdx (::cuda_host::self().index)
#define blockDim (::cuda_host::self().size)
#define gridDim (::cuda_host::self().grid)

// Barriers. What a thread did before one comes before what any other does after it.
inline void __syncthreads(const cuda_host::Where where = cuda_host::Where::current()) {
  [[maybe_unused]] char* barrier = cuda_host::block_barrier(cuda_host::next_barrier(&cuda_host::Fiber::barriers));
  HOST_TSAN(__tsan_release(barrier);)
  cuda_host::wait_for(cuda_host::Wait::block, 0, nullptr, 0, where);
  HOST_TSAN(__tsan_acquire(barrier);)
}

inline void __syncwarp(unsigned mask = cuda_host::kAll, const cuda_host::Where where = cuda_host::Where::current()) {
  const uint32_t turn = cuda_host::next_barrier(&cuda_host::Fiber::warp_barriers);
  HOST_TSAN(__tsan_release(cuda_host::warp_barrier(cuda_host::lane(), turn));)
  [[maybe_unused]] const cuda_host::Table turns = cuda_host::exchange(mask, &turn, 1, where);
  HOST_TSAN(for (int l = 0; l < 32; ++l) {
    if (mask >> l & 1) __tsan_acquire(cuda_host::warp_barrier(l, turns.words[l]));
  })
}

// Warps.
template <class T>
T __shfl_sync(unsigned mask, T value, int source, int width = 32, const cuda_host::Where where = cuda_host::Where::current()) {
  return cuda_host::shuffle(mask, value, cuda_host::lane() / width * width + source % width, width, where);
}
template <class T>
T __shfl_xor_sync(unsigned mask, T value, int bits, int width = 32, const cuda_host::Where where = cuda_host::Where::current()) {
  return cuda_host::shuffle(mask, value, cuda_host::lane() ^ bits, width, where);
}
template <class T>
T __shfl_down_sync(unsigned mask, T value, unsigned by, int width = 32, const cuda_host::Where where = cuda_host::Where::current()) {
  return cuda_host::shuffle(mask, value, cuda_host::lane() + static_cast<int>(by), width, where);
}
template <class T>
T __shfl_up_sync(unsigned mask, T value, unsigned by, int width = 32, const cuda_host::Where where = cuda_host::Where::current()) {
  return cuda_host::shuffle(mask, value, cuda_host::lane() - static_cast<int>(by), width, where);
}
inline unsigned __ballot_sync(unsigned mask, int vote, const cuda_host::Where where = cuda_host::Where::current()) {
  const uint32_t word = vote != 0;
  const cuda_host::Table votes = cuda_host::exchange(mask, &word, 1, where);
  unsigned result = 0;
  for (int l = 0; l < 32; ++l) result |= (mask >> l & votes.words[l] & 1u) << l;
  return result;
}
inline int __any_sync(unsigned mask, int vote, const cuda_host::Where where = cuda_host::Where::current()) {
  return __ballot_sync(mask, vote, where) != 0;
}
inline int __all_sync(unsigned mask, int vote, const cuda_host::Where where = cuda_host::Where::current()) {
  return __ballot_sync(mask, vote, where) == mask;
}

// Memory.
template <class T>
T __ldg(const T* from) {
  return *from;
}
template <class T>
inline void __stcg(T* to, T x) {
  *to = x;
}
inline int atomicAdd(int* to, int x) { return __atomic_fetch_add(to, x, __ATOMIC_RELAXED); }
inline unsigned atomicAdd(unsigned* to, unsigned x) { return __atomic_fetch_add(to, x, __ATOMIC_RELAXED); }
inline float atomicAdd(float* to, float x) {
  auto* bits = reinterpret_cast<uint32_t*>(to);
  uint32_t old = __atomic_load_n(bits, __ATOMIC_RELAXED);
  while (!__atomic_compare_exchange_n(
      bits, &old, std::bit_cast<uint32_t>(std::bit_cast<float>(old) + x), false, __ATOMIC_RELAXED, __ATOMIC_RELAXED)) {
  }
  return std::bit_cast<float>(old);
}

// Arithmetic.
inline float __expf(float x) { return std::exp(x); }
inline float rsqrtf(float x) { return 1 / std::sqrt(x); }
inline float __fdividef(float x, float y) { return x / y; }
inline float __uint_as_float(unsigned x) { return std::bit_cast<float>(x); }
inline int __popc(unsigned x) { return std::popcount(x); }
inline unsigned __float_as_uint(float x) { return std::bit_cast<unsigned>(x); }

// Rounds to nearest even; any NaN becomes 0x7fff, as on the GPU.
struct __nv_bfloat16 {
  uint16_t bits;
};
struct alignas(4) __nv_bfloat162 {
  __nv_bfloat16 x, y;
};
inline float __bfloat162float(__nv_bfloat16 x) { return std::bit_cast<float>(uint32_t{x.bits} << 16); }
inline __nv_bfloat16 __float2bfloat16_rn(float x) {
  const auto bits = std::bit_cast<uint32_t>(x);
  return {x != x ? uint16_t{0x7fff} : static_cast<uint16_t>((bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16)};
}
