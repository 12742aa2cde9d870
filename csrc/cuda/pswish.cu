// pswish: y = x s, s = sigmoid(beta x), and its gradients, beta one number or one for each channel.
//
// Forward reads x and writes y, 8 bytes an element of float32: the floor. Backward reads dy and x, writes dx = dy (s + beta x s
// (1 - s)) and keeps its share of dbeta = sum dy x^2 s (1 - s) in registers: 12 bytes, the floor too. A block leaves one partial
// sum of dbeta a channel, and a second, tiny, kernel adds them up in order. One beta for all: the tensor is one channel.

#include <tuple>

#include "channels.h"
#include "tensor.h"

namespace tost {
namespace {

constexpr int kBlocksPerSM = 6;
constexpr int kMostSplits = 2048;

__device__ inline float sigmoid(float z) { return 1.f / (1.f + __expf(-z)); }

template <int V, bool kPlanar>
__device__ inline void load_beta(float (&to)[V], const float* beta, const Walk& w, int64_t c) {
#pragma unroll
  for (int v = 0; v < V; ++v) to[v] = c < w.channels ? beta[kPlanar ? c : c + v] : 0.f;
}

template <int V, bool kPlanar>
__device__ inline int64_t first_channel(const Walk& w) {
  const int64_t tile = blockIdx.x % w.tiles;
  return kPlanar ? tile : (tile * w.lanes + threadIdx.x % w.lanes) * V;
}

template <class T, int V, bool kPlanar>
__global__ void __launch_bounds__(kThreads) pswish_forward(const T* x, const float* beta, T* y, Walk w) {
  float b[V];
  load_beta<V, kPlanar>(b, beta, w, first_channel<V, kPlanar>(w));
  walk<V, kPlanar>(w, [&](int64_t at) {
    float value[V];
    load<T, V>(value, x + at);
#pragma unroll
    for (int v = 0; v < V; ++v) value[v] *= sigmoid(b[v] * value[v]);
    store<T, V>(y + at, value);
  });
}

template <class T, int V, bool kPlanar>
__global__ void __launch_bounds__(kThreads)
pswish_backward(const T* dy, const T* x, const float* beta, T* dx, float* partial, Walk w) {
  float b[V], dbeta[V] = {};
  load_beta<V, kPlanar>(b, beta, w, first_channel<V, kPlanar>(w));
  const int64_t c = walk<V, kPlanar>(w, [&](int64_t at) {
    float grad[V], value[V];
    load<T, V>(grad, dy + at);
    load<T, V>(value, x + at);
#pragma unroll
    for (int v = 0; v < V; ++v) {
      const float s = sigmoid(b[v] * value[v]), slope = value[v] * s * (1.f - s);
      dbeta[v] += grad[v] * value[v] * slope;
      grad[v] *= s + b[v] * slope;
    }
    store<T, V>(dx + at, grad);
  });
  write_partial<V, kPlanar>(partial, w, c, dbeta);
}

// How to walk over `x`; one channel of everything with a shared beta.
Walk walk_of(const Tensor& x, Layout layout, bool shared) {
  if (shared) return {1, 1, x.numel(), 0, 0, 1};
  const auto sizes = x.sizes();
  int64_t rest = 1;
  for (size_t d = 2; d < sizes.size(); ++d) rest *= sizes[d];
  if (sizes[1] == 1 || layout == Layout::batch_last) return {1, sizes[1], sizes[0] * rest, 0, 0, 1};
  if (layout == Layout::channels_last) return {sizes[0] * rest, sizes[1], 1, 0, 0, 1};
  return {sizes[0], sizes[1], rest, 0, 0, 1};
}

// Elements a move of 16 bytes, or 1 where sizes or addresses do not allow them.
template <class T>
int width_of(const Walk& w, std::initializer_list<const void*> addresses) {
  constexpr int V = 16 / sizeof(T);
  bool fits = (w.inner == 1 ? w.channels : w.inner) % V == 0;
  for (const void* address : addresses) fits = fits && reinterpret_cast<uintptr_t>(address) % 16 == 0;
  return fits ? V : 1;
}

void share_out(Walk& w, int width, int processors) {
  const bool planar = w.inner > 1 || w.channels == 1;
  const int64_t groups = planar ? w.channels : (w.channels + width - 1) / width;
  if (!planar) {
    while (w.lanes < 32 && w.lanes < groups) w.lanes *= 2;
  }
  w.tiles = static_cast<int>(planar ? groups : (groups + w.lanes - 1) / w.lanes);
  const int64_t positions = planar ? w.outer * (w.inner / width) : w.outer;
  const int64_t each = kThreads / w.lanes;
  const int64_t wanted = (int64_t{kBlocksPerSM} * processors + w.tiles - 1) / w.tiles;
  w.splits = static_cast<int>(std::max<int64_t>(1, std::min({wanted, (positions + each - 1) / each, int64_t{kMostSplits}})));
}

struct Call {
  Layout layout;
  bool shared;
};

Call check(const char* op, const Tensor& input, const Tensor& beta) {
  check_device(op, "input", input);
  check_same_device(op, "beta", beta, input);
  check_kernel_dtype(op, "input", input);
  check_dtype(op, "beta", beta, ScalarType::Float);
  const bool shared = beta.dim() == 0;
  if (!shared) {
    TOST_CHECK(input.dim() >= 2, op, "input: expected shape (N, C, ...) with a beta per channel, got ", shape_string(input));
    check_shape(op, "beta", beta, {input.size(1)});
  }
  return {output_layout(input), shared};
}

// work(T{}, width, planar) with these as constants.
template <class Work>
void with_constants(const Tensor& x, Walk& w, int processors, std::initializer_list<const void*> addresses, const Work& work) {
  const auto of_type = [&]<class T>(T) {
    const int width = width_of<T>(w, addresses);
    share_out(w, width, processors);
    const auto of_width = [&]<int V>(std::integral_constant<int, V>) {
      w.inner > 1 || w.channels == 1 ? work.template operator()<T, V, true>() : work.template operator()<T, V, false>();
    };
    width > 1 ? of_width(std::integral_constant<int, 16 / sizeof(T)>()) : of_width(std::integral_constant<int, 1>());
  };
  x.scalar_type() == ScalarType::Float ? of_type(float{}) : of_type(__nv_bfloat16{});
}

Tensor forward(Tensor input, Tensor beta, Text /*plan*/) {
  const char* op = "pswish_cuda";
  const Call call = check(op, input, beta);
  const OnDeviceOf device(input);
  const Tensor x = in_layout(input, call.layout), b = in_layout(beta, Layout::contiguous);
  Tensor y = empty_like(x, call.layout);
  if (x.numel() == 0) return y;
  Walk w = walk_of(x, call.layout, call.shared);
  const void* from = x.const_data_ptr();
  void* to = y.mutable_data_ptr();
  with_constants(x, w, device.processors(), {from, to}, [&]<class T, int V, bool kPlanar>() {
    const Grid grid{{static_cast<unsigned>(w.tiles * w.splits)}, {kThreads}};
    launch(op, pswish_forward<T, V, kPlanar>, grid, device.stream(), static_cast<const T*>(from),
           static_cast<const float*>(b.const_data_ptr()), static_cast<T*>(to), w);
  });
  return y;
}

std::tuple<Tensor, Tensor> backward(Tensor grad_output, Tensor input, Tensor beta, Text /*plan*/) {
  const char* op = "pswish_backward_cuda";
  const Call call = check(op, input, beta);
  check_same_device(op, "grad_output", grad_output, input);
  check_shape(op, "grad_output", grad_output, sizes_of(input));
  check_same_dtype(op, "grad_output", grad_output, "input", input);
  const OnDeviceOf device(input);
  const Tensor x = in_layout(input, call.layout), dy = in_layout(grad_output, call.layout);
  const Tensor b = in_layout(beta, Layout::contiguous);
  Tensor dx = empty_like(x, call.layout), dbeta = empty_like(b, Layout::contiguous);
  if (x.numel() == 0) {
    torch::stable::zero_(dbeta);
    return {dx, dbeta};
  }
  Walk w = walk_of(x, call.layout, call.shared);
  const void *grad = dy.const_data_ptr(), *from = x.const_data_ptr();
  void* to = dx.mutable_data_ptr();
  with_constants(x, w, device.processors(), {grad, from, to}, [&]<class T, int V, bool kPlanar>() {
    Tensor partial = empty_strided({w.splits, w.channels}, {w.channels, 1}, ScalarType::Float, x.device());
    float* sums = static_cast<float*>(partial.mutable_data_ptr());
    const Grid grid{{static_cast<unsigned>(w.tiles * w.splits)}, {kThreads}};
    launch(op, pswish_backward<T, V, kPlanar>, grid, device.stream(), static_cast<const T*>(grad), static_cast<const T*>(from),
           static_cast<const float*>(b.const_data_ptr()), static_cast<T*>(to), sums, w);
    constexpr int each = kThreads / 32;
    const Grid totals{{static_cast<unsigned>((w.channels + each - 1) / each)}, {kThreads}};
    launch(op, sum_splits, totals, device.stream(), sums, static_cast<float*>(dbeta.mutable_data_ptr()), w.channels, w.splits);
  });
  return {dx, dbeta};
}

}  // namespace
}  // namespace tost

STABLE_TORCH_LIBRARY_IMPL(tost, TOST_CUDA_KEY, m) {
  m.impl("pswish_cuda", TORCH_BOX(&tost::forward));
  m.impl("pswish_backward_cuda", TORCH_BOX(&tost::backward));
}
