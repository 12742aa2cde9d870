// A convolution by the kernels of one algorithm, without torch, whose start under a sanitizer takes longer than all else:
//   convolution INDEX NNZ        INDEX: a file of what the plan's Pattern makes, of the shape below
// Compiled with -include conv_gather.cu, or conv_direct.cu. All numbers are ones; prints the sum of the output.
#include <cstdio>
#include <cstdlib>
#include <memory>
#include <vector>

#include "conv_call.h"

int main(int, char** arguments) {
  using namespace tost;
  std::vector<int32_t> index;
  std::FILE* file = std::fopen(arguments[1], "rb");
  for (int32_t number; std::fread(&number, sizeof number, 1, file) == 1;) index.push_back(number);
  std::fclose(file);
  const int64_t nnz = std::atoll(arguments[2]);
  ConvCall call{};
  call.op = "convolution";
  call.shape = {35, 9, 3, 5, 18, 3, 5, {3, 3}, {1, 1}, {1, 1}, {1, 1}, 1, nnz};
  call.index = index.data();
  call.index_length = static_cast<int64_t>(index.size());
#if GATHER
  const auto multiply = gather_multiply;
  call.options = {.algo = ConvAlgorithm::gather, .rows = 16, .chunk = 8, .warps = 4, .tf32 = true};
#else
  const auto multiply = direct_multiply;
  call.options = {.chunk = 8, .warps = 4};
#endif
  call.processors = 4;
  call.shared_bytes = 227 << 10;
  std::vector<std::unique_ptr<std::vector<float4>>> rooms;
  call.scratch = [&](size_t bytes) -> void* {
    auto& room = *rooms.emplace_back(std::make_unique<std::vector<float4>>(bytes / 16 + 16));
    return reinterpret_cast<void*>((reinterpret_cast<uintptr_t>(room.data()) + 255) / 256 * 256);
  };
  const std::vector<float> x(9 * 15 * 35, 1.f), values(nnz, 1.f);
  std::vector<float> y(18 * 15 * 35);
  multiply(call, false, x.data(), values.data(), nullptr, y.data());
  double sum = 0;
  for (const float number : y) sum += number;
  std::printf("%.0f\n", sum);
}
