"""growth: how the three passes of one layer grow with density, batch and width; benchmarks/plot.py draws it."""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Iterator

from benchmarks.cases import Layer
from benchmarks.kernels import PLAN_HELP
from benchmarks.layer_times import ALL, time_layer
from benchmarks.ledger import Record
from benchmarks.table import Table, ms, times

DEFAULT_ROUNDS = 3
SWEEPS = {
    "sparsity": (0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.98, 0.99, 0.995),
    "batch": (1, 4, 8, 16, 32, 64, 128, 256),
    "width": (16, 32, 64, 128, 256, 512),
}
SPARSITY = 0.95


def arguments(parser: argparse.ArgumentParser) -> None:
    """The question's own options."""
    parser.add_argument("--layers", nargs="+", default=["128@16"], help="single layers; width changes all channels")
    parser.add_argument("--sweeps", nargs="+", choices=SWEEPS, default=list(SWEEPS), help="what grows")
    parser.add_argument("--batch", type=int, default=64, help="images, where the batch does not grow")
    parser.add_argument("--plan", default="kernel", help=PLAN_HELP)


def points(layer: Layer, sweep: str, batch: int) -> Iterator[tuple[float, Layer, int, tuple[float, ...]]]:
    """(what grows, layer, batch, sparsities): each to be timed on its own; a sweep of densities is one."""
    if sweep == "sparsity":
        yield 0.0, layer, batch, SWEEPS[sweep]
    for value in SWEEPS[sweep] if sweep != "sparsity" else ():
        if sweep == "batch":
            yield value, dataclasses.replace(layer, batch=None), int(value), (SPARSITY,)
        else:
            wider = dataclasses.replace(layer, channels=int(value), out=int(value))
            yield value, wider, batch, (SPARSITY,)


def run(options: argparse.Namespace, threads: int) -> list[Record]:
    """Time every sweep of every layer; print a table each."""
    records: list[Record] = []
    for name in options.layers:
        for sweep in options.sweeps:
            records += measure(Layer.parse(name), sweep, options, threads)
    return records


def measure(layer: Layer, sweep: str, options: argparse.Namespace, threads: int) -> list[Record]:
    """One sweep."""
    fixed = [f"batch {options.batch}"] if sweep != "batch" else []
    fixed += [f"{SPARSITY:.0%} sparse"] if sweep != "sparsity" else []
    table = Table(
        f"Growth of {layer.name} with {sweep}: {threads} thread(s), {', '.join(fixed)}, plan: {options.plan}; all three passes",
        (sweep, "dense fp32 ms", "sparse fp32 ms", "ratio [quartiles]", "sparse us a thousand kept weights"),
    )
    records = []
    for value, changed, batch, sparsities in points(layer, sweep, options.batch):
        timed = time_layer(changed, batch, sparsities, ["float32"], options.plan, options.rounds, threads)
        dense = timed.dense("float32", ALL)
        for sparsity, kept in timed.kept.items():
            at = sparsity if sweep == "sparsity" else value
            ours = timed.sparse("float32", sparsity, ALL)
            median, ratio = timed.times.summary(*ours), timed.times.ratio(dense, ours)
            each = f"{1e6 * median.median / max(kept, 1):.1f}"
            table.row(f"{at:g}", ms(timed.times.summary(*dense)), ms(median), times(ratio, spread=True), each)
            case = {"layer": layer.name, "sweep": sweep, "at": at, "sparsity": sparsity, "batch": batch, "kept": kept}
            records.append(Record("growth", case, "sparse float32", threads, median, ratio, "dense float32"))
            records.append(Record("growth", case, "dense float32", threads, timed.times.summary(*dense)))
    return records
