// What one core can do: multiply-adds, loads from L1 and L2, copies through memory. Built by machine_limits.py for the CPU at
// hand (-march=native) and called through ctypes. Each function returns its rate over about the seconds asked for, in units of
// 1e9 a second, by the CPU time of the thread.

#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <ctime>

#if defined(__AVX512F__)
#include <immintrin.h>
constexpr int kBytes = 64;
constexpr int kChains = 24;  // two units, latency 4 or 5; 32 registers
#elif defined(__AVX__)
constexpr int kBytes = 32;
constexpr int kChains = 12;  // 16 registers
#else
constexpr int kBytes = 16;
constexpr int kChains = 12;
#endif

typedef float Vector __attribute__((vector_size(kBytes)));
constexpr int kLanes = kBytes / sizeof(float);

namespace {

double now() {
  timespec t;
  clock_gettime(CLOCK_THREAD_CPUTIME_ID, &t);
  return t.tv_sec + 1e-9 * t.tv_nsec;
}

// Calls step() until `seconds` have passed; the work of one call times calls a second.
template <typename Step>
double rate(double seconds, double work, Step step) {
  step();
  double start = now(), end;
  int64_t calls = 0;
  do {
    step();
    ++calls;
    end = now();
  } while (end - start < seconds);
  return 1e-9 * work * calls / (end - start);
}

// The compiler may neither drop nor reorder what went into `v`, and knows nothing of its value afterwards.
template <typename T>
inline void keep(T& v) {
#if defined(__x86_64__)
  asm volatile("" : "+v"(v));
#else
  asm volatile("" : "+w"(v));
#endif
}

double load_rate(double seconds, size_t bytes) {
  auto* data = static_cast<Vector*>(aligned_alloc(4096, bytes));
  memset(data, 0, bytes);
  const size_t count = bytes / kBytes;
  constexpr int kUnroll = 8;
  const int passes = 1 + static_cast<int>((1 << 22) / bytes);
  double result = rate(seconds, double(passes) * bytes, [&] {
    for (int p = 0; p < passes; ++p) {
      Vector sum[kUnroll] = {};
      for (size_t i = 0; i + kUnroll <= count; i += kUnroll)
        for (int u = 0; u < kUnroll; ++u) sum[u] += data[i + u];
      for (int u = 0; u < kUnroll; ++u) keep(sum[u]);
    }
  });
  free(data);
  return result;
}

}  // namespace

extern "C" {

int vector_bits() { return 8 * kBytes; }

// fp32 multiply-adds, two operations each.
double fma_gflops(double seconds) {
  constexpr int kTurns = 10000;
  return rate(seconds, 2.0 * kLanes * kChains * kTurns, [] {
    Vector sum[kChains] = {}, a, b;
    for (int l = 0; l < kLanes; ++l) a[l] = b[l] = 0.5f;
    keep(a);
    keep(b);
    for (int t = 0; t < kTurns; ++t)
#pragma GCC unroll 32
      for (int c = 0; c < kChains; ++c) {  // unrolled, or the sums would live in memory
        sum[c] = sum[c] * a + b;  // contracted to one instruction; a * b + sum would be an addition of one product
        keep(sum[c]);
      }
  });
}

// bf16 pairs into fp32 (vdpbf16ps), four operations a lane; 0 where the compiler knows no such instruction for this CPU.
double bf16_gflops(double seconds) {
#if defined(__AVX512BF16__)
  constexpr int kTurns = 10000;
  return rate(seconds, 4.0 * kLanes * kChains * kTurns, [] {
    __m512 sum[kChains] = {};
    __m512bh a = (__m512bh)_mm512_set1_epi32(0x3f803f80), b = a;
    for (int t = 0; t < kTurns; ++t)
#pragma GCC unroll 32
      for (int c = 0; c < kChains; ++c) {  // unrolled, or the sums would live in memory
        sum[c] = _mm512_dpbf16_ps(sum[c], a, b);
        keep(sum[c]);
      }
  });
#else
  (void)seconds;
  return 0;
#endif
}

// Bytes loaded and added up, 16 KB: L1; 256 KB: L2.
double l1_load(double seconds) { return load_rate(seconds, 16 << 10); }
double l2_load(double seconds) { return load_rate(seconds, 256 << 10); }

// Bytes read plus bytes written by memcpy between blocks far larger than any cache.
double memory_copy(double seconds) {
  const size_t bytes = size_t(256) << 20;
  auto* from = static_cast<char*>(aligned_alloc(4096, bytes));
  auto* to = static_cast<char*>(aligned_alloc(4096, bytes));
  memset(from, 1, bytes);
  memset(to, 2, bytes);
  double result = rate(seconds, 2.0 * bytes, [&] {
    memcpy(to, from, bytes);
    keep(to);
  });
  free(from);
  free(to);
  return result;
}
}
