"""`Reproduction`: what the comparisons of a preset came to, the paper's numbers beside ours."""

from __future__ import annotations

import dataclasses
import statistics
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from tost.grid import Cell, Grid
from tost.presets import PaperNumber, Preset

__all__ = ["Reproduction", "Row", "reproduction"]


@dataclass(frozen=True)
class Row:
    """One number of the paper, of ours, or both.

    Attributes:
        stage: of the preset.
        network: what we trained, and on what; "": not run on this budget.
        method: of the masks; "": the variant says which, or it is a dense network.
        density: of the masks; None: it is a dense network.
        variant: what is measured.
        against: None: `ours` are test accuracies; else gains in it over this variant.
        paper: the paper's number, in percent or points; None: not given.
        ours: ours, one a seed, as fractions; a run that diverged has none.
        ran_as_paper: whether the budget was the paper's.
    """

    stage: str
    network: str
    method: str
    density: float | None
    variant: str
    against: str | None
    paper: float | None
    ours: tuple[float, ...]
    ran_as_paper: bool

    @property
    def difference(self) -> float | None:
        """Mean of ours less the paper's, in points; None where one lacks, or the budget was not the paper's."""
        if self.paper is None or not self.ours or not self.ran_as_paper:
            return None
        return 100 * statistics.fmean(self.ours) - self.paper


@dataclass(frozen=True)
class Reproduction:
    """What a preset came to on a budget.

    Attributes:
        preset: its name.
        item, title, paper, shows, inferred, source, missing: as in `Preset`.
        budget: "small" or "paper".
        commands: stage -> the command that it was.
        rows: the numbers.
    """

    kind: ClassVar[str] = "reproduction"

    preset: str
    item: str
    title: str
    paper: str
    shows: str
    inferred: str
    source: str
    missing: str
    budget: str
    commands: Mapping[str, str]
    rows: tuple[Row, ...]

    def as_dict(self) -> dict[str, Any]:
        """Plain JSON types; `from_dict` reads it back."""
        values = dataclasses.asdict(self)
        rows = [{**dataclasses.asdict(row), "ours": list(row.ours), "difference": row.difference} for row in self.rows]
        return {"kind": self.kind, **values, "rows": rows}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Reproduction:
        """What `as_dict` gave."""
        fields = {field.name: values[field.name] for field in dataclasses.fields(cls)}
        names = [field.name for field in dataclasses.fields(Row)]
        rows = tuple(Row(**{name: row[name] for name in names} | {"ours": tuple(row["ours"])}) for row in values["rows"])
        return cls(**fields | {"rows": rows})


def reproduction(preset: Preset, budget: str, folder: Path, commands: Mapping[str, str]) -> Reproduction:
    """Read the records of the finished stages, in folders of their names in `folder`.

    Raises:
        FileNotFoundError: a comparison is not finished. DamagedFile: its record is damaged.
    """
    rows: list[Row] = []
    found: set[int] = set()
    for stage in preset.stages[budget]:
        if stage.command == "compare":
            grid = Grid.load(folder / stage.name / "comparison.json")
            numbers = [number for number in preset.numbers if number.stage == stage.name]
            for cell, variant, against in _quantities(grid):
                number = next((n for n in numbers if n.fits(variant, against, cell.method, cell.density)), None)
                found.add(id(number))
                rows.append(_row(stage.name, grid, cell, variant, against, number, budget))
    rows += [_not_run(number, budget) for number in preset.numbers if id(number) not in found]
    texts = {name: getattr(preset, name) for name in ("item", "title", "paper", "shows", "inferred", "source", "missing")}
    return Reproduction(preset.name, budget=budget, commands=dict(commands), rows=tuple(rows), **texts)


def _quantities(grid: Grid) -> Iterator[tuple[Cell, str, str | None]]:
    """Every accuracy, and every gain over a baseline; a dense network has but one accuracy, whatever the masks."""
    dense: set[tuple[str, str, str]] = set()
    for cell in grid.cells:
        for variant in grid.variants:
            if _is_dense(grid, variant):
                network = (cell.model, cell.dataset, variant)
                if network in dense:
                    continue
                dense.add(network)
            yield cell, variant, None
            alike = [name for name in grid.baselines if name != variant and _is_dense(grid, name) == _is_dense(grid, variant)]
            yield from ((cell, variant, against) for against in alike)


def _is_dense(grid: Grid, variant: str) -> bool:
    return bool(grid.variants[variant].get("backend", grid.base.backend) == "dense")


def _row(stage: str, grid: Grid, cell: Cell, variant: str, against: str | None, number: PaperNumber | None, budget: str) -> Row:
    ours: Sequence[float]
    ours = grid.accuracies(cell, variant) if against is None else grid.against(cell, variant, against).differences
    dense = _is_dense(grid, variant)
    return Row(
        stage,
        f"{Path(cell.model).name}, {cell.dataset}",
        "" if dense else cell.method,
        None if dense else cell.density,
        variant,
        against,
        number.value if number else None,
        tuple(ours),
        budget == "paper",
    )


def _not_run(number: PaperNumber, budget: str) -> Row:
    method = number.method or ""
    return Row(number.stage, "", method, number.density, number.variant, number.against, number.value, (), budget == "paper")
