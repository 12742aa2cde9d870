#!/usr/bin/env python3
"""The benchmarks, one question at a time:

    python benchmarks/run.py kernels --layers 64@32 --sparsity 0.9 0.95 --threads 1 --rounds 7 --json
    python benchmarks/run.py all

Each question prints one Markdown table for each number of threads; --json also appends every number to
benchmarks/results/<question>.jsonl, which benchmarks/plot.py draws. Every case is checked against torch before it is timed.

This program starts itself again with the environment that a fair comparison needs, on both sides of it: malloc keeps freed
memory, and huge pages spare page faults (--no-huge-pages leaves those out).
"""

from __future__ import annotations

import argparse
import importlib
import os
import sys
from pathlib import Path
from types import ModuleType

ROOT = Path(__file__).resolve().parent.parent

QUESTIONS = {
    "kernels": "single layers against dense oneDNN",
    "odd": "layers of odd sizes as tuned: is any slower than dense?",
    "fused": "fused ops and pooling against eager torch and the memory floor",
    "step": "a whole training step",
    "scaling": "what more threads bring",
    "memory": "peak memory of a training step",
    "growth": "growth with density, batch and width",
    "csr": "MKL's sparse matrix product",
    "tiles": "columns that groups of rows share, rows permuted or not",
    "optimizer": "a step of SplitLBI against torch.optim.SGD",
    "rate": "multiply-adds on the nonzeros against the core's peak",
}

_KEEP = "glibc.malloc.mmap_threshold=1073741824:glibc.malloc.trim_threshold=2147483647"
_HUGE = "glibc.malloc.hugetlb=1"


def environment(huge_pages: bool, inherited: dict[str, str]) -> dict[str, str]:
    """The environment that the measurements run in.

    glibc reads its tunables when a process starts. OpenMP's pool is left to torch.set_num_threads, and the package's modules are
    found from anywhere.
    """
    tunables = [_KEEP, *([_HUGE] if huge_pages else []), *filter(None, [inherited.get("GLIBC_TUNABLES")])]
    paths = [str(ROOT), *filter(None, [inherited.get("PYTHONPATH")])]
    changes = {"GLIBC_TUNABLES": ":".join(tunables), "PYTHONPATH": os.pathsep.join(paths), "OMP_NUM_THREADS": "1"}
    quiet = {"KINETO_LOG_LEVEL": "99"}  # torch's profiler announces itself on stderr
    return inherited | changes | quiet | {"TOST_BENCHMARK": "1"}


def parser() -> argparse.ArgumentParser:
    """The command line; each question's module adds its own options."""
    top = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    questions = top.add_subparsers(dest="question", required=True, metavar="question")
    for name, help in [*QUESTIONS.items(), ("all", "every question with its defaults")]:
        sub = questions.add_parser(name, help=help, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
        if name != "all":
            module = question_module(name)
            module.arguments(sub)
            threads = list(getattr(module, "DEFAULT_THREADS", (1,)))
            sub.add_argument("--threads", nargs="+", type=int, default=threads, help="one table for each number")
            sub.add_argument("--rounds", type=int, default=module.DEFAULT_ROUNDS, help="every variant runs once in each")
        sub.add_argument("--seed", type=int, default=0, help="of data and masks")
        sub.add_argument("--json", action="store_true", help="append to benchmarks/results/<question>.jsonl")
        sub.add_argument("--no-huge-pages", action="store_true", help="leave transparent huge pages alone")
    return top


def question_module(name: str) -> ModuleType:
    """The module that answers a question."""
    return importlib.import_module(f"benchmarks.{name}")


def answer(options: argparse.Namespace) -> None:
    """Print the tables of one question."""
    import torch

    from benchmarks import ledger
    from tost.allocator import keep_freed_memory

    kept = keep_freed_memory()
    pages = "not asked for" if options.no_huge_pages else "asked for by malloc (glibc.malloc.hugetlb=1)"
    print(f"\n## {options.question}: {QUESTIONS[options.question]}\n")
    print(
        f"{ledger.describe()}. Freed memory kept by malloc, for both sides: {kept}; huge pages: {pages}. Load: {ledger.load()}."
    )
    for threads in options.threads:
        torch.set_num_threads(threads)
        torch.manual_seed(options.seed)
        records = question_module(options.question).run(options, threads)
        if options.json:
            ledger.append(records)


def main(arguments: list[str] | None = None) -> None:
    """Answer the questions on the command line."""
    if "TOST_BENCHMARK" not in os.environ:
        # before torch is loaded: its help text needs none of this, so nothing is lost by starting again at once
        huge_pages = "--no-huge-pages" not in sys.argv
        os.execve(sys.executable, [sys.executable, *sys.argv], environment(huge_pages, dict(os.environ)))
    options = parser().parse_args(arguments)
    for sparsity in getattr(options, "sparsity", ()):
        if not 0 <= sparsity <= 1:
            parser().error(f"argument --sparsity: expected fractions from 0 to 1, got {sparsity:g}")
    if options.question != "all":
        answer(options)
        return
    print("Each question alone, with options: python benchmarks/run.py <question> --help, for " + ", ".join(QUESTIONS) + ".")
    for name in QUESTIONS:
        chosen = [flag for flag, on in (("--json", options.json), ("--no-huge-pages", options.no_huge_pages)) if on]
        answer(parser().parse_args([name, "--seed", str(options.seed), *chosen]))


if __name__ == "__main__":
    main()
