// The depthwise convolution; compiled once per instruction set by depthwise.cpp (see per_isa.h).
//
// It is bound by memory: a channel is read once, into the second cache at most, and written once. Nothing is padded. The pixels
// of a row whose taps are all inside the source make one run of contiguous numbers (stride 1), for a tap is the same run some
// pixels further on. Pixels at the border are runs of their own with fewer taps.

namespace tost::TOST_ISA {

// Brings the line that lies kAhead bytes further on into the second cache. The planes of neighbouring channels lie one behind
// the other, so this is memory that will be read soon, or at the worst is not ours.
constexpr int64_t kAhead = 16 << 10;
TOST_INLINE void fetch(const void* at) {
  __builtin_prefetch(reinterpret_cast<const void*>(reinterpret_cast<uintptr_t>(at) + kAhead), 0, 2);
}

TOST_INLINE int64_t least(int64_t a, int64_t b) { return a < b ? a : b; }

// One kept tap of a kind of pixels.
struct Tap {
  int64_t offset;  // floats from the first number of a pixel
  float weight;
  int32_t kept;    // which of the kept ones it is
};

template <class T>
static void pack_plane(const Planes<T>& source, int64_t plane, float* to) {
  const bool rows_are_dense = source.stride_w == source.n;
  const int64_t pieces = rows_are_dense ? 1 : source.w, length = rows_are_dense ? source.w * source.n : source.n;
  for (int64_t y = 0; y < source.h; ++y) {
    const T* row = source.data + plane * source.stride_c + y * source.stride_h;
    for (int64_t piece = 0; piece < pieces; ++piece, to += length) {
      const T* from = row + piece * source.stride_w;
      int64_t at = 0;
      for (; at + kLanes <= length; at += kLanes) {
        fetch(from + at);
        store(to + at, load(from + at));
      }
      for (; at < length; ++at) to[at] = to_float(from[at]);
    }
  }
}

// The plane where it lies. Only float planes are not packed.
TOST_INLINE const float* plane_in_place(const Planes<float>& source, int64_t plane) {
  return source.data + plane * source.stride_c;
}
TOST_INLINE const float* plane_in_place(const Planes<bf16>&, int64_t) { return nullptr; }

// ---- forward and input gradient

// V vectors of the result.
template <int V, class T>
TOST_INLINE void sum_taps(const float* source, const Tap* taps, int64_t count, float bias, T* result, bool streaming) {
  Vec sums[V];
#pragma GCC unroll 8
  for (int v = 0; v < V; ++v) {
    sums[v] = broadcast(bias);
    if (count > 0) fetch(source + v * kLanes);
  }
  for (int64_t k = 0; k < count; ++k) {
    const Vec weight = broadcast(taps[k].weight);
    const float* from = source + taps[k].offset;
    asm("" : "+r"(from));  // else each vector gets an address computation of its own
#pragma GCC unroll 8
    for (int v = 0; v < V; ++v) sums[v] = fma(weight, load(from + v * kLanes), sums[v]);
  }
#pragma GCC unroll 8
  for (int v = 0; v < V; ++v) put(result + v * kLanes, sums[v], streaming);
}

// `length` neighbouring numbers of the result.
template <class T>
TOST_INLINE void sum_run(
    const float* source, const Tap* taps, int64_t count, float bias, T* result, int64_t length, bool streaming) {
  streaming = streaming && can_stream(result);
  int64_t at = 0;
  for (; at + 8 * kLanes <= length; at += 8 * kLanes) sum_taps<8>(source + at, taps, count, bias, result + at, streaming);
  if (at + 4 * kLanes <= length) {
    sum_taps<4>(source + at, taps, count, bias, result + at, streaming);
    at += 4 * kLanes;
  }
  for (; at + kLanes <= length; at += kLanes) sum_taps<1>(source + at, taps, count, bias, result + at, streaming);
  if (at == length) return;
  if (length >= kLanes) {  // the last vector once more, further left: the same numbers again
    sum_taps<1>(source + length - kLanes, taps, count, bias, result + length - kLanes, false);
    return;
  }
  Vec sums = broadcast(bias);
  for (int64_t k = 0; k < count; ++k) {
    sums = fma(broadcast(taps[k].weight), load_partial(source + taps[k].offset, length), sums);
  }
  store_partial(result, sums, length);
}

// The kept taps of result channel `channel` that are inside the source, for each kind of pixel: lists of at most fan * taps, in
// room for one more. Returns how many are kept.
template <class T>
static int64_t list_taps(const DepthwiseJob<T>& job, int64_t channel, int64_t plane_pitch, Tap* lists, int64_t* counts) {
  const int64_t kinds = job.row_kinds * job.run_kinds, pitch = job.fan * job.taps + 1;
  for (int64_t kind = 0; kind < kinds; ++kind) counts[kind] = 0;
  for (int64_t m = 0; m < job.fan; ++m) {
    const int64_t output = channel * job.fan + m;
    for (int64_t k = job.ptr[output]; k < job.ptr[output + 1]; ++k) {
      const int64_t* offset = job.offsets + job.tap[k];
      const float weight = to_float(job.values[k * job.values_stride]);
      for (int64_t kind = 0; kind < kinds; ++kind) {  // no branch: it would be mispredicted
        const int64_t at = offset[kind * job.taps];
        lists[kind * pitch + counts[kind]] = {at + m * plane_pitch, weight, 0};
        counts[kind] += at != kOutside;
      }
    }
  }
  return job.ptr[(channel + 1) * job.fan] - job.ptr[channel * job.fan];
}

template <class T>
static void depthwise(const DepthwiseJob<T>& job, int64_t begin, int64_t end) {
  const int64_t kinds = job.row_kinds * job.run_kinds, pitch = job.fan * job.taps + 1;
  const int64_t list_floats = kinds * (pitch * sizeof(Tap) + sizeof(int64_t)) / sizeof(float);
  const int64_t plane_floats = job.source.packed ? job.source.floats() : 0;
  float* planes = thread_scratch(job.fan * plane_floats + kLanes + list_floats);
  Tap* lists = reinterpret_cast<Tap*>(planes + (job.fan * plane_floats + kLanes - 1) / kLanes * kLanes);
  int64_t* counts = reinterpret_cast<int64_t*>(lists + kinds * pitch);
  // Whole lines alone: one that is half streamed and half stored is slower than either.
  const bool streaming = job.streaming && job.source.n % kLanes == 0;
  int64_t packed = -1, kept = 0;
  for (int64_t item = begin; item < end; ++item) {
    const int64_t channel = item / job.row_chunks, chunk = item % job.row_chunks;
    const int64_t plane = channel * job.fan / job.share;
    if (item == begin || chunk == 0) {
      kept = list_taps(job, channel, job.source.packed ? plane_floats : job.source.stride_c, lists, counts);
    }
    if (job.source.packed && kept > 0 && plane != packed) {
      for (int64_t m = 0; m < job.fan; ++m) pack_plane(job.source, plane + m, planes + m * plane_floats);
      packed = plane;
    }
    const float* source = job.source.packed ? planes : plane_in_place(job.source, plane);
    const float bias = job.bias == nullptr ? 0.0f : to_float(job.bias[channel * job.bias_stride]);
    T* result = job.result + channel * job.result_stride_c;
    const int64_t last = job.row_count * (chunk + 1) / job.row_chunks;
    for (int64_t y = job.row_count * chunk / job.row_chunks; y < last; ++y) {
      const DepthwiseRun& row = job.rows[y];
      for (int64_t x = 0; x < job.run_count; ++x) {
        const DepthwiseRun& run = job.runs[x];
        const int64_t kind = row.kind * job.run_kinds + run.kind, count = counts[kind];
        const Tap* taps = lists + kind * pitch;
        const float* from = source + row.source + run.source;
        T* to = result + row.result + run.result;
        for (int64_t pixel = 0; pixel < run.count; ++pixel) {
          sum_run(from, taps, count, bias, to, run.length, streaming);
          from += job.source_step;
          to += job.result_step;
        }
      }
    }
  }
  if (streaming) streamed();
}

// ---- values gradient

constexpr int kMostTaps = 9;  // summed together; with a vector of the gradient they fit 16 registers

// Pixels of the gradient that have the same taps inside.
template <class T>
struct Area {
  const T* grad;
  const float* source;
  int64_t rows, grad_row, source_row;
  int64_t pixels, grad_step, source_step;
  int64_t length;
};

// sums[taps[k].kept] += the sum over the area, in U chains of additions for each of K taps.
template <int K, int U, class T>
static __attribute__((noinline)) void dot_taps(const Area<T>& area, const Tap* taps, Vec* sums) {
  Vec dots[K][U];
#pragma GCC unroll 16
  for (int k = 0; k < K; ++k) {
#pragma GCC unroll 8
    for (int u = 0; u < U; ++u) dots[k][u] = zero();
  }
  for (int64_t y = 0; y < area.rows; ++y) {
    const T* grad = area.grad + y * area.grad_row;
    const float* source = area.source + y * area.source_row;
    for (int64_t pixel = 0; pixel < area.pixels; ++pixel, grad += area.grad_step, source += area.source_step) {
      const float* from[K];
#pragma GCC unroll 16
      for (int k = 0; k < K; ++k) from[k] = source + taps[k].offset;
      int64_t at = 0;
      for (; at + U * kLanes <= area.length; at += U * kLanes) {
#pragma GCC unroll 8
        for (int u = 0; u < U; ++u) {
          fetch(grad + at + u * kLanes);
          fetch(source + at + u * kLanes);
          const Vec g = load(grad + at + u * kLanes);
#pragma GCC unroll 16
          for (int k = 0; k < K; ++k) dots[k][u] = fma(g, load(from[k] + at + u * kLanes), dots[k][u]);
        }
      }
      for (; at < area.length; at += kLanes) {
        const int64_t lanes = least(kLanes, area.length - at);
        const Vec g = load_partial(grad + at, lanes);
#pragma GCC unroll 16
        for (int k = 0; k < K; ++k) dots[k][0] = fma(g, load_partial(from[k] + at, lanes), dots[k][0]);
      }
    }
  }
#pragma GCC unroll 16
  for (int k = 0; k < K; ++k) {
    Vec dot = dots[k][0];
#pragma GCC unroll 8
    for (int u = 1; u < U; ++u) dot += dots[k][u];
    sums[taps[k].kept] += dot;
  }
}

template <class T>
static void dot_area(const Area<T>& area, const Tap* taps, int64_t count, Vec* sums) {
  switch (count) {
    case 1: return dot_taps<1, 4>(area, taps, sums);
    case 2: return dot_taps<2, 4>(area, taps, sums);
    case 3: return dot_taps<3, 2>(area, taps, sums);
    case 4: return dot_taps<4, 2>(area, taps, sums);
    case 5: return dot_taps<5, 1>(area, taps, sums);
    case 6: return dot_taps<6, 1>(area, taps, sums);
    case 7: return dot_taps<7, 1>(area, taps, sums);
    case 8: return dot_taps<8, 1>(area, taps, sums);
    default: return dot_taps<9, 1>(area, taps, sums);
  }
}

template <class T>
static void depthwise_values(const DepthwiseValuesJob<T>& job, int64_t begin, int64_t end) {
  // `sums` and `packed_source` are aligned to vectors.
  const int64_t sum_floats = job.taps * kLanes, list_floats = ((job.taps + 1) * sizeof(Tap) / sizeof(float) + kLanes) / kLanes * kLanes;
  float* scratch = thread_scratch(sum_floats + list_floats + (job.source.packed ? job.source.floats() : 0));
  Vec* sums = reinterpret_cast<Vec*>(scratch);
  Tap* list = reinterpret_cast<Tap*>(scratch + sum_floats);
  float* packed_source = scratch + sum_floats + list_floats;
  int64_t packed = -1;
  for (int64_t output = begin; output < end; ++output) {
    const int64_t first = job.ptr[output], kept = job.ptr[output + 1] - first, plane = output / job.share;
    if (kept == 0) continue;
    if (job.source.packed && plane != packed) {
      pack_plane(job.source, plane, packed_source);
      packed = plane;
    }
    const float* source = job.source.packed ? packed_source : plane_in_place(job.source, plane);
    const T* grad = job.grad + output * job.grad_stride_c;
    for (int64_t k = 0; k < kept; ++k) sums[k] = zero();
    for (int64_t y = 0; y < job.row_count; ++y) {
      const DepthwiseRun& row = job.rows[y];
      for (int64_t x = 0; x < job.run_count; ++x) {
        const DepthwiseRun& run = job.runs[x];
        const int64_t* offsets = job.offsets + (row.kind * job.run_kinds + run.kind) * job.taps;
        int64_t count = 0;
        for (int64_t k = 0; k < kept; ++k) {
          list[count] = {offsets[job.tap[first + k]], 0.0f, static_cast<int32_t>(k)};
          count += list[count].offset != kOutside;
        }
        const Area<T> area{
            grad + row.result + run.result, source + row.source + run.source, row.count, job.grad_row_step,
            job.source_row_step, run.count, job.grad_step, job.source_step, run.length};
        for (int64_t k = 0; k < count; k += kMostTaps) dot_area(area, list + k, least(kMostTaps, count - k), sums);
      }
    }
    for (int64_t k = 0; k < kept; ++k) assign(job.grad_values[first + k], sum(sums[k]));
  }
}

}  // namespace tost::TOST_ISA
