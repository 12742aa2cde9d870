// Pooling, row by row of the result: lanes run along the batch, so every load is consecutive. Compiled once per instruction
// set: see per_isa.h. The structures are in pool2d.cpp.

namespace tost::TOST_ISA {
namespace {  // names as short as these must stay in their file

typedef uint8_t BVec __attribute__((vector_size(TOST_LANES)));
typedef uint8_t BVecInMemory __attribute__((vector_size(TOST_LANES), aligned(1), may_alias));

TOST_INLINE IVec load_bytes(const uint8_t* p, int64_t n) {
  BVec bytes = {};
  if (n == kLanes) {
    bytes = *reinterpret_cast<const BVecInMemory*>(p);
  } else {
    for (int64_t lane = 0; lane < n; ++lane) bytes[lane] = p[lane];
  }
  // In two steps: from bytes to 32 bits at once, GCC 12 goes lane by lane.
  return __builtin_convertvector(__builtin_convertvector(bytes, HVec), IVec);
}
TOST_INLINE void store_bytes(uint8_t* p, IVec x, int64_t n) {
  const BVec bytes = __builtin_convertvector(x, BVec);
  if (n == kLanes) {
    *reinterpret_cast<BVecInMemory*>(p) = bytes;
  } else {
    for (int64_t lane = 0; lane < n; ++lane) p[lane] = bytes[lane];
  }
}

// Results on the way, of a strip of one row: each source row is read from end to end before the next one. Reading the rows of a
// window together instead costs a third of the speed of memory.
constexpr int kStrip = 64;  // vectors
struct Strip {
  alignas(64) float value[kStrip * kLanes];
  alignas(64) int32_t choice[kStrip * kLanes];
};

// One row of the source and one pixel of the result, whose images `to` begins at.
struct Step {
  const Meet *h, *w, *w_end;
  int64_t from, to;  // where the row and the pixel begin
  bool first, last;  // of the rows that the pixel meets
  bool streaming;
  float share;  // what the sum is multiplied by in the end
};

TOST_INLINE Vec held(const float* strip, bool first, float begin) { return first ? broadcast(begin) : load(strip); }
template <class T>
TOST_INLINE void hold(float* strip, T* to, Vec x, int64_t n, const Step& s) {
  if (!s.last) {
    store(strip, x);
  } else if (n == kLanes) {
    put(to, x * broadcast(s.share), s.streaming);
  } else {
    store_partial(to, x * broadcast(s.share), n);
  }
}

// Each `block` adds a source row to COUNT vectors of one pixel, from image `lane` on, of which the last (only) one has `n` lanes;
// what it holds until the last row lies at `at` in the strip.

// The first of equal maxima is chosen; of NaNs, which pass for maxima, the last: torch's rule.
struct Max {
  static constexpr bool kShares = false;
  template <int COUNT, class T>
  TOST_INLINE void block(const PoolJob<T>& j, const Step& s, Strip& strip, int64_t at, int64_t lane, int64_t n) {
    Vec best[COUNT];
    IVec choice[COUNT];
    const int64_t tap_of_row = s.h->tap * j.kernel_width;
    for (int v = 0; v < COUNT; ++v) {
      best[v] = held(strip.value + at + v * kLanes, s.first, -__builtin_inff());
      choice[v] = s.first ? IVec{} + static_cast<int32_t>(tap_of_row + s.w->tap)
                          : *reinterpret_cast<const IVec*>(strip.choice + at + v * kLanes);
    }
    for (const Meet* w = s.w; w < s.w_end; ++w) {
      const T* from = j.from + s.from + w->at * j.batch + lane;
      const IVec tap = IVec{} + static_cast<int32_t>(tap_of_row + w->tap);
      for (int v = 0; v < COUNT; ++v) {
        const Vec x = load_partial(from + v * kLanes, n);
        const IVec better = (x > best[v]) | (x != x);
        best[v] = better ? x : best[v];
        choice[v] = better ? tap : choice[v];
      }
    }
    for (int v = 0; v < COUNT; ++v) {
      const int64_t to = s.to + lane + v * kLanes;
      hold(strip.value + at + v * kLanes, j.to + to, best[v], n, s);
      if (s.last) {
        store_bytes(j.choice + to, choice[v], n);
      } else {
        *reinterpret_cast<IVec*>(strip.choice + at + v * kLanes) = choice[v];
      }
    }
  }
};

struct MaxBackward {
  static constexpr bool kShares = false;
  template <int COUNT, class T>
  TOST_INLINE void block(const PoolJob<T>& j, const Step& s, Strip& strip, int64_t at, int64_t lane, int64_t n) {
    Vec sum[COUNT];
    for (int v = 0; v < COUNT; ++v) sum[v] = held(strip.value + at + v * kLanes, s.first, 0.0f);
    for (const Meet* w = s.w; w < s.w_end; ++w) {
      const int64_t from = s.from + w->at * j.batch + lane;
      const IVec tap = IVec{} + static_cast<int32_t>(s.h->tap * j.kernel_width + w->tap);
      for (int v = 0; v < COUNT; ++v) {
        const IVec mine = load_bytes(j.chosen + from + v * kLanes, n) == tap;
        sum[v] += mine ? load_partial(j.from + from + v * kLanes, n) : zero();
      }
    }
    for (int v = 0; v < COUNT; ++v) {
      hold(strip.value + at + v * kLanes, j.to + s.to + lane + v * kLanes, sum[v], n, s);
    }
  }
};

template <bool BACKWARD>
struct Average {
  static constexpr bool kShares = !BACKWARD;
  template <int COUNT, class T>
  TOST_INLINE void block(const PoolJob<T>& j, const Step& s, Strip& strip, int64_t at, int64_t lane, int64_t n) {
    Vec sum[COUNT];
    for (int v = 0; v < COUNT; ++v) sum[v] = held(strip.value + at + v * kLanes, s.first, 0.0f);
    for (const Meet* w = s.w; w < s.w_end; ++w) {
      const T* from = j.from + s.from + w->at * j.batch + lane;
      const Vec share = broadcast(BACKWARD ? j.scale_h[s.h->at] * j.scale_w[w->at] : 1.0f);
      for (int v = 0; v < COUNT; ++v) {
        const Vec x = load_partial(from + v * kLanes, n);
        sum[v] = BACKWARD ? fma(x, share, sum[v]) : sum[v] + x;
      }
    }
    for (int v = 0; v < COUNT; ++v) {
      hold(strip.value + at + v * kLanes, j.to + s.to + lane + v * kLanes, sum[v], n, s);
    }
  }
};

// Columns [begin, end) of one row of the result, vectors [first, last) of their batch, the source row of `s`.
template <class Pool, class T>
TOST_INLINE void pool_strip(
    const PoolJob<T>& j, Step& s, Strip& strip, int64_t row, int64_t begin, int64_t end, int64_t first, int64_t last) {
  constexpr int kWide = 4;
  int64_t at = 0;
  for (int64_t column = begin; column < end; ++column, s.to += j.batch) {
    s.w = j.w.meets + j.w.first[column];
    s.w_end = j.w.meets + j.w.first[column + 1];
    s.share = Pool::kShares ? j.scale_h[row] * j.scale_w[column] : 1.0f;
    for (int64_t v = first; v < last;) {
      const int64_t lane = v * kLanes, step = v + kWide <= last && lane + kWide * kLanes <= j.batch ? kWide : 1;
      if (step == kWide) {
        Pool::template block<kWide>(j, s, strip, at, lane, kLanes);
      } else if (j.batch >= kLanes) {  // a batch that is no whole number of vectors ends in one that overlaps the one before
        Pool::template block<1>(j, s, strip, at, lane + kLanes <= j.batch ? lane : j.batch - kLanes, kLanes);
      } else {
        Pool::template block<1>(j, s, strip, at, 0, j.batch);
      }
      v += step;
      at += step * kLanes;
    }
  }
}

// Rows [begin, end) of the result, counted through all channels.
template <class Pool, class T>
TOST_INLINE void pool_rows(const PoolJob<T>& j, int64_t begin, int64_t end) {
  Strip strip;
  Step s = {};
  s.streaming = j.streaming && j.batch % kLanes == 0 && can_stream(j.to);
  const int64_t vectors = (j.batch + kLanes - 1) / kLanes;
  for (int64_t r = begin; r < end; ++r) {
    const int64_t channel = r / j.h.to, row = r % j.h.to;
    const Meet *h = j.h.meets + j.h.first[row], *h_end = j.h.meets + j.h.first[row + 1];
    if (h == h_end) {  // between windows, backward
      const int64_t pixels = j.w.to * j.batch;
      for (int64_t i = 0; i < pixels; ++i) assign(j.to[r * pixels + i], 0.0f);
      continue;
    }
    for (int64_t first = 0; first < vectors; first += kStrip) {
      const int64_t last = vectors < first + kStrip ? vectors : first + kStrip;
      const int64_t columns = kStrip / (last - first);
      for (int64_t column = 0; column < j.w.to; column += columns) {
        const int64_t column_end = j.w.to < column + columns ? j.w.to : column + columns;
        for (s.h = h; s.h < h_end; ++s.h) {
          s.first = s.h == h;
          s.last = s.h + 1 == h_end;
          s.from = (channel * j.h.from + s.h->at) * j.w.from * j.batch;
          s.to = (r * j.w.to + column) * j.batch;
          pool_strip<Pool>(j, s, strip, row, column, column_end, first, last);
        }
      }
    }
  }
  if (s.streaming) streamed();
}

template <class T>
void max_pool_rows(const PoolJob<T>& j, int64_t begin, int64_t end) { pool_rows<Max>(j, begin, end); }
template <class T>
void max_pool_backward_rows(const PoolJob<T>& j, int64_t begin, int64_t end) { pool_rows<MaxBackward>(j, begin, end); }
template <class T>
void avg_pool_rows(const PoolJob<T>& j, int64_t begin, int64_t end) { pool_rows<Average<false>>(j, begin, end); }
template <class T>
void avg_pool_backward_rows(const PoolJob<T>& j, int64_t begin, int64_t end) { pool_rows<Average<true>>(j, begin, end); }

}  // namespace
}  // namespace tost::TOST_ISA
