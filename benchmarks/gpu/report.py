"""DIR/report.md out of the results: targets first, then a table a section."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path

from benchmarks.gpu import fused, roofline, targets
from benchmarks.gpu.layer_variants import ALL, FORWARD, INPUT, VALUES
from benchmarks.gpu.layers import CHOSEN, COMPILED, CSR, DENSE, LAYOUTS, MASKED
from benchmarks.gpu.results import Results
from benchmarks.ledger import Record
from benchmarks.table import percent
from benchmarks.timing import Summary

FILE = "report.md"
_WORST_GAPS = 20

Rows = Iterable[Sequence[str]]


def write(results: Results, folder: Path) -> None:
    """Judge the targets and write the report."""
    results.targets = targets.judge(results)
    (folder / FILE).write_text("\n".join(lines(results)) + "\n")


def lines(results: Results) -> Iterator[str]:
    """The report, a line at a time."""
    yield "# GPU suite"
    yield ""
    if results.about.get("dry_run"):
        yield "**A dry run on the CPU: every line of the suite has run, no figure means anything.**"
        yield ""
    for name, value in results.about.items():
        text = ", ".join(f"{k} {v}" for k, v in value.items()) if isinstance(value, dict) else str(value)
        yield f"- {name}: {text}"
    yield from summary(results)
    for name, section in results.sections.items():
        for title, entries in (
            ("notes", section.notes),
            ("FAILED", [f"{case}: {reason}" for case, reason in section.failures.items()]),
            ("left out for want of time", section.left_out),
        ):
            if entries:
                yield ""
                yield f"{name}, {title}:"
                yield from (f"- {entry}" for entry in entries)
    for title, columns, rows in TABLES:
        found = list(rows(results))
        if found:
            yield from _table(title, columns, found)


def summary(results: Results) -> Iterator[str]:
    """The targets and the sections, for a terminal."""
    yield from _table("Targets", ("target", "bar (stretch)", "worst case", "best", "reached", "state"), _targets(results))
    yield from _table("Sections", ("section", "seconds", "state", "cases done", "failed", "left out"), _sections(results))


def _table(title: str, columns: Sequence[str], rows: Rows) -> Iterator[str]:
    yield ""
    yield f"## {title}"
    yield ""
    yield "| " + " | ".join(columns) + " |"
    yield "|" + " --- |" * len(columns)
    for row in rows:
        yield "| " + " | ".join(cell.replace("|", "/") for cell in row) + " |"


def _targets(results: Results) -> Rows:
    for row in results.targets:
        stretch = f" ({row['stretch']:g}x)" if row["stretch"] is not None else ""
        worst = f"{row['worst']:.2f}x, {row['worst_case']}" if row["worst"] is not None else "-"
        best = f"{row['best']:.2f}x" if row["best"] is not None else "-"
        state = row["state"] + (", stretch too" if row["stretch_met"] else "")
        yield row["target"], f"{row['bar']:g}x{stretch}", worst, best, f"{row['reached']} of {row['cases']}", state


def _sections(results: Results) -> Rows:
    for name, s in results.sections.items():
        yield name, f"{s.seconds:.0f}", s.state, str(len(s.finished)), str(len(s.failures)), str(len(s.left_out))


def us(value: Summary) -> str:
    """Microseconds of milliseconds, with the quartiles."""
    digits = 1 if value.median < 0.1 else 0
    low, median, high = (f"{1e3 * ms:.{digits}f}" for ms in (value.low, value.median, value.high))
    return f"{median} [{low}, {high}]"


def _ceilings(results: Results) -> Rows:
    for record in results.of("ceilings"):
        value = record.value
        label = record.case.get("precision", "-")
        yield record.case["limit"], label, f"{value.median:.4g} [{value.low:.4g}, {value.high:.4g}] {record.unit}"


_LAYER_COLUMNS = (DENSE, MASKED, COMPILED, CSR, *LAYOUTS, CHOSEN)


def _layer_rows(part: str) -> Callable[[Results], Rows]:
    def rows(results: Results) -> Rows:
        cases: dict[tuple[str, ...], dict[str, Record]] = {}
        for record in results.of("layers", part=part):
            c = record.case
            density = f"{percent(c['sparsity'])} ({percent(round(c['density'], 4))} kept)"
            cases.setdefault((c["precision"], c["layer"], str(c["batch"]), c["mask"], density), {})[record.variant] = record
        for key, variants in cases.items():
            cells = []
            for name in _LAYER_COLUMNS:
                record_of = variants.get(name)
                ratio = f" ({record_of.ratio.median:.2f}x)" if record_of and record_of.ratio and name != DENSE else ""
                cells.append(us(record_of.value) + ratio if record_of else "-")
            options = variants[CHOSEN].case["options"] if CHOSEN in variants else "-"
            yield *key, *cells, options

    return rows


def _fused_rows(results: Results) -> Rows:
    copy = next((r.value.median for r in results.of("ceilings", limit="copy")), None)
    cases: dict[tuple[str, ...], dict[str, Record]] = {}
    for record in results.of("fused"):
        c = record.case
        cases.setdefault((c["op"], c["layer"], str(c["batch"]), c["precision"], c["part"]), {})[record.variant] = record
    for key, variants in cases.items():
        record = next(iter(variants.values()))
        floor = f"{1e6 * record.case['bytes'] / (1e9 * copy):.1f}" if copy else "-"
        cells = [us(variants[name].value) if name in variants else "-" for name in _SIDES]
        ratios = [r.ratio.median for name, r in variants.items() if name in fused.OURS and r.ratio is not None]
        yield *key, floor, *cells, f"{max(ratios):.2f}x" if ratios else "-"


_SIDES = (fused.EAGER, fused.COMPILED, fused.CHANNELS, *fused.OURS)


def _step_rows(results: Results) -> Rows:
    for record in results.of("step"):
        c, v = record.case, record.value
        ratio = f"{record.ratio.median:.2f}x [{record.ratio.low:.2f}, {record.ratio.high:.2f}]" if record.ratio else "-"
        time = f"{v.median:.3f} [{v.low:.3f}, {v.high:.3f}]"
        network = c["network"], str(c["batch"]), percent(c["sparsity"]), c["precision"]
        yield *network, record.variant, time, ratio, record.against or "-"


def _memory_rows(results: Results) -> Rows:
    for record in results.of("memory"):
        c = record.case
        sparsity = percent(c["sparsity"]) if c["sparsity"] is not None else "-"
        each = f"{c['bytes'] / c['kept']:.2f}" if c["kept"] else "-"
        yield c["network"], record.variant, sparsity, c["part"], f"{record.value.median:.2f}", each


def _roofline_rows(results: Results) -> Rows:
    for record in list(results.of(roofline.QUESTION))[:_WORST_GAPS]:
        c = record.case
        what = " ".join(str(c[key]) for key in ("op", "layer", "mask", "part") if key in c)
        sparsity = percent(c["sparsity"]) if c.get("sparsity") is not None else "-"
        reached = f"{c['bytes_per_second'] / 1e9:.0f} GB/s ({c['of_memory']:.0%})"
        flops = f"{c['flops_per_second'] / 1e12:.2f} TFLOP/s ({c['of_arithmetic']:.0%})"
        gap = f"{record.value.median:.1f}x"
        yield record.variant, what, sparsity, c["precision"], c["bound"], gap, reached, flops, roofline.reason(record)


_LAYER_HEAD = ("precision", "layer", "batch", "mask", "sparsity", *_LAYER_COLUMNS, "chosen plan")
TABLES: tuple[tuple[str, Sequence[str], Callable[[Results], Rows]], ...] = (
    ("Ceilings, measured", ("limit", "precision", "reached [quartiles]"), _ceilings),
    *(
        (
            f"Layers, {part}: microseconds [quartiles] (times faster than dense of the same precision)",
            _LAYER_HEAD,
            _layer_rows(part),
        )
        for part in (ALL, FORWARD, INPUT, VALUES)
    ),
    (
        "Fused ops: microseconds [quartiles]",
        (
            "op",
            "output of",
            "batch",
            "precision",
            "part",
            "memory floor",
            *_SIDES,
            "our faster, against the faster torch.compile",
        ),
        _fused_rows,
    ),
    (
        "Training step: milliseconds",
        ("network", "batch", "sparsity of masks", "precision", "variant", "ms [quartiles]", "times faster [quartiles]", "than"),
        _step_rows,
    ),
    ("Memory of a training step", ("network", "variant", "sparsity", "what", "MiB", "bytes a kept weight"), _memory_rows),
    (
        f"Roofline: the {_WORST_GAPS} largest gaps (results.json has all; why: what these figures suggest, not a profiler)",
        ("kernel", "case", "sparsity", "precision", "bound", "time / bound", "bytes", "useful FLOPs", "why"),
        _roofline_rows,
    ),
)
