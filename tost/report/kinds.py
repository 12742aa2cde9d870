"""Every kind of record: how it is read back, and the tables and pictures that are made of it alone."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from tost.analysis import (
    Activations,
    Curvature,
    FilterPath,
    Filters,
    GradientFlow,
    Iterations,
    Layers,
    PathDensities,
    PSwishCurves,
    Recovery,
    Saliencies,
    Surfaces,
    TrainingCurves,
)
from tost.choices import check_choice
from tost.files import DamagedFile, read_json, write_atomic, write_json
from tost.grid import Grid
from tost.report.analyses import iterations_sheet, layers_sheet, recovery_sheet, saliency_sheet
from tost.report.analysis_figures import (
    save_iterations_figure,
    save_layers_figure,
    save_recovery_figure,
    save_saliency_figure,
)
from tost.report.curvature import curvature_sheet, save_curvature_figure
from tost.report.filter_figures import filters_sheet, save_exciting_figure, save_guided_figure
from tost.report.grid_figures import grid_pictures
from tost.report.grids import grid_sheets
from tost.report.lotteries import lottery_sheet, save_lottery_figure
from tost.report.network_figures import save_activations_figure, save_gradients_figure, save_pswish_figure
from tost.report.networks import activations_sheets, gradients_sheet, pswish_sheet, surface_sheet
from tost.report.older import modern
from tost.report.path_figures import save_curves_of_runs_figure, save_density_figure, save_path_figure
from tost.report.paths import curves_sheet, density_sheets, path_sheet
from tost.report.reproductions import reproduction_sheets
from tost.report.sheet import Sheet, csv_tables
from tost.report.surface_figure import save_surface_figure
from tost.reproduction import Reproduction
from tost.tickets import Lottery

__all__ = ["KINDS", "Kind", "Record", "pictures_of", "read_record", "sheets_of", "write_report"]


class Record(Protocol):
    """What a comparison or an analysis found; `as_dict()["kind"]` says of which kind it is."""

    @property
    def kind(self) -> str: ...

    def as_dict(self) -> dict[str, Any]: ...


Draw = Callable[[Any, Path], None]


class Kind(NamedTuple):
    """A kind of record.

    Attributes:
        read: what `as_dict` gave -> the record.
        sheets: record -> its tables.
        pictures: record -> what the picture's name has behind the record's ("": nothing) -> draws the record into a file.
        whole: whether all of the record is in its file; else `read` takes the file's path, and looks beside it.
    """

    read: Callable[..., Any]
    sheets: Callable[[Any], Sequence[Sheet]]
    pictures: Callable[[Any], Mapping[str, Draw]]
    whole: bool = True


def _one(sheet: Callable[[Any], Sheet]) -> Callable[[Any], Sequence[Sheet]]:
    return lambda found: [sheet(found)]


def _alone(draw: Draw) -> Callable[[Any], Mapping[str, Draw]]:
    return lambda found: {"": draw}


# a new kind is a line here
KINDS: dict[str, Kind] = {
    Grid.kind: Kind(Grid.from_dict, grid_sheets, grid_pictures),
    # the rounds of a lottery are runs beside its own folder
    Lottery.kind: Kind(Lottery.load, _one(lottery_sheet), _alone(save_lottery_figure), whole=False),
    Iterations.kind: Kind(Iterations.from_dict, _one(iterations_sheet), _alone(save_iterations_figure)),
    Saliencies.kind: Kind(Saliencies.from_dict, _one(saliency_sheet), _alone(save_saliency_figure)),
    Recovery.kind: Kind(Recovery.from_dict, _one(recovery_sheet), _alone(save_recovery_figure)),
    Curvature.kind: Kind(Curvature.from_dict, _one(curvature_sheet), _alone(save_curvature_figure)),
    Surfaces.kind: Kind(Surfaces.from_dict, _one(surface_sheet), _alone(save_surface_figure)),
    Activations.kind: Kind(Activations.from_dict, activations_sheets, _alone(save_activations_figure)),
    GradientFlow.kind: Kind(GradientFlow.from_dict, _one(gradients_sheet), _alone(save_gradients_figure)),
    PSwishCurves.kind: Kind(PSwishCurves.from_dict, _one(pswish_sheet), _alone(save_pswish_figure)),
    Layers.kind: Kind(Layers.from_dict, _one(layers_sheet), _alone(save_layers_figure)),
    FilterPath.kind: Kind(FilterPath.from_dict, _one(path_sheet), _alone(save_path_figure)),
    TrainingCurves.kind: Kind(TrainingCurves.from_dict, _one(curves_sheet), _alone(save_curves_of_runs_figure)),
    PathDensities.kind: Kind(PathDensities.from_dict, density_sheets, _alone(save_density_figure)),
    Filters.kind: Kind(
        Filters.from_dict, _one(filters_sheet), lambda found: {"": save_exciting_figure, "guided": save_guided_figure}
    ),
    Reproduction.kind: Kind(Reproduction.from_dict, reproduction_sheets, lambda found: {}),
}


def sheets_of(found: Record) -> Sequence[Sheet]:
    """The tables of a record."""
    return KINDS[found.kind].sheets(found)


def pictures_of(found: Record) -> Mapping[str, Callable[[Path], None]]:
    """What a picture's name has behind the record's -> draws it into a file."""

    def bound(draw: Draw) -> Callable[[Path], None]:
        return lambda path: draw(found, path)

    return {name: bound(draw) for name, draw in KINDS[found.kind].pictures(found).items()}


def read_record(path: str | Path) -> Record:
    """The record in a file that a command wrote.

    Raises:
        FileNotFoundError: no such file. DamagedFile: (a ValueError) it is damaged, or no record of a kind that is known here.
    """
    file = Path(path)
    if not file.is_file():
        raise FileNotFoundError(f"record: no such file: {file}")
    values = read_json(file)
    if not isinstance(values, dict):
        raise DamagedFile(file, f"no record: expected an object with a kind, one of {', '.join(KINDS)}")
    try:
        values = modern(values)
        if "kind" not in values:
            raise ValueError(f"kind: expected one of {', '.join(KINDS)}, got none")
        kind = KINDS[check_choice("kind", values["kind"], KINDS)]
        found: Record = kind.read(values if kind.whole else file)
    except DamagedFile:
        raise  # it names what is damaged
    except (ValueError, TypeError, KeyError, AttributeError, IndexError) as error:
        what = f"{error} is missing" if isinstance(error, KeyError) else str(error)
        raise DamagedFile(file, f"no record that can be read here: {what}") from error
    return found


def write_report(found: Record, stem: Path) -> list[Path]:
    """Write the record and all that is made of it: `stem` with .json, .md, .csv, .tex and .png behind it.

    Further pictures and CSV files have a word between: comparison-summary.csv.

    Returns:
        the pictures.
    """
    stem.parent.mkdir(parents=True, exist_ok=True)
    write_json(_named(stem, "", ".json"), found.as_dict())  # first: the others can be made of it at any time
    sheets = sheets_of(found)
    write_atomic(_named(stem, "", ".md"), "\n".join(sheet.markdown() for sheet in sheets))
    write_atomic(_named(stem, "", ".tex"), "\n".join(sheet.latex() for sheet in sheets))
    for name, table in csv_tables(sheets).items():
        write_atomic(_named(stem, name, ".csv"), table)
    pictures = {_named(stem, name, ".png"): draw for name, draw in pictures_of(found).items()}
    for path, draw in pictures.items():
        draw(path)
    return list(pictures)


def _named(stem: Path, name: str, suffix: str) -> Path:
    return stem.with_name(stem.name + (f"-{name}" if name else "") + suffix)
