"""kernels: forward, input gradient and values gradient of single layers against dense oneDNN, float32 and bfloat16."""

from __future__ import annotations

import argparse

from benchmarks.cases import SPARSITIES, select
from benchmarks.layer_times import ALL, DTYPES, LayerTimes, time_layer
from benchmarks.ledger import Record
from benchmarks.table import Table, ms, percent, times

DEFAULT_ROUNDS = 5
PLAN_HELP = '"kernel" (the compiled kernels, whatever they cost), "rule", "tuned", or options such as "tile=4x4,block=32"'


def arguments(parser: argparse.ArgumentParser) -> None:
    """The question's own options."""
    parser.add_argument("--layers", nargs="+", default=[], help="sets (resnet, odd, ...) or layers (64@32, 64-128@32k1s2); all")
    parser.add_argument("--sparsity", nargs="+", type=float, default=list(SPARSITIES), help="of the random masks")
    parser.add_argument("--batch", type=int, default=64, help="images; layers with a batch of their own keep it")
    parser.add_argument("--plan", default="kernel", help=PLAN_HELP)
    parser.add_argument("--dtypes", nargs="+", choices=DTYPES, default=list(DTYPES), help="to measure")


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
        timed = time_layer(layer, options.batch, options.sparsity, options.dtypes, options.plan, options.rounds, threads)
        for sparsity in options.sparsity:
            table.row(layer.name, percent(sparsity), *_float32(timed, sparsity), *_bfloat16(timed, sparsity))
        records += timed.records("kernels")
    print(
        "\nDense: the faster of contiguous and channels_last for each figure; its gradients come from one call. Sparse: "
        "batch-last tensors, random masks. Ratios: medians of the rounds' own ratios. Linear layers: MKL is slow on AMD "
        "processors, which flatters ours."
    )
    return records


def _float32(timed: LayerTimes, sparsity: float) -> list[str]:
    if timed.sparse("float32", sparsity, "forward")[0] not in timed.times.ms:
        return ["-"] * 5
    measured = timed.times
    dense_forward, dense_all = timed.dense("float32", "forward"), timed.dense("float32", ALL)
    forward, everything = timed.sparse("float32", sparsity, "forward"), timed.sparse("float32", sparsity, ALL)
    return [
        f"{ms(measured.summary(*dense_forward))} / {ms(measured.summary(*dense_all))}",
        f"{ms(measured.summary(*forward))} ({times(measured.ratio(dense_forward, forward))})",
        *(ms(measured.summary(name)) for name in everything[1:]),
        f"{ms(measured.summary(*everything))} ({times(measured.ratio(dense_all, everything), spread=True)})",
    ]


def _bfloat16(timed: LayerTimes, sparsity: float) -> list[str]:
    everything, single = timed.sparse("bfloat16", sparsity, ALL), timed.sparse("float32", sparsity, ALL)
    if everything[0] not in timed.times.ms:
        return ["-"] * 3
    return [
        ms(timed.times.summary(*everything)),
        times(timed.times.ratio(single, everything)) if single[0] in timed.times.ms else "-",
        times(timed.times.ratio(timed.dense("bfloat16", ALL), everything)),
    ]
