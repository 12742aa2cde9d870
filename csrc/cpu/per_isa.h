// Compiles one kernel header once per instruction set, inside one source file:
//
//     #include <cmath>                      // every standard header the kernels need, BEFORE this one
//     #include "isa.h"
//     #define TOST_KERNELS "pswish_kernels.h"
//     #include "per_isa.h"
//     ...
//     TOST_PER_ISA(pswish_forward)(arguments);   // function pointer of the best instruction set here
//
// With TOST_WITH_BF16_DOTS defined the header is compiled once more, as avx512bf16 with TOST_BF16_DOTS 1 (otherwise 0), for
// machines that multiply pairs of bfloat16: TOST_PER_ISA_BF16 chooses it for kernels of bfloat16 tensors.
//
// The kernel header has no include guard and puts everything into `namespace tost::TOST_ISA { ... }`, where simd.h's
// Vec, kLanes, load, store, ... are already declared (16, 8 or 4 lanes).
// Two rules. No standard header may be included by the kernels: its inline functions would be compiled for AVX-512 and
// could be the copy the linker keeps for everyone. No lambdas in the kernels: the compiler does not give a lambda's
// body the pragma's target, so loops for parallel_for are plain functions (begin, end) called from ordinary code.

#ifndef TOST_KERNELS
#error "define TOST_KERNELS as the kernel header before including per_isa.h"
#endif

#include <cstdint>
#include <cstring>

#include "bf16.h"
#include "isa.h"
#if TOST_X86
#include <immintrin.h>
#endif

#if TOST_X86

#if defined(TOST_WITH_BF16_DOTS)
#define TOST_ISA avx512bf16
#define TOST_LANES 16
#define TOST_BF16_DOTS 1
#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx512bf16,avx512f,avx512bw,avx512vl,avx512dq,avx2,fma"))), apply_to = function)
#else
#pragma GCC push_options
#pragma GCC target("avx512bf16,avx512f,avx512bw,avx512vl,avx512dq,avx2,fma")
#endif
#include "simd.h"
#include TOST_KERNELS
#if defined(__clang__)
#pragma clang attribute pop
#else
#pragma GCC pop_options
#endif
#undef TOST_ISA
#undef TOST_LANES
#undef TOST_BF16_DOTS
#endif

#define TOST_ISA avx512
#define TOST_LANES 16
#define TOST_BF16_DOTS 0
#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx512f,avx512bw,avx512vl,avx512dq,avx2,fma"))), apply_to = function)
#else
#pragma GCC push_options
#pragma GCC target("avx512f,avx512bw,avx512vl,avx512dq,avx2,fma")
#endif
#include "simd.h"
#include TOST_KERNELS
#if defined(__clang__)
#pragma clang attribute pop
#else
#pragma GCC pop_options
#endif
#undef TOST_ISA
#undef TOST_LANES
#undef TOST_BF16_DOTS

#define TOST_ISA avx2
#define TOST_LANES 8
#define TOST_BF16_DOTS 0
#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx2,fma"))), apply_to = function)
#else
#pragma GCC push_options
#pragma GCC target("avx2,fma")
#endif
#include "simd.h"
#include TOST_KERNELS
#if defined(__clang__)
#pragma clang attribute pop
#else
#pragma GCC pop_options
#endif
#undef TOST_ISA
#undef TOST_LANES
#undef TOST_BF16_DOTS

#endif  // TOST_X86

#define TOST_ISA portable
#define TOST_LANES 4
#define TOST_BF16_DOTS 0
#include "simd.h"
#include TOST_KERNELS
#undef TOST_ISA
#undef TOST_LANES
#undef TOST_BF16_DOTS
#undef TOST_KERNELS
