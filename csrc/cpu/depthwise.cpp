#include "depthwise.h"

#include <algorithm>
#include <cstring>
#include <vector>

#include <torch/csrc/stable/ops.h>

#include "depthwise_job.h"
#include "scratch.h"

#define TOST_KERNELS "depthwise_kernels.h"
#include "per_isa.h"

namespace tost {

namespace {

// One axis of the result, in pixels.
struct DepthwiseAxis {
  std::vector<DepthwiseRun> runs;  // ascending in each phase
  int64_t result_step = 1, source_step = 1;
  int64_t kinds = 0;
  std::vector<int64_t> shifts;  // (kinds, taps): from `source` of a run to what a tap reads; kOutside: padding
};

// The axis of `size` pixels of which those of a phase lie `result_step` apart, and their sources `source_step`. reads(pixel, tap)
// is the pixel of the source, or kOutside.
template <class Reads>
DepthwiseAxis axis_of(int64_t size, int64_t taps, int64_t result_step, int64_t source_step, const Reads& reads) {
  DepthwiseAxis axis;
  axis.result_step = result_step;
  axis.source_step = source_step;
  std::vector<int64_t> shifts(taps);
  for (int64_t phase = 0; phase < std::min(size, result_step); ++phase) {
    for (int64_t pixel = phase; pixel < size; pixel += result_step) {
      const int64_t source = pixel / result_step * source_step;
      for (int64_t tap = 0; tap < taps; ++tap) {
        const int64_t read = reads(pixel, tap);
        shifts[tap] = read == kOutside ? kOutside : read - source;
      }
      const auto is = [&](int64_t kind) {
        return std::equal(shifts.begin(), shifts.end(), axis.shifts.begin() + kind * taps);
      };
      if (pixel > phase && is(axis.runs.back().kind)) {
        ++axis.runs.back().count;
        continue;
      }
      int64_t kind = 0;
      while (kind < axis.kinds && !is(kind)) ++kind;
      if (kind == axis.kinds) {
        axis.shifts.insert(axis.shifts.end(), shifts.begin(), shifts.end());
        ++axis.kinds;
      }
      axis.runs.push_back({pixel, source, 1, kind, 0});
    }
  }
  return axis;
}

DepthwiseAxis forward_axis(int64_t size, int64_t source_size, int64_t taps, const ConvGeometry& geometry, int axis) {
  const int64_t stride = geometry.stride[axis], padding = geometry.padding[axis], dilation = geometry.dilation[axis];
  return axis_of(size, taps, 1, stride, [=](int64_t pixel, int64_t tap) {
    const int64_t read = pixel * stride + tap * dilation - padding;
    return read >= 0 && read < source_size ? read : kOutside;
  });
}

DepthwiseAxis input_grad_axis(int64_t size, int64_t source_size, int64_t taps, const ConvGeometry& geometry, int axis) {
  const int64_t stride = geometry.stride[axis], padding = geometry.padding[axis], dilation = geometry.dilation[axis];
  return axis_of(size, taps, stride, 1, [=](int64_t pixel, int64_t tap) {
    const int64_t read = pixel + padding - tap * dilation;
    return read >= 0 && read % stride == 0 && read / stride < source_size ? read / stride : kOutside;
  });
}

// The runs of an axis, one for each pixel, in their order.
void split(DepthwiseAxis& axis) {
  std::vector<DepthwiseRun> pixels;
  for (const DepthwiseRun& run : axis.runs) {
    for (int64_t k = 0; k < run.count; ++k) {
      pixels.push_back({run.result + k * axis.result_step, run.source + k * axis.source_step, 1, run.kind, run.length});
    }
  }
  std::sort(pixels.begin(), pixels.end(), [](const auto& a, const auto& b) { return a.result < b.result; });
  axis.runs = std::move(pixels);
}

// Pixels become elements: `result` and `source` of them from one pixel to the next.
void in_elements(DepthwiseAxis& axis, int64_t result, int64_t source) {
  for (DepthwiseRun& run : axis.runs) {
    run.result *= result;
    run.source *= source;
  }
  for (int64_t& shift : axis.shifts) {
    if (shift != kOutside) shift *= source;
  }
  axis.result_step *= result;
  axis.source_step *= source;
}

// What the kernels know as one pixel: n elements, or all of a run where they lie together.
void measure(DepthwiseAxis& axis, int64_t n) {
  const bool together = axis.result_step == n && axis.source_step == n;
  for (DepthwiseRun& run : axis.runs) {
    run.length = together ? run.count * n : n;
    if (together) run.count = 1;
  }
}

// (kinds of y, kinds of x, taps)
std::vector<int64_t> offsets_of(const DepthwiseAxis& y, const DepthwiseAxis& x, int64_t kh, int64_t kw) {
  std::vector<int64_t> offsets;
  offsets.reserve(y.kinds * x.kinds * kh * kw);
  for (int64_t row = 0; row < y.kinds; ++row) {
    for (int64_t column = 0; column < x.kinds; ++column) {
      for (int64_t tap = 0; tap < kh * kw; ++tap) {
        const int64_t dy = y.shifts[row * kh + tap / kw], dx = x.shifts[column * kw + tap % kw];
        offsets.push_back(dy == kOutside || dx == kOutside ? kOutside : dy + dx);
      }
    }
  }
  return offsets;
}

void check_index(const char* op, const PackedIndex& index) {
  const IndexView& view = index.forward;
  bool damaged = view.ptr[0] != 0 || view.ptr[index.outputs] != index.nnz;
  for (int64_t o = 0; o < index.outputs; ++o) {
    const int64_t kept = static_cast<int64_t>(view.ptr[o + 1]) - view.ptr[o];
    damaged |= kept < 0 || kept > index.taps();
  }
  for (int64_t k = 0; k < index.nnz; ++k) damaged |= static_cast<uint32_t>(view.col[k]) >= static_cast<uint64_t>(index.taps());
  TOST_CHECK(!damaged, op, "index: damaged: a row or a column is out of range (nnz ", index.nnz, ")");
}

// Where the kernels read `source`: in place if its rows are floats without gaps.
template <class T>
Planes<T> planes_of(const View<const T>& source) {
  const bool packed = sizeof(T) != sizeof(float) || (source.w > 1 && source.stride_w != source.n);
  return {source.data, source.stride_c, source.stride_h, source.stride_w, source.n, source.h, source.w, packed};
}

template <class T>
int64_t row_stride(const Planes<T>& planes) { return planes.packed ? planes.w * planes.n : planes.stride_h; }

template <class T>
void run(
    const char* op, const View<const T>& source, Numbers<T> values, Numbers<T> bias, const PackedIndex& index, DepthwiseAxis y,
    DepthwiseAxis x, int64_t fan, int64_t share, const View<T>& result) {
  check_index(op, index);
  if (result.n == 0) return;
  const Planes<T> planes = planes_of(source);
  in_elements(x, result.stride_w, source.n);
  measure(x, source.n);
  split(y);
  in_elements(y, result.stride_h, row_stride(planes));
  const std::vector<int64_t> offsets = offsets_of(y, x, index.kh, index.kw);
  const int64_t row_count = y.runs.size(), run_count = x.runs.size();
  DepthwiseJob<T> job{
      planes, result.data, result.stride_c, fan, share, y.runs.data(), x.runs.data(), row_count, run_count, y.kinds, x.kinds,
      x.result_step, x.source_step, offsets.data(), index.taps(), index.forward.ptr, index.forward.col, values.data,
      values.stride, bias.data, bias.stride,
      past_the_caches(result.n * result.c * result.h * result.w * static_cast<int64_t>(sizeof(T))), 1};
  const int64_t threads = torch::stable::get_num_threads();
  constexpr int64_t kItemsPerThread = 4;
  if (threads > 1 && result.c < threads * kItemsPerThread) {
    job.row_chunks = std::min(row_count, (threads * kItemsPerThread + result.c - 1) / result.c);
  }
  const int64_t size = result.n * result.h * result.w / job.row_chunks;
  const auto kernel = TOST_PER_ISA(depthwise<T>);
  torch::stable::parallel_for(
      0, result.c * job.row_chunks, std::max<int64_t>(1, 16384 / std::max<int64_t>(size, 1)),
      [&](int64_t begin, int64_t end) { kernel(job, begin, end); });
}

}  // namespace

template <class T>
void depthwise(
    const char* op, View<const T> input, Numbers<T> values, Numbers<T> bias, const PackedIndex& index,
    const ConvGeometry& geometry, View<T> output) {
  run(op, input, values, bias, index, forward_axis(output.h, input.h, index.kh, geometry, 0),
      forward_axis(output.w, input.w, index.kw, geometry, 1), 1, index.outputs / geometry.groups, output);
}

template <class T>
void depthwise_input_grad(
    const char* op, View<const T> grad_output, Numbers<T> values, const PackedIndex& index, const ConvGeometry& geometry,
    View<T> grad_input) {
  run(op, grad_output, values, Numbers<T>{}, index, input_grad_axis(grad_input.h, grad_output.h, index.kh, geometry, 0),
      input_grad_axis(grad_input.w, grad_output.w, index.kw, geometry, 1), index.outputs / geometry.groups, 1, grad_input);
}

template <class T>
void depthwise_values_grad(
    const char* op, View<const T> grad_output, View<const T> input, const PackedIndex& index, const ConvGeometry& geometry,
    T* grad_values) {
  check_index(op, index);
  if (input.n == 0) {
    std::memset(static_cast<void*>(grad_values), 0, index.nnz * sizeof(T));
    return;
  }
  const Planes<T> planes = planes_of(input);
  DepthwiseAxis y = forward_axis(grad_output.h, input.h, index.kh, geometry, 0);
  DepthwiseAxis x = forward_axis(grad_output.w, input.w, index.kw, geometry, 1);
  in_elements(x, grad_output.stride_w, input.n);
  measure(x, input.n);
  // The sums of an area stay in registers; a plane beyond the second cache is read row by row all the same.
  constexpr int64_t kSecondCache = 512 << 10;
  const int64_t grad_bytes = grad_output.n * grad_output.h * grad_output.w * static_cast<int64_t>(sizeof(T));
  if (planes.floats() * static_cast<int64_t>(sizeof(float)) + grad_bytes > kSecondCache) split(y);
  in_elements(y, grad_output.stride_h, row_stride(planes));
  const std::vector<int64_t> offsets = offsets_of(y, x, index.kh, index.kw);
  const int64_t row_count = y.runs.size(), run_count = x.runs.size();
  const DepthwiseValuesJob<T> job{
      planes, grad_output.data, grad_output.stride_c, index.outputs / geometry.groups, y.runs.data(), x.runs.data(), row_count,
      run_count, x.kinds, y.result_step, y.source_step, x.result_step, x.source_step,
      offsets.data(), index.taps(), index.forward.ptr, index.forward.col, grad_values};
  const int64_t size = std::max<int64_t>(1, grad_output.n * grad_output.h * grad_output.w);
  const auto kernel = TOST_PER_ISA(depthwise_values<T>);
  torch::stable::parallel_for(
      0, index.outputs, std::max<int64_t>(1, 16384 / size), [&](int64_t begin, int64_t end) { kernel(job, begin, end); });
}

#define TOST_INSTANTIATE(T)                                                                                               \
  template void depthwise<T>(                                                                                             \
      const char*, View<const T>, Numbers<T>, Numbers<T>, const PackedIndex&, const ConvGeometry&, View<T>);              \
  template void depthwise_input_grad<T>(                                                                                  \
      const char*, View<const T>, Numbers<T>, const PackedIndex&, const ConvGeometry&, View<T>);                          \
  template void depthwise_values_grad<T>(                                                                                 \
      const char*, View<const T>, View<const T>, const PackedIndex&, const ConvGeometry&, T*);
TOST_INSTANTIATE(float)
TOST_INSTANTIATE(bf16)
#undef TOST_INSTANTIATE

}  // namespace tost
