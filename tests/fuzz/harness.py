"""Load damaged files in a process of their own, and say what came of it."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).parents[2]
MOST_DEATHS = 10  # of child processes, before a target is given up


@dataclass
class Summary:
    """What came of the mutations of one target.

    Attributes:
        counts: how many were "rejected" (a typed error), loaded "the same", "forged" (another whole file, with a checksum of
            its own) or "wrong".
        wrong: (seed, what was done, what is wrong), one for each that must not be.
        seconds: duration.
        peak: most resident memory of the process, in bytes.
        growth: address space that loading damaged files added, in bytes.
    """

    counts: Counter[str] = field(default_factory=Counter)
    wrong: list[tuple[int, str, str]] = field(default_factory=list)
    seconds: float = 0.0
    peak: int = 0
    growth: int = 0

    def __str__(self) -> str:
        kinds = ", ".join(f"{self.counts[kind]:,} {kind}" for kind in ("rejected", "the same", "forged", "wrong"))
        return (
            f"{self.counts.total():,} mutations: {kinds}; {self.seconds:.0f} s, peak memory {self.peak >> 20} MB "
            f"(+{self.growth >> 20} MB of address space while loading)"
        )

    def add(self, other: Summary) -> None:
        self.counts += other.counts
        self.wrong += other.wrong
        self.seconds += other.seconds
        self.peak = max(self.peak, other.peak)
        self.growth = max(self.growth, other.growth)


def fuzz(name: str, first: int, count: int, seconds: float = 20.0, module: str = "tests.fuzz.targets") -> Summary:
    """Load the mutations with seeds first, ..., first + count - 1 of a target.

    Args:
        name: of the target in `module.TARGETS`.
        seconds: a load that takes longer hangs.

    A crash or a hang ends the child process; it is noted under its seed, and a new child goes on behind it.
    """
    summary, start, seed, last = Summary(), time.monotonic(), first, first + count
    with tempfile.TemporaryDirectory() as folder:
        report, progress = Path(folder) / "report", Path(folder) / "progress"
        for _ in range(MOST_DEATHS):
            progress.write_bytes(seed.to_bytes(8, "little") + bytes(8))
            command = [sys.executable, "-m", "tests.fuzz.child", module, name, seed, last, seconds, report, progress]
            child = subprocess.run([str(part) for part in command], cwd=ROOT, capture_output=True, text=True)
            if child.returncode == 0:
                found = json.loads(report.read_text())
                summary.counts.update(found["counts"])
                summary.wrong += [tuple(line) for line in found["wrong"]]
                summary.peak, summary.growth = found["peak"], found["growth"]
                break
            if child.returncode > 0:
                raise RuntimeError(f"the fuzzing process of {name!r} failed:\n{child.stderr}")
            died = int.from_bytes(progress.read_bytes()[:8], "little")
            by = "a hang" if child.returncode == -signal.SIGALRM else f"a crash ({signal.Signals(-child.returncode).name})"
            summary.wrong.append((died, "", f"{by}:\n{child.stderr}"))
            # the counts of the dead child are lost with it
            summary.counts.update({"wrong": 1, "not counted": died - seed})
            seed = died + 1
        else:
            raise RuntimeError(f"{name!r}: given up after {MOST_DEATHS} crashes or hangs: {summary.wrong}")
    summary.seconds = time.monotonic() - start
    return summary
