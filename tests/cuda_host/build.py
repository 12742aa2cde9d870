"""Compiles .cu files with g++ and the shim cuda_host.h, so that their kernels run on the CPU."""

from __future__ import annotations

import ctypes
import fcntl
import os
import shlex
import subprocess
import sys
from pathlib import Path

import torch

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
CSRC = ROOT / "csrc"
TORCH = Path(torch.__file__).parent
COMPILER = shlex.split(os.environ.get("CXX", "g++"))
WARNINGS = ["-Wall", "-Wextra", "-Werror", "-Wno-unknown-pragmas", "-Wno-unused-parameter"]
THREADS, ADDRESSES = ["-fsanitize=thread"], ["-fsanitize=address,undefined"]

NINJA = """\
rule compile
  command = {compiler} {flags} -MMD -MF $out.d -c $in -o $out
  depfile = $out.d
  deps = gcc
rule link
  command = {compiler} {flags} -x none -shared $in -o $out {libraries}
"""


def _flags(csrc: Path) -> list[str]:
    language = ["-x", "c++", "-std=c++20", "-O1", "-g1", "-DTOST_CUDA_HOST"]
    return [*language, *WARNINGS, f"-I{csrc}", f"-I{csrc / 'cuda'}", f"-I{HERE}"]


def _run(command: list[str], **options: object) -> None:
    done = subprocess.run(command, capture_output=True, text=True, check=False, **options)  # type: ignore[call-overload]
    assert done.returncode == 0, done.stdout + done.stderr


def build_library(folder: Path, *flags: str, csrc: Path = CSRC) -> Path:
    """csrc/cuda as one library in `folder`, whose ops take CPU tensors. Compiles, on all cores, what has changed since the last
    call; another process that asks for the same meanwhile waits."""
    abi = ["-fPIC", "-fvisibility=hidden", "-DTORCH_TARGET_VERSION=0x020b000000000000", f"-isystem{TORCH / 'include'}"]
    rules = NINJA.format(
        compiler=shlex.join(COMPILER),
        flags=shlex.join([*_flags(csrc), *abi, *flags]),
        libraries=shlex.join([f"-L{TORCH / 'lib'}", "-ltorch", "-ltorch_cpu", "-lc10"]),
    )
    sources = sorted((csrc / "cuda").glob("*.cu"))
    steps = [f"build {source.stem}.o: compile {source}" for source in sources]
    steps.append(f"build cuda_host.so: link {' '.join(f'{source.stem}.o' for source in sources)}\n")
    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / "lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        (folder / "build.ninja").write_text("\n".join([rules, *steps]))
        _run([sys.executable, "-m", "ninja", "-C", str(folder), "-j", str(os.cpu_count() or 1), "cuda_host.so"])
    return folder / "cuda_host.so"


def shared_folder(name: str) -> Path:
    """Where a library of every test process lies, from one session to the next."""
    return ROOT / "build" / "cuda_host" / name


def build_program(folder: Path, name: str, *flags: str) -> Path:
    """Compile tests/cuda_host/<name>.cu, which has a main."""
    file = folder / name
    _run([*COMPILER, *_flags(CSRC), *flags, str(HERE / f"{name}.cu"), "-o", str(file)])
    return file


def run(program: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([str(program), *arguments], capture_output=True, text=True, check=False)


def run_program(folder: Path, name: str, *flags: str) -> subprocess.CompletedProcess[str]:
    return run(build_program(folder, name, *flags))


def build_functions(folder: Path, name: str) -> ctypes.CDLL:
    """Compile tests/cuda_host/<name>.cu, which has C functions and nothing of torch, and load it."""
    file = folder / f"{name}.so"
    _run([*COMPILER, *_flags(CSRC), "-fPIC", "-shared", "-fvisibility=hidden", str(HERE / f"{name}.cu"), "-o", str(file)])
    return ctypes.CDLL(str(file))
