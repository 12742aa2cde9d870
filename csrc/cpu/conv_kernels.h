// The convolution kernels; compiled once per instruction set by conv_engine.cpp (see per_isa.h).
//
// SIMD lanes are batch items. A task packs a block of source channels of its tile into scratch, [channel][plane][row]
// [column][batch vector][lane], then goes through the rows (result channels): R x V accumulators in registers, and for
// each kept weight one broadcast and R x V fused multiply-adds whose memory operands lie at fixed distances, since
// neighbouring result pixels are neighbours in the packed tile. What differs where the CPU multiplies bfloat16: conv_packed.h.

#include "conv_packed.h"

namespace tost::TOST_ISA {

// Where a task is.
struct Place {
  const Phase* phase;
  int64_t y0, x0;           // first result pixel, in steps of the phase's lattice
  int64_t n0, batch;        // first batch item, and how many of the tile's exist
  int64_t row_begin, row_end;  // of groups * rows
};

static Place place_of(const ConvJob& job, int64_t task, int64_t batch_size) {
  const int64_t chunk = task % job.row_chunks;
  task /= job.row_chunks;
  const Phase* phase = job.phases + task % job.phase_count;
  task /= job.phase_count;
  const int64_t n = task % job.batch_blocks;
  task /= job.batch_blocks;
  const int64_t width = job.tile.batches * kLanes;
  const int64_t rows = job.groups * job.rows;
  Place at;
  at.phase = phase;
  at.x0 = task % job.x_tiles * job.tile.columns;
  at.y0 = task / job.x_tiles * job.tile.rows;
  at.n0 = n * width;
  at.batch = batch_size - at.n0 < width ? batch_size - at.n0 : width;
  at.row_begin = rows * chunk / job.row_chunks;
  at.row_end = rows * (chunk + 1) / job.row_chunks;
  return at;
}

TOST_INLINE int64_t clamp(int64_t x, int64_t low, int64_t high) { return x < low ? low : x > high ? high : x; }

// Batch items present in batch vector v.
TOST_INLINE int64_t lanes_of(int64_t batch, int64_t v) { return clamp(batch - v * kLanes, 0, kLanes); }

// Fetches what lies `ahead` elements from p into the second cache. As a number: the address may lie outside the tensor.
template <class T>
TOST_INLINE void fetch_ahead(const T* p, int64_t ahead) {
  const uintptr_t address = reinterpret_cast<uintptr_t>(p) + static_cast<uintptr_t>(ahead) * sizeof(T);
  __builtin_prefetch(reinterpret_cast<const void*>(address), 0, 2);
}

// `pixels` source pixels, `step` elements apart, into consecutive groups of `vectors` vectors; missing batch items are 0.
// The same pixels `ahead` elements further are fetched.
template <class T>
TOST_INLINE void pack_pixels(
    const T* from, int64_t step, int64_t pixels, int64_t vectors, int64_t batch, Packed* to, int64_t ahead) {
  if (batch == kJoined * kLanes && vectors == kJoined) {
    for (int64_t p = 0; p < pixels; ++p) {
      fetch_ahead(from + p * step, ahead);
      pack_joined(to + p * kJoined * kLanes, from + p * step);
    }
  } else if (batch == vectors * kLanes) {
    for (int64_t p = 0; p < pixels; ++p) {
      for (int64_t v = 0; v < vectors; ++v) {
        fetch_ahead(from + p * step + v * kLanes, ahead);
        pack_vector(to + (p * vectors + v) * kLanes, from + p * step + v * kLanes);
      }
    }
  } else {
    for (int64_t p = 0; p < pixels; ++p) {
      for (int64_t v = 0; v < vectors; ++v) {
        pack_partial(to + (p * vectors + v) * kLanes, from + p * step + v * kLanes, lanes_of(batch, v));
      }
    }
  }
}

TOST_INLINE void fill_zero(Packed* to, int64_t vectors) {
  for (int64_t v = 0; v < vectors; ++v) pack_zero(to + v * kLanes);
}

// The source lines of the next tile, fetched into the second cache a few at a time while this one is worked on: they lie
// N * 4 bytes apart, which no hardware prefetcher follows. Channels lie a power of two apart in most networks, so they
// share sets of that cache: of many channels ahead, the first ones would be gone again.
constexpr int64_t kChannelsAhead = 4;

struct Ahead {
  const char* next = nullptr;  // of the channel being fetched: its next row
  int64_t channel_step = 0, row_step = 0, pixel_step = 0;  // bytes
  int64_t rows = 0, pixels = 0, lines = 0;                 // of a channel; of a row; of a pixel
  int64_t row = 0;                                         // within the channel
  int64_t left = 0;                                        // rows of all channels
};

// First source pixel on an axis, how many and how far apart; not more than the source has.
struct Reach {
  int64_t first, count, step;
};

static Reach reach_of(const AxisView& axis, int64_t origin) {
  int64_t low = axis.start[0], high = axis.start[0];
  for (int64_t p = 1; p < axis.planes; ++p) {
    low = axis.start[p] < low ? axis.start[p] : low;
    high = axis.start[p] > high ? axis.start[p] : high;
  }
  // One plane takes every src_step-th pixel; several ones, as a rule, all of them.
  const int64_t step = axis.planes == 1 ? axis.src_step : 1;
  int64_t first = axis.src_step * origin + low;
  int64_t end = axis.src_step * (origin + axis.extent - 1) + high + 1;
  if (first < 0) first += (-first + step - 1) / step * step;
  end = end < axis.src_size ? end : axis.src_size;
  return {first, first < end ? (end - first + step - 1) / step : 0, step};
}

template <class T>
static Ahead look_ahead(const View<const T>& source, const Tile& tile, const Place& at, int64_t channel, int64_t channels) {
  Ahead ahead;
  if (channels <= 0 || at.phase->y.planes == 0 || at.phase->x.planes == 0) return ahead;
  const Reach y = reach_of(at.phase->y, at.y0), x = reach_of(at.phase->x, at.x0);
  if (y.count == 0 || x.count == 0) return ahead;
  const int64_t size = sizeof(T);
  ahead.next = reinterpret_cast<const char*>(
      source.data + at.n0 + channel * source.stride_c + y.first * source.stride_h + x.first * source.stride_w);
  ahead.row_step = y.step * source.stride_h * size;
  ahead.channel_step = source.stride_c * size - y.count * ahead.row_step;
  ahead.pixel_step = x.step * source.stride_w * size;
  ahead.rows = y.count;
  ahead.pixels = x.count;
  ahead.lines = (tile.batches * kLanes * size + 63) / 64;
  ahead.left = channels * y.count;
  return ahead;
}

// The same for the tile of `channels` result channels, which a values gradient reads.
constexpr int64_t kRowsAhead = 6;
template <class T>
static Ahead look_ahead_result(const View<const T>& grad, const Tile& tile, const Place& at, int64_t channel, int64_t channels) {
  Ahead ahead;
  if (channels <= 0) return ahead;
  const int64_t size = sizeof(T);
  ahead.rows = clamp(at.phase->y.count - at.y0, 0, tile.rows);
  ahead.pixels = clamp(at.phase->x.count - at.x0, 0, tile.columns);
  ahead.lines = (tile.batches * kLanes * size + 63) / 64;
  ahead.next = reinterpret_cast<const char*>(
      grad.data + at.n0 + channel * grad.stride_c + at.y0 * grad.stride_h + at.x0 * grad.stride_w);
  ahead.row_step = grad.stride_h * size;
  ahead.channel_step = grad.stride_c * size - ahead.rows * ahead.row_step;
  ahead.pixel_step = grad.stride_w * size;
  ahead.left = channels * ahead.rows;
  return ahead;
}

TOST_INLINE void fetch(Ahead& ahead, int64_t rows) {
  for (; rows > 0 && ahead.left > 0; --rows, --ahead.left) {
    for (int64_t p = 0; p < ahead.pixels; ++p) {
      for (int64_t l = 0; l < ahead.lines; ++l) __builtin_prefetch(ahead.next + p * ahead.pixel_step + l * 64, 0, 2);
    }
    ahead.next += ahead.row_step;
    if (++ahead.row == ahead.rows) {
      ahead.row = 0;
      ahead.next += ahead.channel_step;
    }
  }
}

// Source channels [channel, channel + channels) of the tile at `at`; pixels outside the source are 0.
template <class T>
static __attribute__((noinline)) void pack(
    const View<const T>& source, const Tile& tile, const Place& at, int64_t channel, int64_t channels, Packed* to) {
  const AxisView& y = at.phase->y;
  const AxisView& x = at.phase->x;
  const int64_t width = tile.batches * kLanes;  // numbers of a pixel
  const T* batch = source.data + at.n0;
  for (int64_t px = 0; px < x.planes; ++px) {
    // Elements [low, high) of this plane's rows are inside the source.
    const int64_t first = x.src_step * at.x0 + x.start[px];
    const int64_t low = first >= 0 ? 0 : clamp((-first + x.src_step - 1) / x.src_step, 0, x.extent);
    const int64_t inside = x.src_size - first;
    const int64_t high = inside <= 0 ? low : clamp((inside + x.src_step - 1) / x.src_step, low, x.extent);
    const int64_t step = x.src_step * source.stride_w;
    for (int64_t c = 0; c < channels; ++c) {
      const int64_t ahead = c + kChannelsAhead < channels ? kChannelsAhead * source.stride_c : 0;
      for (int64_t py = 0; py < y.planes; ++py) {
        Packed* row = to + c * at.phase->channel_pitch + (py * x.planes + px) * y.extent * at.phase->row_pitch;
        for (int64_t e = 0; e < y.extent; ++e, row += at.phase->row_pitch) {
          const int64_t sy = y.src_step * (at.y0 + e) + y.start[py];
          if (sy < 0 || sy >= y.src_size || low == high) {
            fill_zero(row, x.extent * tile.batches);
            continue;
          }
          fill_zero(row, low * tile.batches);
          pack_pixels(
              batch + (channel + c) * source.stride_c + sy * source.stride_h + (first + low * x.src_step) * source.stride_w,
              step, high - low, tile.batches, at.batch, row + low * width, ahead);
          fill_zero(row + high * width, (x.extent - high) * tile.batches);
        }
      }
    }
  }
}

// The tile's pixels of one result channel that exist, from [row][column][batch vector][lane].
template <class T>
static __attribute__((noinline)) void write_tile(
    const View<T>& result, const Tile& tile, const Place& at, int64_t channel, const float* from) {
  const AxisView& y = at.phase->y;
  const AxisView& x = at.phase->x;
  T* to = result.data + at.n0 + channel * result.stride_c;
  for (int64_t r = 0; r < tile.rows && at.y0 + r < y.count; ++r) {
    for (int64_t c = 0; c < tile.columns && at.x0 + c < x.count; ++c) {
      T* pixel = to + (y.out_step * (at.y0 + r) + y.out_phase) * result.stride_h +
                 (x.out_step * (at.x0 + c) + x.out_phase) * result.stride_w;
      for (int64_t v = 0; v < tile.batches; ++v) {
        const Vec value = load(from + ((r * tile.columns + c) * tile.batches + v) * kLanes);
        const int64_t lanes = lanes_of(at.batch, v);
        if (lanes <= 0) break;
        store_partial(pixel + v * kLanes, value, lanes);
      }
    }
  }
}

// The reverse of write_tile: pixels and batch items that do not exist read as 0.
template <class T>
static __attribute__((noinline)) void read_tile(
    const View<const T>& source, const Tile& tile, const Place& at, int64_t channel, Packed* to) {
  const AxisView& y = at.phase->y;
  const AxisView& x = at.phase->x;
  const T* from = source.data + at.n0 + channel * source.stride_c;
  const int64_t width = tile.batches * kLanes;
  const int64_t columns = clamp(x.count - at.x0, 0, tile.columns);
  for (int64_t r = 0; r < tile.rows; ++r, to += tile.columns * width) {
    const int64_t present = at.y0 + r < y.count ? columns : 0;
    if (present > 0) {
      pack_pixels(
          from + (at.y0 + r) * source.stride_h + at.x0 * source.stride_w, source.stride_w, present, tile.batches,
          at.batch, to, 0);
    }
    fill_zero(to + present * width, (tile.columns - present) * tile.batches);
  }
}

// How R x C x B accumulators (pixel rows, columns, batch vectors) meet the source of a kept weight. YC, XC: classes of taps
// on each axis. One class: every accumulator takes the vector as far from `offset` as it is from the first one. Three: the
// shift -1, 0 or +1 is known when this is compiled, and products that would read outside the image do not exist.
template <int R_, int C_, int B_, int YC_, int XC_>
struct Taps {
  static constexpr int R = R_, C = C_, B = B_, YC = YC_, XC = XC_;
  static constexpr int kVectors = R * C * B, kClasses = YC * XC;
  static constexpr int y_shift(int of_class) { return YC == 3 ? of_class / XC - 1 : 0; }
  static constexpr int x_shift(int of_class) { return XC == 3 ? of_class % XC - 1 : 0; }
  static constexpr bool meets(int of_class, int r, int c) {
    return (YC == 1 || (r + y_shift(of_class) >= 0 && r + y_shift(of_class) < R)) &&
           (XC == 1 || (c + x_shift(of_class) >= 0 && c + x_shift(of_class) < C));
  }
};

// Where the source vector for accumulator (r, c, b) lies, before the kept weight's offset; `rows`: the packed tile's.
template <class TAPS, int CLASS>
TOST_INLINE const Packed* source_of(const Packed* const* rows, int r, int c, int b) {
  return rows[r + TAPS::y_shift(CLASS)] + ((c + TAPS::x_shift(CLASS)) * TAPS::B + b) * kLanes;
}

// Adds the products of a step's kept weights.
template <class TAPS, int CLASS, class STEP>
TOST_INLINE void gather_step(Vec* acc, const STEP& step, const Packed* const* rows) {
#pragma GCC unroll 16
  for (int a = 0; a < TAPS::kVectors; a += kJoined) {
    const int r = a / TAPS::B / TAPS::C, c = a / TAPS::B % TAPS::C, b = a % TAPS::B;
    if (TAPS::meets(CLASS, r, c)) step.add(acc + a, source_of<TAPS, CLASS>(rows, r, c, b));
  }
}

// Adds the products of one row's kept weights, class by class. ends[k]: where class k ends.
template <class TAPS, int CLASS = 0>
TOST_INLINE void gather_row(
    Vec* acc, const Nonzero* nonzeros, const Nonzero* nonzero, const int32_t* ends, const Packed* const* rows) {
  const Nonzero* const end = nonzeros + ends[CLASS];
  for (; end - nonzero >= Step::kCount; nonzero += Step::kCount) gather_step<TAPS, CLASS>(acc, Step(nonzero), rows);
  if constexpr (Step::kCount > 1) {
    if (nonzero != end) gather_step<TAPS, CLASS>(acc, Rest(nonzero++), rows);
  }
  if constexpr (CLASS + 1 < TAPS::kClasses) gather_row<TAPS, CLASS + 1>(acc, nonzeros, nonzero, ends, rows);
}

// All rows [row_begin, row_end) of one group against one packed channel block.
template <class TAPS, class T>
static __attribute__((noinline)) void gather_block(
    const GatherJob<T>& job, const Place& at, int64_t group, int64_t row_begin, int64_t row_end, const int32_t* ptr,
    const Packed* tile, float* partial, bool first, bool last, const int64_t* direct, Ahead& ahead) {
  constexpr int R = TAPS::R, kVectors = TAPS::kVectors;
  const Nonzero* nonzeros = job.conv.nonzeros;
  const Packed* base[R];
#pragma GCC unroll 16
  for (int r = 0; r < R; ++r) base[r] = tile + r * at.phase->row_pitch;
  const int64_t fetches = (ahead.left + row_end - row_begin - 1) / (row_end - row_begin);
  for (int64_t row = row_begin; row < row_end; ++row) {
    fetch(ahead, fetches);
    const int32_t* ends = ptr + row * TAPS::kClasses;
    float* sums = partial + (row - row_begin) * (kVectors * kLanes);
    if (ends[0] == ends[TAPS::kClasses] && !first && !last) continue;
    Vec acc[kVectors];
    if (first) {
#pragma GCC unroll 16
      for (int a = 0; a < kVectors; ++a) acc[a] = zero();
    } else {
#pragma GCC unroll 16
      for (int a = 0; a < kVectors; ++a) acc[a] = load(sums + a * kLanes);
    }
    gather_row<TAPS>(acc, nonzeros, nonzeros + ends[0], ends + 1, base);
    if (!last) {
#pragma GCC unroll 16
      for (int a = 0; a < kVectors; ++a) store(sums + a * kLanes, acc[a]);
      continue;
    }
    const int64_t channel = group * job.conv.rows + row;
    if (job.bias != nullptr) {
      const Vec bias = broadcast(to_float(job.bias[channel * job.bias_stride]));
#pragma GCC unroll 16
      for (int a = 0; a < kVectors; ++a) acc[a] += bias;
    }
    if (direct != nullptr) {
      T* to = job.result.data + channel * job.result.stride_c;
#pragma GCC unroll 16
      for (int a = 0; a < kVectors; a += kJoined) put_joined(to, direct + a, acc + a, job.streaming);
    } else {
      // `sums` of this row are not needed any more.
#pragma GCC unroll 16
      for (int a = 0; a < kVectors; a += kJoined) undeal(acc + a);
#pragma GCC unroll 16
      for (int a = 0; a < kVectors; ++a) store(sums + a * kLanes, acc[a]);
      write_tile(job.result, job.conv.tile, at, channel, sums);
    }
  }
}

// Offsets of a whole tile's vectors in the result, or false where some of them do not exist.
template <int R, int V, class T>
static bool direct_offsets(const View<T>& result, const Tile& tile, const Place& at, int64_t* offsets) {
  const AxisView& y = at.phase->y;
  const AxisView& x = at.phase->x;
  if (at.batch != tile.batches * kLanes) return false;
  if (at.y0 + tile.rows > y.count || at.x0 + tile.columns > x.count) return false;
  for (int64_t r = 0; r < R; ++r) {
    for (int64_t v = 0; v < V; ++v) {
      offsets[r * V + v] = at.n0 + v % tile.batches * kLanes +
                           (y.out_step * (at.y0 + r) + y.out_phase) * result.stride_h +
                           (x.out_step * (at.x0 + v / tile.batches) + x.out_phase) * result.stride_w;
    }
  }
  return true;
}

// What will be packed after `block` of `group` in `task`: the next block, or the first one of the next task.
template <class T>
static Ahead look_ahead_after(
    const View<const T>& source, const ConvJob& conv, const Place& at, int64_t group, int64_t block, int64_t task, int64_t end) {
  const int64_t most = conv.block < kChannelsAhead ? conv.block : kChannelsAhead;
  if (block + 1 < conv.blocks) {
    const int64_t channel = (block + 1) * conv.block;
    return look_ahead(source, conv.tile, at, group * conv.channels + channel, clamp(conv.channels - channel, 0, most));
  }
  if ((group + 1) * conv.rows < at.row_end) {
    return look_ahead(source, conv.tile, at, (group + 1) * conv.channels, most);
  }
  if (task + 1 >= end) return Ahead{};
  const Place next = place_of(conv, task + 1, source.n);
  return look_ahead(source, conv.tile, next, next.row_begin / conv.rows * conv.channels, most);
}

// Floats of scratch that hold so many packed numbers.
TOST_INLINE int64_t floats_of(int64_t numbers) {
  return (numbers * static_cast<int64_t>(sizeof(Packed)) + sizeof(float) - 1) / static_cast<int64_t>(sizeof(float));
}

template <class TAPS, class T>
static void gather_tasks(const GatherJob<T>& job, int64_t begin, int64_t end) {
  constexpr int R = TAPS::R, V = TAPS::C * TAPS::B;
  const ConvJob& conv = job.conv;
  const int64_t total_rows = conv.groups * conv.rows;
  const int64_t chunk_rows = total_rows / conv.row_chunks + 1;
  const int64_t most_rows = chunk_rows < conv.rows ? chunk_rows : conv.rows;
  float* partial = thread_scratch(most_rows * R * V * kLanes + floats_of(conv.tile_numbers));
  Packed* tile = reinterpret_cast<Packed*>(partial + most_rows * R * V * kLanes);
  int64_t offsets[R * V];
  for (int64_t task = begin; task < end; ++task) {
    const Place at = place_of(conv, task, job.source.n);
    if (at.y0 >= at.phase->y.count || at.x0 >= at.phase->x.count) continue;
    const int64_t* direct = direct_offsets<R, V>(job.result, conv.tile, at, offsets) ? offsets : nullptr;
    for (int64_t group = at.row_begin / conv.rows; group * conv.rows < at.row_end; ++group) {
      const int64_t row_begin = clamp(at.row_begin - group * conv.rows, 0, conv.rows);
      const int64_t row_end = clamp(at.row_end - group * conv.rows, 0, conv.rows);
      for (int64_t block = 0; block < conv.blocks; ++block) {
        const int32_t* ptr = at.phase->ptr + (group * conv.blocks + block) * conv.rows * TAPS::kClasses;
        const bool first = block == 0, last = block + 1 == conv.blocks;
        if (ptr[row_begin * TAPS::kClasses] != ptr[row_end * TAPS::kClasses]) {
          const int64_t channel = block * conv.block;
          const int64_t channels = conv.channels - channel < conv.block ? conv.channels - channel : conv.block;
          pack(job.source, conv.tile, at, group * conv.channels + channel, channels, tile);
        } else if (!first && !last) {
          continue;
        }
        Ahead ahead = look_ahead_after(job.source, conv, at, group, block, task, end);
        gather_block<TAPS>(job, at, group, row_begin, row_end, ptr, tile, partial, first, last, direct, ahead);
      }
    }
  }
  if (job.streaming) streamed();
}

// ---- gradient of the kept weights

// Adds lanes of `a` to lanes of `a`, and of `b` to `b`, so that half as many are left of each, side by side. The order is such
// that every shuffle is one cheap instruction (unpack, shufps, shuff32x4): two-operand permutes took twice as long in all.
// STEP 0, then 1: inside each group of 4 lanes; then 2: groups of 4 lanes among each other.
template <int STEP>
TOST_INLINE Vec add_pairs(Vec a, Vec b) {
  IVec even, odd;
#pragma GCC unroll 16
  for (int l = 0; l < kLanes; ++l) {
    const int in = l % 4, group = l / 4;
    if (STEP == 0) {  // a0 b0 a1 b1 + a2 b2 a3 b3
      even[l] = group * 4 + in / 2 + in % 2 * kLanes;
      odd[l] = even[l] + 2;
    } else if (STEP == 1) {  // a0 a1 b0 b1 + a2 a3 b2 b3
      even[l] = group * 4 + in % 2 + in / 2 * kLanes;
      odd[l] = even[l] + 2;
    } else {  // the even groups of a, then of b, + the odd ones
      constexpr int kHalf = kLanes >= 8 ? kLanes / 8 : 1;  // 4 lanes never come here
      even[l] = group % kHalf * 8 + in + group / kHalf * kLanes;
      odd[l] = (even[l] + 4) % (2 * kLanes);
    }
  }
  return shuffle(a, b, even) + shuffle(a, b, odd);
}

// Lane l of the result is the sum of the lanes of vectors[l]: kLanes - 1 additions of pairs.
TOST_INLINE Vec sum_each(const float* vectors) {
  Vec v[kLanes];
#pragma GCC unroll 16
  for (int i = 0; i < kLanes; i += 2) {
    v[i / 2] = add_pairs<0>(load(vectors + i * kLanes), load(vectors + (i + 1) * kLanes));
  }
#pragma GCC unroll 16
  for (int i = 0; i < kLanes / 2; i += 2) v[i / 2] = add_pairs<1>(v[i], v[i + 1]);
#pragma GCC unroll 4
  for (int count = kLanes / 4; count > 1; count /= 2) {
#pragma GCC unroll 16
    for (int i = 0; i < count; i += 2) v[i / 2] = add_pairs<2>(v[i], v[i + 1]);
  }
  return v[0];
}

// One row's kept weights up to ends[CLASS]: the products of its gradients with the source, summed over the tile's pixels, into
// `products`; every kLanes of them are summed over the lanes, into `partial`. See values_grad_block for the rest.
template <class TAPS, bool WHOLE, int CLASS = 0>
TOST_INLINE void values_grad_row(
    const Source* grad, const int32_t* offsets, const int32_t* ends, const Packed* const* rows, const uint32_t* exists,
    float* products, float* partial, bool add, int64_t& k, int64_t& done) {
  for (const int64_t end = ends[CLASS]; k < end; ++k) {
    const int64_t offset = offsets[k];
    Vec chain[2] = {};
    int used = 0;
#pragma GCC unroll 16
    for (int a = 0; a < TAPS::kVectors; a += kJoined) {
      const int r = a / TAPS::B / TAPS::C, c = a / TAPS::B % TAPS::C, b = a % TAPS::B;
      if (!TAPS::meets(CLASS, r, c)) continue;
      Source source = load_source(source_of<TAPS, CLASS>(rows, r, c, b) + offset);
      if constexpr (!WHOLE) source = keep(source, exists + a);
      Vec& sum = chain[used % 2];
      sum = used < 2 ? products_of(grad[a / kJoined], source) : add_products(sum, grad[a / kJoined], source);
      ++used;
    }
    store(products + (k - done) * kLanes, chain[0] + chain[1]);
    if (k - done == kLanes - 1) {
      const Vec sums = sum_each(products);
      store(partial + done, add ? load(partial + done) + sums : sums);
      done += kLanes;
    }
  }
  if constexpr (CLASS + 1 < TAPS::kClasses) {
    values_grad_row<TAPS, WHOLE, CLASS + 1>(grad, offsets, ends, rows, exists, products, partial, add, k, done);
  }
}

// WHOLE: all pixels of the tile exist. Otherwise `exists` says which (all bits or none): the packed tile reaches to source
// pixels that only missing result pixels would read, and 0 * inf must not count.
// fresh: the gradients of these rows are not in `grads` yet. add: `partial` has sums already.
template <class TAPS, bool WHOLE, class T>
static __attribute__((noinline)) void values_grad_block(
    const ValuesGradJob<T>& job, const Place& at, int64_t group, int64_t row_begin, int64_t row_end, const int32_t* ptr,
    const Packed* tile, Packed* grads, bool fresh, const uint32_t* exists, float* partial, bool add, Ahead& ahead) {
  constexpr int R = TAPS::R, kVectors = TAPS::kVectors, kClasses = TAPS::kClasses;
  const ConvJob& conv = job.conv;
  alignas(64) float products[kLanes * kLanes];
  const Packed* base[R];
#pragma GCC unroll 16
  for (int r = 0; r < R; ++r) base[r] = tile + r * at.phase->row_pitch;
  int64_t done = ptr[row_begin * kClasses];  // sums below this one are in `partial`
  int64_t k = done;
  const int64_t fetches = (ahead.left + row_end - row_begin - 1) / (row_end - row_begin);
  const int64_t channel = group * conv.rows;
  Ahead rows_ahead;
  if (fresh) {
    rows_ahead =
        look_ahead_result(job.grad, conv.tile, at, channel + row_begin + kRowsAhead, row_end - row_begin - kRowsAhead);
  }
  for (int64_t row = row_begin; row < row_end; ++row) {
    fetch(ahead, fetches);
    Packed* row_grads = grads + (row - row_begin) * (kVectors * kLanes);
    if (fresh) {
      fetch(rows_ahead, rows_ahead.rows);
      read_tile(job.grad, conv.tile, at, channel + row, row_grads);
    }
    const int32_t* ends = ptr + row * kClasses + 1;
    if (k == ends[kClasses - 1]) continue;
    Source grad[kVectors / kJoined];
#pragma GCC unroll 16
    for (int a = 0; a < kVectors; a += kJoined) grad[a / kJoined] = load_source(row_grads + a * kLanes);
    values_grad_row<TAPS, WHOLE>(grad, conv.offsets, ends, base, exists, products, partial, add, k, done);
  }
  if (done == k) return;
  // The same tree of additions as for a full group: which weights are left over here depends on how rows were shared out.
  for (int64_t missing = k - done; missing < kLanes; ++missing) store(products + missing * kLanes, zero());
  alignas(64) float sums[kLanes];
  store(sums, sum_each(products));
  for (int64_t left = 0; done + left < k; ++left) partial[done + left] = sums[left] + (add ? partial[done + left] : 0.0f);
}

template <class TAPS, class T>
static void values_grad_items(const ValuesGradJob<T>& job, int64_t begin, int64_t end) {
  constexpr int R = TAPS::R, V = TAPS::C * TAPS::B, kClasses = TAPS::kClasses;
  const ConvJob& conv = job.conv;
  constexpr int64_t kNumbers = R * V * kLanes;
  const int64_t total_rows = conv.groups * conv.rows;
  const int64_t segment_rows = total_rows / job.row_segments + 1;
  Packed* grads = reinterpret_cast<Packed*>(thread_scratch(floats_of(segment_rows * kNumbers + conv.tile_numbers)));
  Packed* tile = grads + segment_rows * kNumbers;
  for (int64_t item = begin; item < end; ++item) {
    const int64_t chunk = item / job.row_segments, segment = item % job.row_segments;
    float* partial = job.partial + chunk * job.nnz;
    const int64_t first_task = conv.tasks * chunk / job.chunks, last_task = conv.tasks * (chunk + 1) / job.chunks;
    for (int64_t task = first_task; task < last_task; ++task) {
      Place at = place_of(conv, task, job.source.n);
      at.row_begin = total_rows * segment / job.row_segments;
      at.row_end = total_rows * (segment + 1) / job.row_segments;
      uint32_t exists[R * V];
      bool whole = true;
      for (int64_t a = 0; a < R * V; ++a) {
        const bool here = at.y0 + a / V < at.phase->y.count && at.x0 + a % V / conv.tile.batches < at.phase->x.count;
        exists[a] = here ? 0xffffffffu : 0u;
        whole = whole && here;
      }
      for (int64_t group = at.row_begin / conv.rows; group * conv.rows < at.row_end; ++group) {
        const int64_t row_begin = clamp(at.row_begin - group * conv.rows, 0, conv.rows);
        const int64_t row_end = clamp(at.row_end - group * conv.rows, 0, conv.rows);
        Packed* group_grads = grads + (group * conv.rows + row_begin - at.row_begin) * kNumbers;
        bool fresh = true;
        for (int64_t block = 0; block < conv.blocks; ++block) {
          const int32_t* ptr = at.phase->ptr + (group * conv.blocks + block) * conv.rows * kClasses;
          if (ptr[row_begin * kClasses] == ptr[row_end * kClasses]) continue;
          const int64_t channel = block * conv.block;
          const int64_t channels = conv.channels - channel < conv.block ? conv.channels - channel : conv.block;
          pack(job.source, conv.tile, at, group * conv.channels + channel, channels, tile);
          Ahead ahead = look_ahead_after(job.source, conv, at, group, block, task, last_task);
          const auto run = whole ? values_grad_block<TAPS, true, T> : values_grad_block<TAPS, false, T>;
          run(job, at, group, row_begin, row_end, ptr, tile, group_grads, fresh, exists, partial, task > first_task, ahead);
          fresh = false;
        }
      }
    }
  }
}

// ---- one entry a job; the tile decides which copy runs
// 16 accumulators need the 32 registers of AVX-512; elsewhere there are 16. conv_plan.cpp knows the same lists. In the
// first, C counts columns x batch vectors. With dot products R x C x B are an even number a row: loads bring two.

#if TOST_BF16_DOTS
#define TOST_FOR_EACH_TILE                                                              \
  TOST_TILE(4, 4, 1, 1, 1) TOST_TILE(2, 8, 1, 1, 1) TOST_TILE(1, 16, 1, 1, 1)           \
  TOST_TILE(2, 4, 1, 1, 1) TOST_TILE(1, 8, 1, 1, 1) TOST_TILE(1, 4, 1, 1, 1)            \
  TOST_TILE(2, 2, 4, 3, 3) TOST_TILE(2, 2, 2, 3, 3)
#elif TOST_LANES == 16
#define TOST_FOR_EACH_TILE                                                              \
  TOST_TILE(4, 4, 1, 1, 1) TOST_TILE(2, 8, 1, 1, 1) TOST_TILE(1, 16, 1, 1, 1)           \
  TOST_TILE(2, 4, 1, 1, 1) TOST_TILE(1, 8, 1, 1, 1) TOST_TILE(1, 4, 1, 1, 1)            \
  TOST_TILE(4, 4, 1, 3, 3) TOST_TILE(2, 2, 4, 3, 3) TOST_TILE(2, 8, 1, 1, 3)            \
  TOST_TILE(2, 2, 2, 3, 3) TOST_TILE(2, 4, 1, 1, 3)
#else
#define TOST_FOR_EACH_TILE                                                              \
  TOST_TILE(2, 4, 1, 1, 1) TOST_TILE(1, 8, 1, 1, 1) TOST_TILE(1, 4, 1, 1, 1)            \
  TOST_TILE(2, 2, 2, 3, 3) TOST_TILE(2, 4, 1, 1, 3)
#endif

// Of a copy with known shifts, B counts.
template <class TAPS>
static bool serves(const ConvJob& conv) {
  return conv.tile.rows == TAPS::R && conv.tile.columns * conv.tile.batches == TAPS::C * TAPS::B &&
         conv.y_classes == TAPS::YC && conv.x_classes == TAPS::XC &&
         (TAPS::kClasses == 1 || conv.tile.batches == TAPS::B);
}

template <class T>
static void gather(const GatherJob<T>& wanted, int64_t begin, int64_t end) {
  GatherJob<T> job = wanted;
  const View<T>& to = job.result;
  // Whole cache lines: of a part of one, the rest would be read first after all.
  constexpr int64_t kLine = 64 / sizeof(T);
  job.streaming = job.streaming && reinterpret_cast<uintptr_t>(to.data) % 64 == 0 &&
                  (job.conv.tile.batches * kLanes % kLine | to.stride_c % kLine | to.stride_h % kLine | to.stride_w % kLine) == 0;
#define TOST_TILE(...) \
  if (serves<Taps<__VA_ARGS__>>(job.conv)) return gather_tasks<Taps<__VA_ARGS__>, T>(job, begin, end);
  TOST_FOR_EACH_TILE
#undef TOST_TILE
}

template <class T>
static void values_grad(const ValuesGradJob<T>& job, int64_t begin, int64_t end) {
#define TOST_TILE(...) \
  if (serves<Taps<__VA_ARGS__>>(job.conv)) return values_grad_items<Taps<__VA_ARGS__>, T>(job, begin, end);
  TOST_FOR_EACH_TILE
#undef TOST_TILE
}

#undef TOST_FOR_EACH_TILE

}  // namespace tost::TOST_ISA
