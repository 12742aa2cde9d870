"""The configuration of one training run: everything that decides its result, checked, hashed and read from YAML."""

from __future__ import annotations

import dataclasses
import hashlib
import itertools
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import tost
from tost.checks import integer, number
from tost.choices import check_choice
from tost.files import read_yaml
from tost.model_address import absolute, is_address, short_name
from tost.recipe import Recipe
from tost.split_lbi import SplitLBIOptions

BACKENDS = ("dense", "masked-dense", "reference", "sparse")
RECIPES = ("tost", "vanilla")
OPTIMIZERS = ("sgd", "adam", "adamw", "splitlbi")
SCHEDULES = ("multistep", "step", "cosine", "constant")
AMP = ("none", "bf16", "fp16")
MASK_CHECKS = ("none", "shuffled", "reinitialised")  # arXiv 2009.08576
CHECKPOINT_SECONDS = 600.0  # between two checkpoints amid an epoch; how a run is watched, no part of the configuration


def _option(default: Any, help: str) -> Any:
    return field(default=default, metadata={"help": help})


@dataclass(frozen=True)
class Config:
    """One run. Every field has a default; the command line and YAML files use the same names.

    The fields' meaning stands beside them (and in `tost train --help`). Fractions count from 0 to 1.

    Raises:
        ValueError, TypeError: a field has a wrong value or type; the message names the field.
    """

    model: str = _option("resnet20", "network, see tost.models.names(); or yours: path/to/file.py:function or module:function")
    dataset: str = _option("mnist5k", "data set, see tost.data.names()")
    data_dir: str | None = _option(None, "folder of the data set's files (default: where `tost data fetch` puts them)")
    validation: float = _option(0.0, "fraction of the training images held out to choose the best epoch; 0: none is chosen")
    cutout: int = _option(0, "side in pixels of the square that is blanked in each training image; 0: none")
    method: str = _option("erk", "pruning method, see tost.methods()")
    method_steps: int | None = _option(None, "steps of an iterative pruning method (default: the method's own)")
    density: float = _option(0.05, "fraction of the prunable weights that is kept (0.05: 95 percent sparse)")
    include: tuple[str, ...] | None = _option(None, "prune only layers whose name matches one of these patterns")
    exclude: tuple[str, ...] | None = _option(None, "never prune layers whose name matches one of these patterns")
    keep_alive: bool = _option(False, "give layers that the method leaves without a weight on a path some, taken from the others")
    masks: str | None = _option(
        None,
        "file of masks to use, or run folder; method, method_steps, density, include, exclude and keep_alive then do nothing",
    )
    weights: str | None = _option(
        None, "file of weights to start from in the place of drawn ones: model.safetensors of a run, or its folder; or a snapshot"
    )
    mask_check: str = _option(
        "none",
        "control experiment: shuffled (as many weights a layer, at random places) or reinitialised (weights drawn anew, after "
        "the masks were chosen)",
    )
    recipe: Recipe = field(
        default_factory=Recipe.tost,
        metadata={"help": "'tost', 'vanilla', or single settings as --recipe.NAME VALUE"},
    )
    teacher: str | None = _option(None, "run folder whose network teaches, where the recipe distils (recipe.distillation > 0)")
    epochs: int = _option(30, "passes over the training images")
    steps: int | None = _option(None, "optimizer steps; overrides epochs")
    batch_size: int = _option(128, "images a step, over all processes and accumulated parts")
    accumulate: int = _option(1, "parts a batch is computed in, one after the other, to save memory")
    optimizer: str = _option("sgd", "sgd, adam, adamw; or splitlbi, which finds sparse structure in a dense network")
    split_lbi: SplitLBIOptions | None = field(
        default=None,
        metadata={"help": "of optimizer splitlbi, each as --split_lbi.NAME VALUE (see tost.split_lbi.SplitLBIOptions)"},
    )
    bn_l1: float = _option(0.0, "L1 penalty of BatchNorm's weights, for a dense network (Network Slimming: 1e-4)")
    soft_filter: bool = _option(
        False,
        "zero the weakest filters of each convolution of a dense network after each epoch, down to density; they go on learning "
        "(Soft Filter Pruning)",
    )
    lr: float = _option(0.1, "learning rate after the warm-up")
    momentum: float = _option(0.9, "momentum of SGD")
    nesterov: bool = _option(False, "Nesterov momentum of SGD")
    betas: tuple[float, ...] = _option((0.9, 0.999), "decay of Adam's two averages")
    weight_decay: float = _option(2e-4, "weight decay of weights (biases and BatchNorm have none)")
    schedule: str = _option(
        "multistep", "learning rate: multistep (drops at the milestones), step (drops every drop_every), cosine, constant"
    )
    milestones: tuple[float, ...] = _option((0.5, 0.75), "multistep: fractions of the training after which the rate drops")
    drop_every: float = _option(0.25, "step: fraction of the training between two drops")
    gamma: float = _option(0.1, "factor of each learning rate drop")
    warmup_steps: int = _option(0, "steps over which the learning rate first rises linearly")
    clip_norm: float | None = _option(None, "bound of the gradient's norm over all parameters")
    amp: str = _option("none", "automatic mixed precision: none, bf16, or fp16 with a gradient scaler")
    ema: float | None = _option(None, "decay a step of an average of the weights, which is then measured and saved")
    max_skipped: int = _option(5, "steps in a row that may be skipped for a loss that is not finite, before the run stops")
    eval_every: int = _option(1, "epochs between two measurements of the accuracy")
    seed: int = _option(0, "decides weights, mask, batches and re-scaled initialization, each by a stream of its own")
    backend: str = _option(
        "sparse",
        "sparse: compiled kernels, or torch's dense ones where they are absent; reference: the specification, in plain torch; "
        "masked-dense: dense network times mask; dense: no mask at all",
    )
    tune: bool = _option(
        False, "backend sparse: measure first which kernels are the fastest here (up to a minute; the next run reads a cache)"
    )
    cuda_graph: bool | None = _option(
        None,
        "on a CUDA device record a whole step once and replay it, which saves what it takes to launch it; the steps are the same "
        "(default: wherever a step can be recorded; true: an error where it cannot)",
    )
    out: str = _option("runs", "folder of the run folders")

    def __post_init__(self) -> None:
        recipe = recipe_of(self.recipe)
        object.__setattr__(self, "recipe", recipe)

        options: Any = SplitLBIOptions() if self.split_lbi is None and self.optimizer == "splitlbi" else self.split_lbi
        if isinstance(options, Mapping):
            options = SplitLBIOptions.from_dict(options)
        if not isinstance(options, SplitLBIOptions | None):
            raise TypeError(f"split_lbi: expected SplitLBIOptions, a mapping or none, got {options!r}")
        object.__setattr__(self, "split_lbi", options)

        # one value, one hash: 1 and 1.0, lists and tuples are the same; a file is the same from any folder
        if isinstance(self.model, str):
            object.__setattr__(self, "model", absolute(self.model))
        self._number("density", above=0.0, most=1.0)
        self._number("lr", above=0.0)
        self._number("momentum", least=0.0, below=1.0)
        self._number("weight_decay", least=0.0)
        self._number("bn_l1", least=0.0)
        self._number("gamma", above=0.0)
        self._number("drop_every", above=0.0, most=1.0)
        self._number("validation", least=0.0, below=1.0)
        for name, limits in (("clip_norm", {"above": 0.0}), ("ema", {"above": 0.0, "below": 1.0})):
            if getattr(self, name) is not None:
                self._number(name, **limits)
        betas = tuple(number("betas", b, least=0.0, below=1.0) for b in _items(self, "betas"))
        _require(len(betas) == 2, "betas", "two numbers", betas)
        object.__setattr__(self, "betas", betas)
        milestones = tuple(number("milestones", m, above=0.0, below=1.0) for m in _items(self, "milestones"))
        object.__setattr__(self, "milestones", milestones)
        for name, least in _WHOLE.items():
            if name not in ("steps", "method_steps") or getattr(self, name) is not None:
                object.__setattr__(self, name, integer(name, getattr(self, name), least))
        for name in ("include", "exclude"):
            patterns = getattr(self, name)
            if patterns is not None:  # a lone pattern is a list of one, as `prune` takes it
                object.__setattr__(self, name, (patterns,) if isinstance(patterns, str) else _items(self, name))

        # model, dataset and method names are looked up by those who own them; see check_names()
        for name, known in (
            ("backend", BACKENDS),
            ("optimizer", OPTIMIZERS),
            ("schedule", SCHEDULES),
            ("amp", AMP),
            ("mask_check", MASK_CHECKS),
        ):
            check_choice(name, getattr(self, name), known)
        for name in ("model", "dataset", "method", "out"):
            _require(isinstance(getattr(self, name), str), name, "a name", getattr(self, name))
        for name in ("data_dir", "teacher", "masks", "weights"):
            path = getattr(self, name)
            _require(path is None or (isinstance(path, str) and path != ""), name, "a path or none", path)
        for name in ("nesterov", "tune", "keep_alive", "soft_filter"):
            _require(isinstance(getattr(self, name), bool), name, "true or false", getattr(self, name))
        _require(isinstance(self.cuda_graph, bool | None), "cuda_graph", "true, false or none", self.cuda_graph)
        _require(not self.nesterov or self.momentum > 0, "momentum", "above 0 with nesterov", self.momentum)
        rising = all(a < b for a, b in itertools.pairwise(milestones))
        _require(rising, "milestones", "rising fractions between 0 and 1", milestones)
        whole = self.batch_size % self.accumulate == 0
        _require(whole, "accumulate", f"a divisor of batch_size ({self.batch_size})", self.accumulate)
        distils = recipe.distillation > 0
        _require(self.teacher is not None or not distils, "teacher", "a run folder, as recipe.distillation > 0", self.teacher)
        if self.optimizer == "splitlbi":
            _require(self.backend == "dense", "backend", "'dense' with optimizer 'splitlbi', which finds the masks", self.backend)
            _require(
                not recipe.has_ghosts,
                "recipe",
                "no ghosts with optimizer 'splitlbi', which would prune them (vanilla has none)",
                recipe,
            )
        for name in ("bn_l1", "soft_filter"):
            if getattr(self, name):
                _require(self.backend == "dense", "backend", f"'dense' with {name}", self.backend)
                _require(not recipe.has_ghosts, "recipe", f"no ghosts with {name}, which would prune them", recipe)
        if self.weights is not None:
            _require(self.mask_check != "reinitialised", "mask_check", "no weights drawn anew beside weights", self.mask_check)
            _require(not recipe.rescale_init, "recipe", "no rescale_init with weights, which are taken as they are", recipe)
        drop = self.first_drop
        if recipe.has_ghosts and not recipe.permanent and recipe.fade_end is None and drop is not None:
            # the fade ends at the first drop of the learning rate
            _require(
                recipe.fade_start <= drop,
                "recipe.fade_start",
                f"at most the first drop of the learning rate ({drop}) unless fade_end is given",
                recipe.fade_start,
            )

    def _number(self, name: str, **limits: float) -> None:
        object.__setattr__(self, name, number(name, getattr(self, name), **limits))

    def check_names(self) -> None:
        """Look up model, dataset and, where they have a part, the method or the files of masks and weights.

        Raises:
            ValueError: an unknown name; names the field and close matches. Steps for a method that takes one.
            FileNotFoundError: no such file.
        """
        tost.models.check_name(self.model)
        check_choice("dataset", self.dataset, tost.data.names())
        _ = self.weights_file
        if self.backend == "dense" or self.masks_file is not None:
            return
        methods = tost.methods()
        check_choice("method", self.method, methods)
        if self.method_steps is not None and methods[self.method].steps == 1:
            iterative = ", ".join(name for name, method in methods.items() if method.steps > 1)
            raise ValueError(
                f"method_steps: expected none for {self.method!r}, which takes one step, got {self.method_steps} "
                f"(of several steps are {iterative})"
            )

    @property
    def masks_file(self) -> Path | None:
        """The file that `masks` means: in a run folder, its masks.safetensors.

        Raises:
            FileNotFoundError: there is no such file.
        """
        return _file("masks", self.masks, "masks.safetensors")

    @property
    def weights_file(self) -> Path | None:
        """The file that `weights` means: in a run folder, its model.safetensors.

        Raises:
            FileNotFoundError: there is no such file.
        """
        return _file("weights", self.weights, "model.safetensors")

    @property
    def model_name(self) -> str:
        """`model` as titles say it: of a file only its name."""
        return short_name(self.model)

    @property
    def in_effect(self) -> Config:
        """This configuration with the fields at their defaults that, beside `backend` and `masks`, decide nothing."""
        dead: set[str] = set()
        if self.backend != "sparse":
            dead.add("tune")
        if self.optimizer != "splitlbi":
            dead.add("split_lbi")
        if self.backend == "dense":
            dead |= {*_CHOOSE_MASKS, "masks"}
            if self.soft_filter:
                dead -= {"density", "include", "exclude"}
            if self.mask_check == "shuffled":  # weights drawn anew are others in a dense network too
                dead.add("mask_check")
        elif self.masks is not None:
            dead |= _CHOOSE_MASKS
        defaults: dict[str, Any] = {f.name: f.default for f in dataclasses.fields(self) if f.name in dead}
        return dataclasses.replace(self, **defaults)

    @property
    def first_drop(self) -> float | None:
        """Fraction of the training after which the learning rate first drops; None: never. A cosine has halved it by then."""
        drops = {"multistep": self.milestones[0] if self.milestones else None, "step": self.drop_every, "cosine": 0.5}
        return drops.get(self.schedule)

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

    def check_files(self) -> None:
        """Raise ValueError if the file of masks or weights, or of a network of yours, is no longer what `hash` was taken of."""
        if dataclasses.replace(self).hash != self.hash:
            raise ValueError(
                "masks, weights, model: expected the files that this run was named after, but one has changed: start it again"
            )

    @cached_property  # so that a run keeps its name, whatever becomes of its files while it is trained
    def hash(self) -> str:
        """12 hex digits that name the run, over every field `in_effect` but `out` and `cuda_graph`, and over the version of this
        package.

        Of the files of masks and weights, and of the Python files of a network of yours (see `tost.models.source_digest`), the
        content counts, not the path, as they are when the hash is first asked for. What else moves the last bits does not count:
        the number of threads, the versions of torch and the machine, whether the compiled kernels are there.
        `Result` says what they were.
        """
        config = self.in_effect
        values = config.as_dict()
        del values["out"], values["cuda_graph"]  # the same kernels, one by one or replayed: the same bits
        for name, default in _YOUNGER.items():
            if values[name] == default:
                del values[name]
        for name, file in (("masks", config.masks_file), ("weights", config.weights_file)):
            if file is not None:
                values[name] = hashlib.sha256(file.read_bytes()).hexdigest()
        if is_address(self.model) and (source := tost.models.source_digest(self.model)):
            values["model"] = f"{source}:{self.model.rpartition(':')[2]}"
        values["version"] = tost.__version__
        text = json.dumps(values, sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(text.encode()).hexdigest()[:12]


# what chooses masks, where they are not read from a file
_CHOOSE_MASKS = frozenset({"method", "method_steps", "density", "include", "exclude", "keep_alive"})

# fields that are younger than runs that are to be found again, and the value at which the hash knows nothing of them
_YOUNGER = {"split_lbi": None, "weights": None, "bn_l1": 0.0, "soft_filter": False}

# field -> its least value
_WHOLE = {
    "epochs": 1,
    "steps": 1,
    "method_steps": 1,
    "batch_size": 1,
    "accumulate": 1,
    "cutout": 0,
    "warmup_steps": 0,
    "max_skipped": 0,
    "eval_every": 1,
    "seed": 0,
}


def recipe_of(value: object) -> Recipe:
    """The Recipe that a field `recipe` means: one, the name of one, or a mapping of settings (others as in ToST).

    Raises:
        TypeError, ValueError: it is none of these.
    """
    if isinstance(value, Recipe):
        return value
    if isinstance(value, str):
        return Recipe.tost() if check_choice("recipe", value, RECIPES) == "tost" else Recipe.vanilla()
    if isinstance(value, Mapping):
        return Recipe.from_dict(value)
    raise TypeError(f"recipe: expected a Recipe, 'tost', 'vanilla' or a mapping, got {value!r}")


def _file(name: str, value: str | None, in_folder: str) -> Path | None:
    """The file that a field means, by its path or that of a run folder."""
    if value is None:
        return None
    path = Path(value)
    file = path / in_folder if path.is_dir() else path
    if not file.is_file():
        raise FileNotFoundError(f"{name}: no such file: {file}")
    return file


def _items(config: Config, name: str) -> tuple[Any, ...]:
    value = getattr(config, name)
    if isinstance(value, str) or not isinstance(value, (list, tuple)):
        raise TypeError(f"{name}: expected a list, got {value!r}")
    return tuple(value)


def _require(good: bool, name: str, expected: str, value: Any) -> None:
    if not good:
        raise ValueError(f"{name}: expected {expected}, got {value!r}")
