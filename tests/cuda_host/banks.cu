// The shared memory's banks that a warp of the gather kernels touches at once: a program that counts how often one is asked twice.

#include <cstdio>
#include <set>
#include <vector>

#include "conv_gather_kernels.h"
#include "conv_gather_values_grad_kernels.h"

namespace tost {
namespace {

// Wavefronts of accesses of `bytes` a lane: 128 bytes of lanes at a time, each of 32 banks of 4 bytes once.
int wavefronts(const std::vector<int>& addresses, int bytes) {
  int count = 0;
  const size_t together = 128 / static_cast<size_t>(bytes);
  for (size_t begin = 0; begin < addresses.size(); begin += together) {
    std::vector<std::set<int>> words(32);
    for (size_t i = begin; i < std::min(begin + together, addresses.size()); ++i) {
      for (int w = addresses[i] / 4; w < (addresses[i] + bytes) / 4; ++w) words[w % 32].insert(w);
    }
    size_t most = 0;
    for (const auto& bank : words) most = std::max(most, bank.size());
    count += static_cast<int>(most);
  }
  return count;
}

int wrong = 0;
void expect(int got, int want, const char* what) {
  if (got == want) return;
  std::printf("%s: %d wavefronts, expected %d\n", what, got, want);
  wrong = 1;
}

// The offsets of a k-step whose columns are of all residues of the channel modulo 8, at any taps.
template <class Product>
std::vector<int32_t> table(const Patch& patch, int first_tap) {
  std::vector<int32_t> offsets;
  for (int i = 0; i < Product::kDepth; ++i) {
    const int column = Product::column(i), taps = patch.y.kernel * patch.x.kernel;
    offsets.push_back(patch.column_place(column % patch.chunk, (first_tap + 5 * column) % taps));
  }
  return offsets;
}

void check_tf32(const Patch& patch, int tap) {
  const auto offsets = table<Tf32Product>(patch, tap);
  for (int half = 0; half < 2; ++half) {
    std::vector<int> addresses;
    for (int lane = 0; lane < 32; ++lane) {
      addresses.push_back(Tf32Product::lane_offset(lane) + Tf32Product::columns(offsets.data(), lane).offset[half]);
    }
    expect(wavefronts(addresses, 8), 2, "images, TF32");
  }
}

void check_bf16(const Patch& patch, int tap) {
  const auto offsets = table<Bf16Product>(patch, tap);
  std::vector<int> addresses;  // of 16-byte rows: eight of them are a matrix, and a wavefront
  for (int lane = 0; lane < 32; ++lane) {
    addresses.push_back(Bf16Product::lane_offset(lane) + Bf16Product::columns(offsets.data(), lane).offset);
  }
  expect(wavefronts(addresses, 16), 4, "images, bfloat16");
}

// The values' gradient: 64 bytes of each of eight columns, 16 a lane.
template <class T>
void check_values_grad(const Patch& patch, int tap) {
  std::vector<int> addresses;
  for (int lane = 0; lane < 32; ++lane) {
    const int column = lane_column<T>(lane / 4), taps = patch.y.kernel * patch.x.kernel;
    addresses.push_back(patch.column_place(column, (tap + 5 * column) % taps) + lane % 4 * 16);
  }
  expect(wavefronts(addresses, 16), 4, "values' gradient");
}

template <class Product>
void check_sums(int bytes, const char* what) {
  for (int r = 0; r < Product::kLaneRows; ++r) {
    std::vector<int> addresses;
    for (int lane = 0; lane < 32; ++lane) addresses.push_back(Product::row(lane, r) * kPaddedRow + Product::lane_column(lane));
    expect(wavefronts(addresses, bytes), bytes / 4, what);
  }
}

}  // namespace
}  // namespace tost

int main() {
  using namespace tost;
  for (const int kernel : {1, 3, 5}) {
    for (const int pixels : {4, 8, 16}) {
      const ConvShape shape{64, 16, 9, 9, 16, 9, 9, {kernel, kernel}, {1, 1}, {kernel / 2, kernel / 2}, {1, 1}, 1, 0};
      for (int tap = 0; tap < kernel * kernel; ++tap) {
        check_tf32(patch_of(shape, false, false, pixels, 16, nullptr), tap);
        check_bf16(patch_of(shape, false, true, pixels, 16, nullptr), tap);
        check_values_grad<float>(patch_of(shape, false, false, pixels, 16, nullptr), tap);
        check_values_grad<__nv_bfloat16>(patch_of(shape, false, true, pixels, 16, nullptr), tap);
      }
    }
  }
  check_sums<Tf32Product>(8, "sums, TF32");
  check_sums<Bf16Product>(4, "sums, bfloat16");
  return wrong;
}
