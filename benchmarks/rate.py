"""rate: multiply-adds on the nonzeros a second, against what a core can do at most."""

from __future__ import annotations

import argparse

from benchmarks.cases import SPARSITIES, select
from benchmarks.kernels import PLAN_HELP
from benchmarks.layer_calls import PARTS
from benchmarks.layer_times import ALL, time_layer
from benchmarks.ledger import Record
from benchmarks.machine_limits import Limits, measure
from benchmarks.table import Table, percent
from benchmarks.timing import Summary

DEFAULT_ROUNDS = 5


def arguments(parser: argparse.ArgumentParser) -> None:
    """The question's own options."""
    parser.add_argument("--layers", nargs="+", default=["resnet", "stride2", "projection"], help="sets or layers, see kernels")
    parser.add_argument("--sparsity", nargs="+", type=float, default=list(SPARSITIES), help="of the random masks")
    parser.add_argument("--batch", type=int, default=64, help="images")
    parser.add_argument("--plan", default="kernel", help=PLAN_HELP)


def run(options: argparse.Namespace, threads: int) -> list[Record]:
    """Measure the core, then the layers; print both tables."""
    limits = measure()
    print_limits(limits)
    peak = limits.fma_gflops * threads
    table = Table(
        f"Achieved rate on the nonzeros, fp32: {threads} thread(s), batch {options.batch}; GF/s (of the peak)",
        ("layer", "sparsity", "dense forward", *PARTS, ALL),
    )
    records: list[Record] = []
    for layer in select(options.layers):
        timed = time_layer(layer, options.batch, options.sparsity, ["float32"], options.plan, options.rounds, threads)
        work = layer.multiply_adds(options.batch, 1)
        weights = 1
        for size in layer.weight_shape:
            weights *= size
        dense = rate_of(work * weights, timed.times.summary(*timed.dense("float32", "forward")))
        for sparsity, kept in timed.kept.items():
            cells = []
            for part in (*PARTS, ALL):
                passes = len(PARTS) if part == ALL else 1
                reached = rate_of(work * kept * passes, timed.times.summary(*timed.sparse("float32", sparsity, part)))
                cells.append(f"{reached.median:.0f} ({reached.median / peak:.0%})")
                case = {"layer": layer.name, "batch": options.batch, "sparsity": sparsity, "part": part, "peak": peak}
                records.append(Record("rate", case, "sparse float32", threads, reached, unit="GF/s"))
            table.row(layer.name, percent(sparsity), f"{dense.median:.0f} ({dense.median / peak:.0%})", *cells)
    print(
        "\nA multiply-add is two operations; padding counts as if it were computed, so a 4x4 image can pass the peak. The peak "
        "is the measured one of fp32 multiply-adds, times the threads."
    )
    return records + [
        Record("rate", {"limit": name}, "machine", 1, Summary(value, value, value), unit=_UNITS[name])
        for name, value in vars(limits).items()
    ]


def rate_of(multiply_adds: int, ms: Summary) -> Summary:
    """GF/s of a duration; its low quartile is the slow one."""
    low, median, high = (2e-6 * multiply_adds / t for t in (ms.high, ms.median, ms.low))
    return Summary(median, low, high)


_UNITS = {
    "vector_bits": "bits",
    "fma_gflops": "GF/s",
    "bf16_gflops": "GF/s",
    "l1_load": "GB/s",
    "l2_load": "GB/s",
    "memory_copy": "GB/s",
}
_NAMES = {
    "vector_bits": "vectors of the compiler",
    "fma_gflops": "fp32 multiply-adds, a multiply-add being two operations",
    "bf16_gflops": "bf16 multiply-adds into fp32 (0: no such instruction)",
    "l1_load": "loads from L1 (16 KB)",
    "l2_load": "loads from L2 (256 KB)",
    "memory_copy": "memcpy through memory (256 MB), read plus written",
}


def print_limits(limits: Limits) -> None:
    """The table of what one core can do."""
    table = Table("Limits of one core, measured (benchmarks/machine_limits.cpp)", ("limit", "measured"))
    for name, value in vars(limits).items():
        table.row(_NAMES[name], f"{value:.0f} {_UNITS[name]}")
