"""scaling: what more threads bring, to our kernels and to oneDNN's, on layers and on a whole training step."""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Mapping
from typing import Any

import torch

import tost_kernels as tk
from benchmarks.cases import select
from benchmarks.layer_calls import Problem, dense_calls, plan_of, sparse_calls
from benchmarks.ledger import Record
from benchmarks.networks import LAYOUTS, Step, Variant, build
from benchmarks.step import parse
from benchmarks.table import Table, ms, times
from benchmarks.timing import Times, interleave

DEFAULT_ROUNDS = 5
DEFAULT_THREADS = (2,)
SPARSITIES = (0.9, 0.95)


def arguments(parser: argparse.ArgumentParser) -> None:
    """The question's own options."""
    parser.add_argument("--layers", nargs="*", default=["resnet", "stride2"], help="sets or layers, see kernels")
    parser.add_argument("--networks", nargs="*", default=["resnet18@64"], help="name@batch, see step")
    parser.add_argument("--sparsity", nargs="+", type=float, default=list(SPARSITIES), help="of the random masks")
    parser.add_argument("--batch", type=int, default=64, help="images of the layers")


def run(options: argparse.Namespace, threads: int) -> list[Record]:
    """Time every case with 1 thread and with `threads`, in the same rounds; print the table."""
    table = Table(
        f"Scaling from 1 to {threads} threads, by the wall clock, fp32",
        ("case", "variant", "ms, 1 thread", f"ms, {threads} threads", "1 thread / more [quartiles]"),
    )
    records: list[Record] = []
    for layer in select(options.layers) if options.layers else ():
        problem = Problem.of(layer, options.batch)
        variants = {f"dense {layout}": _all(*calls) for layout, calls in dense_calls(problem).items()}
        for sparsity in options.sparsity:
            pattern = tk.Pattern(torch.rand(layer.weight_shape) >= sparsity)
            plan = plan_of("kernel", layer, tk.to_batch_last(problem.x), pattern)
            variants[f"sparse {sparsity:.0%}"] = _all(*sparse_calls(problem, pattern, plan))
        records += report(layer.name, {"layer": layer.name, "batch": options.batch}, variants, options, threads, table, 2.0)
    for case in options.networks:
        name, batch = parse(case)
        model = build(name)
        variants = {f"dense {layout}": Step(model, Variant("dense", layout), batch) for layout in LAYOUTS}
        for sparsity in options.sparsity:
            variants[f"sparse {sparsity:.0%}"] = Step(model, Variant("sparse", "batch_last", sparsity), batch)
        records += report(case, {"network": name, "batch": batch}, variants, options, threads, table, 0.0)
    print("\nLayers: forward and both gradients. Networks: a whole training step. Dense: the layout faster with more threads.")
    return records


def _all(*calls: Callable[[], object]) -> Callable[[], object]:
    def together() -> None:
        for call in calls:
            call()

    return together


def on_threads(count: int, call: Callable[[], object]) -> Callable[[], object]:
    """`call` with torch set to `count` threads before it."""

    def run() -> None:
        torch.set_num_threads(count)
        call()

    return run


def report(
    name: str,
    case: dict[str, Any],
    variants: Mapping[str, Callable[[], object]],
    options: argparse.Namespace,
    threads: int,
    table: Table,
    shortest_ms: float,
) -> list[Record]:
    """Time one case; a row for dense and one for each density."""
    counted = {f"{v} / {n}": on_threads(n, call) for v, call in variants.items() for n in (1, threads)}
    timed: Times = interleave(counted, options.rounds, time.perf_counter, shortest_ms=shortest_ms)
    torch.set_num_threads(threads)
    (dense,) = timed.fastest([(f"{v} / {threads}",) for v in variants if v.startswith("dense")])
    records = []
    for variant in [dense.split(" / ")[0], *(v for v in variants if not v.startswith("dense"))]:
        one, more = f"{variant} / 1", f"{variant} / {threads}"
        ratio = timed.ratio([one], [more])
        table.row(name, variant, ms(timed.summary(one)), ms(timed.summary(more)), times(ratio, spread=True))
        records.append(Record("scaling", case, variant, threads, timed.summary(more), ratio, "1 thread"))
    return records
