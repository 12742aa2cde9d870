"""step: a whole training step (forward, backward, SGD with momentum) of a network, dense and sparse."""

from __future__ import annotations

import argparse
import shutil
import time
from collections.abc import Callable

import torch

from benchmarks.cases import SPARSITIES
from benchmarks.ledger import Record
from benchmarks.networks import LAYOUTS, Step, Variant, build, can_have_ghosts, check
from benchmarks.table import Table, ms, times
from benchmarks.timing import Times, clock_for, interleave
from tost import models

DEFAULT_ROUNDS = 5
DEFAULT_THREADS = (2,)
NETWORKS = ["resnet18@64", "resnet18@128", "resnet32@64", "vgg16@64"]
KINDS = ("dense", "compiled", "bf16", "masked", "sparse", "erk", "sparse-bf16", "ghosts")
GHOST_SPARSITY = 0.95
BASELINE = "dense fp32"


def arguments(parser: argparse.ArgumentParser) -> None:
    """The question's own options."""
    parser.add_argument("--networks", nargs="+", default=NETWORKS, help="name@batch, the name out of tost.models.names()")
    parser.add_argument("--sparsity", nargs="+", type=float, default=list(SPARSITIES), help="of the masks")
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=list(KINDS), help="of the rows; dense is always there")
    parser.add_argument("--plan", choices=("tuned", "rule"), default="tuned", help="of the sparse layers; tuning is not counted")


def run(options: argparse.Namespace, threads: int) -> list[Record]:
    """Time every network; print a table each."""
    records: list[Record] = []
    for case in options.networks:
        records += measure(*parse(case), options, threads)
    return records


def parse(case: str) -> tuple[str, int]:
    """(network, batch) of `resnet18@64`. Raises ValueError for anything else."""
    name, _, batch = case.partition("@")
    if name not in models.names() or not batch.isdecimal() or int(batch) < 1:
        raise ValueError(f"network: expected name@batch with a name out of {models.names()}, got {case!r}")
    return name, int(batch)


def variants_of(options: argparse.Namespace, ghosts: bool) -> list[Variant]:
    """The rows asked for, without the compiled ones (their layout is chosen by measurement)."""
    kinds = options.kinds
    variants = [Variant("dense", layout) for layout in LAYOUTS]
    if "bf16" in kinds:
        variants += [Variant("bf16", layout) for layout in LAYOUTS]
    if "masked" in kinds:  # the mask's density changes nothing for torch
        variants += [Variant("masked", layout, GHOST_SPARSITY) for layout in LAYOUTS]
    for kind, method in (("sparse", "random"), ("erk", "erk")):
        if kind in kinds:
            variants += [Variant("sparse", "batch_last", sparsity, method, options.plan) for sparsity in options.sparsity]
    if "sparse-bf16" in kinds:
        variants.append(Variant("sparse-bf16", "batch_last", GHOST_SPARSITY, plan=options.plan))
    if "ghosts" in kinds and ghosts:
        variants.append(Variant("ghosts", "batch_last", GHOST_SPARSITY, plan=options.plan))
    return variants


def measure(network: str, batch: int, options: argparse.Namespace, threads: int) -> list[Record]:
    """One table."""
    model = build(network)
    check(model, min(batch, 16), GHOST_SPARSITY)
    variants = variants_of(options, can_have_ghosts(model))
    start = time.perf_counter()
    steps: dict[str, Callable[[], object]] = {v.name: Step(model, v, batch) for v in variants}
    prepared = f"Masks and plans ({options.plan}) took {time.perf_counter() - start:.0f} s, not counted"
    note = "torch.compile: not asked for"
    if "compiled" in options.kinds:
        note = "torch.compile: no C++ compiler here"
        if shutil.which("g++") or shutil.which("clang++"):
            layout = faster_layout(steps)
            torch.compiler.reset()
            start = time.perf_counter()
            compiled = Variant("compiled", layout)
            steps[compiled.name] = Step(model, compiled, batch)
            steps[compiled.name]()
            variants.insert(len(LAYOUTS), compiled)
            note = f"torch.compile (Inductor, {layout}) took {time.perf_counter() - start:.0f} s, which is not counted"
    timed = interleave(steps, options.rounds, clock_for(threads), shortest_ms=0.0)
    return report(network, batch, threads, variants, timed, f"{prepared}. {note}")


def faster_layout(steps: dict[str, Callable[[], object]]) -> str:
    """The layout in which the dense network is faster; one look is enough to choose what to compile."""
    timed = interleave(
        {layout: steps[Variant("dense", layout).name] for layout in LAYOUTS}, 1, time.perf_counter, shortest_ms=0.0
    )
    return timed.fastest([(layout,) for layout in LAYOUTS])[0]


def report(network: str, batch: int, threads: int, variants: list[Variant], timed: Times, note: str) -> list[Record]:
    """Print the rows: of each kind at each density the faster layout."""
    table = Table(
        f"Training step of {network}: {threads} thread(s), batch {batch}, 32x32 images",
        ("variant", "sparsity", "layout", "ms [quartiles]", "against the fastest dense fp32 [quartiles]"),
    )
    rows: dict[tuple[str, float | None, str], list[Variant]] = {}
    for variant in variants:
        rows.setdefault((variant.kind, variant.sparsity, variant.method), []).append(variant)
    dense = timed.fastest([(v.name,) for v in rows["dense", None, "random"]])
    records = []
    for (kind, sparsity, method), candidates in rows.items():
        name = timed.fastest([(v.name,) for v in candidates])[0]
        variant = next(v for v in candidates if v.name == name)
        value, ratio = timed.summary(name), timed.ratio(dense, [name])
        masks = f"{100 * sparsity:g}% {method}" if sparsity is not None else "-"
        spread = f"{ms(value)} [{ms(value.low)}, {ms(value.high)}]"
        table.row(TITLES[kind], masks, variant.layout, spread, times(ratio, spread=True))
        case = {"network": network, "batch": batch, "sparsity": sparsity, "method": method, "layout": variant.layout}
        case |= {"plan": variant.plan} if variant.layout == "batch_last" else {}
        records.append(Record("step", case, kind, threads, value, ratio, BASELINE))
    print(f"\nForward, backward and SGD with momentum on one batch, interleaved, checked against masked-dense first. {note}.")
    return records


TITLES = {
    "dense": "dense fp32",
    "compiled": "dense fp32, torch.compile",
    "bf16": "dense, bf16 autocast",
    "masked": "masked-dense (torch.nn.utils.prune)",
    "sparse": "sparse (tost)",
    "sparse-bf16": "sparse (tost), bf16 autocast",
    "ghosts": "sparse (tost), ghosts and PSwish alive",
}
