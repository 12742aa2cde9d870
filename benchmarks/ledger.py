"""The ledger: one JSON line a measurement, with the command, hardware and versions that it needs to be understood later."""

from __future__ import annotations

import dataclasses
import datetime
import functools
import json
import os
import platform
import re
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

import tost_kernels  # noqa: F401  (registers cpu_isa)
from benchmarks.timing import Summary

RESULTS = Path(__file__).parent / "results"
_ROOT = Path(__file__).parent.parent


@dataclass(frozen=True)
class Record:
    """One measurement.

    Attributes:
        question: which table it belongs to, e.g. "kernels".
        case: what was computed, e.g. {"layer": "64@32", "sparsity": 0.9, "part": "forward"}.
        variant: who computed it, e.g. "sparse float32" or "dense float32".
        threads: of torch.
        value: what came out; milliseconds a call unless `unit` says otherwise.
        ratio: how many times longer (or larger) `against` was, from the rounds' own ratios.
        against: the variant that `ratio` compares with.
        unit: of `value`.
    """

    question: str
    case: dict[str, Any]
    variant: str
    threads: int
    value: Summary
    ratio: Summary | None = None
    against: str | None = None
    unit: str = "ms"


@functools.cache
def hardware() -> dict[str, Any]:
    """What the numbers were measured on."""
    return {
        "cpu": _line_of("/proc/cpuinfo", "model name") or platform.processor(),
        "family_model": "/".join(_line_of("/proc/cpuinfo", key) or "?" for key in ("cpu family", "model")),
        "isa": torch.ops.tost.cpu_isa() if hasattr(torch.ops.tost, "cpu_isa") else "no compiled kernels",
        "cores": len(_usable_cores()),
        "memory_gib": round(int((_line_of("/proc/meminfo", "MemTotal") or "0 kB").split()[0]) / 2**20, 1),
    }


@functools.cache
def versions() -> dict[str, str]:
    """What the numbers were measured with; a commit that ends in + had uncommitted changes."""
    config = torch.__config__.show()
    mkl = re.search(r"Math Kernel Library Version (\d[\d.]*)", config)
    onednn = re.search(r"MKL-DNN v(\S+)", config)
    return {
        "torch": torch.__version__,
        "onednn": onednn[1] if onednn else "none",
        "mkl": mkl[1] if mkl else "none",
        "tost_kernels": _commit(),
        "python": platform.python_version(),
    }


def describe() -> str:
    """Hardware and versions in one line, for the head of a table."""
    h, v = hardware(), versions()
    return (
        f"{h['cpu']} (family/model {h['family_model']}), {h['isa']}, {h['cores']} cores, {h['memory_gib']} GiB; "
        f"torch {v['torch']}, oneDNN {v['onednn']}, MKL {v['mkl']}, tost_kernels {v['tost_kernels']}, Python {v['python']}"
    )


def load() -> float | None:
    """How many programs wanted a core in the last minute, this one included; several threads suffer from every other."""
    return round(os.getloadavg()[0], 2) if hasattr(os, "getloadavg") else None


def append(records: list[Record], folder: Path = RESULTS) -> None:
    """Add records to `<question>.jsonl` in `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    about = {
        "command": " ".join(["python", *sys.argv]),
        "date": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        "load": load(),
        "hardware": hardware(),
        "versions": versions(),
    }
    for record in records:
        with open(folder / f"{record.question}.jsonl", "a") as file:
            file.write(json.dumps(dataclasses.asdict(record) | about) + "\n")


def read(question: str, folder: Path = RESULTS) -> Iterator[dict[str, Any]]:
    """The records of a question, oldest first. Raises FileNotFoundError where there are none."""
    for line in (folder / f"{question}.jsonl").read_text().splitlines():
        yield json.loads(line)


def _line_of(file: str, key: str) -> str | None:
    """The value of `key` in one of Linux's `key : value` files; None elsewhere."""
    try:
        text = Path(file).read_text()
    except OSError:
        return None
    match = re.search(rf"^{key}\s*:\s*(.*)$", text, re.MULTILINE)
    return match[1] if match else None


def _usable_cores() -> set[int]:
    return os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else set(range(os.cpu_count() or 1))


def _commit() -> str:
    def git(*arguments: str) -> str:
        return subprocess.run(["git", *arguments], cwd=_ROOT, capture_output=True, text=True, check=True).stdout.strip()

    try:
        return git("rev-parse", "--short=12", "HEAD") + ("+" if git("status", "--porcelain", "--untracked-files=no") else "")
    except (OSError, subprocess.CalledProcessError):
        return "not a git checkout"
