// Transposing a matrix of 4-byte elements in squares of kLanes x kLanes. Compiled once per instruction set: see per_isa.h.

namespace tost::TOST_ISA {
namespace {  // names as short as these must stay in their file

// Swaps element (row i + D, lane l) with (row i, lane l + D), wherever neither i nor l has the bit D. All powers of two: a transpose.
template <int D>
TOST_INLINE void exchange(Vec* v) {
  IVec low, high;
  for (int lane = 0; lane < kLanes; ++lane) {
    low[lane] = lane & D ? kLanes + lane - D : lane;
    high[lane] = lane & D ? kLanes + lane : lane + D;
  }
#pragma GCC unroll 16
  for (int i = 0; i < kLanes; ++i) {
    if (i & D) continue;
    const Vec a = v[i], b = v[i + D];
    v[i] = shuffle(a, b, low);
    v[i + D] = shuffle(a, b, high);
  }
}

TOST_INLINE void transpose_square(const float* from, int64_t from_pitch, float* to, int64_t to_pitch, bool streaming) {
  Vec v[kLanes];
#pragma GCC unroll 16
  for (int i = 0; i < kLanes; ++i) v[i] = load(from + i * from_pitch);
  if constexpr (kLanes > 8) exchange<8>(v);
  if constexpr (kLanes > 4) exchange<4>(v);
  exchange<2>(v);
  exchange<1>(v);
#pragma GCC unroll 16
  for (int i = 0; i < kLanes; ++i) put(to + i * to_pitch, v[i], streaming);
}

// Copies a row; `next` is asked for meanwhile: rows lie far apart, the hardware does not foresee them.
TOST_INLINE void copy_row(const float* from, float* to, int64_t n, const float* next, bool streaming) {
  for (int64_t i = 0; i < n; i += kLanes) {
    __builtin_prefetch(next + i);
    put(to + i, load(from + i), streaming);
  }
}

TOST_INLINE void transpose_squares(
    const float* from, int64_t from_pitch, float* to, int64_t to_pitch, int64_t rows, int64_t columns, bool streaming) {
  for (int64_t c = 0; c < columns; c += kLanes) {
    for (int64_t r = 0; r < rows; r += kLanes) {
      transpose_square(from + r * from_pitch + c, from_pitch, to + c * to_pitch + r, to_pitch, streaming);
    }
  }
}

// to[c * to_pitch + r] = from[r * from_pitch + c] for r < rows, c < columns, both multiples of kLanes. One side has rows far
// apart, often by a power of two, where lines evict each other from the caches: that side is read or written a row at a time, by way
// of `buffer`, which has room for rows * (columns + kLanes) or columns * (rows + kLanes) floats.
void transpose_near(
    const float* from, int64_t from_pitch, float* to, int64_t to_pitch, int64_t rows, int64_t columns, float* buffer,
    bool streaming) {
  streaming = streaming && can_stream(to) && to_pitch % kLanes == 0;
  const int64_t pitch = columns + kLanes;
  for (int64_t r = 0; r < rows; ++r) {
    copy_row(from + r * from_pitch, buffer + r * pitch, columns, from + (r + 1 < rows ? r + 1 : r) * from_pitch, false);
  }
  transpose_squares(buffer, pitch, to, to_pitch, rows, columns, streaming);
  if (streaming) streamed();
}

void transpose_far(
    const float* from, int64_t from_pitch, float* to, int64_t to_pitch, int64_t rows, int64_t columns, float* buffer,
    bool streaming) {
  streaming = streaming && can_stream(to) && to_pitch % kLanes == 0;
  const int64_t pitch = rows + kLanes;
  transpose_squares(from, from_pitch, buffer, pitch, rows, columns, false);
  for (int64_t c = 0; c < columns; ++c) copy_row(buffer + c * pitch, to + c * to_pitch, rows, buffer + c * pitch, streaming);
  if (streaming) streamed();
}

int64_t square() { return kLanes; }

}  // namespace
}  // namespace tost::TOST_ISA
