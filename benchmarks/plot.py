#!/usr/bin/env python3
"""Figures of what `benchmarks/run.py ... --json` has measured:

    python benchmarks/plot.py kernels growth step --out figures

One PNG a question. Of measurements of the same thing the newest counts; only those on one commit and one machine, the newest
record's, are drawn together.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parent / "results"

Rows = list[dict[str, Any]]


def newest(records: Iterable[dict[str, Any]]) -> Rows:
    """Of a ledger, oldest first: the last record of each case, variant and comparison, on the last record's machine and commit.

    Raises:
        ValueError: there is no record.
    """
    rows = list(records)
    if not rows:
        raise ValueError("records: expected at least one, got an empty ledger")
    where = [(row["hardware"], row["versions"]) for row in rows]
    latest: dict[str, dict[str, Any]] = {}
    for row, place in zip(rows, where, strict=True):
        if place == where[-1]:
            key = json.dumps([row["case"], row["variant"], row["threads"], row["against"]], sort_keys=True)
            latest[key] = row
    return list(latest.values())


def series(rows: Rows, x: str, y: str = "ratio") -> tuple[list[float], list[float], list[float], list[float]]:
    """(x, median, low, high), ascending in x, which is an entry of the case."""
    points = sorted((row["case"][x], *(row[y][k] for k in ("median", "low", "high"))) for row in rows)
    return tuple(map(list, zip(*points, strict=True)))  # type: ignore[return-value]


def _line(axes: Any, rows: Rows, x: str, label: str, y: str = "ratio") -> None:
    at, median, low, high = series(rows, x, y)
    (line,) = axes.plot(at, median, marker="o", label=label)
    axes.fill_between(at, low, high, color=line.get_color(), alpha=0.2)


def grid(panels: int, columns: int = 3) -> tuple[Any, list[Any]]:
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    columns = min(columns, panels)
    lines = -(-panels // columns)
    figure, axes = plt.subplots(lines, columns, figsize=(4.5 * columns, 3.4 * lines), squeeze=False, layout="constrained")
    for unused in axes.flat[panels:]:
        unused.axis("off")
    return figure, list(axes.flat[:panels])


def kernels(rows: Rows) -> Any:
    """All three passes: times faster than dense, over sparsity; a panel a layer."""
    rows = [r for r in rows if r["case"]["part"] == "all three" and (r["against"] or "").startswith("dense")]
    layers = list(dict.fromkeys((r["case"]["layer"], r["threads"]) for r in rows))
    figure, panels = grid(len(layers))
    for axes, (layer, threads) in zip(panels, layers, strict=True):
        here = [r for r in rows if (r["case"]["layer"], r["threads"]) == (layer, threads)]
        for against in dict.fromkeys(r["against"] for r in here):
            _line(axes, [r for r in here if r["against"] == against], "sparsity", f"against {against}")
        axes.axhline(1, color="gray", linewidth=0.8)
        axes.set(title=f"{layer}, {threads} thread(s)", xlabel="sparsity", ylabel="times faster")
        axes.legend(fontsize=7)
    return figure


def growth(rows: Rows) -> Any:
    """Milliseconds of all three passes, dense and sparse, over what grows; a panel a sweep."""
    sweeps = list(dict.fromkeys((r["case"]["sweep"], r["threads"]) for r in rows))
    figure, panels = grid(len(sweeps))
    for axes, (sweep, threads) in zip(panels, sweeps, strict=True):
        here = [r for r in rows if (r["case"]["sweep"], r["threads"]) == (sweep, threads)]
        for variant in dict.fromkeys(r["variant"] for r in here):
            _line(axes, [r for r in here if r["variant"] == variant], "at", variant, y="value")
        axes.set(title=f"growth with {sweep}, {threads} thread(s)", xlabel=sweep, ylabel="ms, all three passes", yscale="log")
        if sweep != "sparsity":
            axes.set_xscale("log", base=2)
        axes.legend(fontsize=7)
    return figure


def step(rows: Rows) -> Any:
    """A bar a variant: how many times faster than the fastest dense step; a panel a network and batch."""
    cases = list(dict.fromkeys((r["case"]["network"], r["case"]["batch"], r["threads"]) for r in rows))
    figure, panels = grid(len(cases), columns=2)
    for axes, case in zip(panels, cases, strict=True):
        here = [r for r in rows if (r["case"]["network"], r["case"]["batch"], r["threads"]) == case]
        names = []
        for r in here:
            sparsity = r["case"]["sparsity"]
            names.append(r["variant"] + (f" {100 * sparsity:g}% {r['case']['method']}" if sparsity is not None else ""))
        medians = [r["ratio"]["median"] for r in here]
        spread = [[m - r["ratio"]["low"] for m, r in zip(medians, here, strict=True)]]
        spread += [[r["ratio"]["high"] - m for m, r in zip(medians, here, strict=True)]]
        axes.barh(names, medians, xerr=spread)
        axes.invert_yaxis()
        axes.axvline(1, color="gray", linewidth=0.8)
        axes.set(title=f"{case[0]}, batch {case[1]}, {case[2]} thread(s)", xlabel="times faster than the fastest dense fp32 step")
    return figure


PLOTS: dict[str, Callable[[Rows], Any]] = {"kernels": kernels, "growth": growth, "step": step}


def main(arguments: list[str] | None = None) -> None:
    """Draw the questions on the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("questions", nargs="*", help=f"of {', '.join(PLOTS)}; default: all that have a ledger")
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder of the ledgers")
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder of the figures")
    options = parser.parse_args(arguments)
    for name in options.questions:
        if name not in PLOTS:
            parser.error(f"questions: expected some of {', '.join(PLOTS)}, got {name!r}")
    questions = options.questions or [name for name in PLOTS if (options.results / f"{name}.jsonl").exists()]
    if not questions:
        parser.error(f"there is no ledger in {options.results}: run benchmarks/run.py with --json first")
    options.out.mkdir(parents=True, exist_ok=True)
    for name in questions:
        lines = (options.results / f"{name}.jsonl").read_text().splitlines()
        rows = newest(map(json.loads, lines))
        figure = PLOTS[name](rows)
        about = rows[-1]
        figure.suptitle(f"{about['hardware']['cpu']}, {about['hardware']['isa']}, torch {about['versions']['torch']}", fontsize=8)
        file = options.out / f"{name}.png"
        figure.savefig(file, dpi=130)
        print(file)


if __name__ == "__main__":
    main()
