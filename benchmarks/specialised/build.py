"""Specialised code, compiled and called."""

from __future__ import annotations

import ctypes
import os
import resource
import shlex
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path

from torch import Tensor

from benchmarks.specialised.source import Part

_ROOT = Path(__file__).parents[2]
_INCLUDES = [f"-I{_ROOT / 'csrc' / 'cuda'}", f"-I{Path(__file__).parent}"]
_NVCC = ["-std=c++20", "-O3", "--expt-relaxed-constexpr"]
# The shim, by which the same code runs on the CPU.
_HOST = ["-x", "c++", "-std=c++20", "-O1", "-DTOST_CUDA_HOST", f"-I{_ROOT / 'tests' / 'cuda_host'}", "-fPIC", "-shared"]


def nvcc() -> str | None:
    """Its path, if there is one here."""
    return shutil.which("nvcc") or shutil.which(os.path.join(os.environ.get("CUDA_HOME", "/usr/local/cuda"), "bin", "nvcc"))


def _run(command: Sequence[str]) -> float:
    """Returns the CPU seconds that it took. RuntimeError where it fails."""
    start = _seconds()
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{command[0]} failed with exit code {done.returncode}: {done.stderr.strip()}")
    return _seconds() - start


def _seconds() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def cubin(source: Path, sm: int) -> tuple[Path, float]:
    """(machine code for sm_<sm>, the CPU seconds it took). RuntimeError if nvcc fails, or there is none."""
    compiler = nvcc()
    if compiler is None:
        raise RuntimeError("expected nvcc on the PATH or in CUDA_HOME, found none")
    file = source.with_suffix(".cubin")
    return file, _run([compiler, *_NVCC, *_INCLUDES, f"-arch=sm_{sm}", "-cubin", "-o", str(file), str(source)])


class Specialised:
    """A layer's code, ready to be called with tensors of the device it was built for."""

    def __init__(self, parts: Sequence[Part], folder: Path, sm: int | None) -> None:
        """Compiles in `folder`. sm: the GPU's architecture, as 90; None: by the shim, for the CPU."""
        self.parts, self.seconds = parts, 0.0
        self._libraries = []
        for i, part in enumerate(parts):
            source, library = folder / f"part{i}.cu", folder / f"part{i}.so"
            source.write_text(part.text)
            if sm is None:
                compiler = shlex.split(os.environ.get("CXX", "g++"))
                command = [*compiler, *_HOST, *_INCLUDES, str(source), "-o", str(library)]
            else:
                gpu = [f"-arch=sm_{sm}", "-shared", "-Xcompiler=-fPIC,-fvisibility=hidden"]
                command = [nvcc() or "nvcc", *_NVCC, *_INCLUDES, *gpu, str(source), "-o", str(library)]
            self.seconds += _run(command)
            self._libraries.append(ctypes.CDLL(str(library)))
        self._places: dict[str, list[Tensor]] = {}

    def set_weights(self, values: Tensor, stream: int = 0) -> None:
        """values: the layer's packed weights, float32, (nnz,), in the order of the mask."""
        places = self._places.setdefault(str(values.device), [part.place.to(values.device) for part in self.parts])
        for library, place in zip(self._libraries, places, strict=True):
            scratch = values.new_empty(len(place))
            pointers = (values.data_ptr(), place.data_ptr(), scratch.data_ptr(), stream)
            library.set_weights(*map(ctypes.c_void_p, pointers))

    def multiply(self, x: Tensor, out: Tensor, stream: int = 0) -> None:
        """x: float32 of memory [C][H][W][N], out likewise, of the layer's outputs; what is in it is overwritten."""
        for library, part in zip(self._libraries, self.parts, strict=True):
            library.multiply(*map(ctypes.c_void_p, (x.data_ptr(), out[part.rows[0] :].data_ptr(), stream)))
