// What the shim says of warps, matrix products and asynchronous copies, against plain sums. Prints what failed.
#include "mma.h"

#include <cstdio>

namespace {

using namespace tost;

int failures = 0;

void expect(bool holds, const char* what) {
  if (holds) return;
  std::printf("%s\n", what);
  ++failures;
}

template <class... Parameters>
void check_throws(
    const char* what, void (*kernel)(Parameters...), const Grid& grid, std::type_identity_t<Parameters>... arguments) {
  try {
    launch("planted", kernel, grid, nullptr, arguments...);
  } catch (const std::runtime_error& error) {
    expect(std::string(error.what()).find(what) != std::string::npos, error.what());
    return;
  }
  expect(false, what);
}

__global__ void warps(int* out) {
  const int t = threadIdx.x, lane = t % 32;
  int sum = t;
  for (int bits = 16; bits; bits /= 2) sum += __shfl_xor_sync(0xffffffffu, sum, bits);
  out[t] = sum;
  out[64 + t] = __shfl_down_sync(0xffffffffu, lane, 1, 8);
  out[128 + t] = static_cast<int>(__ballot_sync(0xffffffffu, lane % 3 == 0));
  if (lane < 16) out[192 + t] = __shfl_sync(0x0000ffffu, lane, 5);
  atomicAdd(out + 256, 1);
  if (t == 63) return;  // the barrier is for those who are left
  __syncthreads();
}

template <int K>
__global__ void product(const float* a, const float* b, float* d) {
  const int g = threadIdx.x / 4, t = threadIdx.x % 4;
  float sum[4] = {1, 1, 1, 1};
  uint32_t left[4], right[2];
  for (int i = 0; i < 4; ++i) {
    const int row = g + i % 2 * 8;
    if (K == 8) {
      left[i] = to_tf32(a[row * K + t + i / 2 * 4]);
    } else {
      const float* from = a + row * K + t * 2 + i / 2 * 8;
      left[i] = __float_as_uint(from[0]) >> 16 | (__float_as_uint(from[1]) & 0xffff0000u);
    }
  }
  for (int i = 0; i < 2; ++i) {
    if (K == 8) {
      right[i] = to_tf32(b[(t + i * 4) * 8 + g]);
    } else {
      const float* from = b + (t * 2 + i * 8) * 8 + g;
      right[i] = __float_as_uint(from[0]) >> 16 | (__float_as_uint(from[8]) & 0xffff0000u);
    }
  }
  if constexpr (K == 8) mma_tf32(sum, left, right);
  else mma_bf16(sum, left, right);
  for (int i = 0; i < 4; ++i) d[(g + i / 2 * 8) * 8 + t * 2 + i % 2] = sum[i];
}

template <int K>
void check_product() {
  float a[16 * K], b[K * 8], d[16 * 8];
  for (int i = 0; i < 16 * K; ++i) a[i] = static_cast<float>(i * 7 % 13 - 6);
  for (int i = 0; i < K * 8; ++i) b[i] = static_cast<float>(i * 5 % 11 - 5);
  launch("product", product<K>, {{1}, {32}}, nullptr, a, b, d);
  for (int row = 0; row < 16; ++row) {
    for (int column = 0; column < 8; ++column) {
      float sum = 1;
      for (int k = 0; k < K; ++k) sum += a[row * K + k] * b[k * 8 + column];
      expect(d[row * 8 + column] == sum, K == 8 ? "mma_tf32" : "mma_bf16");
    }
  }
}

// A 32x8 matrix of numbers of 16 bits: four 8x8 matrices, one below the other.
__global__ void matrices(const uint16_t* x, uint32_t* rows, uint32_t* columns, int off) {
  SHARED_DYNAMIC(uint16_t, matrix);
  for (int i = 0; i < 8; ++i) matrix[threadIdx.x * 8 + i] = x[threadIdx.x * 8 + i];
  __syncwarp();
  uint32_t words[4];
  ldmatrix_x4(words, matrix + threadIdx.x * 8 + off);
  for (int i = 0; i < 4; ++i) rows[threadIdx.x * 4 + i] = words[i];
  ldmatrix_x4_trans(words, matrix + threadIdx.x * 8);
  for (int i = 0; i < 4; ++i) columns[threadIdx.x * 4 + i] = words[i];
}

void check_matrices() {
  uint16_t x[256];
  for (int i = 0; i < 256; ++i) x[i] = static_cast<uint16_t>(i * 77);
  uint32_t rows[128], columns[128];
  launch("matrices", matrices, {{1}, {32}, 512}, nullptr, x, rows, columns, 0);
  for (int lane = 0; lane < 32; ++lane) {
    for (int i = 0; i < 4; ++i) {
      const uint16_t* m = x + 64 * i;
      const int g = lane / 4, t = lane % 4;
      expect(rows[lane * 4 + i] == (m[g * 8 + 2 * t] | uint32_t{m[g * 8 + 2 * t + 1]} << 16), "ldmatrix_x4");
      expect(columns[lane * 4 + i] == (m[2 * t * 8 + g] | uint32_t{m[(2 * t + 1) * 8 + g]} << 16), "ldmatrix_x4_trans");
    }
  }
  check_throws("ldmatrix: an address off its alignment", matrices, {{1}, {32}, 1024}, x, rows, columns, 4);
  check_throws("ldmatrix: an address outside of shared memory", matrices, {{1}, {32}, 1024}, x, rows, columns, 1 << 20);
}

template <int kBytes>
__global__ void padded_copy(const char* x, char* y, int read) {
  SHARED(uint4, to, 2);
  copy_async<kBytes>(reinterpret_cast<char*>(to) + kBytes, x, read);
  commit_copies();
  wait_for_copies<0>();
  for (int i = 0; i < kBytes; ++i) y[i] = reinterpret_cast<const char*>(to)[kBytes + i];
}

template <int kBytes>
void check_padded_copy() {
  alignas(16) char x[2 * kBytes];
  char y[kBytes];
  for (int i = 0; i < kBytes; ++i) x[i] = static_cast<char>(i + 1);
  for (int read = 0; read <= kBytes; ++read) {
    launch("padded_copy", padded_copy<kBytes>, {{1}, {1}}, nullptr, x, y, read);
    for (int i = 0; i < kBytes; ++i) expect(y[i] == (i < read ? i + 1 : 0), "a copy with zeros behind it");
  }
  check_throws("a source off its alignment", padded_copy<kBytes>, {{1}, {1}}, x + kBytes / 2, y, kBytes);
  check_throws("more bytes read than copied", padded_copy<kBytes>, {{1}, {1}}, x, y, kBytes + 1);
}

__global__ void copy_to_nowhere(float* x) { copy_async<4>(x, x); }

__global__ void copy_of_shared() {
  SHARED(float, a, 4);
  copy_async<4>(a, a + 1);
}

__global__ void never_waited_for(const float* x) {
  SHARED(float, a, 4);
  copy_async<4>(a, x);
  commit_copies();
}

__global__ void copies(const float* x, float* y, int bytes_read) {
  SHARED_DYNAMIC(float, to);
  copy_async<16>(to, x, 16);
  commit_copies();
  copy_async<16>(to + 4, x + 4, bytes_read);
  commit_copies();
  wait_for_copies<1>();
  for (int i = 0; i < 8; ++i) y[i] = to[i];  // the second is still on its way
  wait_for_copies<0>();
  for (int i = 0; i < 8; ++i) y[8 + i] = to[i];
}

__global__ void never_joined() {
  if (threadIdx.x < 7) __shfl_sync(0xffffffffu, 1, 0);
}

__global__ void different_barriers() {
  if (threadIdx.x < 7) {
    __syncthreads();
  } else {
    __syncthreads();
  }
}

}  // namespace

int main() {
  int out[257] = {};
  launch("warps", warps, {{1}, {64}}, nullptr, out);
  for (int t = 0; t < 64; ++t) {
    expect(out[t] == (t < 32 ? 496 : 1520), "__shfl_xor_sync");
    expect(out[64 + t] == (t % 8 == 7 ? t % 32 : t % 32 + 1), "__shfl_down_sync");
    expect(out[128 + t] == 0x49249249, "__ballot_sync");
    expect(out[192 + t] == (t % 32 < 16 ? 5 : 0), "__shfl_sync of half a warp");
  }
  expect(out[256] == 64, "atomicAdd");
  check_product<8>();
  check_product<16>();
  alignas(16) float x[8] = {1, 2, 3, 4, 5, 6, 7, 8};
  float y[16];
  launch("copies", copies, {{1}, {1}, 32}, nullptr, x, y, 8);
  const float want[8] = {1, 2, 3, 4, 5, 6, 0, 0};
  for (int i = 0; i < 8; ++i) {
    expect(i < 4 ? y[i] == want[i] : y[i] != y[i], "a copy that nobody waited for is not done");
    expect(y[8 + i] == want[i], "a copy");
  }
  check_padded_copy<4>();
  check_padded_copy<8>();
  check_padded_copy<16>();
  check_matrices();
  const Grid warp{{1}, {32}};
  check_throws("threads wait for others that never come", never_joined, warp);
  check_throws("threads wait at different barriers", different_barriers, warp);
  check_throws("an address outside of shared memory", copy_to_nowhere, warp, x);
  check_throws("its source is shared memory", copy_of_shared, warp);
  check_throws("a thread ends before its asynchronous copies", never_waited_for, warp, x);
  return failures != 0;
}
