"""Load damaged files in a process of their own, and say what came of it."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterable
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


def fuzz(
    names: Iterable[str], first: int, count: int, seconds: float = 20.0, module: str = "tests.fuzz.targets"
) -> dict[str, Summary]:
    """Load the mutations with seeds first, ..., first + count - 1 of each target.

    Args:
        names: of targets in `module.TARGETS`.
        seconds: a load that takes longer hangs.

    A crash or a hang ends the child process; it is noted under its seed, and a new child goes on behind it.
    """
    summaries = {name: Summary() for name in names}
    jobs = [(name, first, first + count) for name in summaries]
    with tempfile.TemporaryDirectory() as folder:
        reports, progress = Path(folder) / "reports", Path(folder) / "progress"
        for _ in range(MOST_DEATHS):
            progress.write_bytes(jobs[0][1].to_bytes(8, "little"))
            reports.write_text("")
            start = time.monotonic()
            command = [sys.executable, "-m", "tests.fuzz.child", module, json.dumps(jobs), str(seconds), folder]
            child = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
            took = (time.monotonic() - start) / len(jobs)
            for line in reports.read_text().splitlines():
                report = json.loads(line)
                wrong = [(seed, how, what) for seed, how, what in report["wrong"]]
                summaries[jobs.pop(0)[0]].add(Summary(Counter(report["counts"]), wrong, took, report["peak"], report["growth"]))
            if not jobs:
                return summaries
            if child.returncode >= 0:
                raise RuntimeError(f"the fuzzing process failed at {jobs[0][0]!r}:\n{child.stderr}")
            by = "a hang" if child.returncode == -signal.SIGALRM else f"a crash ({signal.Signals(-child.returncode).name})"
            name, begun, last = jobs[0]
            died = int.from_bytes(progress.read_bytes(), "little")
            if not begun <= died < last:
                raise RuntimeError(f"{name!r}: {by} while the valid files were loaded:\n{child.stderr}")
            # what the dead child had counted is lost with it
            counts = Counter({"wrong": 1, "not counted": died - begun})
            summaries[name].add(Summary(counts, [(died, "", f"{by}:\n{child.stderr}")], took))
            jobs[0] = (name, died + 1, last)
    raise RuntimeError(f"given up after {MOST_DEATHS} crashes or hangs: {summaries}")
