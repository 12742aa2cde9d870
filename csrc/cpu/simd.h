// One vector type for all instruction sets, on the compilers' vector extensions. Included by per_isa.h, once per
// instruction set, hence no include guard; see there for the rules.
//
// Vec is kLanes floats and takes + - * / and comparisons as it is (a comparison gives an IVec of 0 / -1, and
// `mask ? a : b` selects by lane).

namespace tost::TOST_ISA {

#define TOST_INLINE static inline __attribute__((always_inline))
#define TOST_INLINE_MEMBER inline __attribute__((always_inline))

constexpr int kLanes = TOST_LANES;

typedef float Vec __attribute__((vector_size(TOST_LANES * 4)));
typedef int32_t IVec __attribute__((vector_size(TOST_LANES * 4)));
typedef uint32_t UVec __attribute__((vector_size(TOST_LANES * 4)));
typedef uint16_t HVec __attribute__((vector_size(TOST_LANES * 2)));
// The same in memory at any address.
typedef float VecInMemory __attribute__((vector_size(TOST_LANES * 4), aligned(4), may_alias));
typedef uint16_t HVecInMemory __attribute__((vector_size(TOST_LANES * 2), aligned(2), may_alias));

// Not Vec{} + x: -0 + 0 is +0, so that addition stays in the code, beside every broadcast; x - 0 is x.
TOST_INLINE Vec broadcast(float x) { return x - Vec{}; }
TOST_INLINE Vec zero() { return Vec{}; }
// The float whose bits are x, in every lane, from an integer register: the compiler must not make a load of it.
TOST_INLINE Vec broadcast_bits(uint32_t x) {
  __asm__("" : "+r"(x));
  return reinterpret_cast<Vec>(UVec{} + x);
}

// a * b + c; one instruction where there is one (contraction is on by default in both compilers).
TOST_INLINE Vec fma(Vec a, Vec b, Vec c) { return a * b + c; }

TOST_INLINE Vec as_float(UVec bits) { return reinterpret_cast<Vec>(bits); }
TOST_INLINE UVec as_bits(Vec x) { return reinterpret_cast<UVec>(x); }

TOST_INLINE Vec abs(Vec x) { return as_float(as_bits(x) & 0x7fffffffu); }

// ---- memory: kLanes consecutive elements, float or bf16, any alignment
TOST_INLINE Vec load(const float* p) { return *reinterpret_cast<const VecInMemory*>(p); }
TOST_INLINE Vec load(const bf16* p) {
  const HVec half = *reinterpret_cast<const HVecInMemory*>(p);
  return as_float(__builtin_convertvector(half, UVec) << 16);
}
TOST_INLINE void store(float* p, Vec x) { *reinterpret_cast<VecInMemory*>(p) = x; }
#if TOST_BF16_DOTS
// What is below 2^-126 comes out as 0.
TOST_INLINE HVec rounded_halves(Vec x) { return (HVec)_mm512_cvtneps_pbh(x); }
#else
TOST_INLINE HVec rounded_halves(Vec x) {
  const UVec bits = as_bits(x);
  UVec rounded = (bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16;  // nearest, ties to even
  rounded = x == x ? rounded : (UVec{} + 0x7fc0u);
  return __builtin_convertvector(rounded, HVec);
}
#endif
TOST_INLINE void store(bf16* p, Vec x) { *reinterpret_cast<HVecInMemory*>(p) = rounded_halves(x); }

// ---- memory, past the caches
// Stores kLanes elements at p, which must be aligned to them. A plain store first reads the line it writes; this one does not,
// and evicts nothing. For results that are larger than the caches; `streamed` must follow before another thread reads them.
#if TOST_LANES == 16
TOST_INLINE void stream(float* p, Vec x) { _mm512_stream_ps(p, x); }
TOST_INLINE void stream_halves(uint16_t* p, HVec x) { _mm256_stream_si256(reinterpret_cast<__m256i*>(p), reinterpret_cast<__m256i>(x)); }
#elif TOST_LANES == 8
TOST_INLINE void stream(float* p, Vec x) { _mm256_stream_ps(p, x); }
TOST_INLINE void stream_halves(uint16_t* p, HVec x) { _mm_stream_si128(reinterpret_cast<__m128i*>(p), reinterpret_cast<__m128i>(x)); }
#else
TOST_INLINE void stream(float* p, Vec x) { store(p, x); }
TOST_INLINE void stream_halves(uint16_t* p, HVec x) { *reinterpret_cast<HVecInMemory*>(p) = x; }
#endif
TOST_INLINE void stream(bf16* p, Vec x) { stream_halves(reinterpret_cast<uint16_t*>(p), rounded_halves(x)); }
TOST_INLINE void streamed() {
#if TOST_LANES != 4
  _mm_sfence();
#endif
}
// Whether `stream` may write at p.
template <class T>
TOST_INLINE bool can_stream(const T* p) { return reinterpret_cast<uintptr_t>(p) % (kLanes * sizeof(T)) == 0; }
// `store` or `stream`.
template <class T>
TOST_INLINE void put(T* p, Vec x, bool streaming) {
  if (streaming) {
    stream(p, x);
  } else {
    store(p, x);
  }
}

// ---- the first n of kLanes elements (0 <= n <= kLanes); the other lanes read as 0
template <class T>
TOST_INLINE Vec load_partial(const T* p, int64_t n) {
  if (n == kLanes) return load(p);
#if TOST_LANES == 16
  if constexpr (sizeof(T) == sizeof(float)) return _mm512_maskz_loadu_ps(static_cast<__mmask16>((1u << n) - 1u), p);
#endif
  float lanes[kLanes] = {};
  for (int64_t lane = 0; lane < kLanes && lane < n; ++lane) lanes[lane] = to_float(p[lane]);
  return load(lanes);
}
template <class T>
TOST_INLINE void store_partial(T* p, Vec x, int64_t n) {
  if (n == kLanes) return store(p, x);
#if TOST_LANES == 16
  if constexpr (sizeof(T) == sizeof(float)) return _mm512_mask_storeu_ps(p, static_cast<__mmask16>((1u << n) - 1u), x);
#endif
  for (int64_t lane = 0; lane < n; ++lane) assign(p[lane], x[lane]);
}

// ---- lanes
// Lane l is lane index[l] of a and b laid end to end. The indices must be constants for this to be one instruction.
TOST_INLINE Vec shuffle(Vec a, Vec b, IVec index) {
#if defined(__clang__)
  Vec x = {};
  for (int lane = 0; lane < kLanes; ++lane) x[lane] = index[lane] < kLanes ? a[index[lane]] : b[index[lane] - kLanes];
  return x;
#else
  return __builtin_shuffle(a, b, index);
#endif
}

// Lane l becomes lane l + by; what comes round the end is of no use.
template <int BY>
TOST_INLINE Vec lanes_down(Vec x) {
  IVec index;
  for (int lane = 0; lane < kLanes; ++lane) index[lane] = (lane + BY) % kLanes;
  return shuffle(x, x, index);
}
// Always the same tree, so that a sum has the same bits whoever asks for it.
TOST_INLINE float sum(Vec x) {
  if constexpr (kLanes > 8) x += lanes_down<8>(x);
  if constexpr (kLanes > 4) x += lanes_down<4>(x);
  x += lanes_down<2>(x);
  x += lanes_down<1>(x);
  return x[0];
}

// ---- exp and sigmoid, about 1e-7 relative; exp(-inf) = 0, exp(inf) = inf, NaN stays NaN
TOST_INLINE Vec exp(Vec x) {
  // Past these ends the result is 0 or inf anyway. Written so that NaN passes.
  x = x > 89.0f ? broadcast(89.0f) : x;
  x = x < -104.5f ? broadcast(-104.5f) : x;
  // Adding 1.5 * 2^23 rounds to the nearest integer and leaves it in the low bits.
  const Vec magic = broadcast(12582912.0f);
  const Vec shifted = x * 1.44269504088896341f + magic;
  const UVec n = as_bits(shifted) - as_bits(magic);
  const Vec whole = shifted - magic;
  // x - n ln 2 in two parts: the first is exact.
  Vec r = x - whole * 0.693359375f;
  r = r + whole * 2.12194440e-4f;
  // exp(r) = 1 + r + r^2 P(r) on |r| <= ln(2) / 2 (Cephes' minimax coefficients).
  Vec p = broadcast(1.9875691500e-4f);
  p = fma(p, r, broadcast(1.3981999507e-3f));
  p = fma(p, r, broadcast(8.3334519073e-3f));
  p = fma(p, r, broadcast(4.1665795894e-2f));
  p = fma(p, r, broadcast(1.6666665459e-1f));
  p = fma(p, r, broadcast(5.0000001201e-1f));
  p = fma(p, r * r, r + 1.0f);
  // 2^n in two factors, so that subnormal results and the overflow to inf come out right.
  const UVec half = reinterpret_cast<UVec>(reinterpret_cast<IVec>(n) >> 1);
  const UVec rest = n - half;
  return p * as_float((half + 127u) << 23) * as_float((rest + 127u) << 23);
}

#if TOST_LANES == 16
// 1 / (1 + 2^t), t = -x log2(e). 2^t is 2^n P(t - n), n the nearest integer, P of degree 5 fitted to 1e-7 relative; t - n is taken
// from x again, or the rounding of t would show (1e-6 at x = -15). One Newton step doubles the 14 bits of the approximate
// reciprocal, where a division would take as long as all the rest. What is below 2^-126 comes out as 0.
TOST_INLINE Vec sigmoid(Vec x) {
  const __mmask16 all = 0xffff;  // GCC 12 warns about its own unmasked forms
  // No infinity minus infinity below. The second operand is what a NaN leaves.
  x = _mm512_maskz_max_ps(all, broadcast(-150.0f), _mm512_maskz_min_ps(all, broadcast(150.0f), x));
  const Vec n = _mm512_maskz_roundscale_ps(all, x * -1.44269502f, 8);
  // By name: the compiler would otherwise take the product that it has rounded for n.
  const Vec f = fma(x, broadcast(-1.92596299e-8f), _mm512_fmadd_ps(x, broadcast(-1.44269502f), -n));
  Vec p = broadcast(1.326472731e-3f);
  p = fma(p, f, broadcast(9.671512991e-3f));
  p = fma(p, f, broadcast(5.550733581e-2f));
  p = fma(p, f, broadcast(2.402224243e-1f));
  p = fma(p, f, broadcast(6.931470037e-1f));
  p = fma(p, f, broadcast(1.0f));
  const Vec d = _mm512_maskz_scalef_ps(all, p, n) + 1.0f;
  const Vec r = _mm512_maskz_rcp14_ps(all, d);
  const __mmask16 finite = _mm512_cmp_ps_mask(d, broadcast(8.5e37f), _CMP_NGE_UQ);  // NaN counts as finite: it must pass
  return _mm512_maskz_mul_ps(finite, r, 2.0f - d * r);
}
#else
TOST_INLINE Vec sigmoid(Vec x) {
  const Vec e = exp(-abs(x));  // in (0, 1]: nothing overflows
  const Vec one = broadcast(1.0f);
  return (x >= 0.0f ? one : e) / (one + e);  // NaN: e is NaN
}
#endif

}  // namespace tost::TOST_ISA
