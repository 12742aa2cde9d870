"""Compiles .cu files with g++ and the shim cuda_host.h, so that their kernels run on the CPU."""

from __future__ import annotations

def run_program(folder: Path, name: str, *flags: str) -> subprocess.CompletedProcess[str]:
    return run(build_program(folder, name, *flags))


def build_functions(folder: Path, name: str) -> ctypes.CDLL:
    """Compile tests/cuda_host/<name>.cu, which has C functions and nothing of torch, and load it."""
    file = folder / f"{name}.so"
    _run([*COMPILER, *_flags(CSRC), "-fPIC", "-shared", "-fvisibility=hidden", str(HERE / f"{name}.cu"), "-o", str(file)])
    return ctypes.CDLL(str(file))
