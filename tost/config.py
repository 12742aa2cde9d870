"""The configuration of one training run: everything that decides its result, checked, hashed and read from YAML."""

from __future__ import annotations

import dataclasses
import hashlib
import itertools
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import tost
from tost.checks import integer, number
from tost.choices import check_choice
from tost.files import read_yaml
from tost.recipe import Recipe

BACKENDS = ("dense", "masked-dense", "reference", "sparse")
RECIPES = ("tost", "vanilla")


def _option(default: Any, help: str) -> Any:
    return field(default=default, metadata={"help": help})


@dataclass(frozen=True)
class Config:
    """One run. Every field has a default; the command line and YAML files use the same names.

    The fields' meaning stands beside them (and in `tost train --help`). Fractions count from 0 to 1.

    Raises:
        ValueError, TypeError: a field has a wrong value or type; the message names the field.
    """

    model: str = _option("resnet20", "network, see tost.models.names()")
    dataset: str = _option("mnist5k", "data set, see tost.data.names()")
    data_dir: str | None = _option(None, "folder of the data set's files (default: where `tost data fetch` puts them)")
    method: str = _option("erk", "pruning method, see tost.methods()")
    density: float = _option(0.05, "fraction of the prunable weights that is kept (0.05: 95 percent sparse)")
    include: tuple[str, ...] | None = _option(None, "prune only layers whose name matches one of these patterns")
    exclude: tuple[str, ...] | None = _option(None, "never prune layers whose name matches one of these patterns")
    recipe: Recipe = field(
        default_factory=Recipe.tost,
        metadata={"help": "'tost', 'vanilla', or single settings as --recipe.NAME VALUE"},
    )
    epochs: int = _option(30, "passes over the training images")
    steps: int | None = _option(None, "optimizer steps; overrides epochs")
    batch_size: int = _option(128, "images a step")
    lr: float = _option(0.1, "learning rate of SGD after the warm-up")
    momentum: float = _option(0.9, "momentum of SGD")
    nesterov: bool = _option(False, "Nesterov momentum")
    weight_decay: float = _option(2e-4, "weight decay of weights (biases and BatchNorm have none)")
    milestones: tuple[float, ...] = _option((0.5, 0.75), "fractions of the training after which the learning rate drops")
    gamma: float = _option(0.1, "factor of each learning rate drop")
    warmup_steps: int = _option(0, "steps over which the learning rate first rises linearly")
    eval_every: int = _option(1, "epochs between two measurements of the test accuracy")
    seed: int = _option(0, "decides weights, mask, batches and re-scaled initialization, each by a stream of its own")
    backend: str = _option(
        "sparse",
        "sparse: compiled kernels, or torch's dense ones where they are absent; reference: the specification, in plain torch; "
        "masked-dense: dense network times mask; dense: no mask at all",
    )
    tune: bool = _option(
        False, "backend sparse: measure first which kernels are the fastest here (up to a minute; the next run reads a cache)"
    )
    out: str = _option("runs", "folder of the run folders")

    def __post_init__(self) -> None:
        recipe = self.recipe
        if isinstance(recipe, str):
            recipe = Recipe.tost() if check_choice("recipe", recipe, RECIPES) == "tost" else Recipe.vanilla()
        elif isinstance(recipe, Mapping):
            recipe = Recipe.from_dict(recipe)
        elif not isinstance(recipe, Recipe):
            raise TypeError(f"recipe: expected a Recipe, 'tost', 'vanilla' or a mapping, got {recipe!r}")
        object.__setattr__(self, "recipe", recipe)

        # one value, one hash: 1 and 1.0, lists and tuples are the same
        self._number("density", above=0.0, most=1.0)
        self._number("lr", above=0.0)
        self._number("momentum", least=0.0, below=1.0)
        self._number("weight_decay", least=0.0)
        self._number("gamma", above=0.0)
        milestones = tuple(number("milestones", m, above=0.0, below=1.0) for m in _items(self, "milestones"))
        object.__setattr__(self, "milestones", milestones)
        for name, least in (("epochs", 1), ("steps", 1), ("batch_size", 1), ("warmup_steps", 0), ("eval_every", 1), ("seed", 0)):
            if name != "steps" or self.steps is not None:
                object.__setattr__(self, name, integer(name, getattr(self, name), least))
        for name in ("include", "exclude"):
            if getattr(self, name) is not None:
                object.__setattr__(self, name, tuple(_items(self, name)))

        # model, dataset and method names are looked up by those who own them; see check_names()
        check_choice("backend", self.backend, BACKENDS)
        for name in ("model", "dataset", "method", "out"):
            _require(isinstance(getattr(self, name), str), name, "a name", getattr(self, name))
        _require(self.data_dir is None or isinstance(self.data_dir, str), "data_dir", "a path or none", self.data_dir)
        for name in ("nesterov", "tune"):
            _require(isinstance(getattr(self, name), bool), name, "true or false", getattr(self, name))
        _require(not self.nesterov or self.momentum > 0, "momentum", "above 0 with nesterov", self.momentum)
        rising = all(a < b for a, b in itertools.pairwise(milestones))
        _require(rising, "milestones", "rising fractions between 0 and 1", milestones)
        if recipe.has_ghosts and not recipe.permanent and recipe.fade_end is None and self.milestones:
            # the fade ends at the first drop of the learning rate
            _require(
                recipe.fade_start <= self.milestones[0],
                "recipe.fade_start",
                f"at most the first milestone ({self.milestones[0]}) unless fade_end is given",
                recipe.fade_start,
            )

    def _number(self, name: str, **limits: float) -> None:
        object.__setattr__(self, name, number(name, getattr(self, name), **limits))

    def check_names(self) -> None:
        """Look up model, dataset and method; a ValueError names the field and close matches."""
        check_choice("model", self.model, tost.models.names())
        check_choice("dataset", self.dataset, tost.data.names())
        if self.backend != "dense":
            check_choice("method", self.method, tost.methods())

    def total_steps(self, steps_per_epoch: int) -> int:
        """Optimizer steps of the run."""
        return self.steps if self.steps is not None else self.epochs * steps_per_epoch

    def as_dict(self) -> dict[str, Any]:
        """Plain dicts, lists, strings and numbers; `Config.from_dict` reads them back."""
        values = dataclasses.asdict(self)
        return {name: list(value) if isinstance(value, tuple) else value for name, value in values.items()}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Config:
        """The configuration with these fields; an unknown one is a ValueError with close matches."""
        known = [f.name for f in dataclasses.fields(cls)]
        for name in values:
            check_choice("config", name, known)
        return cls(**values)

    @classmethod
    def from_yaml(cls, path: str | Path) -> Config:
        """Read a YAML file that maps field names to values."""
        return cls.from_dict(read_yaml(path))

    @property
    def hash(self) -> str:
        """12 hex digits that name the run, over every field but `out` and over the version of this package.

        What else moves the last bits does not count: the number of threads, the versions of torch and the machine, whether
        the compiled kernels are there. `Result` says what they were.
        """
        values = self.as_dict()
        del values["out"]
        values["version"] = tost.__version__
        text = json.dumps(values, sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(text.encode()).hexdigest()[:12]


def _items(config: Config, name: str) -> tuple[Any, ...]:
    value = getattr(config, name)
    if isinstance(value, str) or not isinstance(value, (list, tuple)):
        raise TypeError(f"{name}: expected a list, got {value!r}")
    return tuple(value)


def _require(good: bool, name: str, expected: str, value: Any) -> None:
    if not good:
        raise ValueError(f"{name}: expected {expected}, got {value!r}")
