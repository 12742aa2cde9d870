"""roofline: every kernel measured by the sections before it, against the ceilings measured by `ceilings`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from benchmarks.gpu.ceilings import COPY, LAUNCH, PRODUCTS
from benchmarks.gpu.fused import BOTH, COMPILED, OURS
from benchmarks.gpu.layer_variants import ALL
from benchmarks.gpu.layers import DENSE, LAYOUTS
from benchmarks.gpu.results import Results
from benchmarks.gpu.suite import Suite
from benchmarks.ledger import Record
from benchmarks.timing import Summary

QUESTION = "roofline"


@dataclass(frozen=True)
class Ceilings:
    """bandwidth: bytes a second; flops: precision -> operations a second; launch: seconds that the shortest kernel takes."""

    bandwidth: float
    flops: dict[str, float]
    launch: float

    @classmethod
    def of(cls, results: Results) -> Ceilings:
        """Raises LookupError naming the limits that were not measured."""
        found = {record.case["limit"]: record.value.median for record in results.of("ceilings")}
        missing = [name for name in (COPY, LAUNCH, *PRODUCTS.values()) if name not in found]
        if missing:
            raise LookupError(f"ceilings: expected all to be measured, {', '.join(missing)} were not")
        return cls(1e9 * found[COPY], {kind: 1e12 * found[name] for kind, name in PRODUCTS.items()}, 1e-6 * found[LAUNCH])


def bound(ceilings: Ceilings, moved: float, flops: float, unit: str) -> tuple[float, str]:
    """(seconds that the work takes at least, what holds it there: memory, arithmetic or launch)."""
    limits = {"memory": moved / ceilings.bandwidth, "arithmetic": flops / ceilings.flops[unit], "launch": ceilings.launch}
    what = max(limits, key=lambda name: limits[name])
    return limits[what], what


def run(suite: Suite) -> None:
    """Judge every record of a single kernel; the figures are ratios, nothing is timed here."""
    try:
        ceilings = Ceilings.of(suite.results)
    except LookupError as error:
        suite.note(str(error))
        return
    suite.results.records = [record for record in suite.results.records if record.question != QUESTION]
    rows = [judge(ceilings, record) for record in suite.results.records if _is_kernel(record)]
    suite.add(sorted(rows, key=lambda record: -record.value.median))


def _is_kernel(record: Record) -> bool:
    if record.question == "layers":
        return record.case["part"] != ALL and record.variant in (DENSE, *LAYOUTS)
    return record.question == "fused" and record.case["part"] != BOTH and record.variant in (*OURS, COMPILED)


def judge(ceilings: Ceilings, record: Record) -> Record:
    """How many times its bound a kernel takes; what it reaches of both ceilings."""
    case = record.case
    # the direct kernels have no use for tensor cores: one FMA a kept weight
    unit = "fp32" if record.variant.endswith("direct") or "precision" not in case else case["precision"]
    moved, flops = case["bytes"], case.get("flops", 0)
    least, what = bound(ceilings, moved, flops, unit)
    seconds = 1e-3 * record.value.median
    about: dict[str, Any] = {
        key: case[key] for key in ("op", "layer", "mask", "sparsity", "precision", "part", "bytes") if key in case
    }
    about |= {
        "flops": flops,
        "bound": what,
        "unit": unit,
        "bytes_per_second": moved / seconds,
        "flops_per_second": flops / seconds,
        "of_memory": moved / seconds / ceilings.bandwidth,
        "of_arithmetic": flops / seconds / ceilings.flops[unit],
    }
    gap = Summary(*(1e-3 * ms / least for ms in (record.value.median, record.value.low, record.value.high)))
    return Record(QUESTION, about, record.variant, 1, gap, unit="times its bound")


def reason(record: Record) -> str:
    """What the figures themselves say about a gap; the rest is for a profiler."""
    case = record.case
    memory, arithmetic = case["of_memory"], case["of_arithmetic"]
    if case["bound"] == "launch":
        return "too little work to fill the device: launches and latency"
    if max(memory, arithmetic) >= 0.6:
        return f"near its {case['bound']} ceiling"
    if record.variant in ("cuda gather", "triton tiles", "triton blocks"):
        return (
            "columns shared by a row group are multiplied for every row: most of what tensor cores do is not in the FLOPs counted"
        )
    if record.variant.endswith("direct"):
        return "each FMA loads its activation: operand delivery, not the FMA units"
    return "far from both ceilings: latency, or more bytes moved than counted"
