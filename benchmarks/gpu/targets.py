"""The targets of the project on an H200, beside what was measured: met, missed, or not measured."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

from benchmarks.cases import Layer
from benchmarks.gpu import fused, memory, step
from benchmarks.gpu.layer_variants import ALL
from benchmarks.gpu.layers import CHOSEN, DENSE, LAYOUTS
from benchmarks.gpu.results import Results
from benchmarks.ledger import Record

MET, MISSED, NOT_MEASURED, DRY_RUN = "met", "missed", "not measured", "dry run"
LONG_MS = 0.1  # layers that take longer (dense, all three passes) have the stricter target

Found = tuple[str, float]  # (case, times faster)


@dataclass(frozen=True)
class Target:
    """name: what is promised. bar: the ratio that every case must reach; stretch: the one hoped for."""

    name: str
    bar: float
    measured: Callable[[Results], Iterable[Found]]
    stretch: float | None = None


def verdict(target: Target, found: Iterable[Found]) -> dict[str, Any]:
    """One row: the worst case decides."""
    rows = sorted(found, key=lambda row: row[1])
    about = {"target": target.name, "bar": target.bar, "stretch": target.stretch, "cases": len(rows)}
    if not rows:
        return about | {"state": NOT_MEASURED, "worst": None, "worst_case": None, "best": None, "reached": 0, "stretch_met": None}
    worst = rows[0]
    return about | {
        "state": MET if worst[1] >= target.bar else MISSED,
        "worst": worst[1],
        "worst_case": worst[0],
        "best": rows[-1][1],
        "reached": sum(ratio >= target.bar for _, ratio in rows),
        "stretch_met": None if target.stretch is None else worst[1] >= target.stretch,
    }


def judge(results: Results) -> list[dict[str, Any]]:
    """All targets; those of a dry run are neither met nor missed."""
    rows = [verdict(target, target.measured(results)) for target in TARGETS]
    if results.about.get("dry_run"):
        rows = [row | {"state": DRY_RUN, "stretch_met": None} if row["cases"] else row for row in rows]
    return rows


def _label(record: Record) -> str:
    case = record.case
    parts = [str(case[key]) for key in ("network", "op", "layer", "mask") if key in case]
    parts += [f"{100 * case['sparsity']:g}%"] if case.get("sparsity") is not None else []
    return " ".join([*parts, case["precision"]])


def _ratio(record: Record) -> float:
    assert record.ratio is not None
    return record.ratio.median


def _chosen(results: Results, long: bool) -> Iterable[Found]:
    dense = {_label(r): r.value.median for r in results.of("layers", part=ALL) if r.variant == DENSE}
    for record in results.of("layers", part=ALL):
        if record.variant == CHOSEN and (dense[_label(record)] >= LONG_MS) == long:
            yield _label(record), _ratio(record)


def _wide(results: Results, sparsity: float, precision: str) -> Iterable[Found]:
    """The best of ours on each 3x3 layer of 128 channels or more; against dense of the same precision."""
    best: dict[str, float] = {}
    for record in results.of("layers", part=ALL, sparsity=sparsity, precision=precision):
        layer = Layer.parse(record.case["layer"])
        if record.variant in (CHOSEN, *LAYOUTS) and layer.kernel == 3 and layer.channels >= 128:
            best[_label(record)] = max(best.get(_label(record), 0.0), _ratio(record))
    return best.items()


def _fused(results: Results, op: str, part: str) -> Iterable[Found]:
    """The faster of our kernels."""
    best: dict[str, float] = {}
    for record in results.of("fused", op=op, part=part):
        if record.variant in fused.OURS:
            best[_label(record)] = max(best.get(_label(record), 0.0), _ratio(record))
    return best.items()


def _step(results: Results, network: str, against: str) -> Iterable[Found]:
    """The step as one graph. against: how the name of the baseline begins."""
    for record in results.of("step", network=network):
        if record.variant == step.GRAPH and (record.against or "").startswith(against):
            yield _label(record), _ratio(record)


def _memory(results: Results) -> Iterable[Found]:
    """12 bytes a kept weight over what is held: 1 where memory is proportional to nnz."""
    for record in results.of("memory", part=memory.STATE):
        if record.variant == "sparse":
            yield f"{record.case['network']} {100 * record.case['sparsity']:g}%", 12 * record.case["kept"] / record.case["bytes"]


def _against_default(results: Results) -> Iterable[Found]:
    for record in results.of("step"):
        if record.variant == step.GRAPH and record.against == step.COMPILED["default"]:
            yield _label(record), _ratio(record)


def _wide_target(precision: str, sparsity: float, bar: float, stretch: float | None = None) -> Target:
    against = {"tf32": "TF32", "fp32": "IEEE fp32", "bf16": "bf16"}[precision]
    name = f"3x3 of 128 channels or more at {100 * sparsity:g}% against {against}, forward and backward"
    return Target(name, bar, lambda results: _wide(results, sparsity, precision), stretch)


TARGETS = (
    Target("chosen against dense, layers of 100 us or more", 0.97, lambda r: _chosen(r, True)),
    Target("chosen against dense, shorter layers", 0.9, lambda r: _chosen(r, False)),
    _wide_target("tf32", 0.95, 1.1, 1.5),
    _wide_target("tf32", 0.98, 1.8, 2.5),
    _wide_target("fp32", 0.95, 2.0),
    _wide_target("fp32", 0.98, 4.0),
    _wide_target("bf16", 0.95, 0.9),
    _wide_target("bf16", 0.98, 1.5),
    Target("pswish backward with dbeta against torch.compile", 1.3, lambda r: _fused(r, "pswish", fused.BACKWARD)),
    Target(
        "ghost_skip_add forward and backward against torch.compile", 1.15, lambda r: _fused(r, "bn-ghost-skip-pswish", fused.BOTH)
    ),
    Target("step of ResNet-18 against masked-dense eager", 1.7, lambda r: _step(r, "resnet18", step.MASKED), 2.0),
    Target("step of ResNet-32 against masked-dense eager", 3.0, lambda r: _step(r, "resnet32", step.MASKED)),
    Target("step against torch.compile'd dense, default", 1.1, _against_default),
    Target("weights, gradients and momentum: 12 bytes a kept weight", 0.98, _memory),
)
