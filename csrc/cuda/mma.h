// Instructions that have no name in CUDA C++: products of small matrices by a warp, and copies past the registers.
// Under nvcc they are PTX; in the tests' shim (tests/cuda_host) they are the same sums on the CPU.
//
// D (16, 8) = A (16, K) B (K, 8) + D, float32, spread over the lanes of a warp (g = lane / 4, t = lane % 4):
//   d[0..3]            rows g, g, g + 8, g + 8;  columns 2 t, 2 t + 1, 2 t, 2 t + 1
//   TF32, K = 8        a[0..3]: rows g, g + 8, g, g + 8; columns t, t, t + 4, t + 4.      b[0..1]: rows t, t + 4; column g
//   bfloat16, K = 16   a[0..3]: rows g, g + 8, g, g + 8; columns from 2 t, 2 t, 2 t + 8, 2 t + 8, two in a word, the first low
//                      b[0..1]: rows from 2 t, 2 t + 8, two in a word; column g
//
// ldmatrix fetches four 8x8 matrices of 16-bit elements from shared memory: lane 8 i + j gives the address of row j of matrix i, 16
// bytes, aligned to them.  r[i] is matrix i's row g, columns 2 t, 2 t + 1; with _trans its column g, rows 2 t, 2 t + 1. So of memory
// with a row for each k, four matrices at (k, n), (k + 8, n), (k, n + 8), (k + 8, n + 8) are b of two neighbours by _trans.
#pragma once

#include <cstdint>

#include "launch.h"

namespace tost {

#ifdef TOST_CUDA_HOST

// TF32 keeps 10 bits of the mantissa; the hardware reads no more of a word.
inline float tf32_of(uint32_t word) { return __uint_as_float(word & 0xffffe000u); }
inline float bf16_of(uint32_t word, int half) { return __uint_as_float(half ? word & 0xffff0000u : word << 16); }

// A float rounded to TF32, to nearest, ties away from zero.
inline uint32_t to_tf32(float x) {
  const uint32_t bits = __float_as_uint(x);
  return (bits & 0x7f800000u) == 0x7f800000u ? bits : (bits + 0x1000u) & 0xffffe000u;
}

// a_of(words of a lane, row, k) and b_of(words of a lane, k, column) find what those lanes hold.
template <int K, class Element>
void mma_emulated(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2], const Element& element, const cuda_host::Where& where) {
  const uint32_t given[6] = {a[0], a[1], a[2], a[3], b[0], b[1]};
  const cuda_host::Table all = cuda_host::exchange(cuda_host::kAll, given, 6, where);
  const int lane = cuda_host::lane();
  for (int i = 0; i < 4; ++i) {
    const int row = lane / 4 + i / 2 * 8, column = lane % 4 * 2 + i % 2;
    for (int k = 0; k < K; ++k) d[i] += element(all.words, row, k, true) * element(all.words, column, k, false);
  }
}

inline void mma_tf32(
    float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2], const cuda_host::Where where = cuda_host::Where::current()) {
  mma_emulated<8>(d, a, b, [](const uint32_t* words, int i, int k, bool of_a) {
    const uint32_t* lane = words + (i % 8 * 4 + k % 4) * 6;
    return tf32_of(of_a ? lane[i / 8 + k / 4 * 2] : lane[4 + k / 4]);
  }, where);
}

inline void mma_bf16(
    float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2], const cuda_host::Where where = cuda_host::Where::current()) {
  mma_emulated<16>(d, a, b, [](const uint32_t* words, int i, int k, bool of_a) {
    const uint32_t* lane = words + (i % 8 * 4 + k % 8 / 2) * 6;
    return bf16_of(of_a ? lane[i / 8 + k / 8 * 2] : lane[4 + k / 8], k % 2);
  }, where);
}

// Each lane reads what it gets, so the sanitizers see every byte read once.
template <bool kTrans>
void ldmatrix_emulated(uint32_t (&r)[4], const void* row, const cuda_host::Where& where) {
  cuda_host::check_shared(row, 16, "ldmatrix");
  uint32_t given[2];
  std::memcpy(given, &row, sizeof(row));
  const cuda_host::Table all = cuda_host::exchange(cuda_host::kAll, given, 2, where);
  const int g = cuda_host::lane() / 4, t = cuda_host::lane() % 4;
  for (int i = 0; i < 4; ++i) {
    const auto element = [&](int j, int column) -> uint32_t {
      const uint16_t* from;
      std::memcpy(&from, all.words + (8 * i + j) * 2, sizeof(from));
      return from[column];
    };
    r[i] = kTrans ? element(2 * t, g) | element(2 * t + 1, g) << 16 : element(g, 2 * t) | element(g, 2 * t + 1) << 16;
  }
}

inline void ldmatrix_x4(uint32_t (&r)[4], const void* row, const cuda_host::Where where = cuda_host::Where::current()) {
  ldmatrix_emulated<false>(r, row, where);
}

inline void ldmatrix_x4_trans(uint32_t (&r)[4], const void* row, const cuda_host::Where where = cuda_host::Where::current()) {
  ldmatrix_emulated<true>(r, row, where);
}

// Until its copy is done, the target is NaN: who reads it too early sees that.
template <int kBytes>
void copy_async(void* to_shared, const void* from_global, int read = kBytes) {
  static_assert(kBytes == 4 || kBytes == 8 || kBytes == 16);
  for (int i = 0; i < kBytes; ++i) static_cast<unsigned char*>(to_shared)[i] = 0xff;
  cuda_host::start_copy(to_shared, from_global, kBytes, static_cast<unsigned>(read));
}

inline void commit_copies() { cuda_host::commit_copies(); }

template <int kLeft>
void wait_for_copies() {
  cuda_host::Copy copy;
  while (cuda_host::next_copy(kLeft, copy)) {
    for (unsigned i = 0; i < copy.bytes; ++i) copy.to[i] = i < copy.read ? copy.from[i] : 0;
  }
}

#else

__device__ inline uint32_t to_tf32(float x) {
  uint32_t bits;
  asm("cvt.rna.tf32.f32 %0, %1;" : "=r"(bits) : "f"(x));
  return bits;
}

__device__ inline void mma_tf32(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
  asm volatile(
      "mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}

__device__ inline void mma_bf16(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
  asm volatile(
      "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}

__device__ inline void ldmatrix_x4(uint32_t (&r)[4], const void* row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
               : "r"(static_cast<uint32_t>(__cvta_generic_to_shared(row)))
               : "memory");
}

__device__ inline void ldmatrix_x4_trans(uint32_t (&r)[4], const void* row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
               : "r"(static_cast<uint32_t>(__cvta_generic_to_shared(row)))
               : "memory");
}

// kBytes from global to shared memory, both aligned to them; only the first `read` are read, zeros follow. They are there for
// this thread after wait_for_copies, for the block after a barrier more.
template <int kBytes>
__device__ inline void copy_async(void* to_shared, const void* from_global, int read = kBytes) {
  static_assert(kBytes == 4 || kBytes == 8 || kBytes == 16);
  const auto to = static_cast<uint32_t>(__cvta_generic_to_shared(to_shared));
  if constexpr (kBytes == 16) {
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(to), "l"(from_global), "r"(read) : "memory");
  } else {
    asm volatile("cp.async.ca.shared.global [%0], [%1], %2, %3;" ::"r"(to), "l"(from_global), "n"(kBytes), "r"(read) : "memory");
  }
}

// Ends a group of copies.
__device__ inline void commit_copies() { asm volatile("cp.async.commit_group;" ::: "memory"); }

// Waits for all groups but the newest kLeft.
template <int kLeft>
__device__ inline void wait_for_copies() {
  asm volatile("cp.async.wait_group %0;" ::"n"(kLeft) : "memory");
}

#endif

}  // namespace tost
