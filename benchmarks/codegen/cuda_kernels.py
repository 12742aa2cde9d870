"""The CUDA kernels, read from the library that `make install` built."""

from __future__ import annotations

import ctypes
import functools
import re
import tempfile
from collections.abc import Collection, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from benchmarks.codegen import sass
from benchmarks.codegen.cuda_uses import Use
from benchmarks.codegen.kernel import Kernel
from benchmarks.codegen.machines import programs_per_sm

PACKAGE = Path(__file__).parents[2] / "tost_kernels"
_RELEASE = re.compile(rb"Cuda compilation tools, release (\d+\.\d+)")
_DRIVERS_SHARE = 1024  # bytes of shared memory the compiler counts as a kernel's from Hopper on, if it has any


def library() -> Path:
    """The library of CUDA kernels. RuntimeError, saying why, if there is none."""
    files = sorted(PACKAGE.glob("_cuda.*so"))
    if files:
        return files[0]
    why = PACKAGE / "why_not_built.txt"
    reason = why.read_text() if why.exists() else "`make install` builds it where it finds nvcc, of a CUDA toolkit"
    raise RuntimeError(f"expected the library of CUDA kernels in {PACKAGE}, found none: {reason}")


def compiler(library: Path) -> str:
    """E.g. "nvcc 13.0"."""
    release = _RELEASE.search(library.read_bytes())
    return f"nvcc {release[1].decode()}" if release else "an unknown nvcc"


@functools.cache
def readable(symbol: str) -> str:
    """E.g. `pswish_forward<float, 4, true>`, of a mangled name."""
    # The C++ runtime knows how its compilers mangle names.
    demangle = ctypes.CDLL("libstdc++.so.6")["__cxa_demangle"]
    demangle.restype = ctypes.c_char_p
    name = demangle(symbol.encode(), None, None, None)
    if name is None:  # a C name
        return symbol
    text = re.sub(r"\(anonymous namespace\)::|\btost::|^void |\((?:int|unsigned int|bool)\)", "", name.decode())
    text = text.replace("__nv_bfloat16", "bf16")
    depth = 0
    for at, letter in enumerate(text):  # up to the parameters: the first parenthesis outside of <>
        depth += {"<": 1, ">": -1}.get(letter, 0)
        if letter == "(" and not depth:
            return text[:at]
    return text


def _use(name: str, uses: Sequence[Use]) -> Use:
    for use in uses:
        if re.fullmatch(use.kernels, name):
            return use
    raise ValueError(f"{name}: expected a line for it in benchmarks/codegen/cuda_uses.py, found none")


def _kernel(name: str, sm: int, code: sass.Code, bound: int | None, uses: Sequence[Use]) -> Kernel:
    use = _use(name, uses)
    if not (bound or use.threads):
        raise ValueError(f"{name}: expected __launch_bounds__, or its threads in benchmarks/codegen/cuda_uses.py, found neither")
    if bound and use.threads > bound:
        raise ValueError(f"{name}: threads: expected at most {bound}, its __launch_bounds__, got {use.threads}")
    shared = code.static_shared - (_DRIVERS_SHARE if sm >= 90 and code.static_shared else 0)
    warps = -(-(use.threads or bound or 0) // 32)
    fits = programs_per_sm(sm, warps, code.registers, shared + use.dynamic_shared) > 0
    dynamic_shared = use.dynamic_shared if fits else use.least_shared or use.dynamic_shared
    return Kernel(name, sm, warps, shared, dynamic_shared, 0, use.matrix, code, use.wide)


def kernels(library: Path, only: str, sms: Collection[int], jobs: int, uses: Sequence[Use]) -> list[Kernel | str]:
    """All kernels of `library` whose names hold `only`, for these architectures; in place of one, what is wrong with it.

    RuntimeError if the library cannot be read.
    """

    def look(cubin: Path) -> list[tuple[str, sass.Code, int | None]]:
        symbols = sass.usage(cubin)
        if not any(only in readable(symbol) for symbol in symbols):  # reading its code takes seconds
            return []
        bounds = sass.launch_bounds(cubin)
        return [(readable(symbol), code, bounds.get(symbol)) for symbol, code in sass.read(cubin).items()]

    found: dict[tuple[str, int], tuple[sass.Code, int | None]] = {}
    result: list[Kernel | str] = []
    with tempfile.TemporaryDirectory() as folder, ThreadPoolExecutor(jobs) as pool:
        cubins = [(sm, file) for sm, file in sass.extract(library, Path(folder)) if sm in sms]
        for (sm, _), listed in zip(cubins, pool.map(look, [file for _, file in cubins]), strict=True):
            for name, code, bound in listed:
                if only in name and found.setdefault((name, sm), (code, bound)) != (code, bound):
                    # One kernel may be in several cubins, of the files that include it: then all are the same.
                    result.append(f"{name} on sm_{sm}: expected kernels of different names, got two that differ")
    for (name, sm), (code, bound) in sorted(found.items(), key=lambda item: item[0]):
        try:
            result.append(_kernel(name, sm, code, bound, uses))
        except ValueError as error:
            result.append(str(error))
    return result
