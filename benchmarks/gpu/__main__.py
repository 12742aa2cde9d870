"""One command that builds, tests, measures and reports, in less than --minutes:

    python -m benchmarks.gpu --out DIR
    python -m benchmarks.gpu --out DIR --only ceilings layers --minutes 5
    python -m benchmarks.gpu --out DIR --dry-run

DIR gets results.json (written again after every case), report.md (after every section), figures, and the output of the tests.
The exit status is 1 if anything that ran went wrong. A missed target is no error.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import time
from pathlib import Path
from typing import NoReturn

SECTIONS = ("build", "checks", "ceilings", "layers", "fused", "step", "memory", "roofline")
_STARTED = time.monotonic()


def parser() -> argparse.ArgumentParser:
    """The command line."""
    top = argparse.ArgumentParser(
        "python -m benchmarks.gpu", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    top.add_argument("--out", type=Path, required=True, metavar="DIR", help="folder of the results")
    top.add_argument("--dry-run", action="store_true", help="the same code on the CPU: Triton's interpreter, tiny shapes")
    top.add_argument("--only", nargs="+", choices=SECTIONS, default=list(SECTIONS), metavar="SECTION", help=" ".join(SECTIONS))
    top.add_argument("--minutes", type=float, default=9.0, help="for everything")
    top.add_argument("--continue", dest="go_on", action="store_true", help="keep what DIR holds, and do what it lacks")
    return top


def main(arguments: list[str]) -> int:
    """Run the suite; the exit status."""
    options = parser().parse_args(arguments)
    if not options.minutes > 0:
        parser().error(f"argument --minutes: expected more than 0, got {options.minutes:g}")
    problem = trouble_with(options.out, options.go_on, options.dry_run)
    if problem is not None:
        parser().error(f"argument --out: {problem}")
    if options.dry_run != (os.environ.get("TRITON_INTERPRET") == "1"):
        _restart(arguments, interpret=options.dry_run)  # Triton looks at the variable when it is first imported
    if options.dry_run and "TOST_CACHE_DIR" not in os.environ:
        os.environ["TOST_CACHE_DIR"] = tempfile.mkdtemp(prefix="tost-dry-run-")  # nothing of it is worth remembering

    import torch

    if not options.dry_run and not torch.cuda.is_available():
        parser().error("no CUDA device is available; --dry-run walks through the suite on the CPU")

    from benchmarks.gpu.build import build

    built = build()

    from benchmarks.gpu import run_suite
    from benchmarks.gpu.emulate import emulate_cuda
    from benchmarks.gpu.suite import DeviceLost

    if options.dry_run and not {"checks", "layers", "fused"}.isdisjoint(options.only) and (reason := emulate_cuda()) is not None:
        print(f"the CUDA kernels are not emulated: {reason}")

    try:
        return run_suite.run(options, built, _STARTED)
    except DeviceLost as lost:
        print(f"\n{lost}: going on in a new process", flush=True)
        left = options.minutes - (time.monotonic() - _STARTED) / 60
        if left <= 0.1:
            return 1
        own = ["--out", str(options.out), "--minutes", f"{left:.3f}", "--continue", "--only", *options.only]
        _restart(own + (["--dry-run"] if options.dry_run else []), interpret=options.dry_run)


def trouble_with(folder: Path, go_on: bool, dry_run: bool) -> str | None:
    """Why the results cannot be kept in `folder`, which is made if it is not there; None if they can.

    go_on: they join those that the folder holds, which must be of the same kind: a dry run's times are no figures.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
        if go_on and json.loads((folder / "results.json").read_text())["about"]["dry_run"] != dry_run:
            return f"{folder}: expected results of a {'dry run' if dry_run else 'run on a GPU'} to --continue, got the other kind"
    except OSError as error:
        return f"{error.filename or folder}: {error.strerror}"
    except (ValueError, KeyError, TypeError):
        return f"{folder / 'results.json'}: expected the results of a run to --continue, got something else"
    return None


def _restart(arguments: list[str], interpret: bool) -> NoReturn:
    """This program anew, in the same process."""
    environment = dict(os.environ)
    environment.pop("TRITON_INTERPRET", None)
    if interpret:
        environment["TRITON_INTERPRET"] = "1"
    sys.stdout.flush()
    os.execve(sys.executable, [sys.executable, "-m", "benchmarks.gpu", *arguments], environment)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
