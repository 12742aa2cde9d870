"""Putting the suite together: device, sizes, sections, report."""

from __future__ import annotations

import argparse
import datetime
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any

import torch

from benchmarks import ledger
from benchmarks.gpu import ceilings, checks, figures, fused, layers, memory, report, roofline, step
from benchmarks.gpu.budget import Budget
from benchmarks.gpu.build import Build
from benchmarks.gpu.device import Cuda, StandIn
from benchmarks.gpu.results import Results
from benchmarks.gpu.settings import Settings, tiny
from benchmarks.gpu.suite import DeviceLost, Suite, run_sections

_OVER = ("done", "out of time", "failed")
_RESERVE = 8.0  # seconds for the last report and the end of the process


def run(options: argparse.Namespace, built: Build, started: float) -> int:
    """Run the sections asked for. started: when the command began, by time.monotonic. Returns the exit status.

    Raises DeviceLost where another process must go on, with `--continue`.
    """
    device = StandIn() if options.dry_run else Cuda()
    settings = tiny() if options.dry_run else Settings()
    results = Results.read(options.out) if options.go_on else Results(about(device, options.dry_run))
    seconds = 60 * options.minutes - (time.monotonic() - started) - _RESERVE
    suite = Suite(device, settings, results, options.out, Budget(seconds), on_section=publish)
    return answer(suite, sections(options.only, built))


def sections(names: Sequence[str], built: Build) -> dict[str, Callable[[Suite], None]]:
    """Those asked for, in the order of the suite."""
    every: dict[str, Callable[[Suite], None]] = {
        "build": lambda suite: report_build(suite, built),
        "checks": checks.run,
        "ceilings": ceilings.run,
        "layers": layers.run,
        "fused": fused.run,
        "step": step.run,
        "memory": memory.run,
        "roofline": roofline.run,
    }
    return {name: section for name, section in every.items() if name in names}


def answer(suite: Suite, wanted: dict[str, Callable[[Suite], None]]) -> int:
    """Run what is not over yet; the exit status."""
    torch.manual_seed(0)
    states = {name: section.state for name, section in suite.results.sections.items()}
    try:
        run_sections(suite, {name: run for name, run in wanted.items() if states.get(name) not in _OVER})
    except DeviceLost:
        publish(suite)
        raise
    for line in report.summary(suite.results):
        print(line)
    return 1 if suite.results.failed() else 0


def report_build(suite: Suite, built: Build) -> None:
    """Say what was built."""
    if not built.missing:
        suite.note("the compiled parts were there")
        return
    with suite.attempt("compiled parts"):
        suite.note(f"{', '.join(built.missing)}: built in {built.seconds:.0f} s")
        if built.status:
            raise RuntimeError(f"the build ended with {built.status}: {' '.join(built.output.split())[-300:]}")


def publish(suite: Suite) -> None:
    """Write everything a reader needs, with what there is so far."""
    suite.folder.mkdir(parents=True, exist_ok=True)
    report.write(suite.results, suite.folder)
    suite.results.write(suite.folder)
    if suite.section == "roofline":  # the last: figures take seconds
        figures.draw(suite.results, suite.folder)


def about(device: StandIn, dry_run: bool) -> dict[str, Any]:
    """What the figures need to be understood later."""
    import triton

    return {
        "dry_run": dry_run,
        "command": " ".join(["python -m benchmarks.gpu", *sys.argv[1:]]),
        "date": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        "hardware": device.about() | ledger.hardware(),
        "versions": ledger.versions() | {"triton": triton.__version__},
    }
