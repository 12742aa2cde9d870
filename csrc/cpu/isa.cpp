#include "isa.h"

#include <cstdlib>
#include <string>

#include <torch/csrc/stable/library.h>

#include "../checks.h"

namespace tost {

namespace {

Isa best() {
#if TOST_X86
  __builtin_cpu_init();
  const bool fma = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
  if (fma && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
      __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq")) {
    return __builtin_cpu_supports("avx512bf16") ? Isa::avx512bf16 : Isa::avx512;
  }
  if (fma) return Isa::avx2;
#endif
  return Isa::portable;
}

Isa choose() {
  const Isa here = best();
  const char* wish = std::getenv("TOST_CPU_ISA");
  if (wish == nullptr || *wish == '\0') return here;
  for (const Isa candidate : {Isa::portable, Isa::avx2, Isa::avx512, Isa::avx512bf16}) {
    if (std::string(wish) != isa_name(candidate)) continue;
    TOST_CHECK(
        candidate <= here, "cpu_isa",
        "TOST_CPU_ISA: expected an instruction set of this machine (at most ", isa_name(here), "), got ", wish);
    return candidate;
  }
  fail("cpu_isa", "TOST_CPU_ISA: expected avx512bf16, avx512, avx2 or portable, got ", wish);
}

std::string cpu_isa() { return isa_name(isa()); }

}  // namespace

const char* isa_name(Isa isa) {
  switch (isa) {
    case Isa::avx512bf16: return "avx512bf16";
    case Isa::avx512: return "avx512";
    case Isa::avx2: return "avx2";
    default: return "portable";
  }
}

Isa isa() {
  static const Isa chosen = choose();
  return chosen;
}

}  // namespace tost

STABLE_TORCH_LIBRARY_IMPL(tost, CompositeExplicitAutograd, m) {
  m.impl("cpu_isa", TORCH_BOX(&tost::cpu_isa));
}
