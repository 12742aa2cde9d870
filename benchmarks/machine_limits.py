"""What one core can do, measured: peak multiply-adds, loads from L1 and L2, copies through memory."""

from __future__ import annotations

import ctypes
import shutil
import statistics
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path

_SOURCE = Path(__file__).with_name("machine_limits.cpp")
_SECONDS, _TURNS = 0.15, 5


@dataclass(frozen=True)
class Limits:
    """Medians of one core.

    Attributes:
        vector_bits: of the instruction set the compiler took.
        fma_gflops, bf16_gflops: fp32 multiply-adds, and bf16 ones into fp32 (0 where there are none): 1e9 operations a
            second, a multiply-add being two.
        l1_load, l2_load: GB/s.
        memory_copy: GB/s, bytes read plus bytes written.
    """

    vector_bits: int
    fma_gflops: float
    bf16_gflops: float
    l1_load: float
    l2_load: float
    memory_copy: float


def measure() -> Limits:
    """Build the little library in a temporary folder and run it, every function in turn, five times.

    Raises:
        RuntimeError: there is no C++ compiler, or it refuses.
    """
    compiler = shutil.which("g++") or shutil.which("clang++")
    if compiler is None:
        raise RuntimeError("the core's limits are measured by compiled code, and there is neither g++ nor clang++ here")
    with tempfile.TemporaryDirectory() as folder:
        library = Path(folder) / "machine_limits.so"
        flags = ["-O3", "-march=native", "-ffp-contract=fast", "-std=c++17", "-shared", "-fPIC"]
        command = [compiler, *flags, "-o", str(library), str(_SOURCE)]
        built = subprocess.run(command, capture_output=True, text=True)
        if built.returncode:
            raise RuntimeError(f"{compiler} refuses {_SOURCE.name}: {built.stderr}")
        loaded = ctypes.CDLL(str(library))
    names = ("fma_gflops", "bf16_gflops", "l1_load", "l2_load", "memory_copy")
    rates: dict[str, list[float]] = {name: [] for name in names}
    for name in names:
        getattr(loaded, name).restype = ctypes.c_double
    for _ in range(_TURNS):
        for name, taken in rates.items():
            taken.append(getattr(loaded, name)(ctypes.c_double(_SECONDS)))
    return Limits(loaded.vector_bits(), **{name: statistics.median(taken) for name, taken in rates.items()})
