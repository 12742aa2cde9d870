// gather_values_grad as a C function, for tests that call the kernels without torch's operators.

#include <cstdlib>
#include <cstring>
#include <memory>
#include <string>
#include <vector>

#include "conv_gather_values_grad.cu"

using namespace tost;

// sizes: batch, channels, height, width, outputs, out_height, out_width, kernel, stride, padding and dilation of y and x, groups,
// nnz, bf16, length of the index. options: rows, chunk, pixels, warps, stages, split. Returns null, or what went wrong.
extern "C" __attribute__((visibility("default"))) const char* values_grad(
    const int64_t* sizes, const int* options, const int32_t* index, const void* grad, const void* x, void* out) {
  static std::string error;
  const auto pair = [&](int at, int(&to)[2]) { to[0] = static_cast<int>(sizes[at]), to[1] = static_cast<int>(sizes[at + 1]); };
  ConvCall call{};
  ConvShape& s = call.shape;
  s.batch = sizes[0], s.channels = sizes[1], s.height = sizes[2], s.width = sizes[3];
  s.outputs = sizes[4], s.out_height = sizes[5], s.out_width = sizes[6];
  pair(7, s.kernel), pair(9, s.stride), pair(11, s.padding), pair(13, s.dilation);
  s.groups = sizes[15], s.nnz = sizes[16];
  call.op = "values_grad", call.bf16 = sizes[17], call.index = index, call.index_length = sizes[18];
  call.options.algo = ConvAlgorithm::gather;
  call.options.rows = options[0], call.options.chunk = options[1], call.options.pixels = options[2];
  call.options.warps = options[3], call.options.stages = options[4], call.options.split = options[5];
  call.options.tf32 = !call.bf16;
  call.processors = 4;
  std::vector<std::unique_ptr<void, decltype(&std::free)>> memory;
  call.scratch = [&](size_t bytes) {
    memory.emplace_back(std::aligned_alloc(256, (bytes + 255) / 256 * 256), &std::free);
    return std::memset(memory.back().get(), 0xff, bytes);  // NaN
  };
  try {
    gather_values_grad(call, grad, x, out);
  } catch (const std::exception& e) {
    error = e.what();
    return error.c_str();
  }
  return nullptr;
}
