#include "dense_pointwise.h"

#include <algorithm>
#include <array>
#include <cstring>
#include <vector>

#include <torch/csrc/stable/ops.h>

#include "dense_pointwise_job.h"
#include "scratch.h"
#include "share_out.h"

#define TOST_KERNELS "dense_pointwise_kernels.h"
#include "per_isa.h"

namespace tost {

namespace {

constexpr int64_t kRowBlock = 6, kColumnBlock = 256;  // as in the kernels

int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

// The pixels (y * step, x * step) of `view`, height x width of them.
template <class T>
Columns<T> columns_of(const View<T>& view, int64_t height, int64_t width, const std::array<int64_t, 2>& step) {
  // A step that is not taken may be as large as 2^31: it is left out.
  const int64_t inner_step = width > 1 ? view.stride_w * step[1] : 0, outer_step = height > 1 ? view.stride_h * step[0] : 0;
  Columns<T> columns{view.data, view.stride_c, view.n, width, inner_step, outer_step};
  // Pixels without a gap make a longer run.
  if (width == 1 || columns.inner_step == view.n) {
    columns.run *= width;
    columns.inner = 1;
    columns.inner_step = 0;
    if (height == 1 || columns.outer_step == columns.run) {
      columns.run *= height;
      columns.outer_step = 0;
    }
  }
  return columns;
}

// `values` as floats, [o][i].
template <class T>
const float* weight_of(Numbers<T> values, int64_t count, std::vector<float>& copy) {
  if constexpr (sizeof(T) == sizeof(float)) {
    if (values.stride == 1) return values.data;
  }
  copy.resize(count);
  for (int64_t k = 0; k < count; ++k) copy[k] = to_float(values.data[k * values.stride]);
  return copy.data();
}

template <class T>
void run(PointwiseJob<T>& job) {
  if (job.rows * job.columns == 0) return;
  // Rows of one block of columns go to several threads where there are few blocks: a row's sum does not depend on it.
  constexpr int64_t kTasksPerThread = 4;
  const int64_t threads = torch::stable::get_num_threads();
  const int64_t blocks = ceil_div(job.columns, kColumnBlock), row_blocks = ceil_div(job.rows, kRowBlock);
  job.row_chunks = 1;
  if (threads > 1 && blocks < threads * kTasksPerThread) {
    job.row_chunks = std::min(ceil_div(threads * kTasksPerThread, blocks), ceil_div(row_blocks, 4));
  }
  const auto kernel = TOST_PER_ISA(pointwise<T>);
  share_out(blocks * job.row_chunks, [&](int64_t begin, int64_t end) { kernel(job, begin, end); });
}

// Zeros in the pixels that no output reads.
template <class T>
void clear_unread(const View<T>& view, const std::array<int64_t, 2>& step, int64_t height, int64_t width) {
  const auto clear = [&](int64_t c, int64_t y, int64_t x0, int64_t x1) {
    T* row = view.data + c * view.stride_c + y * view.stride_h;
    if (view.stride_w == view.n) {
      std::memset(static_cast<void*>(row + x0 * view.n), 0, (x1 - x0) * view.n * sizeof(T));
    } else {
      for (int64_t x = x0; x < x1; ++x) std::memset(static_cast<void*>(row + x * view.stride_w), 0, view.n * sizeof(T));
    }
  };
  torch::stable::parallel_for(0, view.c * view.h, 8, [&](int64_t begin, int64_t end) {
    for (int64_t row = begin; row < end; ++row) {
      const int64_t c = row / view.h, y = row % view.h;
      if (y % step[0] != 0 || y / step[0] >= height) {
        clear(c, y, 0, view.w);
        continue;
      }
      for (int64_t x = 0; x < width; ++x) clear(c, y, x * step[1] + 1, x + 1 < width ? (x + 1) * step[1] : view.w);
    }
  });
}

}  // namespace

template <class T>
void dense_pointwise(
    View<const T> input, Numbers<T> values, Numbers<T> bias, const ConvGeometry& geometry, View<T> output) {
  static thread_local std::vector<float> kept_weight, kept_bias;  // from call to call, to spare page faults
  const float* bias_floats = nullptr;
  if (bias.data != nullptr) {
    kept_bias.resize(output.c);
    for (int64_t c = 0; c < output.c; ++c) kept_bias[c] = to_float(bias.data[c * bias.stride]);
    bias_floats = kept_bias.data();
  }
  PointwiseJob<T> job{
      columns_of(input, output.h, output.w, geometry.stride), columns_of(output, output.h, output.w, {1, 1}), output.c,
      input.c, output.n * output.h * output.w, weight_of(values, output.c * input.c, kept_weight), input.c, 1,
      bias_floats, 1};
  run(job);
}

template <class T>
void dense_pointwise_input_grad(
    View<const T> grad_output, Numbers<T> values, const ConvGeometry& geometry, View<T> grad_input) {
  static thread_local std::vector<float> kept_weight;
  const int64_t outputs = grad_output.c, inputs = grad_input.c;
  // Transposed, six of its rows at a time side by side: what a micro-kernel reads lies together.
  kept_weight.resize(ceil_div(inputs, kRowBlock) * kRowBlock * outputs);
  for (int64_t row = 0; row < inputs; row += kRowBlock) {
    float* to = kept_weight.data() + row * outputs;
    const int64_t rows = std::min(kRowBlock, inputs - row);
    for (int64_t o = 0; o < outputs; ++o) {
      for (int64_t r = 0; r < rows; ++r) to[o * kRowBlock + r] = to_float(values.data[(o * inputs + row + r) * values.stride]);
    }
  }
  PointwiseJob<T> job{
      columns_of(grad_output, grad_output.h, grad_output.w, {1, 1}),
      columns_of(grad_input, grad_output.h, grad_output.w, geometry.stride), inputs, outputs,
      grad_output.n * grad_output.h * grad_output.w, kept_weight.data(), 1, kRowBlock, nullptr, 1};
  if (grad_input.n > 0 && geometry.stride != std::array<int64_t, 2>{1, 1}) {
    clear_unread(grad_input, geometry.stride, grad_output.h, grad_output.w);
  }
  run(job);
}

template <class T>
void dense_pointwise_values_grad(
    View<const T> grad_output, View<const T> input, const ConvGeometry& geometry, T* grad_values) {
  const int64_t rows = grad_output.c, inputs = input.c, columns = grad_output.n * grad_output.h * grad_output.w;
  if (columns == 0) {
    std::memset(static_cast<void*>(grad_values), 0, rows * inputs * sizeof(T));
    return;
  }
  // The number of chunks fixes the order of the sum: it follows from the shape alone.
  constexpr int64_t kMostChunks = 16, kBlocksPerChunk = 8, kMostPartial = int64_t{8} << 20, kFewestRowBlocks = 4;
  const int64_t pitch = ceil_div(inputs, 16) * 16;
  const int64_t blocks = ceil_div(columns, kColumnBlock), row_blocks = ceil_div(rows, kRowBlock);
  const int64_t chunks =
      std::max<int64_t>(1, std::min({blocks / kBlocksPerChunk, kMostChunks, kMostPartial / (rows * pitch)}));
  const int64_t threads = torch::stable::get_num_threads();
  const int64_t wanted = threads > 1 ? ceil_div(2 * threads, chunks) : 1;
  const int64_t segments = std::max<int64_t>(1, std::min(wanted, row_blocks / kFewestRowBlocks));
  static thread_local std::vector<float> kept_partial;
  kept_partial.resize(chunks * rows * pitch);
  float* partial = kept_partial.data();
  const PointwiseValuesJob<T> job{
      columns_of(grad_output, grad_output.h, grad_output.w, {1, 1}),
      columns_of(input, grad_output.h, grad_output.w, geometry.stride), rows, inputs, columns, chunks, segments, pitch,
      partial};
  const auto kernel = TOST_PER_ISA(pointwise_values<T>);
  share_out(chunks * segments, [&](int64_t begin, int64_t end) { kernel(job, begin, end); });

  torch::stable::parallel_for(0, rows, ceil_div(16384, inputs), [&](int64_t begin, int64_t end) {
    for (int64_t row = begin; row < end; ++row) {
      for (int64_t i = 0; i < inputs; ++i) {
        float total = 0;
        for (int64_t chunk = 0; chunk < chunks; ++chunk) total += partial[(chunk * rows + row) * pitch + i];
        assign(grad_values[row * inputs + i], total);
      }
    }
  });
}

#define TOST_INSTANTIATE(T)                                                                                          \
  template void dense_pointwise<T>(View<const T>, Numbers<T>, Numbers<T>, const ConvGeometry&, View<T>);             \
  template void dense_pointwise_input_grad<T>(View<const T>, Numbers<T>, const ConvGeometry&, View<T>);              \
  template void dense_pointwise_values_grad<T>(View<const T>, View<const T>, const ConvGeometry&, T*);
TOST_INSTANTIATE(float)
TOST_INSTANTIATE(bf16)
#undef TOST_INSTANTIATE

}  // namespace tost
