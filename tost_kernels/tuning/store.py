"""The disk cache of tuned plans: one small JSON file a case, in a folder for this machine and these versions.

    <folder>/<environment>/<case>.json

One file a case, because then processes that tune at the same time need no lock: each file is written beside its place and
renamed over it, whole or not at all, and whoever comes last leaves a valid result. Names are hashes; every file repeats in
clear what they stand for, and is not believed if that differs. A cache that cannot be read or written costs time, never
the run: one warning says so.
"""

from __future__ import annotations

import functools
import hashlib
import importlib.metadata
import json
import os
import platform
import tempfile
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from tost_kernels import backend, library
from tost_kernels.plan import Case, Plan

FORMAT = 2  # 2: a case has its precision and its live filters and channels
_WARNED: set[str] = set()  # kinds of trouble told in this process


def folder() -> Path:
    """$TOST_CACHE_DIR, else $XDG_CACHE_HOME/tost, else ~/.cache/tost. Raises RuntimeError where there is no home."""
    own, shared = os.environ.get("TOST_CACHE_DIR"), os.environ.get("XDG_CACHE_HOME")
    if own:
        return Path(own)
    if shared and Path(shared).is_absolute():  # its specification says to ignore others
        return Path(shared) / "tost"
    return Path.home() / ".cache" / "tost"


def place() -> str | None:
    """`folder` as text; None where there is none."""
    try:
        return str(folder())
    except RuntimeError:
        return None


def environment(device: str) -> dict[str, Any]:
    """What a time depends on besides the case: hardware, instruction set, versions, and the compiled code itself."""
    found: dict[str, Any] = {
        "format": FORMAT,
        "torch": torch.__version__,
        "tost_kernels": _version("tost-sparse"),
        "cpu": cpu_name(),
        "cpu_instructions": torch.ops.tost.cpu_isa() if library.reason("cpu") is None else None,
        "libraries": _libraries(),
    }
    if device == "cuda":
        found["gpu"] = torch.cuda.get_device_name()
        found["compute_capability"] = list(torch.cuda.get_device_capability())
        found["cuda"] = torch.version.cuda
        found["cudnn"] = torch.backends.cudnn.version()  # type: ignore[no-untyped-call]
        found["triton"] = _version("triton")
        shared = ("row_groups.py", "plan_options.py")
        found["triton_kernels"] = _sources("triton/*.py", "tiles.py", *shared)
        found["cuda_plans"] = _sources("cuda_options.py", "gather.py", *shared)
    return found


def load(case: Case, check: Callable[[Plan], None]) -> tuple[Plan, list[tuple[Plan, float]]] | None:
    """The plan stored for this case on this machine, and the (plan, milliseconds) it was chosen from; None if there is none.

    check: raises RuntimeError for a plan that the kernels do not accept. A file that cannot be read, or is not what it should
    be, counts as none, with a warning.
    """
    try:
        file = _file(case)
        text = file.read_text()
    except FileNotFoundError:
        return None
    except (OSError, RuntimeError, UnicodeDecodeError) as error:
        _warn("read", f"cannot be read ({error}); tuning measures anew")
        return None
    try:
        entry = json.loads(text)
        if entry["environment"] != environment(case.device) or entry["case"] != _plain(case):
            raise ValueError("it is about another case")
        timings = [(_plan(row), float(row["milliseconds"])) for row in entry["candidates"]]
        plan = _plan(entry["plan"])
        check(plan)
        return plan, timings
    except (ValueError, TypeError, KeyError, RuntimeError) as error:  # JSONDecodeError is a ValueError
        _warn("corrupt", f"holds a damaged file, {file} ({type(error).__name__}: {error}); tuning measures anew and replaces it")
        return None


def save(case: Case, plan: Plan, timings: Sequence[tuple[Plan, float]]) -> None:
    """Store what tuning found; a warning where that is impossible."""
    entry = {
        "environment": environment(case.device),
        "case": _plain(case),
        "plan": {"backend": plan.backend, "options": plan.options},
        "candidates": [{"backend": p.backend, "options": p.options, "milliseconds": round(ms, 6)} for p, ms in timings],
    }
    try:
        file = _file(case)
        file.parent.mkdir(parents=True, exist_ok=True)
        _write(file, json.dumps(entry, indent=1) + "\n")
    except (OSError, RuntimeError) as error:
        _warn("write", f"cannot be written ({error}); what tuning finds holds for this process only")


def count(device: str = "cpu") -> int:
    """How many cases are stored for this machine and these versions."""
    try:
        return sum(1 for _ in (folder() / _digest(environment(device))).glob("*.json"))
    except (OSError, RuntimeError):
        return 0


def _file(case: Case) -> Path:
    return folder() / _digest(environment(case.device)) / f"{_digest(_plain(case))}.json"


def _write(file: Path, text: str) -> None:
    descriptor, temporary = tempfile.mkstemp(dir=file.parent, prefix=".writing-")
    try:
        with os.fdopen(descriptor, "w") as stream:
            stream.write(text)
            stream.flush()
            os.fsync(stream.fileno())
        os.replace(temporary, file)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


def _plain(case: Case) -> dict[str, Any]:
    return {name: list(value) if isinstance(value, tuple) else value for name, value in case._asdict().items()}


def _plan(row: Any) -> Plan:
    name, options = row["backend"], row["options"]
    if name not in backend.BACKENDS or not isinstance(options, str):
        raise ValueError(f"no plan: {name!r}, {options!r}")
    return Plan(name, options)


def _digest(values: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()[:20]


def _warn(kind: str, what: str) -> None:
    if kind not in _WARNED:
        _WARNED.add(kind)
        where = place() or "(no home folder)"
        warnings.warn(f"tune: the cache {where} {what}. TOST_CACHE_DIR names another folder", RuntimeWarning, stacklevel=4)


def _version(distribution: str) -> str:
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"


@functools.cache
def cpu_name() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


@functools.cache
def _libraries() -> dict[str, str]:
    """A hash of each compiled library: kernels rebuilt under the same version are other kernels."""
    files = sorted(Path(library.__file__).parent.glob("_c*.so"))
    return {file.name.partition(".")[0]: hashlib.sha256(file.read_bytes()).hexdigest()[:12] for file in files}


@functools.cache
def _sources(*patterns: str) -> str:
    """The same for what is in no library: kernels compiled where they run, what a plan leaves to a rule, the index they read."""
    folder = Path(library.__file__).parent
    files = sorted(file for pattern in patterns for file in folder.glob(pattern))
    return hashlib.sha256(b"".join(file.read_bytes() for file in files)).hexdigest()[:12]
