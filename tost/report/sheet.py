"""A table without a look: values in rows, formatted at the end for a terminal, Markdown, LaTeX or CSV."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from rich.table import Table
from rich.text import Text

from tost.paired import Paired, mean_and_spread

__all__ = ["Cell", "Change", "Difference", "Number", "Part", "Range", "Sheet", "Spread", "Value", "csv_tables"]


class Value(Protocol):
    """A cell that holds numbers: `str` gives its text, `numbers` its columns of a CSV file by what they add to the name."""

    def numbers(self) -> Mapping[str, Any]: ...


Cell = str | Value


@dataclass(frozen=True)
class Number:
    """One number; None: there is none.

    Attributes:
        form: for the text, as in `format`.
        unit: behind it in the text.
    """

    value: float | None
    form: str = ","
    unit: str = ""

    def __str__(self) -> str:
        return "" if self.value is None else f"{self.value:{self.form}}{self.unit}"

    def numbers(self) -> Mapping[str, Any]:
        return {"": self.value}


@dataclass(frozen=True)
class Spread:
    """Mean and standard deviation of measurements; the text of one has no ±, and none at all has none."""

    values: Sequence[float]
    form: str = ".2f"
    spread_form: str | None = None  # None: as `form`

    def __str__(self) -> str:
        if not self.values:
            return ""
        mean, spread = mean_and_spread(self.values)
        text = f"{mean:{self.form}}"
        return f"{text} ± {spread:{self.spread_form or self.form}}" if len(self.values) > 1 else text

    def numbers(self) -> Mapping[str, Any]:
        mean, spread = mean_and_spread(self.values) if self.values else (None, None)
        return {"mean": mean, "std": spread if len(self.values) > 1 else None, "n": len(self.values)}


@dataclass(frozen=True)
class Range:
    """From a low value to a high one."""

    low: float
    high: float
    form: str = ".1f"

    def __str__(self) -> str:
        return f"{self.low:{self.form}} - {self.high:{self.form}}"

    def numbers(self) -> Mapping[str, Any]:
        return {"low": self.low, "high": self.high}


@dataclass(frozen=True)
class Part:
    """A count and what it is a part of."""

    count: int
    of: int

    def __str__(self) -> str:
        return f"{self.count:,} of {self.of:,}"

    def numbers(self) -> Mapping[str, Any]:
        return {"": self.count, "of": self.of}


@dataclass(frozen=True)
class Change:
    """A count before and after."""

    before: int
    after: int

    def __str__(self) -> str:
        return f"{self.before:,} -> {self.after:,}"

    def numbers(self) -> Mapping[str, Any]:
        return {"before": self.before, "after": self.after}


@dataclass(frozen=True)
class Difference:
    """Paired differences of fractions, shown in points: mean, its 95% interval, wins, verdict. None: there is no pair to make."""

    paired: Paired | None

    def __str__(self) -> str:
        found = self.paired
        if found is None:
            return ""
        if found.mean is None:
            return "no pair"
        text = f"{100 * found.mean:+.2f}"
        if found.low is not None and found.high is not None:
            text += f" [{100 * found.low:+.2f}, {100 * found.high:+.2f}]"
        return f"{text}, {found.wins}/{len(found.differences)}, {found.verdict}"

    def numbers(self) -> Mapping[str, Any]:
        found = self.paired
        if found is None:
            return dict.fromkeys(("mean", "low", "high", "wins", "losses", "n", "verdict"))
        points = {name: None if (x := getattr(found, name)) is None else 100 * x for name in ("mean", "low", "high")}
        counts = {"wins": found.wins, "losses": found.losses, "n": len(found.differences)}
        return {**points, **counts, "verdict": found.verdict}


@dataclass(frozen=True)
class Sheet:
    """A table. The first column and those named in `texts` are left-aligned, the others hold numbers.

    Attributes:
        title: one line.
        header: names of the columns, with units.
        rows: cells, each a text or a `Value`.
        note: what the numbers mean, below the table.
        texts: further columns of text.
        name: tables of one name share a CSV file, which has it behind its own; "": the main one.
        keys: columns that the CSV file has in front, the same in all rows: what only the title tells readers.
    """

    title: str
    header: tuple[str, ...]
    rows: tuple[tuple[Cell, ...], ...]
    note: str = ""
    texts: tuple[str, ...] = ()
    name: str = ""
    keys: tuple[tuple[str, str | float], ...] = ()

    @property
    def cells(self) -> tuple[tuple[str, ...], ...]:
        """The rows as text."""
        return tuple(tuple(map(str, row)) for row in self.rows)

    def rich(self) -> Table:
        """For a terminal."""
        # Text, not str: a name like [b] is no markup
        table = Table(title=Text(self.title, "table.title"), title_justify="left", caption_justify="left")
        table.caption = Text(self.note, "table.caption") if self.note else None
        for name, left in zip(self.header, self._left(), strict=True):
            table.add_column(Text(name), justify="left" if left else "right", overflow="fold")
        for row in self.cells:
            table.add_row(*map(Text, row))
        return table

    def markdown(self) -> str:
        """For a file."""
        ruler = [":--" if left else "--:" for left in self._left()]
        lines = [f"**{self.title}**", ""]
        for cells in (self.header, ruler, *self.cells):
            lines.append("| " + " | ".join(cell.replace("|", r"\|") for cell in cells) + " |")
        return "\n".join([*lines, *(["", self.note] if self.note else []), ""])

    def latex(self) -> str:
        """A `table` for a paper; it needs the package booktabs."""
        columns = "".join("l" if left else "r" for left in self._left())
        head, *body = (" & ".join(map(_latex, cells)) + r" \\" for cells in (self.header, *self.cells))
        lines = [r"\begin{table}", r"\centering", rf"\caption{{{_latex(self.title)}}}", rf"\begin{{tabular}}{{{columns}}}"]
        lines += [r"\toprule", head, r"\midrule", *body, r"\bottomrule", r"\end{tabular}"]
        lines += [rf"\par\smallskip\footnotesize {_latex(self.note)}"] if self.note else []
        return "\n".join([*lines, r"\end{table}", ""])

    def csv(self) -> str:
        """Plain numbers with all their digits, a column each; a line of names above."""
        return _csv(self.records())

    def records(self) -> list[dict[str, Any]]:
        """The rows of `csv`: name of the column -> number or text; None: there is none."""
        return [dict(self.keys) | _columns(zip(self.header, row, strict=True)) for row in self.rows]

    def _left(self) -> list[bool]:
        return [i == 0 or name in self.texts for i, name in enumerate(self.header)]


def csv_tables(sheets: Iterable[Sheet]) -> dict[str, str]:
    """Name -> a CSV file's content, for all sheets of one name; where one lacks a column of another, it is empty there."""
    together: dict[str, list[dict[str, Any]]] = {}
    for sheet in sheets:
        together.setdefault(sheet.name, []).extend(sheet.records())
    return {name: _csv(records) for name, records in together.items()}


def _columns(row: Iterable[tuple[str, Cell]]) -> dict[str, Any]:
    columns: dict[str, Any] = {}
    for name, cell in row:
        if isinstance(cell, str):
            columns[name] = cell
        else:
            columns |= {f"{name} {part}".rstrip(): value for part, value in cell.numbers().items()}
    return columns


def _csv(records: Sequence[Mapping[str, Any]]) -> str:
    text = io.StringIO()
    names = list(dict.fromkeys(name for record in records for name in record))
    writer = csv.DictWriter(text, names, lineterminator="\n")
    writer.writeheader()
    writer.writerows({name: _plain(value) for name, value in record.items()} for record in records)
    return text.getvalue()


def _plain(value: Any) -> Any:
    """Of a number all digits that it has, but none that are noise: 100 * 0.07 is 7."""
    return f"{value:.12g}" if isinstance(value, float) else value


_SPECIAL = {
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "±": r"$\pm$",
    "<": "$<$",
    ">": "$>$",
    "|": "$|$",
    **{character: f"\\{character}" for character in "&%$#_{}"},
}
_MATHS = {"+": "$+$", "-": "$-$", "->": r"$\rightarrow$"}


def _latex(text: str) -> str:
    """`text` where TeX would take some of it for commands; signs of numbers are as long as a plus."""
    parts = re.split(r"((?<![\w.])[+-](?=[\d.])|->)", text)  # odd ones are signs and arrows
    told = "".join(_MATHS[part] if i % 2 else "".join(_SPECIAL.get(c, c) for c in part) for i, part in enumerate(parts))
    return "{}" + told if told.startswith("[") else told  # the end of a row takes a bracket for its own
