"""The run: sections one after the other, each in its share of the time, results on disk after every case."""

from __future__ import annotations

import sys
import time
import traceback
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from benchmarks.gpu.budget import Budget, share_of
from benchmarks.gpu.device import StandIn
from benchmarks.gpu.results import Results, Section
from benchmarks.gpu.settings import Settings
from benchmarks.ledger import Record

# In order. The figure: its part of the time, while all of them are still to run.
WEIGHTS = {
    "build": 8.0,
    "checks": 20.0,
    "ceilings": 3.0,
    "layers": 36.0,
    "fused": 8.0,
    "step": 22.0,
    "memory": 2.0,
    "roofline": 2.0,
}


class DeviceLost(RuntimeError):
    """A kernel has spoilt the CUDA context: only a new process can go on."""


@dataclass
class Suite:
    """What every section gets. section: the name of the one that runs; budget: what is left to it."""

    device: StandIn
    settings: Settings
    results: Results
    folder: Path
    budget: Budget
    section: str = ""
    on_section: Callable[[Suite], None] = field(default=lambda suite: None)  # e.g. writes the report

    @property
    def here(self) -> Section:
        """The entry of the running section."""
        return self.results.sections.setdefault(self.section, Section())

    def note(self, text: str) -> None:
        """What a reader of the report should know."""
        if text not in self.here.notes:
            self.here.notes.append(text)
            print(f"{self.section}: {text}", flush=True)

    def add(self, records: Iterable[Record]) -> None:
        """Keep figures."""
        self.results.records += records

    def wants(self, case: str, seconds: float | None = None) -> bool:
        """Whether to begin this case now: not if it was done or failed before, nor if there is no time for it, which is noted."""
        if case in self.here.finished or case in self.here.failures:
            return False
        if not self.budget.allows(seconds):
            self.here.left_out.append(case)
            return False
        return True

    @contextmanager
    def attempt(self, case: str) -> Iterator[None]:
        """One case: what goes wrong in it is its failure, and the others go on.

        Raises DeviceLost if nothing else can run in this process.
        """
        start = time.monotonic()
        try:
            yield
            self.device.synchronize()
            if case not in self.here.finished:
                self.here.finished.append(case)
        except DeviceLost:
            raise
        except Exception as error:
            lines = str(error).strip().splitlines() or [""]
            self.here.failures[case] = f"{type(error).__name__}: {lines[0][:400]}"
            print(f"{self.section}: {case} failed", flush=True)
            traceback.print_exc(limit=-6, file=sys.stdout)
            self._check_device(case)
        finally:
            self.budget.took(time.monotonic() - start)
            self.results.write(self.folder)

    def _check_device(self, case: str) -> None:
        try:
            self.device.synchronize()
        except Exception as error:
            self.results.write(self.folder)
            raise DeviceLost(f"{self.section}: after {case} the device does not answer: {error}") from error


def run_sections(suite: Suite, sections: dict[str, Callable[[Suite], None]]) -> None:
    """Run them in their order, each within its share of what is left of `suite.budget`.

    Raises DeviceLost where a section does; it is then unfinished and can be run again in another process.
    """
    whole = suite.budget
    names = list(sections)
    for i, name in enumerate(names):
        suite.section, start = name, time.monotonic()
        suite.budget = whole.part(share_of(name, names[i:], WEIGHTS))
        suite.here.state, suite.here.left_out = "running", []
        print(f"\n== {name}: {suite.budget.left():.0f} s of {whole.left():.0f}", flush=True)
        with suite.device.stream():
            try:
                sections[name](suite)
                suite.here.state = "out of time" if suite.here.left_out else "done"
            except DeviceLost:
                raise
            except Exception as error:
                suite.here.state = "failed"
                suite.here.failures["the section itself"] = f"{type(error).__name__}: {error}"
                traceback.print_exc(file=sys.stdout)
                suite._check_device("the section itself")
            finally:
                suite.here.seconds += time.monotonic() - start
                suite.device.release()
                suite.results.write(suite.folder)
        suite.on_section(suite)
    suite.budget = whole
