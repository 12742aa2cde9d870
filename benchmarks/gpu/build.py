"""Building the compiled parts in place, where they are missing: before anything of the package is imported. Needs no network."""

from __future__ import annotations

import importlib.machinery
import importlib.util
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent.parent


@dataclass(frozen=True)
class Build:
    """missing: parts that were not there. output: the end of what the build said, "" where there was nothing to build."""

    missing: tuple[str, ...]
    seconds: float = 0.0
    status: int = 0
    output: str = ""


def missing(package: Path = ROOT / "tost_kernels", cuda: bool = False) -> tuple[str, ...]:
    """The compiled parts that this Python cannot load: absent, or built for another one. cuda: whether its kernels are wanted."""

    def there(stem: str, endings: list[str]) -> bool:
        return any((package / (stem + ending)).exists() for ending in endings)

    endings = importlib.machinery.EXTENSION_SUFFIXES
    wanted = {"_pattern": endings, "_cpu": [*endings, ".abi3.so"]}
    if cuda:
        wanted["_cuda"] = wanted["_cpu"]
    return tuple(stem for stem, own in wanted.items() if not there(stem, own))


def can_build_cuda() -> bool:
    """Whether there is a torch that would load the CUDA kernels, and an nvcc to compile them."""
    if importlib.util.find_spec("torch") is None:
        return False
    import torch
    from torch.utils.cpp_extension import CUDA_HOME

    return torch.version.cuda is not None and CUDA_HOME is not None and Path(CUDA_HOME, "bin", "nvcc").exists()


def build(root: Path = ROOT) -> Build:
    """Build what is missing. A library that was carried here serves as well: one binary is for every torch and Python."""
    cuda = can_build_cuda()
    absent = missing(root / "tost_kernels", cuda)
    if not absent:
        return Build(())
    start = time.monotonic()
    print(f"building {', '.join(absent)}", flush=True)
    command = [sys.executable, "setup.py", "build_ext", "--inplace"]
    done = subprocess.run(command, cwd=root, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False)
    status = done.returncode or (1 if missing(root / "tost_kernels", cuda) else 0)
    return Build(absent, time.monotonic() - start, status, done.stdout[-2000:])
