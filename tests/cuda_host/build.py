"""Compiles .cu files with g++ and the shim cuda_host.h, so that their kernels run on the CPU."""

from __future__ import annotations

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
BUILT = ROOT / "build" / "cuda_host"
TORCH = Path(torch.__file__).parent
COMPILER = shlex.split(os.environ.get("CXX", "g++"))
WARNINGS = ["-Wall", "-Wextra", "-Werror", "-Wno-unknown-pragmas", "-Wno-unused-parameter"]
SANITIZERS = {
    "thread": ["-fsanitize=thread"],
    "address": ["-O0", "-fsanitize=address,undefined", "-fno-sanitize-recover=undefined"],  # -O0: in half of the time
}

WITHOUT_KERNELS = ("masked_conv2d", "masked_linear")  # nothing of the shim in them: no sanitizer would see anything more
# The first report of a race is the last: to name the places of hundreds takes minutes.
OPTIONS = {"TSAN_OPTIONS": "halt_on_error=1", "ASAN_OPTIONS": "detect_leaks=0"}

LIBRARY = """\
rule compile
  command = {compiler} {flags} {sanitizer} -MMD -MF $out.d -c $in -o $out
  depfile = $out.d
  deps = gcc
rule link
  command = {compiler} {flags} {sanitizer} -x none -shared $in -o $out {libraries}
"""

PROGRAM = """\
rule program
  command = {compiler} {arguments} -MMD -MF $out.d -o $out
  depfile = $out.d
  deps = gcc
build program: program
"""


def _flags(csrc: Path) -> list[str]:
    language = ["-x", "c++", "-std=c++20", "-O1", "-g1", "-DTOST_CUDA_HOST"]
    return [*language, *WARNINGS, f"-I{csrc}", f"-I{csrc / 'cuda'}", f"-I{HERE}"]


def _run(command: list[str], **options: object) -> None:
    done = subprocess.run(command, capture_output=True, text=True, check=False, **options)  # type: ignore[call-overload]
    assert done.returncode == 0, done.stdout + done.stderr


def _ninja(folder: Path, rules: str, target: str) -> Path:
    """Makes what has changed since the last call, on all cores; another process that asks for the same meanwhile waits."""
    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / "lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        (folder / "build.ninja").write_text(rules)
        _run([sys.executable, "-m", "ninja", "-C", str(folder), "-j", str(os.cpu_count() or 1), target])
    return folder / target


def shared_library(sanitizer: str = "") -> Path:
    """csrc/cuda as one library, whose ops take CPU tensors; it stays from one session to the next."""
    abi = ["-fPIC", "-fvisibility=hidden", "-DTORCH_TARGET_VERSION=0x020b000000000000", f"-isystem{TORCH / 'include'}"]
    rules = LIBRARY.format(
        compiler=shlex.join(COMPILER),
        flags=shlex.join([*_flags(CSRC), *abi]),
        sanitizer=shlex.join(SANITIZERS.get(sanitizer, [])),
        libraries=shlex.join([f"-L{TORCH / 'lib'}", "-ltorch", "-ltorch_cpu", "-lc10"]),
    )
    objects, steps = [], []
    plain = sanitizer and shared_library().parent
    for source in sorted((CSRC / "cuda").glob("*.cu")):
        if plain and source.stem in WITHOUT_KERNELS:
            objects.append(str(plain / f"{source.stem}.o"))
            continue
        objects.append(f"{source.stem}.o")
        steps.append(f"build {objects[-1]}: compile {source}")
    steps.append(f"build cuda_host.so: link {' '.join(objects)}\n")
    return _ninja(BUILT / (sanitizer or "plain"), "\n".join([rules, *steps]), "cuda_host.so")


def build_program(name: str, sanitizer: str = "", *flags: str, folder: Path | None = None, csrc: Path = CSRC) -> Path:
    """tests/cuda_host/<name>.cu, which has a main. Without a folder it stays for the next session."""
    command = [*_flags(csrc), *SANITIZERS.get(sanitizer, []), *flags, str(HERE / f"{name}.cu")]
    rules = PROGRAM.format(compiler=shlex.join(COMPILER), arguments=shlex.join(command))
    return _ninja(folder or BUILT / f"{name}_{sanitizer or 'plain'}", rules, "program")


def exercise(sanitizer: str) -> subprocess.CompletedProcess[str]:
    """Run exercise.py on a library that was built with a sanitizer, whose runtime must come before everything else."""
    runtimes = {"thread": ["libtsan.so"], "address": ["libasan.so", "libstdc++.so"]}[sanitizer]
    files = (subprocess.check_output([*COMPILER, f"-print-file-name={name}"], text=True).strip() for name in runtimes)
    environment = OPTIONS | {"LD_PRELOAD": ":".join(files), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "tests.cuda_host.exercise", str(shared_library(sanitizer))]
    return subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT, env=os.environ | environment)


def run_program(program: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([str(program), *arguments], capture_output=True, text=True, check=False, env=os.environ | OPTIONS)
