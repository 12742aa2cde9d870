// pswish on runs of consecutive elements that share one beta. Compiled once per instruction set: see per_isa.h.

namespace tost::TOST_ISA {
namespace {  // names as short as these must stay in their file

// y = x * sigmoid(beta x)
template <class T>
void pswish_forward_run(const T* x, float beta, T* y, int64_t n, bool streaming) {
  streaming = streaming && can_stream(y);
  const Vec b = broadcast(beta);
  int64_t i = 0;
  for (; i + kLanes <= n; i += kLanes) {
    const Vec v = load(x + i);
    put(y + i, v * sigmoid(b * v), streaming);
  }
  if (i < n) {
    const Vec v = load_partial(x + i, n - i);
    store_partial(y + i, v * sigmoid(b * v), n - i);
  }
  if (streaming) streamed();
}

TOST_INLINE Vec pswish_gradient(Vec dy, Vec x, Vec beta, Vec& dbeta) {
  const Vec s = sigmoid(beta * x);
  const Vec slope = s * (1.0f - s);
  dbeta = fma(dy * x, x * slope, dbeta);
  return dy * fma(x, beta * slope, s);  // (beta * x) * slope would be inf * 0 where beta * x overflows
}

// dx = dy (s + beta x s (1 - s)); returns the run's part of dbeta = sum dy x^2 s (1 - s).
template <class T>
double pswish_backward_run(const T* dy, const T* x, float beta, T* dx, int64_t n, bool streaming) {
  streaming = streaming && can_stream(dx);
  // Float sums over at most this many elements, doubles beyond: the error does not grow with the run.
  constexpr int64_t kBlock = 1024;
  const Vec b = broadcast(beta);
  double total = 0;
  for (int64_t begin = 0; begin < n; begin += kBlock) {
    const int64_t end = begin + kBlock < n ? begin + kBlock : n;
    Vec dbeta = zero();
    int64_t i = begin;
    for (; i + kLanes <= end; i += kLanes) {
      put(dx + i, pswish_gradient(load(dy + i), load(x + i), b, dbeta), streaming);
    }
    if (i < end) {  // the lanes past the end are 0 and add nothing
      const Vec v = pswish_gradient(load_partial(dy + i, end - i), load_partial(x + i, end - i), b, dbeta);
      store_partial(dx + i, v, end - i);
    }
    total += sum(dbeta);
  }
  if (streaming) streamed();
  return total;
}

}  // namespace
}  // namespace tost::TOST_ISA
