"""What the machine code of a GPU kernel says about itself: registers, spills, tensor-core instructions, wide loads."""

from __future__ import annotations

import functools
import importlib.util
import os
import re
import shutil
import subprocess
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

_LINE = re.compile(r"^\s*/\*[0-9a-f]{4,}\*/\s+(?:@!?U?P\w+\s+)?([A-Z][\w.]*)", re.MULTILINE)
_SECTION = re.compile(r"^\.text\.(\S+):$", re.MULTILINE)
_USAGE = re.compile(r"Function ([^\s:]+):\s+REG:(\d+) STACK:(\d+) SHARED:(\d+)")
# HMMA, IMMA, DMMA; on Hopper HGMMA too, of a warp group; on Blackwell UTCHMMA, with accumulators in tensor memory. HFMA2.MMA is
# none of them: it is how ptxas writes a constant into a register.
_TENSOR_CORE = re.compile(r"(?:[A-Z]G?MMA|UTC[A-Z]+MMA)(?:\.|$)")
_WIDTH = re.compile(r"\.(?:[US]?(8|16)|64|128|256)(?=\.|$)")


@dataclass(frozen=True)
class Code:
    """One kernel in a cubin.

    registers: of a thread. stack: bytes of a thread in local memory. spills: bytes that local loads and stores of the code move,
    each counted once; a kernel without spills or indexed local arrays has none. static_shared: bytes, on some architectures with
    what the driver keeps for itself. tensor_core: instruction -> how often it stands in the code. loads: instructions that read
    global memory, also those that write it to shared memory at once; wide_loads: those of 16 bytes a thread or more.
    """

    registers: int
    stack: int
    spills: int
    static_shared: int
    tensor_core: dict[str, int]
    loads: int
    wide_loads: int


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


def _run(*command: str) -> str:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{Path(command[0]).name} failed with exit code {done.returncode}: {done.stderr.strip()}")
    return done.stdout


def _functions(listing: str) -> Iterator[tuple[str, list[str]]]:
    """(name, instructions) of every kernel in what nvdisasm prints."""
    _, *parts = _SECTION.split(listing)
    for name, body in zip(parts[::2], parts[1::2], strict=True):
        yield name, _LINE.findall(body)


def _bytes(instruction: str) -> int:
    """What a thread moves by a load or store."""
    width = _WIDTH.search(instruction)
    return 4 if width is None else int(re.sub(r"\D", "", width.group())) // 8


def code_of(instructions: Iterable[str], registers: int, stack: int, static_shared: int) -> Code:
    """What these instructions, with their suffixes, and the compiler's own figures say."""
    counts = Counter(instructions)
    loads = {i: n for i, n in counts.items() if i.startswith(("LDG.", "LDGSTS."))}
    return Code(
        registers=registers,
        stack=stack,
        spills=sum(n * _bytes(i) for i, n in counts.items() if i.split(".")[0] in ("LDL", "STL")),
        static_shared=static_shared,
        tensor_core={i: n for i, n in counts.items() if _TENSOR_CORE.match(i)},
        loads=sum(loads.values()),
        wide_loads=sum(n for i, n in loads.items() if _bytes(i) >= 16),
    )


def read(cubin: Path) -> dict[str, Code]:
    """The code of every kernel in a cubin, by name. RuntimeError if it is none, or holds none."""
    usage = {m[0]: [int(n) for n in m[1:]] for m in _USAGE.findall(_run(tool("cuobjdump"), "--dump-resource-usage", str(cubin)))}
    found = {}
    for name, instructions in _functions(_run(tool("nvdisasm"), "-c", "-ndf", str(cubin))):
        found[name] = code_of(instructions, *usage[name])
    if not found:
        raise RuntimeError(f"{cubin}: expected a cubin with kernels, found none")
    return found
