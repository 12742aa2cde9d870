"""What the machine code of a GPU kernel says about itself: registers, spills, tensor-core instructions, wide loads."""

from __future__ import annotations

import functools
import importlib.util
import math
import os
import re
import shutil
import subprocess
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

_LINE = re.compile(r"^\s*/\*[0-9a-f]{4,}\*/\s+(?:@!?U?P\w+\s+)?([A-Z][\w.]*)", re.MULTILINE)
_SECTION = re.compile(r"^\.text\.(\S+):$", re.MULTILINE)
_USAGE = re.compile(r"Function ([^\s:]+):\s+REG:(\d+) STACK:(\d+) SHARED:(\d+)")
# HMMA, IMMA, DMMA; on Hopper HGMMA too, of a warp group; on Blackwell UTCHMMA, with accumulators in tensor memory. HFMA2.MMA is
# none of them: it is how ptxas writes a constant into a register.
_TENSOR_CORE = re.compile(r"(?:[A-Z]G?MMA|UTC[A-Z]+MMA)(?:\.|$)")
_WIDTH = re.compile(r"\.(?:[US]?(8|16)|64|128|256)(?=\.|$)")
_BOUND = re.compile(r"^\.nv\.info\.(\S+)$|EIATTR_MAX_THREADS\s+Format:.*\s+Value:\s+(.*)$", re.MULTILINE)
# Global memory: loads, stores, and copies to shared memory at once (cp.async). Shared memory: loads, stores, ldmatrix.
MOVES = ("LDG", "STG", "LDGSTS", "LDS", "STS", "LDSM")


@dataclass(frozen=True)
class Code:
    """One kernel in a cubin.

    registers: of a thread. stack: bytes of a thread in local memory. spills: bytes that local loads and stores of the code move,
    each counted once; a kernel without spills or indexed local arrays has none. static_shared: bytes, on some architectures with
    what the driver keeps for itself. tensor_core: instruction -> how often it stands in the code. moves: for each of MOVES that
    the code has, how many instructions move 16 bytes a thread or more, and how many there are.
    """

    registers: int
    stack: int
    spills: int
    static_shared: int
    tensor_core: dict[str, int]
    moves: dict[str, tuple[int, int]]


@functools.cache
def tool(name: str) -> str:
    """The path of "cuobjdump" or "nvdisasm": on the PATH, in CUDA_HOME, or in the triton package. RuntimeError if nowhere."""
    places = [os.path.join(os.environ.get("CUDA_HOME", "/usr/local/cuda"), "bin")]
    spec = importlib.util.find_spec("triton")
    if spec is not None and spec.origin is not None:
        places.insert(0, str(Path(spec.origin).parent / "backends/nvidia/bin"))
    found = shutil.which(name, path=os.pathsep.join([*places, os.environ.get("PATH", "")]))
    if found is None:
        raise RuntimeError(f"{name} is needed, of the triton package or of a CUDA toolkit: neither {places} nor PATH has it")
    return found


def _run(*command: str, folder: Path | None = None) -> str:
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=folder)
    if done.returncode:
        raise RuntimeError(f"{Path(command[0]).name} failed with exit code {done.returncode}: {done.stderr.strip()}")
    return done.stdout


def instructions(cubin: Path) -> dict[str, list[str]]:
    """What stands in the code of every kernel, in its order, with suffixes but without operands."""
    _, *parts = _SECTION.split(_run(tool("nvdisasm"), "-c", "-ndf", str(cubin)))
    return {name: _LINE.findall(body) for name, body in zip(parts[::2], parts[1::2], strict=True)}


def _bytes(instruction: str) -> int:
    """What a thread moves by a load or store."""
    if instruction.startswith("LDSM."):  # matrices of 8 rows of 16 bytes: one, two or four of them
        return 4 * int(instruction[-1]) if instruction[-2:] in (".2", ".4") else 4
    width = _WIDTH.search(instruction)
    return 4 if width is None else int(re.sub(r"\D", "", width.group())) // 8


def code_of(instructions: Iterable[str], registers: int, stack: int, static_shared: int) -> Code:
    """What these instructions, with their suffixes, and the compiler's own figures say."""
    counts = Counter(instructions)
    moves: dict[str, tuple[int, int]] = {}
    for instruction, n in counts.items():
        kind = instruction.split(".")[0]
        if kind in MOVES:
            wide, all_of_them = moves.get(kind, (0, 0))
            moves[kind] = (wide + (n if _bytes(instruction) >= 16 else 0), all_of_them + n)
    return Code(
        registers=registers,
        stack=stack,
        spills=sum(n * _bytes(i) for i, n in counts.items() if i.split(".")[0] in ("LDL", "STL")),
        static_shared=static_shared,
        tensor_core={i: n for i, n in counts.items() if _TENSOR_CORE.match(i)},
        moves={kind: moves[kind] for kind in MOVES if kind in moves},
    )


def usage(cubin: Path) -> dict[str, list[int]]:
    """Registers, stack and shared memory of every kernel in a cubin, by name. RuntimeError if it is none."""
    return {m[0]: [int(n) for n in m[1:]] for m in _USAGE.findall(_run(tool("cuobjdump"), "--dump-resource-usage", str(cubin)))}


def read(cubin: Path) -> dict[str, Code]:
    """The code of every kernel in a cubin, by name. RuntimeError if it is none."""
    used = usage(cubin)
    if not used:  # what the linker leaves in a library
        return {}
    return {name: code_of(listed, *used[name]) for name, listed in instructions(cubin).items()}


def launch_bounds(cubin: Path) -> dict[str, int]:
    """The most threads a block of each kernel may have, for kernels that say so (__launch_bounds__)."""
    bounds: dict[str, int] = {}
    kernel = ""
    for name, threads in _BOUND.findall(_run(tool("cuobjdump"), "--dump-elf", str(cubin))):
        kernel = name or kernel
        if threads:
            bounds[kernel] = math.prod(int(n, 0) for n in threads.split())
    return bounds


def extract(library: Path, folder: Path) -> list[tuple[int, Path]]:
    """(architecture, as 90; cubin) of all that a library holds, written to `folder`. RuntimeError if it holds none."""
    _run(tool("cuobjdump"), "--extract-elf", "all", str(library.resolve()), folder=folder)
    found = [(int(match[1]), file) for file in folder.iterdir() if (match := re.search(r"\.sm_(\d+)\w*\.cubin$", file.name))]
    if not found:
        raise RuntimeError(f"{library}: expected a library with GPU code, found none")
    return sorted(found)
