"""checks: the GPU tests, compute-sanitizer on small shapes, and compilations ahead of later sections, side by side.

Nothing is timed while they run. Each is a process of its own, so that what goes wrong in one harms nothing else; at the end of
the section's time those still running are stopped, and what they wrote until then stays.
"""

from __future__ import annotations

import importlib.util
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from benchmarks.gpu.build import ROOT
from benchmarks.gpu.suite import Suite

FILE = "checks.txt"  # what they wrote
_LONGEST = 4 << 20  # characters of each, from its end
TESTS, SANITIZER, COMPILE = "tests", "sanitizer", "compile"
RACES = ("racecheck", "synccheck")  # of the CUDA kernels: shared memory and barriers are the compiler's business in Triton's
_WORKERS = 6  # of pytest, where pytest-xdist is there: Triton compiles on the CPU


@dataclass(frozen=True)
class Job:
    """A process: its command, changes of its environment, and what its exit status and output mean: (failure or None, note)."""

    command: list[str]
    judge: Callable[[int, str], tuple[str | None, str]]
    environment: dict[str, str] = field(default_factory=dict)


def jobs(suite: Suite) -> dict[str, Job]:
    """What is to be run here."""
    dry = ["--dry-run"] if not suite.device.is_gpu else []
    python = [sys.executable, "-m"]
    tests = [*python, "pytest", "-m", "gpu or not gpu" if dry else "gpu", "-v", "-rA", "-p", "no:cacheprovider"]
    tests += ["--continue-on-collection-errors", *suite.settings.tests]
    if not dry and importlib.util.find_spec("xdist") is not None:
        tests += ["-n", str(_WORKERS)]
    small = [*python, "benchmarks.gpu.small_shapes", *dry]
    tool = shutil.which("compute-sanitizer")
    sanitize = [tool, "--error-exitcode", "9", "--tool"] if tool is not None and not dry else []
    # torch's caching allocator would hide reads beyond the end of a tensor
    uncached = {"PYTORCH_NO_CUDA_MEMORY_CACHING": "1"}
    if sanitize:
        checks = {SANITIZER: Job([*sanitize, "memcheck", *small], partial(judge_sanitizer, "memcheck"), uncached)}
        checks |= {name: Job([*sanitize, name, *small, "cuda"], partial(judge_sanitizer, name)) for name in RACES}
    else:
        checks = {SANITIZER: Job(small, judge_small_shapes, uncached)}
    return {
        TESTS: Job(tests, judge_tests),
        COMPILE: Job([*python, "benchmarks.gpu.compile_ahead", *dry], judge_plain),
        **{
            f"{COMPILE} {kind}": Job([*python, "benchmarks.gpu.compile_ahead", kind, *dry], judge_plain)
            for kind in suite.settings.precisions
        },
        **checks,
    }


def run(suite: Suite) -> None:
    """Start all, wait for each."""
    suite.folder.mkdir(parents=True, exist_ok=True)
    wanted = {name: job for name, job in jobs(suite).items() if suite.wants(name)}
    start = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        _run(suite, {name: (job, *_start(job, Path(folder, name))) for name, job in wanted.items()}, start)


def _run(suite: Suite, running: dict[str, tuple[Job, subprocess.Popen[bytes], Path]], start: float) -> None:
    for name, (job, process, file) in running.items():
        with suite.attempt(name):
            status = _wait(process, suite.budget.left())
            output = file.read_text(errors="replace")
            with (suite.folder / FILE).open("a") as together:
                together.write(f"== {name}: {' '.join(job.command)}\n{output[-_LONGEST:]}\n")
            took = f"{time.monotonic() - start:.0f} s"
            if status is None:
                suite.here.left_out.append(f"{name}: stopped after {took}")
                judge_stopped(suite, output)
                continue
            failure, note = job.judge(status, output)
            suite.note(f"{name}: {note} ({took})")
            if failure is not None:
                raise ArithmeticError(failure)


def _start(job: Job, file: Path) -> tuple[subprocess.Popen[bytes], Path]:
    with file.open("wb") as output:
        environment = os.environ | {"PYTHONUNBUFFERED": "1"} | job.environment
        process = subprocess.Popen(
            job.command, cwd=ROOT, env=environment, stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT
        )
    return process, file


def _wait(process: subprocess.Popen[bytes], seconds: float) -> int | None:
    """Its exit status; None if it had to be stopped."""
    try:
        return process.wait(max(0.1, seconds))
    except subprocess.TimeoutExpired:
        process.terminate()
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        return None


def judge_tests(status: int, output: str) -> tuple[str | None, str]:
    """pytest's last line says what happened."""
    summary = next((line.strip("= ") for line in reversed(output.splitlines()) if re.search(r"\d+ \w+.* in [\d.]+s", line)), "")
    if status == 0:
        return None, summary
    return f"pytest ended with {status}: {summary or _end(output)}", f"ended with {status}"


def judge_stopped(suite: Suite, output: str) -> None:
    """What pytest -v had told when it was stopped: how many tests had passed, and that some had failed.

    Raises:
        ArithmeticError: some had.
    """
    # "a.py::test PASSED [  1%]", or side by side "[gw0] [  1%] PASSED a.py::test"
    passed, failed = (len(re.findall(rf" (?:{word})(?: +\[ *\d+%\]| \S+::)", output)) for word in ("PASSED", "FAILED|ERROR"))
    if passed or failed:
        suite.note(f"{passed} tests passed and {failed} failed until then")
    if failed:
        raise ArithmeticError(f"{failed} tests failed before the others were stopped: see {FILE}")


def judge_sanitizer(tool: str, status: int, output: str) -> tuple[str | None, str]:
    """Errors (races: hazards) it found are failures; a sandbox that does not let it work is not."""
    summary = re.search(r"(?:ERROR|RACECHECK) SUMMARY: (\d+) (?:error|hazard)", output)
    if "Device not supported" in output or summary is None:
        return None, f"{tool} refused here: {_end(output)}"
    if int(summary[1]) or status:
        return f"{tool}: {summary[1]} errors, status {status}: see {FILE}", "found errors"
    return None, f"{tool} found no errors; {_end(output, without='=====')}"


def judge_small_shapes(status: int, output: str) -> tuple[str | None, str]:
    """The same program without the tool."""
    failure, note = judge_plain(status, output)
    return failure, f"compute-sanitizer was not run (not here, or a dry run); small shapes alone: {note}"


def judge_plain(status: int, output: str) -> tuple[str | None, str]:
    """A program that says how it went in its last line."""
    return (f"ended with {status}: {_end(output)}" if status else None), _end(output)


def _end(output: str, without: str = "\0") -> str:
    lines = [line.strip() for line in output.splitlines() if line.strip() and without not in line]
    return lines[-1][:300] if lines else "no output"
