"""Print what the compiled GPU kernels need, and where that breaks their budget: `make gpu-check`, `make cuda-check`."""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

from benchmarks.codegen import budget, cuda_kernels
from benchmarks.codegen.cuda_uses import USES
from benchmarks.codegen.kernel import COLUMNS, Kernel
from benchmarks.codegen.machines import MACHINES
from benchmarks.table import Table


class Source(NamedTuple):
    """Where kernels come from. check: the target of the Makefile. kernels: each one, or what is wrong with it."""

    check: str
    compiler: str
    budget: Path
    kernels: Iterable[Kernel | str]


def parser() -> argparse.ArgumentParser:
    """The command line."""
    top = argparse.ArgumentParser(prog="python -m benchmarks.codegen", description=__doc__)
    top.add_argument("--cuda", action="store_true", help="the kernels of the CUDA library, in place of Triton's")
    top.add_argument("--only", default="", metavar="PART", help="kernels whose name holds this")
    top.add_argument("--sm", nargs="+", type=int, choices=list(MACHINES), default=list(MACHINES), help="architectures")
    top.add_argument("--json", type=Path, metavar="FILE", help="write every number there too")
    top.add_argument("--accept", action="store_true", help="make what came out the budget, in place of comparing with it")
    top.add_argument("--jobs", type=int, default=min(2, os.cpu_count() or 1), help="how many are compiled or read at a time")
    top.add_argument("--modules", nargs="+", help="Triton: where the specimens are; by default all of tost_kernels.triton")
    top.add_argument("--library", type=Path, metavar="FILE", help="CUDA: by default the one that is installed")
    top.add_argument("--budget", type=Path, metavar="FILE", help="the budget's own file")
    return top


def source(options: argparse.Namespace) -> Source:
    """Raises RuntimeError or ImportError, saying why, where this machine has no such kernels or cannot read them."""
    if options.cuda:
        library = options.library or cuda_kernels.library()
        kernels = cuda_kernels.kernels(library, options.only, options.sm, options.jobs, USES)
        return Source("cuda-check", cuda_kernels.compiler(library), budget.FOLDER / "cuda_budget.json", kernels)
    os.environ.pop("TRITON_INTERPRET", None)  # before triton is imported: interpreted kernels are not compiled
    from benchmarks.codegen import triton_kernels

    compiled = triton_kernels.kernels(options.modules or triton_kernels.modules(), options.only, options.sm, options.jobs)
    return Source("gpu-check", triton_kernels.COMPILER, budget.FOLDER / "triton_budget.json", compiled)


def main(arguments: list[str] | None = None) -> int:
    """Returns the exit code: 0, 1 where a kernel fails, or 2 where there is nothing to look at."""
    options = parser().parse_args(arguments)
    everything = not options.only and options.sm == list(MACHINES)
    if options.accept and not everything:
        parser().error("--accept takes the budget of all kernels on all architectures: leave --only and --sm out")
    try:
        check, compiler, file, found = source(options)
    except (ImportError, RuntimeError, OSError) as error:
        print(f"nothing was checked: {error}", file=sys.stderr)
        return 2
    file = options.budget or file

    kernels: list[Kernel] = []
    problems: list[str] = []
    table = Table(f"Kernels compiled by {compiler}", COLUMNS)
    for kernel in found:
        if isinstance(kernel, str):
            problems.append(kernel)
        else:
            kernels.append(kernel)
            table.row(*kernel.row())
    print(f"\n{len(kernels)} kernels compiled, {len(problems)} not to be looked at", flush=True)
    problems += budget.flaws(kernels)
    if options.accept:  # what no budget allows stays a problem
        budget.save(file, kernels, compiler)
    else:
        known = budget.load(file)
        excesses = budget.excesses(kernels, known, check, everything)
        reason = budget.other_compiler(known, compiler)
        if excesses and reason:
            print(reason, *excesses, sep="\n")
        else:
            problems += excesses
    if options.json:
        rows = [dataclasses.asdict(kernel) | {"programs": kernel.programs} for kernel in kernels]
        data = {"compiler": compiler, "kernels": rows, "problems": problems}
        options.json.write_text(json.dumps(data, indent=2) + "\n")
    print(f"problems: {len(problems)}", flush=True)
    print(*problems, sep="\n", end="\n" if problems else "", file=sys.stderr)
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
