"""Compile the GPU kernels, print what they need, and say where that breaks their budget: `make gpu-check`."""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

os.environ.pop("TRITON_INTERPRET", None)  # before triton is imported: interpreted kernels are not compiled

from benchmarks.codegen import budget
from benchmarks.codegen.kernel import COLUMNS, Kernel
from benchmarks.codegen.machines import MACHINES
from benchmarks.table import Table


def parser() -> argparse.ArgumentParser:
    """The command line."""
    top = argparse.ArgumentParser(prog="python -m benchmarks.codegen", description=__doc__)
    top.add_argument("--only", default="", metavar="PART", help="kernels whose name holds this")
    top.add_argument("--sm", nargs="+", type=int, choices=list(MACHINES), default=list(MACHINES), help="architectures")
    top.add_argument("--json", type=Path, metavar="FILE", help="write every number there too")
    top.add_argument("--accept", action="store_true", help="make what came out the budget, in place of comparing with it")
    top.add_argument("--jobs", type=int, default=min(2, os.cpu_count() or 1), help="how many are compiled at a time")
    top.add_argument("--modules", nargs="+", help="where the specimens are; by default all of tost_kernels.triton")
    top.add_argument("--budget", type=Path, default=budget.FILE, metavar="FILE", help="the budget's own file")
    return top


def main(arguments: list[str] | None = None) -> int:
    """Returns the exit code: 0, or 1 where a kernel fails."""
    options = parser().parse_args(arguments)
    everything = not options.only and options.sm == list(MACHINES)
    if options.accept and not everything:
        parser().error("--accept takes the budget of all kernels on all architectures: leave --only and --sm out")
    try:
        from benchmarks.codegen import triton_kernels
    except ImportError as error:
        print(f"expected triton to be installed, got: {error}", file=sys.stderr)
        return 1

    specimens = triton_kernels.specimens(options.modules or triton_kernels.modules())
    work = [(specimen, sm) for specimen in specimens if options.only in specimen.name for sm in options.sm]
    kernels: list[Kernel] = []
    problems: list[str] = []
    table = Table(f"Kernels compiled by {triton_kernels.COMPILER}", COLUMNS)
    with tempfile.TemporaryDirectory() as cache, ThreadPoolExecutor(options.jobs) as pool:
        os.environ["TRITON_CACHE_DIR"] = cache  # a fresh one: what is shown was compiled now
        futures = [pool.submit(triton_kernels.compile, *pair) for pair in work]
        for (specimen, sm), future in zip(work, futures, strict=True):
            try:
                kernels.append(future.result())
            except Exception as error:  # of the compiler: the other kernels are looked at all the same
                problems.append(f"{specimen.name} on sm_{sm}: it does not compile: {type(error).__name__}: {error}")
            else:
                table.row(*kernels[-1].row())
    problems += budget.flaws(kernels)
    if options.accept:  # what no budget allows stays a problem
        budget.save(options.budget, kernels, triton_kernels.COMPILER)
    else:
        problems += budget.excesses(kernels, budget.load(options.budget), triton_kernels.COMPILER, everything)
    if options.json:
        rows = [dataclasses.asdict(kernel) | {"programs": kernel.programs} for kernel in kernels]
        data = {"compiler": triton_kernels.COMPILER, "kernels": rows, "problems": problems}
        options.json.write_text(json.dumps(data, indent=2) + "\n")
    print(f"\n{len(kernels)} of {len(work)} kernels compiled, problems: {len(problems)}", flush=True)
    print(*problems, sep="\n", end="\n" if problems else "", file=sys.stderr)
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
