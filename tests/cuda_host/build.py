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
SANITIZERS = {
    "thread": ["-fsanitize=thread"],
    "address": ["-O0", "-fsanitize=address,undefined", "-fno-sanitize-recover=undefined"],  # -O0: in half of the time
}

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


def build_library(folder: Path, sanitizer: str = "", *, csrc: Path = CSRC, only: str = "") -> Path:
    """csrc/cuda as one library in `folder`, whose ops take CPU tensors. Compiles, on all cores, what has changed since the last
    call; another process that asks for the same meanwhile waits. only: a single file is compiled, the other objects are those of
    the library of every test process."""
    flags = SANITIZERS.get(sanitizer, [])
    abi = ["-fPIC", "-fvisibility=hidden", "-DTORCH_TARGET_VERSION=0x020b000000000000", f"-isystem{TORCH / 'include'}"]
    rules = NINJA.format(
        compiler=shlex.join(COMPILER),
        flags=shlex.join([*_flags(csrc), *abi, *flags]),
        libraries=shlex.join([f"-L{TORCH / 'lib'}", "-ltorch", "-ltorch_cpu", "-lc10"]),
    )
    sources = sorted((csrc / "cuda").glob("*.cu"))
    objects, steps = [], []
    for source in sources:
        if only and source.stem != only:
            objects.append(str(shared_library(sanitizer).parent / f"{source.stem}.o"))
            continue
        objects.append(f"{source.stem}.o")
        steps.append(f"build {objects[-1]}: compile {source}")
    steps.append(f"build cuda_host.so: link {' '.join(objects)}\n")
    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / "lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        (folder / "build.ninja").write_text("\n".join([rules, *steps]))
        _run([sys.executable, "-m", "ninja", "-C", str(folder), "-j", str(os.cpu_count() or 1), "cuda_host.so"])
    return folder / "cuda_host.so"


def shared_library(sanitizer: str = "") -> Path:
    """The library of every test process, which stays from one session to the next."""
    return build_library(ROOT / "build" / "cuda_host" / (sanitizer or "plain"), sanitizer)


def exercise(library: Path, sanitizer: str, *names: str) -> subprocess.CompletedProcess[str]:
    """Run exercise.py on a library that was built with a sanitizer, whose runtime must come before everything else."""
    runtimes = {"thread": ["libtsan.so"], "address": ["libasan.so", "libstdc++.so"]}[sanitizer]
    files = (subprocess.check_output([*COMPILER, f"-print-file-name={name}"], text=True).strip() for name in runtimes)
    environment = {"LD_PRELOAD": ":".join(files), "ASAN_OPTIONS": "detect_leaks=0", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "tests.cuda_host.exercise", str(library), *names]
    return subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT, env=os.environ | environment)


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
