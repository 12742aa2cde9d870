"""kernels: forward, input gradient and values gradient of single layers against dense oneDNN, float32 and bfloat16."""

from __future__ import annotations

import argparse

import torch

import tost_kernels as tk
from benchmarks.cases import SPARSITIES, Layer, select
from benchmarks.layer_calls import PARTS, Call, Problem, check, dense_calls, plan_of, sparse_calls
from benchmarks.ledger import Record
from benchmarks.table import Table, ms, percent, times
from benchmarks.timing import Times, clock_for, interleave

DEFAULT_ROUNDS = 7
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


def arguments(parser: argparse.ArgumentParser) -> None:
    """The question's own options."""
    parser.add_argument("--layers", nargs="+", default=[], help="sets (resnet, odd, ...) or layers (64@32, 64-128@32k1s2); all")
    parser.add_argument("--sparsity", nargs="+", type=float, default=list(SPARSITIES), help="of the random masks")
    parser.add_argument("--batch", type=int, default=64, help="images; layers with a batch of their own keep it")
    parser.add_argument("--plan", default="kernel", help='"kernel", "rule", or options such as "tile=4x4,block=32"')
    parser.add_argument("--dtypes", nargs="+", choices=DTYPES, default=list(DTYPES))


def run(options: argparse.Namespace, threads: int) -> list[Record]:
    """Time every layer; print the table."""
    table = Table(
        f"Kernels against dense oneDNN: {threads} thread(s), batch {options.batch}, plan: {options.plan}; ms (ratio)",
        (
            "layer",
            "sparsity",
            "dense fp32: forward / all three",
            "forward",
            "input gradient",
            "values gradient",
            "all three [quartiles]",
            "bf16: all three",
            "against our fp32",
            "against dense bf16",
        ),
    )
    records: list[Record] = []
    for layer in select(options.layers):
        records += measure(layer, options, threads, table)
    print(
        "\nDense: the faster of contiguous and channels_last for each column; its gradients come from one call. Sparse: batch-last "
        "tensors, random masks. Ratios: medians of the rounds' own ratios. Linear layers: MKL is slow on AMD processors, which "
        "flatters ours."
    )
    return records


def dense_name(dtype: str, layout: str, part: str) -> str:
    """Name of a dense variant; part: forward or gradients."""
    return f"dense {dtype} {layout} {part}"


def sparse_name(dtype: str, sparsity: float, part: str) -> str:
    """Name of a sparse variant."""
    return f"sparse {dtype} {sparsity:g} {part}"


def variants_of(layer: Layer, options: argparse.Namespace) -> dict[str, Call]:
    """Every variant of a layer, checked against torch."""
    problem = Problem.of(layer, options.batch)
    variants: dict[str, Call] = {}
    for name in options.dtypes:
        for layout, calls in dense_calls(problem, DTYPES[name]).items():
            for part, call in zip(("forward", "gradients"), calls, strict=True):
                variants[dense_name(name, layout, part)] = call
    for sparsity in options.sparsity:
        pattern = tk.Pattern(torch.rand(layer.weight_shape) >= sparsity)
        plan = plan_of(options.plan, layer, tk.to_batch_last(problem.x), pattern)
        for name in options.dtypes:
            sparse = sparse_calls(problem, pattern, plan, DTYPES[name])
            check(problem, pattern, sparse, DTYPES[name])
            for part, call in zip(PARTS, sparse, strict=True):
                variants[sparse_name(name, sparsity, part)] = call
    return variants


def measure(layer: Layer, options: argparse.Namespace, threads: int, table: Table) -> list[Record]:
    """One layer at every density and dtype, all interleaved; its rows of the table."""
    variants = variants_of(layer, options)
    timed = interleave(variants, options.rounds, clock_for(threads))
    layouts = [name.split()[2] for name in variants if name.startswith("dense") and name.endswith("forward")]
    records: list[Record] = []
    dense: dict[tuple[str, str], tuple[str, ...]] = {}
    for dtype in options.dtypes:
        forward = [(dense_name(dtype, layout, "forward"),) for layout in dict.fromkeys(layouts)]
        whole = [(*names, names[0].replace("forward", "gradients")) for names in forward]
        for part, candidates in (("forward", forward), ("all", whole)):
            best = tuple(timed.fastest(candidates))
            dense[dtype, part] = best
            case = {"layer": layer.name, "batch": options.batch, "part": part}
            records.append(Record("kernels", case, f"dense {dtype} ({best[0].split()[2]})", threads, timed.summary(*best)))
    for sparsity in options.sparsity:
        for dtype in options.dtypes:
            records += _records(layer, options, threads, timed, dtype, sparsity, dense)
        table.row(*_row(layer, options, timed, sparsity, dense))
    return records


def _records(
    layer: Layer,
    options: argparse.Namespace,
    threads: int,
    timed: Times,
    dtype: str,
    sparsity: float,
    dense: dict[tuple[str, str], tuple[str, ...]],
) -> list[Record]:
    everything = tuple(sparse_name(dtype, sparsity, part) for part in PARTS)
    records = []
    for part, names in [*((part, (sparse_name(dtype, sparsity, part),)) for part in PARTS), ("all", everything)]:
        case = {"layer": layer.name, "batch": options.batch, "sparsity": sparsity, "part": part, "plan": options.plan}
        against = dense.get((dtype, part))
        ratio = timed.ratio(against, names) if against else None
        versus = f"dense {dtype}" if against else None
        records.append(Record("kernels", case, f"sparse {dtype}", threads, timed.summary(*names), ratio, versus))
    if dtype == "bfloat16" and "float32" in options.dtypes:
        case = {"layer": layer.name, "batch": options.batch, "sparsity": sparsity, "part": "all", "plan": options.plan}
        ratio = timed.ratio([sparse_name("float32", sparsity, part) for part in PARTS], everything)
        records.append(Record("kernels", case, "sparse bfloat16", threads, timed.summary(*everything), ratio, "sparse float32"))
    return records


def _row(
    layer: Layer,
    options: argparse.Namespace,
    timed: Times,
    sparsity: float,
    dense: dict[tuple[str, str], tuple[str, ...]],
) -> list[str]:
    cells = [layer.name, percent(sparsity)]
    ours = {dtype: [sparse_name(dtype, sparsity, part) for part in PARTS] for dtype in options.dtypes}
    if "float32" in ours:
        forward, whole = dense["float32", "forward"], dense["float32", "all"]
        names = ours["float32"]
        cells.append(f"{ms(timed.summary(*forward))} / {ms(timed.summary(*whole))}")
        cells.append(f"{ms(timed.summary(names[0]))} ({times(timed.ratio(forward, names[:1]))})")
        cells += [ms(timed.summary(name)) for name in names[1:]]
        cells.append(f"{ms(timed.summary(*names))} ({times(timed.ratio(whole, names), spread=True)})")
    else:
        cells += ["-"] * 5
    if "bfloat16" in ours:
        names = ours["bfloat16"]
        cells.append(ms(timed.summary(*names)))
        cells.append(times(timed.ratio(ours["float32"], names)) if "float32" in ours else "-")
        cells.append(times(timed.ratio(dense["bfloat16", "all"], names)))
    else:
        cells += ["-"] * 3
    return cells
