// Max and average pooling over windows of (H, W), and their gradients, on batch-last tensors.
// All four gather: a pixel of the result is made from the pixels it meets, forward those of its window, backward the windows it
// lies in. So each is written once, by one thread, from sums in a fixed order: no bit depends on the number of threads.

#include <algorithm>
#include <string>
#include <tuple>
#include <vector>

#include "channels.h"
#include "isa.h"

namespace tost {
namespace {

// A row or column that one of the result meets, and which tap of the window joins them.
struct Meet {
  int64_t at, tap;
};

// One axis of the result: row or column i meets `meets[first[i]]` up to `meets[first[i + 1]]`.
struct Axis {
  const int64_t* first;
  const Meet* meets;
  int64_t from, to;  // how long it is where is read, and in the result
};

template <class T>
struct PoolJob {
  Axis h, w;
  int64_t batch;
  int64_t kernel_width;
  const T* from;
  T* to;
  const uint8_t* chosen;    // max backward: the tap of each maximum, for each value of `from`
  uint8_t* choice;          // max forward: the same, for each value of `to`
  const float *scale_h, *scale_w;  // average: a tap's share in the window at (h, w) is scale_h[h] * scale_w[w]
  bool streaming;  // results go past the caches
};

}  // namespace
}  // namespace tost

#define TOST_KERNELS "pool2d_kernels.h"
#include "per_isa.h"

namespace tost {
namespace {

using Sizes = std::vector<int64_t>;

constexpr int64_t kTaps = 256;  // that a byte can tell apart

// The windows along one axis.
struct Windows {
  int64_t size, kernel, stride, padding, count;

  Windows(const char* op, int d, int64_t size, const Sizes& kernel, const Sizes& stride, const Sizes& padding, bool ceil_mode)
      : size(size), kernel(kernel[d]), stride(stride[d]), padding(padding[d]) {
    TOST_CHECK(this->kernel > 0 && this->stride > 0, op, "kernel, stride: expected positive numbers, got ", this->kernel,
               " and ", this->stride);
    TOST_CHECK(this->padding >= 0 && 2 * this->padding <= this->kernel, op, "padding: expected 0 to half of the kernel (",
               this->kernel, "), got ", this->padding);
    const int64_t room = size + 2 * this->padding - this->kernel;
    TOST_CHECK(size > 0 && room + (ceil_mode ? this->stride - 1 : 0) >= 0, op, "input: expected at least one window of ",
               this->kernel, ", got a side of ", size, " with padding ", this->padding);
    count = (room + (ceil_mode ? this->stride - 1 : 0)) / this->stride + 1;
    if (ceil_mode && (count - 1) * this->stride >= size + this->padding) --count;  // no window begins past the end
  }

  // 1 / how many taps a window counts; `padded` counts those in the padding too (but none past it).
  std::vector<float> scales(bool padded) const {
    std::vector<float> scales(count);
    for (int64_t o = 0; o < count; ++o) {
      const int64_t begin = o * stride - padding;
      const int64_t end = std::min(begin + kernel, size + padding);
      scales[o] = 1.0f / static_cast<float>(padded ? end - begin : std::min(end, size) - std::max<int64_t>(begin, 0));
    }
    return scales;
  }
};

// Who meets whom along one axis, and the memory that an Axis points into.
class Meeting {
 public:
  Meeting(const Windows& w, bool backward) : backward_(backward), windows_(w) {
    first_.push_back(0);
    for (int64_t i = 0; i < (backward ? w.size : w.count); ++i) {
      if (backward) {  // the windows that pixel i lies in
        const int64_t last = (i + w.padding) / w.stride;
        const int64_t begin = std::max<int64_t>(0, (i + w.padding - w.kernel + w.stride) / w.stride);
        for (int64_t o = begin; o <= std::min(last, w.count - 1); ++o) meets_.push_back({o, i + w.padding - o * w.stride});
      } else {  // the pixels of window i
        for (int64_t tap = 0; tap < w.kernel; ++tap) {
          const int64_t pixel = i * w.stride - w.padding + tap;
          if (pixel >= 0 && pixel < w.size) meets_.push_back({pixel, tap});
        }
      }
      first_.push_back(static_cast<int64_t>(meets_.size()));
    }
  }
  Axis axis() const {
    const int64_t from = backward_ ? windows_.count : windows_.size, to = backward_ ? windows_.size : windows_.count;
    return {first_.data(), meets_.data(), from, to};
  }

 private:
  bool backward_;
  Windows windows_;
  std::vector<int64_t> first_;
  std::vector<Meet> meets_;
};

struct Geometry {
  Windows h, w;

  Geometry(const char* op, const Sizes& input, const Sizes& kernel, const Sizes& stride, const Sizes& padding, bool ceil_mode)
      : h(checked(op, input, kernel, stride, padding), 0, input[2], kernel, stride, padding, ceil_mode),
        w(op, 1, input[3], kernel, stride, padding, ceil_mode) {}

  Sizes output(const Sizes& input) const { return {input[0], input[1], h.count, w.count}; }

 private:
  static const char* checked(const char* op, const Sizes& input, const Sizes& kernel, const Sizes& stride, const Sizes& padding) {
    TOST_CHECK(input.size() == 4, op, "input: expected shape (N, C, H, W), got ", shape_string(input));
    for (const Sizes* pair : {&kernel, &stride, &padding}) {
      TOST_CHECK(pair->size() == 2, op, "kernel, stride, padding: expected 2 values each, got ", pair->size());
    }
    return op;
  }
};

void check_taps(const char* op, const Geometry& g) {
  TOST_CHECK(g.h.kernel * g.w.kernel <= kTaps, op, "kernel: expected at most ", kTaps, " taps, got ", g.h.kernel * g.w.kernel);
}

// A float32 or bfloat16 activation of this shape, batch-last.
Tensor activation(const char* op, const char* name, const Tensor& x, const Sizes& shape) {
  check_cpu(op, name, x);
  check_kernel_dtype(op, name, x);
  check_shape(op, name, x, shape);
  return in_layout(x, Layout::batch_last);
}

// The share of every window, kept while an average runs.
struct Shares {
  std::vector<float> h, w;
  Shares(const Geometry& g, bool padded, int64_t divisor) : h(g.h.scales(padded)), w(g.w.scales(padded)) {
    if (divisor == 0) return;
    std::fill(h.begin(), h.end(), 1.0f);
    std::fill(w.begin(), w.end(), 1.0f / static_cast<float>(divisor));
  }
};

template <class T>
using PoolRows = void (*)(const PoolJob<T>&, int64_t, int64_t);

// Every row of the result, shared out among threads.
template <class T>
void run(PoolRows<T> rows, const Geometry& g, bool backward, const Tensor& from, Tensor& to, const uint8_t* chosen,
         uint8_t* choice, const Shares* shares) {
  const Meeting h(g.h, backward), w(g.w, backward);
  const PoolJob<T> job{
      h.axis(), w.axis(), from.size(0), g.w.kernel,
      static_cast<const T*>(from.const_data_ptr()), static_cast<T*>(to.mutable_data_ptr()), chosen, choice,
      shares ? shares->h.data() : nullptr, shares ? shares->w.data() : nullptr, past_the_caches(to)};
  const int64_t row = std::max<int64_t>(1, std::max(job.w.from, job.w.to) * job.batch);
  torch::stable::parallel_for(
      0, from.size(1) * job.h.to, std::max<int64_t>(1, 32768 / row), [&](int64_t begin, int64_t end) { rows(job, begin, end); });
}

std::tuple<Tensor, Tensor> max_pool2d(Tensor input, Sizes kernel, Sizes stride, Sizes padding, bool ceil_mode) {
  const char* op = "max_pool2d_cpu";
  const Sizes shape = sizes_of(input);
  const Geometry g(op, shape, kernel, stride, padding, ceil_mode);
  check_taps(op, g);
  const Tensor x = activation(op, "input", input, shape);
  Tensor out = empty(g.output(shape), Layout::batch_last, x.scalar_type());
  Tensor taps = empty(g.output(shape), Layout::batch_last, ScalarType::Byte);
  auto* choice = static_cast<uint8_t*>(taps.mutable_data_ptr());
  x.scalar_type() == ScalarType::Float
      ? run<float>(TOST_PER_ISA(max_pool_rows<float>), g, false, x, out, nullptr, choice, nullptr)
      : run<bf16>(TOST_PER_ISA(max_pool_rows<bf16>), g, false, x, out, nullptr, choice, nullptr);
  return {in_layout(out, layout_of(input)), in_layout(taps, layout_of(input))};
}

Tensor max_pool2d_backward(
    Tensor grad_output, Tensor taps, Sizes input_shape, Text layout, Sizes kernel, Sizes stride, Sizes padding, bool ceil_mode) {
  const char* op = "max_pool2d_backward_cpu";
  const Geometry g(op, input_shape, kernel, stride, padding, ceil_mode);
  check_taps(op, g);
  const Tensor dy = activation(op, "grad_output", grad_output, g.output(input_shape));
  check_cpu(op, "taps", taps);
  check_dtype(op, "taps", taps, ScalarType::Byte);
  check_shape(op, "taps", taps, g.output(input_shape));
  const Tensor taps_in_order = in_layout(taps, Layout::batch_last);
  const auto* chosen = static_cast<const uint8_t*>(taps_in_order.const_data_ptr());
  Tensor dx = empty(input_shape, Layout::batch_last, dy.scalar_type());
  dy.scalar_type() == ScalarType::Float
      ? run<float>(TOST_PER_ISA(max_pool_backward_rows<float>), g, true, dy, dx, chosen, nullptr, nullptr)
      : run<bf16>(TOST_PER_ISA(max_pool_backward_rows<bf16>), g, true, dy, dx, chosen, nullptr, nullptr);
  return in_layout(dx, layout_named(op, "layout", layout));
}

Tensor avg_pool2d(
    Tensor input, Sizes kernel, Sizes stride, Sizes padding, bool ceil_mode, bool count_include_pad, int64_t divisor) {
  const char* op = "avg_pool2d_cpu";
  const Sizes shape = sizes_of(input);
  const Geometry g(op, shape, kernel, stride, padding, ceil_mode);
  const Shares shares(g, count_include_pad, divisor);
  const Tensor x = activation(op, "input", input, shape);
  Tensor out = empty(g.output(shape), Layout::batch_last, x.scalar_type());
  x.scalar_type() == ScalarType::Float
      ? run<float>(TOST_PER_ISA(avg_pool_rows<float>), g, false, x, out, nullptr, nullptr, &shares)
      : run<bf16>(TOST_PER_ISA(avg_pool_rows<bf16>), g, false, x, out, nullptr, nullptr, &shares);
  return in_layout(out, layout_of(input));
}

Tensor avg_pool2d_backward(
    Tensor grad_output, Sizes input_shape, Text layout, Sizes kernel, Sizes stride, Sizes padding, bool ceil_mode,
    bool count_include_pad, int64_t divisor) {
  const char* op = "avg_pool2d_backward_cpu";
  const Geometry g(op, input_shape, kernel, stride, padding, ceil_mode);
  const Shares shares(g, count_include_pad, divisor);
  const Tensor dy = activation(op, "grad_output", grad_output, g.output(input_shape));
  Tensor dx = empty(input_shape, Layout::batch_last, dy.scalar_type());
  dy.scalar_type() == ScalarType::Float
      ? run<float>(TOST_PER_ISA(avg_pool_backward_rows<float>), g, true, dy, dx, nullptr, nullptr, &shares)
      : run<bf16>(TOST_PER_ISA(avg_pool_backward_rows<bf16>), g, true, dy, dx, nullptr, nullptr, &shares);
  return in_layout(dx, layout_named(op, "layout", layout));
}

}  // namespace
}  // namespace tost

STABLE_TORCH_LIBRARY_IMPL(tost, CPU, m) {
  m.impl("max_pool2d_cpu", TORCH_BOX(&tost::max_pool2d));
  m.impl("max_pool2d_backward_cpu", TORCH_BOX(&tost::max_pool2d_backward));
  m.impl("avg_pool2d_cpu", TORCH_BOX(&tost::avg_pool2d));
  m.impl("avg_pool2d_backward_cpu", TORCH_BOX(&tost::avg_pool2d_backward));
}
