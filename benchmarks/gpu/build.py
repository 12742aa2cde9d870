"""Building the compiled parts in place, where they are missing: before anything of the package is imported. Needs no network."""

from __future__ import annotations

import importlib.machinery
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


def missing(package: Path = ROOT / "tost_kernels") -> tuple[str, ...]:
    """The compiled parts that this Python cannot load: absent, or built for another one."""

    def there(stem: str, endings: list[str]) -> bool:
        return any((package / (stem + ending)).exists() for ending in endings)

    endings = importlib.machinery.EXTENSION_SUFFIXES
    wanted = {"_pattern": endings, "_cpu": [*endings, ".abi3.so"]}
    return tuple(stem for stem, own in wanted.items() if not there(stem, own))


def build(root: Path = ROOT) -> Build:
    """Build what is missing."""
    absent = missing(root / "tost_kernels")
    if not absent:
        return Build(())
    start = time.monotonic()
    print(f"building {', '.join(absent)}", flush=True)
    command = [sys.executable, "setup.py", "build_ext", "--inplace"]
    done = subprocess.run(command, cwd=root, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False)
    status = done.returncode or (1 if missing(root / "tost_kernels") else 0)
    return Build(absent, time.monotonic() - start, status, done.stdout[-2000:])
