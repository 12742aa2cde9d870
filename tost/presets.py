"""`Preset`: an experiment of a paper as a file: the commands that repeat it on two budgets, and the numbers the paper gives."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tost
from tost.checks import number
from tost.choices import check_choice
from tost.files import read_yaml

__all__ = ["BUDGETS", "NOT_MEASURED", "PaperNumber", "Preset", "Stage", "find_preset", "preset_files"]

BUDGETS = ("small", "paper")
NOT_MEASURED = "not measured"
SWITCHES = ("line", "overwrite", "tensorboard")  # options that are there or not, and take no value
TRAINING = ("compare", "lottery", "train")
COMMANDS = ("analyze", *TRAINING)

_TEXTS = ("title", "paper", "item", "shows", "inferred", "source", "missing")
_KEYS = (*_TEXTS, "cost", "settings", "stages", "paper_numbers")
_STAGE_KEYS = ("name", "command", "options", "runs", *BUDGETS)
_NUMBER_KEYS = ("stage", "method", "variant", "against", "densities", "accuracy", "gain")


@dataclass(frozen=True)
class Stage:
    """One command of a preset, on one budget.

    Attributes:
        name: also its folder.
        command: as it is typed: "compare", "analyze curvature".
        options: those of the command, by name.
        runs: stages before it whose runs an analysis reads.
    """

    name: str
    command: str
    options: Mapping[str, Any]
    runs: tuple[str, ...] = ()

    def words(self, folder: Path, shared: Path) -> list[str]:
        """The command line, without `tost`; every stage has a folder of its name in `folder`, comparisons their runs in `shared`.

        Where snapshots are asked for the runs are the stage's own: those of others may lack them.
        """
        words = [*self.command.split(), *(str(folder / name) for name in self.runs)]
        places = {"out": str(folder / self.name)}
        if self.command == "compare" and not self.options.get("snapshots"):
            places["runs"] = str(shared)
        for name, value in {**self.options, **places}.items():
            if name not in SWITCHES:
                words += [f"--{name}", value if isinstance(value, str) else json.dumps(value)]
            elif value:
                words.append(f"--{name}")
        return words


@dataclass(frozen=True)
class PaperNumber:
    """A number that the paper gives, in percent or points.

    Attributes:
        stage: of the preset, that measures ours.
        variant: of that stage.
        value: test accuracy in percent; with `against`, the gain in points over that variant.
        method, density: of the cell; None: the same in all.
    """

    stage: str
    variant: str
    value: float
    against: str | None = None
    method: str | None = None
    density: float | None = None

    def fits(self, variant: str, against: str | None, method: str, density: float) -> bool:
        """Whether it is the paper's number of this variant in the cell of this method and density."""
        return (
            (self.variant, self.against) == (variant, against)
            and self.method in (None, method)
            and (self.density is None or abs(self.density - density) < 1e-6)
        )


@dataclass(frozen=True)
class Preset:
    """An experiment of a paper.

    Attributes:
        name: of the file, without its suffix.
        title: what is repeated.
        paper: where it was published.
        item: the table or figure.
        shows: what there is to see.
        inferred: what the sources do not say and we supposed; "" if nothing.
        source: where the numbers are from.
        missing: what the paper's runs have and ours lack; "" if nothing.
        cost: budget -> what it took here, or "not measured".
        stages: budget -> commands, in their order.
        numbers: what the paper says.
    """

    name: str
    title: str
    paper: str
    item: str
    shows: str
    inferred: str
    source: str
    missing: str
    cost: Mapping[str, str]
    stages: Mapping[str, tuple[Stage, ...]]
    numbers: tuple[PaperNumber, ...]

    @classmethod
    def load(cls, path: str | Path) -> Preset:
        """Read a YAML file; see experiments/README.md for what stands in it.

        Raises:
            FileNotFoundError: no such file. ValueError: something in it is unknown, missing or of the wrong kind; the message
                names the file and the key.
        """
        file = Path(path)
        values = read_yaml(file)
        try:
            return cls._from_dict(file, values)
        except (ValueError, TypeError) as error:
            raise ValueError(f"{file}: {error}") from None

    @classmethod
    def _from_dict(cls, file: Path, values: Mapping[str, Any]) -> Preset:
        _check_keys("preset", values, _KEYS, needed=("title", "paper", "item", "shows", "cost", "stages"))
        texts = {key: _text(key, values.get(key, "")) for key in _TEXTS}
        cost = _mapping("cost", values["cost"])
        _check_keys("cost", cost, BUDGETS, needed=BUDGETS)
        settings: Mapping[str, Any] = {}
        if "settings" in values:
            settings = read_yaml(file.parent / _text("settings", values["settings"]))
            _check_keys("settings", settings, BUDGETS, needed=BUDGETS)
        stages = {
            budget: tuple(_stages(values["stages"], budget, _mapping(f"settings.{budget}", settings.get(budget, {}))))
            for budget in BUDGETS
        }
        names = [stage.name for stage in stages["paper"]]
        numbers = tuple(_numbers(values.get("paper_numbers", []), names))
        return cls(
            file.stem,
            cost={budget: _text(f"cost.{budget}", cost[budget]) for budget in BUDGETS},
            stages=stages,
            numbers=numbers,
            **texts,
        )


def preset_files() -> dict[str, Path]:
    """Name -> file of the presets in ./experiments, or in that of the source tree."""
    for folder in (Path("experiments"), Path(tost.__file__).parent.parent / "experiments"):
        files = {file.stem: file for file in sorted(folder.glob("*.yaml"))}
        if files:
            return files
    return {}


def find_preset(name: str) -> Path:
    """The file of a preset: `name` itself, or the one of that name.

    Raises:
        ValueError: there is none (close matches are named). FileNotFoundError: `name` is a path, and there is no such file.
    """
    if name.endswith((".yaml", ".yml")):
        if not Path(name).is_file():
            raise FileNotFoundError(f"preset: no such file: {name}")
        return Path(name)
    return preset_files()[check_choice("preset", name, preset_files())]


def _stages(values: Any, budget: str, settings: Mapping[str, Any]) -> Iterator[Stage]:
    """Those of a budget; `settings` are options of every one that trains, its own override them."""
    seen: list[str] = []
    all_names: list[str] = []
    if not isinstance(values, list) or not values:
        raise ValueError(f"stages: expected a list of at least one, got {values!r}")
    for place, value in enumerate(values):
        stage = _mapping(f"stages[{place}]", value)
        _check_keys(f"stages[{place}]", stage, _STAGE_KEYS, needed=("name", "command", *BUDGETS))
        name = _text(f"stages[{place}].name", stage["name"])
        if name in all_names:
            raise ValueError(f"stages: expected each name once, got {name!r} twice")
        all_names.append(name)
        command = _text(f"stages.{name}.command", stage["command"])
        check_choice(f"stages.{name}.command", command.partition(" ")[0], COMMANDS)
        shared = _mapping(f"stages.{name}.options", stage.get("options", {}))
        own = stage[budget]
        if own is False:
            if budget == "paper":
                raise ValueError(f"stages.{name}.paper: expected options, got false: only `small` may leave a stage out")
            continue  # not on this budget
        general = settings if command in TRAINING else {}
        options = {**general, **shared, **_mapping(f"stages.{name}.{budget}", own)}
        for key in ("out", "runs", "config"):
            if key in options:
                raise ValueError(f"stages.{name}: expected no {key}, which `tost reproduce` decides, got {options[key]!r}")
        runs = stage.get("runs", [])
        if runs and command in TRAINING:
            raise ValueError(f"stages.{name}.runs: expected none, which only `analyze` reads, got {runs!r}")
        if not isinstance(runs, list):
            raise ValueError(f"stages.{name}.runs: expected a list of stages, got {runs!r}")
        for one in runs:
            if one not in seen:
                raise ValueError(f"stages.{name}.runs: expected stages before it on budget {budget} ({seen}), got {one!r}")
        seen.append(name)
        yield Stage(name, command, options, tuple(runs))


def _numbers(values: Any, stages: Sequence[str]) -> Iterator[PaperNumber]:
    if not isinstance(values, list):
        raise ValueError(f"paper_numbers: expected a list, got {values!r}")
    for place, value in enumerate(values):
        where = f"paper_numbers[{place}]"
        entry = _mapping(where, value)
        _check_keys(where, entry, _NUMBER_KEYS, needed=("stage", "variant"))
        check_choice(f"{where}.stage", entry["stage"], stages)
        kind = "gain" if "against" in entry else "accuracy"
        if kind not in entry or len({"accuracy", "gain"} & set(entry)) != 1:
            raise ValueError(f"{where}: expected accuracy, or gain with against, got {sorted(entry)}")
        densities = entry.get("densities", [None])
        numbers = entry[kind] if isinstance(entry[kind], list) else [entry[kind]]
        if not isinstance(densities, list) or len(densities) != len(numbers):
            raise ValueError(f"{where}.{kind}: expected one for each of densities {densities}, got {numbers}")
        for density, one in zip(densities, numbers, strict=True):
            yield PaperNumber(
                entry["stage"],
                _text(f"{where}.variant", entry["variant"]),
                number(f"{where}.{kind}", one),
                entry.get("against"),
                entry.get("method"),
                density if density is None else number(f"{where}.densities", density, above=0.0, most=1.0),
            )


def _check_keys(where: str, values: Mapping[str, Any], known: Sequence[str], needed: Sequence[str]) -> None:
    for key in values:
        check_choice(where, key, known)
    missing = [key for key in needed if key not in values]
    if missing:
        raise ValueError(f"{where}: expected {', '.join(needed)}; missing: {', '.join(missing)}")


def _mapping(where: str, value: Any) -> Mapping[str, Any]:
    if not isinstance(value, Mapping):
        raise ValueError(f"{where}: expected a mapping, got {value!r}")
    return value


def _text(where: str, value: Any) -> str:
    if not isinstance(value, str):
        raise ValueError(f"{where}: expected text, got {value!r}")
    return " ".join(value.split())
