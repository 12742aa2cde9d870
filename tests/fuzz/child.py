"""The process that loads damaged files. It may crash or hang: its parent, `harness.py`, sees that and goes on with another.

python -m tests.fuzz.child MODULE JOBS SECONDS FOLDER
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
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from tests.fuzz.mutations import Mutation
from tests.fuzz.targets import Target, valid_files

HEADROOM = 1 << 30  # bytes of address space; an allocation beyond fails at once instead of taking the machine down


def outcome(target: Target, valid: Any, folder: Path, path: Path, content: bytes, mutation: Mutation) -> str:
    """'rejected', 'the same' or 'forged'; else, in words, what is wrong. `valid` is what a file with `content` holds."""
    path.write_bytes(mutation.data)
    try:
        loaded = target.load(folder)
    except target.accepted as error:
        text = str(error)
        named = path.name in text or str(folder) in text
        return "rejected" if named else f"wrong: an error that does not name the file: {text[:200]!r}"
    except BaseException as error:  # SystemExit and panics of libraries are no Exception
        return f"wrong: {type(error).__name__}: {str(error)[:200]!r}"
    finally:
        path.write_bytes(content)
    if target.sealed and mutation.forged:
        return "forged"
    if not target.same(valid, loaded):
        return "wrong: other content, without a word"
    if target.sealed and mutation.data != content:
        return "wrong: a changed byte was not noticed"
    return "the same"


def fuzz(name: str, target: Target, seeds: range, seconds: float, started: Callable[[int], None]) -> dict[str, Any]:
    """Counts, wrong outcomes and memory of one target; `started` is called before each mutation."""
    counts: Counter[str] = Counter()
    wrong: list[tuple[int, str, str]] = []
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        files = valid_files(target, folder)
        valid = target.load(folder)
        for seed in range(20):  # everything is imported and every cache filled before memory is measured
            path, content = files[seed % len(files)]
            outcome(target, valid, folder, path, content, target.mutate(content, f"{name}/warm-up/{seed}"))
        resource.setrlimit(resource.RLIMIT_AS, (_status("VmSize") + HEADROOM, resource.RLIM_INFINITY))
        before = after = _status("VmPeak")
        for seed in seeds:
            started(seed)
            path, content = files[seed % len(files)]
            mutation = target.mutate(content, f"{name}/{seed}")
            signal.setitimer(signal.ITIMER_REAL, seconds)
            result = outcome(target, valid, folder, path, content, mutation)
            signal.setitimer(signal.ITIMER_REAL, 0)
            after = _status("VmPeak")
            if after - before > target.memory:
                # an error that is wrong by itself says more; where malloc fails it tries a new arena, 128 MB of addresses
                result = result if result.startswith("wrong") else f"wrong: {(after - before) >> 20} MB more memory"
                before = after
            if result.startswith("wrong"):
                wrong.append((seed, f"{path.name}: {mutation.how}", result.removeprefix("wrong: ")))
                result = "wrong"
            counts[result] += 1
    resource.setrlimit(resource.RLIMIT_AS, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    return {"counts": counts, "wrong": wrong, "peak": _status("VmHWM"), "growth": after - before}


def _status(field: str) -> int:
    """A size in bytes. VmPeak: the most address space this process ever had; VmHWM: the most memory."""
    found = re.search(rf"^{field}:\s+(\d+) kB$", Path("/proc/self/status").read_text(), re.MULTILINE)
    assert found is not None
    return int(found[1]) << 10


def main(module: str, jobs: list[tuple[str, int, int]], seconds: float, place: Path) -> None:
    faulthandler.enable()
    faulthandler.register(signal.SIGALRM, chain=True)  # shows where it hangs; then the signal ends the process
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")  # a warning about a damaged file is no outcome
    targets: dict[str, Target] = importlib.import_module(module).TARGETS
    with (place / "progress").open("r+b") as file, mmap.mmap(file.fileno(), 8) as seed_now:
        for name, first, last in jobs:

            def started(seed: int) -> None:
                seed_now[:] = seed.to_bytes(8, "little")  # survives a crash

            report = fuzz(name, targets[name], range(first, last), seconds, started)
            with (place / "reports").open("a") as reports:
                reports.write(json.dumps(report) + "\n")


if __name__ == "__main__":
    main(sys.argv[1], json.loads(sys.argv[2]), float(sys.argv[3]), Path(sys.argv[4]))
