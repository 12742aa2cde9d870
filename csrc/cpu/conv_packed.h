// What conv_kernels.h keeps in a packed tile, and how kept weights meet it. Included there, once per instruction set.
//
// As a rule the packed numbers are float32, whatever the tensors hold. With TOST_BF16_DOTS they stay bfloat16, for an
// instruction that adds the products of two pairs of them to a float32 lane:
//  - One load brings the vectors of two neighbouring accumulators (kJoined): neighbouring pixels, or batch vectors of one.
//  - Kept weights are taken in twos. Interleaving their two loads makes the operands of both accumulators, with two shuffles
//    for two accumulators and two weights. The lanes come out dealt in fours between the two accumulators, which
//    is put right when they are written (`undeal`), not before.
//  - In a values gradient all lanes are summed in the end, so it takes the pairs as they lie.

namespace tost::TOST_ISA {

#if TOST_BF16_DOTS

typedef bf16 Packed;
typedef __m512i Source;  // what one load brings
constexpr int kJoined = 2;

TOST_INLINE Vec add_dots(Vec sum, __m512i a, __m512i b) { return _mm512_dpbf16_ps(sum, (__m512bh)a, (__m512bh)b); }

TOST_INLINE Source load_source(const Packed* p) { return _mm512_loadu_si512(p); }
TOST_INLINE Source keep(Source source, const uint32_t* exists) {
  return _mm512_maskz_mov_epi16((exists[0] & 0xffffu) | (exists[1] & 0xffff0000u), source);
}
TOST_INLINE Vec products_of(Source a, Source b) { return add_dots(zero(), a, b); }
TOST_INLINE Vec add_products(Vec sum, Source a, Source b) { return add_dots(sum, a, b); }

TOST_INLINE void pack_zero(Packed* to) { *reinterpret_cast<HVecInMemory*>(to) = HVec{}; }
TOST_INLINE void pack_vector(Packed* to, const bf16* from) {
  *reinterpret_cast<HVecInMemory*>(to) = *reinterpret_cast<const HVecInMemory*>(from);
}
TOST_INLINE void pack_joined(Packed* to, const bf16* from) { _mm512_storeu_si512(to, _mm512_loadu_si512(from)); }
TOST_INLINE void pack_partial(Packed* to, const bf16* from, int64_t n) {
  for (int64_t lane = 0; lane < kLanes; ++lane) to[lane] = lane < n ? from[lane] : bf16{0};
}

// What the kept weights of one step do to the two accumulators that a load serves.
struct OneWeight {
  static constexpr int64_t kCount = 1;
  int64_t offset;
  Vec weight;
  TOST_INLINE_MEMBER explicit OneWeight(const Nonzero* nonzero)
      : offset(nonzero->offset), weight(broadcast(nonzero->weight)) {}
  TOST_INLINE_MEMBER void add(Vec* acc, const Packed* from) const {
    const Source a = load_source(from + offset);
    acc[0] = fma(weight, (Vec)_mm512_unpacklo_epi16(__m512i{}, a), acc[0]);
    acc[1] = fma(weight, (Vec)_mm512_unpackhi_epi16(__m512i{}, a), acc[1]);
  }
};
struct TwoWeights {
  static constexpr int64_t kCount = 2;
  int64_t offset, other;
  __m512i weights;
  TOST_INLINE_MEMBER explicit TwoWeights(const Nonzero* nonzero) : offset(nonzero[0].offset), other(nonzero[1].offset) {
    uint32_t first, second;  // float32 with a bfloat16 in its upper half
    std::memcpy(&first, &nonzero[0].weight, sizeof(first));
    std::memcpy(&second, &nonzero[1].weight, sizeof(second));
    weights = _mm512_set1_epi32(static_cast<int32_t>(first >> 16 | second));
  }
  TOST_INLINE_MEMBER void add(Vec* acc, const Packed* from) const {
    Source a = load_source(from + offset), b = load_source(from + other);
    asm("" : "+v"(a), "+v"(b));  // or the compiler would load one of them twice, as an operand of each shuffle: 1.3 times slower
    acc[0] = add_dots(acc[0], _mm512_unpacklo_epi16(a, b), weights);
    acc[1] = add_dots(acc[1], _mm512_unpackhi_epi16(a, b), weights);
  }
};
typedef TwoWeights Step;
typedef OneWeight Rest;  // of an odd number; not TwoWeights with a zero: 0 * inf must not count

// Two accumulators as a load had them.
TOST_INLINE void undeal(Vec* acc) {
  const IVec low = {0, 1, 2, 3, 16, 17, 18, 19, 4, 5, 6, 7, 20, 21, 22, 23};
  const Vec first = shuffle(acc[0], acc[1], low), second = shuffle(acc[0], acc[1], low + 8);
  acc[0] = first;
  acc[1] = second;
}

// The accumulators of one load to `to` + offsets[0] and [1].
TOST_INLINE void put_joined(bf16* to, const int64_t* offsets, Vec* acc, bool streaming) {
  if (offsets[1] != offsets[0] + kLanes) {
    undeal(acc);
    put(to + offsets[0], acc[0], streaming);
    put(to + offsets[1], acc[1], streaming);
    return;
  }
  const __m512i both = (__m512i)_mm512_cvtne2ps_pbh(acc[1], acc[0]);
  const __mmask8 all = 0xff;  // GCC 12 warns about its own unmasked form
  const __m512i dealt = _mm512_maskz_permutexvar_epi64(all, _mm512_setr_epi64(0, 4, 1, 5, 2, 6, 3, 7), both);
  if (streaming) {
    _mm512_stream_si512(reinterpret_cast<__m512i*>(to + offsets[0]), dealt);
  } else {
    _mm512_storeu_si512(to + offsets[0], dealt);
  }
}

#else

typedef float Packed;
typedef Vec Source;
constexpr int kJoined = 1;

TOST_INLINE Source load_source(const Packed* p) { return load(p); }
TOST_INLINE Source keep(Source source, const uint32_t* exists) { return as_float(as_bits(source) & *exists); }
TOST_INLINE Vec products_of(Source a, Source b) { return a * b; }
TOST_INLINE Vec add_products(Vec sum, Source a, Source b) { return fma(a, b, sum); }

TOST_INLINE void pack_zero(Packed* to) { store(to, zero()); }
template <class T>
TOST_INLINE void pack_vector(Packed* to, const T* from) { store(to, load(from)); }
template <class T>
TOST_INLINE void pack_joined(Packed* to, const T* from) { pack_vector(to, from); }
template <class T>
TOST_INLINE void pack_partial(Packed* to, const T* from, int64_t n) {
  store(to, n > 0 ? load_partial(from, n) : zero());
}

struct OneWeight {
  static constexpr int64_t kCount = 1;
  int64_t offset;
  Vec weight;
  TOST_INLINE_MEMBER explicit OneWeight(const Nonzero* nonzero) {
#if TOST_LANES == 16
    // One load for both: those of the products fill the load units, so that a second one would count.
    uint64_t both;
    std::memcpy(&both, nonzero, sizeof(both));
    offset = static_cast<int32_t>(both);
    weight = broadcast_bits(static_cast<uint32_t>(both >> 32));
#else
    offset = nonzero->offset;
    weight = broadcast(nonzero->weight);
#endif
  }
  TOST_INLINE_MEMBER void add(Vec* acc, const Packed* from) const { *acc = fma(weight, load(from + offset), *acc); }
};
typedef OneWeight Step;
typedef OneWeight Rest;

TOST_INLINE void undeal(Vec*) {}

template <class T>
TOST_INLINE void put_joined(T* to, const int64_t* offset, const Vec* acc, bool streaming) { put(to + *offset, *acc, streaming); }

#endif

}  // namespace tost::TOST_ISA
