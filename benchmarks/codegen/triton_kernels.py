"""The Triton kernels, compiled for an architecture that need not be here.

Every module of `tost_kernels.triton` that has `specimens()` says what there is to compile.
"""

from __future__ import annotations

import importlib
import os
import pkgutil
import tempfile
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

import tost_kernels.triton
from benchmarks.codegen import sass
from benchmarks.codegen.kernel import Kernel
from tost_kernels.triton.specimen import Specimen

COMPILER = f"triton {triton.__version__}"


def modules() -> list[str]:
    """The names of all modules of Triton kernels."""
    package = tost_kernels.triton
    return [info.name for info in pkgutil.iter_modules(package.__path__, f"{package.__name__}.")]


def specimens(names: Sequence[str]) -> list[Specimen]:
    """What the modules of these names give to compile, in their order. ValueError if two share a name."""
    found: dict[str, Specimen] = {}
    for name in names:
        for specimen in getattr(importlib.import_module(name), "specimens", list)():
            if specimen.name in found:
                raise ValueError(f"{name}: expected specimens of different names, got {specimen.name!r} twice")
            found[specimen.name] = specimen
    return list(found.values())


def _check(specimen: Specimen) -> None:
    """Triton would take a missing argument for a constant, and ignore one that it does not know."""
    arguments = set(specimen.kernel.arg_names)
    constants = {name for name, type in specimen.signature.items() if type == "constexpr"}
    for what, given, expected in (
        ("signature", set(specimen.signature), arguments),
        ("constexprs", set(specimen.constexprs), constants),
        ("attrs", set(specimen.attrs) | arguments, arguments),
    ):
        if given != expected:
            raise ValueError(f"expected {what} to name {sorted(expected)}, got {sorted(given)}")


def compile(specimen: Specimen, sm: int) -> Kernel:
    """The kernel as Triton compiles it for sm_<sm>. Raises whatever Triton raises, ValueError for a specimen that is none."""
    _check(specimen)
    names = specimen.kernel.arg_names
    attrs = {(names.index(name),): [["tt.divisibility", divisor]] for name, divisor in specimen.attrs.items()}
    source = ASTSource(specimen.kernel, {name: specimen.signature[name] for name in names}, specimen.constexprs, attrs)
    options = {"num_warps": specimen.num_warps, "num_stages": specimen.num_stages}
    compiled = triton.compile(source, target=GPUTarget("cuda", sm, 32), options=options)
    with tempfile.TemporaryDirectory() as folder:
        cubin = Path(folder) / "kernel.cubin"
        cubin.write_bytes(compiled.asm["cubin"])
        code = sass.read(cubin)[compiled.metadata.name]
    metadata = compiled.metadata  # Triton launches with all shared memory as dynamic
    return Kernel(
        specimen.name, sm, metadata.num_warps, 0, metadata.shared, metadata.tmem_size or 0, specimen.matrix, code
    )  # fmt: skip


def kernels(modules: Sequence[str], only: str, sms: Sequence[int], jobs: int) -> Iterator[Kernel | str]:
    """The kernels of these modules whose names hold `only`, for these architectures; in place of one, why it does not compile."""
    work = [(specimen, sm) for specimen in specimens(modules) if only in specimen.name for sm in sms]
    with tempfile.TemporaryDirectory() as cache, ThreadPoolExecutor(jobs) as pool:
        os.environ["TRITON_CACHE_DIR"] = cache  # a fresh one: what is shown was compiled now
        futures = [pool.submit(compile, *pair) for pair in work]
        for (specimen, sm), future in zip(work, futures, strict=True):
            try:
                yield future.result()
            except Exception as error:  # of the compiler: the other kernels are looked at all the same
                yield f"{specimen.name} on sm_{sm}: it does not compile: {type(error).__name__}: {error}"
