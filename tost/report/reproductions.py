"""Tables of a preset's comparisons beside the paper's numbers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from tost.paired import paired
from tost.report.sheet import Cell, Difference, Number, Sheet, Spread, Value
from tost.reproduction import Reproduction, Row

__all__ = ["reproduction_sheets"]

NOT_COMPARABLE = "Not run at the paper's budget: not comparable with its numbers."


@dataclass(frozen=True)
class _Lacking:
    """A cell without its value: the text says why, the columns of a CSV file are those of an empty one."""

    text: str
    empty: Value

    def __str__(self) -> str:
        return self.text

    def numbers(self) -> Mapping[str, Any]:
        return self.empty.numbers()


def reproduction_sheets(found: Reproduction) -> Sequence[Sheet]:
    """Accuracies, gains over baselines, and the commands that they are from."""
    accuracies = [row for row in found.rows if row.against is None]
    gains = [row for row in found.rows if row.against is not None]
    title = f"{found.item}: {found.title}; {found.budget} budget"
    warning = "" if found.budget == "paper" else f" {NOT_COMPARABLE}"
    notes = [found.shows]
    notes += [
        f"{label}: {text}"
        for label, text in (("Numbers from", found.source), ("Inferred", found.inferred), ("Missing", found.missing))
        if text
    ]
    first = ("stage", "ours on", "masks", "sparsity %", "variant")
    texts = ("ours on", "masks", "variant", "over", "command")
    stages = Sheet(
        f"{found.paper}: stages",
        ("stage", "command"),
        tuple(found.commands.items()),
        " ".join(notes),
        texts,
        "stages",
    )
    sheets = []
    if accuracies:
        header = (*first, "paper %", "ours %", "ours - paper")
        note = "Test accuracy, mean ± standard deviation over the seeds; n is their number." + warning
        rows = tuple((*_place(row), _paper(row, ".2f"), *_accuracy(row)) for row in accuracies)
        sheets.append(Sheet(title, (*header[:-1], "n", header[-1]), rows, note, texts))
    if gains:
        rows = tuple((*_place(row), str(row.against), _paper(row, "+.2f"), _gain(row), _difference(row)) for row in gains)
        note = "Points of test accuracy, on the same seeds, with the 95% interval." + warning
        sheets.append(Sheet(f"{title}: gains", (*first, "over", "paper", "ours", "ours - paper"), rows, note, texts, "gains"))
    return [*sheets, stages]


def _place(row: Row) -> tuple[Cell, ...]:
    sparsity = Number(None if row.density is None else 100 * (1 - row.density), ".4g")
    return (row.stage, row.network, row.method, sparsity, row.variant)


def _paper(row: Row, form: str) -> Cell:
    return _Lacking("not given", Number(None)) if row.paper is None else Number(row.paper, form)


def _accuracy(row: Row) -> tuple[Cell, ...]:
    ours = Spread([100 * value for value in row.ours]) if row.ours else _Lacking(_why(row), Spread(()))
    return ours, Number(len(row.ours)), _difference(row)


def _gain(row: Row) -> Cell:
    return Difference(paired([0.0] * len(row.ours), row.ours)) if row.ours else _Lacking(_why(row), Difference(None))


def _why(row: Row) -> str:
    return "diverged" if row.network else "not run"


def _difference(row: Row) -> Cell:
    if row.difference is not None:
        return Number(row.difference, "+.2f")
    return _Lacking("" if row.ran_as_paper or row.paper is None or not row.ours else "not comparable", Number(None))
