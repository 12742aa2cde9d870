"""The process that loads damaged files. It may crash or hang: its parent, `harness.py`, sees that and goes on with another.

python -m tests.fuzz.child MODULE TARGET FIRST LAST SECONDS REPORT PROGRESS
"""

from __future__ import annotations

import faulthandler
import importlib
import json
import mmap
import re
import resource
import signal
import sys
import tempfile
import warnings
from collections import Counter
from pathlib import Path
from typing import Any

import torch

from tests.fuzz.mutations import Mutation
from tests.fuzz.targets import Target

HEADROOM = 1 << 30  # bytes of address space; an allocation beyond fails at once instead of taking the machine down


def address_space() -> int:
    """Most bytes of address space this process ever had."""
    return _status("VmPeak")


def _status(field: str) -> int:
    found = re.search(rf"^{field}:\s+(\d+) kB$", Path("/proc/self/status").read_text(), re.MULTILINE)
    assert found is not None
    return int(found[1]) << 10


def outcome(target: Target, content: bytes, valid: Any, path: Path, mutation: Mutation) -> str:
    """'rejected', 'the same' or 'forged'; else, in words, what is wrong. `valid` is what a file with `content` holds."""
    path.write_bytes(mutation.data)
    try:
        loaded = target.load(path)
    except target.accepted as error:
        text = str(error)
        return "rejected" if path.name in text else f"wrong: an error that does not name the file: {text[:200]!r}"
    except BaseException as error:  # SystemExit and panics of libraries are no Exception
        return f"wrong: {type(error).__name__}: {str(error)[:200]!r}"
    if target.sealed and mutation.forged:
        return "forged"
    if not target.same(valid, loaded):
        return "wrong: other content, without a word"
    if target.sealed and mutation.data != content:
        return "wrong: a changed byte was not noticed"
    return "the same"


def main(module: str, name: str, first: int, last: int, seconds: float, report: Path, progress: Path) -> None:
    faulthandler.enable()
    faulthandler.register(signal.SIGALRM, chain=True)  # shows where it hangs; then the signal ends the process
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")  # a warning about a damaged file is no outcome
    target: Target = importlib.import_module(module).TARGETS[name]
    counts: Counter[str] = Counter()
    wrong: list[tuple[int, str, str]] = []
    with tempfile.TemporaryDirectory() as folder, progress.open("r+b") as file, mmap.mmap(file.fileno(), 16) as at:
        path = target.write(Path(folder))
        content = path.read_bytes()
        valid = target.load(path)
        for seed in range(20):  # everything is imported and every cache filled before memory is measured
            outcome(target, content, valid, path, target.mutate(content, f"{name}/warm-up/{seed}"))
        resource.setrlimit(resource.RLIMIT_AS, (_status("VmSize") + HEADROOM, resource.RLIM_INFINITY))
        before = address_space()
        for seed in range(first, last):
            at[:8] = seed.to_bytes(8, "little")  # survives a crash
            mutation = target.mutate(content, f"{name}/{seed}")
            signal.setitimer(signal.ITIMER_REAL, seconds)
            result = outcome(target, content, valid, path, mutation)
            signal.setitimer(signal.ITIMER_REAL, 0)
            after = address_space()
            if after - before > target.memory:
                result = f"wrong: {(after - before) >> 20} MB more memory"
                before = after
            if result.startswith("wrong"):
                wrong.append((seed, mutation.how, result.removeprefix("wrong: ")))
                result = "wrong"
            counts[result] += 1
        usage = {"peak": _status("VmHWM"), "growth": max(0, after - before) if last > first else 0}
    report.write_text(json.dumps({"counts": counts, "wrong": wrong, **usage}))


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4]), float(sys.argv[5]), Path(sys.argv[6]), Path(sys.argv[7]))
