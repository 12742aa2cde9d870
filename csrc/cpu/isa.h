// Which instruction set the kernels run: chosen once, at run time.
#pragma once

#if defined(__x86_64__)
#define TOST_X86 1
#else
#define TOST_X86 0
#endif

namespace tost {

enum class Isa { portable, avx2, avx512, avx512bf16 };

// The best one this machine has, or a lower one forced by TOST_CPU_ISA=avx512bf16|avx512|avx2|portable.
// avx512bf16 is avx512 with dot products of bfloat16, which a few kernels have a version for.
// Throws std::runtime_error when that variable names something unknown or missing here (at every call, not at load:
// an exception out of a static initialiser would kill the interpreter).
Isa isa();

const char* isa_name(Isa isa);

}  // namespace tost

// tost::TOST_PER_ISA(f) -> pointer to namespace avx512 / avx2 / portable's `f` for this machine. Use it in a source
// that includes per_isa.h; all three must have the same signature.
#if TOST_X86
#define TOST_PER_ISA(function)                                          \
  (::tost::isa() >= ::tost::Isa::avx512 ? &::tost::avx512::function     \
   : ::tost::isa() == ::tost::Isa::avx2 ? &::tost::avx2::function       \
                                        : &::tost::portable::function)
#else
#define TOST_PER_ISA(function) (&::tost::portable::function)
#endif

// The same of a file compiled with TOST_WITH_BF16_DOTS, for kernels of bfloat16 tensors.
#if TOST_X86
#define TOST_PER_ISA_BF16(function) \
  (::tost::isa() == ::tost::Isa::avx512bf16 ? &::tost::avx512bf16::function : TOST_PER_ISA(function))
#else
#define TOST_PER_ISA_BF16(function) TOST_PER_ISA(function)
#endif
