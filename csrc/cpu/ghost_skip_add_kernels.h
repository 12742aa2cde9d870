// ghost_skip_add, one channel at a time: out = act(sum over the parts of (x - center) * scale, + shift).
// Compiled once per instruction set: see per_isa.h. The structures are in ghost_skip_add.cpp.
//
// A channel is worked through in blocks that stay in L1. A block is used where it lies if it is consecutive, else (runs shorter
// than a block) it is first gathered into a buffer, so that every loop below sees consecutive elements.

namespace tost::TOST_ISA {
namespace {  // names as short as these must stay in their file

// ---- blocks
// `count` elements from element `begin` of the channel at `channel`: where they lie, or gathered into `buffer`.
template <class T>
const T* fetch(const T* channel, const Channels& k, int64_t begin, int64_t count, T* buffer) {
  int64_t segment = begin / k.length, offset = begin % k.length;
  if (offset + count <= k.length) return channel + segment * k.stride + offset;
  for (int64_t done = 0; done < count; ++segment, offset = 0) {
    const T* from = channel + segment * k.stride + offset;
    const int64_t rest = k.length - offset;
    const int64_t n = rest < count - done ? rest : count - done;
    for (int64_t i = 0; i < n; ++i) buffer[done + i] = from[i];
    done += n;
  }
  return buffer;
}

// Where to write that block: in place, or `buffer`, to be handed to `scatter` afterwards.
template <class T>
T* place(T* channel, const Channels& k, int64_t begin, int64_t count, T* buffer) {
  const int64_t segment = begin / k.length, offset = begin % k.length;
  return offset + count <= k.length ? channel + segment * k.stride + offset : buffer;
}

template <class T>
void scatter(const T* block, T* channel, const Channels& k, int64_t begin, int64_t count) {
  int64_t segment = begin / k.length, offset = begin % k.length;
  for (int64_t done = 0; done < count; ++segment, offset = 0) {
    T* to = channel + segment * k.stride + offset;
    const int64_t rest = k.length - offset;
    const int64_t n = rest < count - done ? rest : count - done;
    for (int64_t i = 0; i < n; ++i) to[i] = block[done + i];
    done += n;
  }
}

template <class T>
const T* channel_of(const void* data, const Channels& k, int64_t c) {
  return static_cast<const T*>(data) + c * k.channel_stride;
}
template <class T>
T* channel_of(void* data, const Channels& k, int64_t c) {
  return static_cast<T*>(data) + c * k.channel_stride;
}

// ---- batch statistics
// The sums of x - m and of (x - m)^2.
template <class T>
TOST_INLINE void block_moments(const T* x, int64_t n, float m, float& first, float& second) {
  const Vec center = broadcast(m);
  Vec a = zero(), b = zero(), aa = zero(), bb = zero();
  int64_t i = 0;
  for (; i + 2 * kLanes <= n; i += 2 * kLanes) {
    const Vec p = load(x + i) - center, q = load(x + i + kLanes) - center;
    a += p;
    b += q;
    aa = fma(p, p, aa);
    bb = fma(q, q, bb);
  }
  first = sum(a + b);
  second = sum(aa + bb);
  for (; i < n; ++i) {
    const float p = to_float(x[i]) - m;
    first += p;
    second += p * p;
  }
}

// Mean and biased variance, block by block, safe where the mean is large against the deviation: a block is centred on the mean of
// the block before it (the first on its own), and blocks are combined in double (Chan's formula). Where the mean jumps from one
// block to the next, that jump is part of the variance, and large against what the rounding of this block loses.
struct Moments {
  double seen = 0, squares = 0, mean = 0;
  float center = 0;

  template <class T>
  void add(const T* x, int64_t n) {
    float first, second;
    if (seen == 0) {
      block_moments(x, n, 0.0f, first, second);
      center = first / static_cast<float>(n);
    }
    block_moments(x, n, center, first, second);
    const double residual = static_cast<double>(first) / n;
    const double block_mean = center + residual;
    const double block_squares = second - first * residual;
    const double delta = block_mean - mean, total = seen + n;
    mean += delta * n / total;
    squares += block_squares + delta * delta * seen * n / total;
    seen = total;
    center = static_cast<float>(block_mean);
  }
  double variance() const { return seen > 0 && squares > 0 ? squares / seen : 0.0; }
};

// Adds one block of channel c of each part that is normalised with the batch.
template <class T>
void add_block(const Tail& t, const bool* live, int64_t c, int64_t begin, int64_t n, Moments* moments) {
  alignas(64) T buffer[kBlock];
  for (int p = 0; p < kParts; ++p) {
    if (!live[p] || t.part[p].norm != kBatchStats) continue;
    moments[p].add(fetch(static_cast<const T*>(t.part[p].data) + c * t.channels.channel_stride, t.channels, begin, n, buffer), n);
  }
}

template <class T>
void whole_channel(const T* channel, const Channels& k, Moments& moments) {
  alignas(64) T buffer[kBlock];
  for (int64_t begin = 0; begin < k.size(); begin += kBlock) {
    const int64_t n = k.size() - begin < kBlock ? k.size() - begin : kBlock;
    moments.add(fetch(channel, k, begin, n, buffer), n);
  }
}
template <class T>
void channel_statistics(const T* channel, const Channels& k, double& mean, double& variance) {
  Moments moments;
  whole_channel(channel, k, moments);
  mean = moments.mean;
  variance = moments.variance();
}

// How part `p` enters the sum in channel c, given the mean and variance it is normalised with (unused without a norm).
// `strength` multiplies all of it.
inline Affine affine_of(const Part& p, int64_t c, double mean, double variance, double strength) {
  if (p.norm == kNoNorm) return {0.0f, static_cast<float>(strength), 0.0, 1.0};
  const double invstd = 1.0 / __builtin_sqrt(variance + p.eps);
  const double weight = p.weight ? p.weight[c] : 1.0, bias = p.bias ? p.bias[c] : 0.0;
  const float center = static_cast<float>(mean);
  const double scale = strength * weight * invstd;
  // What rounding the mean to a float leaves over goes into the shift.
  return {center, static_cast<float>(scale), strength * bias + (center - mean) * scale, invstd};
}

// ---- the sum and its activation
template <class T>
struct Block {
  const T* x[kParts];
  Vec center[kParts], scale[kParts];
  Vec shift, beta;
};

template <bool GHOST, bool SHORTCUT, class T>
TOST_INLINE Vec pre_activation(const Block<T>& b, const Vec* x) {
  Vec z = fma(x[0] - b.center[0], b.scale[0], b.shift);
  if constexpr (GHOST) z = fma(x[1] - b.center[1], b.scale[1], z);
  if constexpr (SHORTCUT) z = fma(x[2] - b.center[2], b.scale[2], z);
  return z;
}

template <bool GHOST, bool SHORTCUT, class T>
TOST_INLINE void load_parts(const Block<T>& b, int64_t i, int64_t n, Vec* x) {
  x[0] = load_partial(b.x[0] + i, n);
  if constexpr (GHOST) x[1] = load_partial(b.x[1] + i, n);
  if constexpr (SHORTCUT) x[2] = load_partial(b.x[2] + i, n);
}

template <int ACT>
TOST_INLINE Vec activate(Vec z, Vec beta) {
  if constexpr (ACT == kRelu) return z < 0.0f ? zero() : z;  // NaN stays NaN, as in torch
  if constexpr (ACT == kPSwish) return z * sigmoid(beta * z);
  return z;
}

template <bool GHOST, bool SHORTCUT, int ACT, class T>
void forward_block(const Block<T>& b, T* out, int64_t n, bool streaming) {
  Vec x[kParts];
  int64_t i = 0;
  for (; i + kLanes <= n; i += kLanes) {
    load_parts<GHOST, SHORTCUT>(b, i, kLanes, x);
    put(out + i, activate<ACT>(pre_activation<GHOST, SHORTCUT>(b, x), b.beta), streaming);
  }
  if (i < n) {
    load_parts<GHOST, SHORTCUT>(b, i, n - i, x);
    store_partial(out + i, activate<ACT>(pre_activation<GHOST, SHORTCUT>(b, x), b.beta), n - i);
  }
}

// Sums over a block: of dz, of dz * (x - center) for each part, and of dbeta.
struct Sums {
  Vec dz, product[kParts], dbeta;
};

template <bool GHOST, bool SHORTCUT, int ACT, class T>
TOST_INLINE Vec backward_step(const Block<T>& b, Sums& s, const T* dy, int64_t i, int64_t n) {
  Vec x[kParts];
  load_parts<GHOST, SHORTCUT>(b, i, n, x);
  Vec dz = load_partial(dy + i, n);
  if constexpr (ACT != kNone) {
    const Vec z = pre_activation<GHOST, SHORTCUT>(b, x);
    if constexpr (ACT == kRelu) dz = z <= 0.0f ? zero() : dz;
    if constexpr (ACT == kPSwish) {
      const Vec g = sigmoid(b.beta * z), slope = g * (1.0f - g);
      s.dbeta = fma(dz * z, z * slope, s.dbeta);
      dz = dz * fma(z, b.beta * slope, g);  // (beta * z) * slope would be inf * 0 where beta * z overflows
    }
  }
  s.dz += dz;
  s.product[0] = fma(dz, x[0] - b.center[0], s.product[0]);
  if constexpr (GHOST) s.product[1] = fma(dz, x[1] - b.center[1], s.product[1]);
  if constexpr (SHORTCUT) s.product[2] = fma(dz, x[2] - b.center[2], s.product[2]);
  return dz;
}

// Adds a block to the sums and, unless dz is nullptr, writes dz, the gradient before the activation. The lanes past the end have
// dy = 0 and add nothing.
template <bool GHOST, bool SHORTCUT, int ACT, class T>
void backward_block(const Block<T>& b, Sums& sums, const T* dy, float* dz, int64_t n) {
  Sums odd = {}, even = {};  // two chains of additions
  int64_t i = 0;
  for (; i + 2 * kLanes <= n; i += 2 * kLanes) {
    const Vec first = backward_step<GHOST, SHORTCUT, ACT>(b, even, dy, i, kLanes);
    const Vec second = backward_step<GHOST, SHORTCUT, ACT>(b, odd, dy, i + kLanes, kLanes);
    if (dz == nullptr) continue;
    store(dz + i, first);
    store(dz + i + kLanes, second);
  }
  for (; i < n; i += kLanes) {
    const int64_t lanes = n - i < kLanes ? n - i : kLanes;
    const Vec last = backward_step<GHOST, SHORTCUT, ACT>(b, even, dy, i, lanes);
    if (dz != nullptr) store_partial(dz + i, last, lanes);
  }
  sums.dz = even.dz + odd.dz;
  for (int p = 0; p < kParts; ++p) sums.product[p] = even.product[p] + odd.product[p];
  sums.dbeta = even.dbeta + odd.dbeta;
}

// dz alone.
template <bool GHOST, bool SHORTCUT, int ACT, class T>
void dz_block(const Block<T>& b, const T* dy, float* dz, int64_t n) {
  Sums unused = {};
  int64_t i = 0;
  for (; i + kLanes <= n; i += kLanes) store(dz + i, backward_step<GHOST, SHORTCUT, ACT>(b, unused, dy, i, kLanes));
  if (i < n) store_partial(dz + i, backward_step<GHOST, SHORTCUT, ACT>(b, unused, dy, i, n - i), n - i);
}

template <class T>
using ForwardBlock = void (*)(const Block<T>&, T*, int64_t, bool);
template <class T>
struct BackwardBlock {
  void (*sums)(const Block<T>&, Sums&, const T*, float*, int64_t);
  void (*dz)(const Block<T>&, const T*, float*, int64_t);
};

template <class T, bool GHOST, bool SHORTCUT>
ForwardBlock<T> forward_with(int act) {
  if (act == kNone) return &forward_block<GHOST, SHORTCUT, kNone, T>;
  return act == kRelu ? &forward_block<GHOST, SHORTCUT, kRelu, T> : &forward_block<GHOST, SHORTCUT, kPSwish, T>;
}
template <class T, bool GHOST, bool SHORTCUT>
BackwardBlock<T> backward_with(int act) {
  if (act == kNone) return {&backward_block<GHOST, SHORTCUT, kNone, T>, &dz_block<GHOST, SHORTCUT, kNone, T>};
  if (act == kRelu) return {&backward_block<GHOST, SHORTCUT, kRelu, T>, &dz_block<GHOST, SHORTCUT, kRelu, T>};
  return {&backward_block<GHOST, SHORTCUT, kPSwish, T>, &dz_block<GHOST, SHORTCUT, kPSwish, T>};
}

template <class T>
void set_coefficients(Block<T>& b, const Affine* affine, const bool* live, float beta) {
  double shift = 0;
  for (int p = 0; p < kParts; ++p) {
    if (!live[p]) continue;
    b.center[p] = broadcast(affine[p].center);
    b.scale[p] = broadcast(affine[p].scale);
    shift += affine[p].shift;
  }
  b.shift = broadcast(static_cast<float>(shift));
  b.beta = broadcast(beta);
}

// ---- forward
constexpr int64_t kStaysInCache = int64_t{512} << 10;

template <class T>
void forward_channels(const Tail& t, T* out, float* stats, int64_t first, int64_t last) {
  const Channels& k = t.channels;
  const bool ghost = t.live(1), shortcut = t.live(2);
  const bool live[kParts] = {true, ghost, shortcut};
  const ForwardBlock<T> block = ghost ? (shortcut ? forward_with<T, true, true>(t.act) : forward_with<T, true, false>(t.act))
                                   : (shortcut ? forward_with<T, false, true>(t.act) : forward_with<T, false, false>(t.act));
  alignas(64) T buffer[kParts + 1][kBlock];
  Moments now[kParts], next[kParts];
  int64_t batch_parts = 0;
  for (int p = 0; p < kParts; ++p) batch_parts += live[p] && t.part[p].norm == kBatchStats;
  // Whether the next channel's statistics are taken block by block while this one is computed. It pays where there is much to
  // compute and the parts of a channel do not stay in the second cache anyway; elsewhere it drives them out.
  const int64_t bytes = k.size() * static_cast<int64_t>((1 + ghost + shortcut) * sizeof(T));
  const bool ahead = t.act == kPSwish && batch_parts > 1 && bytes > kStaysInCache;
  for (int64_t c = first; c < last; ++c) {
    if (c == first || !ahead) {
      for (int p = 0; p < kParts; ++p) {
        now[p] = Moments();
        if (live[p] && t.part[p].norm == kBatchStats) whole_channel(channel_of<T>(t.part[p].data, k, c), k, now[p]);
      }
    } else {
      for (int p = 0; p < kParts; ++p) now[p] = next[p];
    }
    for (int p = 0; p < kParts; ++p) next[p] = Moments();
    Affine affine[kParts];
    for (int p = 0; p < kParts; ++p) {
      double mean = now[p].mean, variance = now[p].variance();
      stats[(2 * p) * k.count + c] = static_cast<float>(mean);
      stats[(2 * p + 1) * k.count + c] = static_cast<float>(variance);
      if (live[p] && t.part[p].norm == kRunningStats) {
        mean = t.part[p].mean[c];
        variance = t.part[p].var[c];
      }
      if (live[p]) affine[p] = affine_of(t.part[p], c, mean, variance, p == 1 ? t.alpha : 1.0);
    }
    Block<T> b;
    set_coefficients(b, affine, live, t.beta_of(c));
    T* to = channel_of<T>(static_cast<void*>(out), k, c);
    for (int64_t begin = 0; begin < k.size(); begin += kBlock) {
      const int64_t n = k.size() - begin < kBlock ? k.size() - begin : kBlock;
      for (int p = 0; p < kParts; ++p) {
        if (live[p]) b.x[p] = fetch(channel_of<T>(t.part[p].data, k, c), k, begin, n, buffer[p]);
      }
      T* at = place(to, k, begin, n, buffer[kParts]);
      block(b, at, n, t.streaming && at != buffer[kParts] && can_stream(at));
      if (at == buffer[kParts]) scatter(at, to, k, begin, n);
      if (ahead && c + 1 < last) add_block<T>(t, live, c + 1, begin, n, next);
    }
  }
  if (t.streaming) streamed();
}

// ---- backward
// grad = dz * p + (x - center) * q + r.
template <class T>
TOST_INLINE void input_gradient_block(
    const float* dz, const T* x, T* grad, int64_t n, float p, float center, float q, float r, bool streaming) {
  const Vec vp = broadcast(p), vc = broadcast(center), vq = broadcast(q), vr = broadcast(r);
  int64_t i = 0;
  for (; i + kLanes <= n; i += kLanes) put(grad + i, fma(load(dz + i), vp, fma(load(x + i) - vc, vq, vr)), streaming);
  if (i < n) {
    const Vec v = fma(load_partial(dz + i, n - i), vp, fma(load_partial(x + i, n - i) - vc, vq, vr));
    store_partial(grad + i, v, n - i);
  }
}

// Without batch statistics x is not needed, and must not be: an infinite x times 0 is NaN.
template <class T>
TOST_INLINE void scaled_block(const float* dz, T* grad, int64_t n, float p, bool streaming) {
  const Vec vp = broadcast(p);
  int64_t i = 0;
  for (; i + kLanes <= n; i += kLanes) put(grad + i, load(dz + i) * vp, streaming);
  for (; i < n; ++i) assign(grad[i], dz[i] * p);
}

// How the gradient of a part follows from dz in one channel.
struct PartGradient {
  float p, center, q, r;
};

inline PartGradient gradient_of(const Affine& a, double sum_dz, double sum_product, int64_t size) {
  const double count = static_cast<double>(size), scale = a.scale;
  return {a.scale, a.center, static_cast<float>(-scale * a.invstd * a.invstd * sum_product / count),
          static_cast<float>(-scale * sum_dz / count)};
}

// The gradient of one part in one block of channel c, from the block's dz.
template <class T>
TOST_INLINE void part_gradient(
    const float* dz, const Part& part, const PartGradient& g, const Channels& k, int64_t c, int64_t begin, int64_t n, T* grad,
    bool streaming, T (*buffer)[kBlock]) {
  T* to = channel_of<T>(static_cast<void*>(grad), k, c);
  T* at = place(to, k, begin, n, buffer[0]);
  streaming = streaming && at != buffer[0] && can_stream(at);
  if (part.norm == kBatchStats) {
    const T* x = fetch(channel_of<T>(part.data, k, c), k, begin, n, buffer[1]);
    input_gradient_block(dz, x, at, n, g.p, g.center, g.q, g.r, streaming);
  } else {
    scaled_block(dz, at, n, g.p, streaming);
  }
  if (at == buffer[0]) scatter(at, to, k, begin, n);
}

// dalpha of a channel whose ghost is switched off: sum of dz * norm(ghost), what is not finite counting as 0.
template <class T>
double alpha_gradient_when_off(const float* dz, const Part& ghost, const Channels& k, int64_t c) {
  const T* from = channel_of<T>(ghost.data, k, c);
  double mean = 0, variance = 0;
  if (ghost.norm == kBatchStats) channel_statistics(from, k, mean, variance);
  if (ghost.norm == kRunningStats) {
    mean = ghost.mean[c];
    variance = ghost.var[c];
  }
  const Affine a = affine_of(ghost, c, mean, variance, 1.0);
  alignas(64) T buffer[kBlock];
  double total = 0;
  for (int64_t begin = 0; begin < k.size(); begin += kBlock) {
    const int64_t n = k.size() - begin < kBlock ? k.size() - begin : kBlock;
    const T* x = fetch(from, k, begin, n, buffer);
    for (int64_t i = 0; i < n; ++i) {
      const float y = (to_float(x[i]) - a.center) * a.scale + static_cast<float>(a.shift);
      if (__builtin_isfinite(y)) total += static_cast<double>(dz[begin + i]) * y;
    }
  }
  return total;
}

// Pass 1 takes the sums of a channel, pass 2 writes the gradients. In between dz is kept in `scratch`, one channel of floats,
// or, where that is nullptr, worked out again: without a sigmoid this costs less than the room in the second cache.
template <class T>
void backward_channels(
    const Tail& t, const T* grad_output, const float* stats, Gradients<T>& g, float* scratch, int64_t first, int64_t last) {
  const Channels& k = t.channels;
  const bool ghost = t.live(1), shortcut = t.live(2);
  const bool live[kParts] = {true, ghost, shortcut};
  const BackwardBlock<T> block = ghost ? (shortcut ? backward_with<T, true, true>(t.act) : backward_with<T, true, false>(t.act))
                                    : (shortcut ? backward_with<T, false, true>(t.act) : backward_with<T, false, false>(t.act));
  alignas(64) T buffer[kParts + 1][kBlock];
  alignas(64) float again[kBlock];
  for (int64_t c = first; c < last; ++c) {
    Affine affine[kParts];
    for (int p = 0; p < kParts; ++p) {
      if (!live[p]) continue;
      const Part& part = t.part[p];
      const bool batch = part.norm == kBatchStats, running = part.norm == kRunningStats;
      const double mean = batch ? stats[(2 * p) * k.count + c] : running ? part.mean[c] : 0.0;
      const double variance = batch ? stats[(2 * p + 1) * k.count + c] : running ? part.var[c] : 0.0;
      affine[p] = affine_of(part, c, mean, variance, p == 1 ? t.alpha : 1.0);
    }
    Block<T> b;
    set_coefficients(b, affine, live, t.beta_of(c));
    const T* dy_channel = grad_output + c * k.channel_stride;
    double sum_dz = 0, product[kParts] = {0, 0, 0}, dbeta = 0;
    for (int64_t begin = 0; begin < k.size(); begin += kBlock) {
      const int64_t n = k.size() - begin < kBlock ? k.size() - begin : kBlock;
      for (int p = 0; p < kParts; ++p) {
        if (live[p]) b.x[p] = fetch(channel_of<T>(t.part[p].data, k, c), k, begin, n, buffer[p]);
      }
      Sums s = {};
      block.sums(b, s, fetch(dy_channel, k, begin, n, buffer[kParts]), scratch ? scratch + begin : nullptr, n);
      sum_dz += sum(s.dz);
      for (int p = 0; p < kParts; ++p) {
        if (live[p]) product[p] += sum(s.product[p]);
      }
      if (t.act == kPSwish) dbeta += sum(s.dbeta);
    }
    g.beta[c] = dbeta;
    g.alpha[c] = 0;
    if (ghost) {
      const double weight = t.part[1].norm == kNoNorm || !t.part[1].weight ? 1.0 : t.part[1].weight[c];
      const double bias = t.part[1].norm == kNoNorm || !t.part[1].bias ? 0.0 : t.part[1].bias[c];
      g.alpha[c] = weight * affine[1].invstd * product[1] + bias * sum_dz;
    } else if (t.part[1].data != nullptr) {
      g.alpha[c] = alpha_gradient_when_off<T>(scratch, t.part[1], k, c);
    }
    PartGradient gradient[kParts];
    for (int p = 0; p < kParts; ++p) {
      const double strength = p == 1 ? t.alpha : 1.0;
      const bool affected = live[p] && t.part[p].norm != kNoNorm;
      g.affine[(2 * p) * k.count + c] = affected ? static_cast<float>(strength * affine[p].invstd * product[p]) : 0.0f;
      g.affine[(2 * p + 1) * k.count + c] = affected ? static_cast<float>(strength * sum_dz) : 0.0f;
      if (live[p]) gradient[p] = gradient_of(affine[p], sum_dz, product[p], k.size());
    }
    for (int64_t begin = 0; begin < k.size(); begin += kBlock) {
      const int64_t n = k.size() - begin < kBlock ? k.size() - begin : kBlock;
      const float* dz = scratch + begin;
      if (scratch == nullptr) {
        for (int p = 0; p < kParts; ++p) {
          if (live[p]) b.x[p] = fetch(channel_of<T>(t.part[p].data, k, c), k, begin, n, buffer[p]);
        }
        block.dz(b, fetch(dy_channel, k, begin, n, buffer[kParts]), again, n);
        dz = again;
      }
      for (int p = 0; p < kParts; ++p) {
        if (live[p]) part_gradient<T>(dz, t.part[p], gradient[p], k, c, begin, n, g.grad[p], t.streaming, buffer);
      }
    }
  }
  if (t.streaming) streamed();
}

}  // namespace
}  // namespace tost::TOST_ISA
