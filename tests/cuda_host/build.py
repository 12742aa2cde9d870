"""Compiles .cu files with g++ and the shim cuda_host.h, so that their kernels run on the CPU."""

from __future__ import annotations

import ctypes
import os
import shlex
import subprocess
from pathlib import Path

import torch

HERE = Path(__file__).parent
CSRC = HERE.parents[1] / "csrc"
TORCH = Path(torch.__file__).parent
COMPILER = shlex.split(os.environ.get("CXX", "g++"))
FLAGS = ["-x", "c++", "-std=c++20", "-O1", "-g1", "-Wall", "-Wextra", "-Wno-unknown-pragmas", "-Wno-unused-parameter"]
FLAGS += ["-DTOST_CUDA_HOST", f"-I{CSRC}", f"-I{CSRC / 'cuda'}", f"-I{HERE}"]


def _compile(arguments: list[str]) -> None:
    done = subprocess.run([*COMPILER, *arguments], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert not done.stderr, done.stderr  # a warning is an error here, too


def build_library(folder: Path) -> Path:
    """All of csrc/cuda as one library, whose ops take CPU tensors."""
    file = folder / "cuda_host.so"
    abi = ["-fPIC", "-shared", "-fvisibility=hidden", "-DTORCH_TARGET_VERSION=0x020b000000000000", f"-isystem{TORCH / 'include'}"]
    libraries = ["-x", "none", f"-L{TORCH / 'lib'}", "-ltorch", "-ltorch_cpu", "-lc10"]
    _compile([*FLAGS, *abi, *map(str, sorted((CSRC / "cuda").glob("*.cu"))), "-o", str(file), *libraries])
    return file


def run_program(folder: Path, name: str, *flags: str) -> subprocess.CompletedProcess[str]:
    """Compile tests/cuda_host/<name>.cu, which has a main, and run it."""
    file = folder / name
    _compile([*FLAGS, *flags, str(HERE / f"{name}.cu"), "-o", str(file)])
    return subprocess.run([str(file)], capture_output=True, text=True, check=False)


def build_functions(folder: Path, name: str) -> ctypes.CDLL:
    """Compile tests/cuda_host/<name>.cu, which has C functions and nothing of torch, and load it."""
    file = folder / f"{name}.so"
    _compile([*FLAGS, "-fPIC", "-shared", "-fvisibility=hidden", str(HERE / f"{name}.cu"), "-o", str(file)])
    return ctypes.CDLL(str(file))
