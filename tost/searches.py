"""Searches: masks that a training finds, of a run folder like any other: it is found again by its hash, and goes on where it was.

    splitlbi            what enters Gamma's support first, or the support after an epoch        arXiv 2007.02010
    slimming            filters with the largest BatchNorm weights, under an L1 penalty         arXiv 1708.06519
    soft-filter         filters of the largest norms; the others were zeroed after each epoch   arXiv 1808.06866
    trained-magnitude   the largest weights of a dense network

A lottery is not among them: it has several trainings, see tost/tickets.py.
"""

from __future__ import annotations

import dataclasses
import math
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from tost import distributed
from tost.accounting import is_weighted
from tost.config import Config
from tost.data import Dataset, load
from tost.files import DamagedFile
from tost.isolation import isolated
from tost.macs import count_macs
from tost.masks import Masks, methods, prune
from tost.masks.filters import best_filters, strongest_filters
from tost.optim import SolutionPath
from tost.preparation import initial_model, scoring_batches, train_batches, trained_model
from tost.runs import RunFolder
from tost.seeds import derive_seed
from tost.update import batch_norm_scales
from tost.variants import SEARCHES, SLIMMING, SPLITLBI, TRAINED_MAGNITUDE

__all__ = ["FOUND", "OPTIONS_OF_ONE", "Found", "Search", "as_many_flops", "check_search", "find_masks", "search_of"]

FOUND = "found-masks"  # the folder of the masks, beside the run folders
MOST_EPOCHS = 2  # times those of the others, however few FLOPs a network has (arXiv 1810.05270)
_BN_L1 = 1e-4  # of arXiv 1708.06519
# searches that can keep as many weights as another one: in each layer (True), in all (False)
_COUNTING = {True: (TRAINED_MAGNITUDE,), False: (TRAINED_MAGNITUDE, SLIMMING)}
OPTIONS_OF_ONE = {"split_lbi": SPLITLBI, "bn_l1": SLIMMING}  # option -> the one method that takes it


@dataclass(frozen=True)
class Search:
    """Masks that a training finds, or that keep as many weights as such masks do.

    Attributes:
        method: a name of SEARCHES; with `like` also one of `tost.methods()` of a single step.
        training: the run that finds them; None: they are chosen before any training.
        masks: what else decides them: model, data, seed, density, include and exclude.
        epoch: the masks are those after so many epochs, whatever their density; None: those of the density, at the end.
        keep: the network after that epoch is kept, to start from.
        like: the search that says how many weights are kept; None: the density does.
        by_layer: in each layer as many as `like`; False: in all.
    """

    method: str
    training: Config | None
    masks: Config
    epoch: int | None = None
    keep: bool = False
    like: Search | None = None
    by_layer: bool = True

    @property
    def trainings(self) -> dict[Config, tuple[int, ...]]:
        """The runs that it needs, each with the epochs after which its network is kept."""
        own = {} if self.training is None else {self.training: (self.epoch,) if self.keep and self.epoch is not None else ()}
        return {**(self.like.trainings if self.like is not None else {}), **own}

    @property
    def has_density(self) -> bool:
        """Whether the masks have one of their own, which is known when they are found."""
        return self.epoch is not None or (self.like is not None and self.like.has_density)

    @property
    def name(self) -> str:
        """What chose the masks, in the names of files and in tables."""
        if self.like is not None:
            return f"{self.method}, {'layers' if self.by_layer else 'density'} of {self.like.name}"
        return self.method if self.epoch is None else f"{self.method}, epoch {self.epoch}"


@dataclass(frozen=True)
class Found:
    """What a search came to.

    Attributes:
        masks: file of the masks.
        weights: file of the network that they were found on: after the epoch of the search, or after its last one; None: no
            network was trained, or that of the epoch was not to be kept.
    """

    masks: Path
    weights: Path | None


def search_of(
    method: str,
    base: Config,
    masked: Mapping[str, Any],
    options: Mapping[str, Any],
    epoch: int | None = None,
    keep: bool = False,
    like: Search | None = None,
    by_layer: bool = True,
) -> Search:
    """The search of runs: trained plainly and dense, else as `base` is, but for `options`. Nothing is read.

    Args:
        method, epoch, keep, like, by_layer: as in `Search`.
        base: model, data, seed, and how the search is trained where `options` say nothing.
        masked: density, include and exclude of the masks.
        options: fields of `Config`; those that are other methods' are left out.

    Raises:
        TypeError, ValueError: an option is wrong, or does not go with the method.
    """
    if epoch is not None and method != SPLITLBI:
        raise ValueError(f"at: expected it with {SPLITLBI}, whose masks have an epoch, got it with {method!r}")
    default = {f.name: f.default for f in dataclasses.fields(Config)}
    unused = ("method", "method_steps", "density", "include", "exclude", "masks", "mask_check", "keep_alive", "teacher", "tune")
    plain = {**base.as_dict(), **{name: default[name] for name in (*unused, *OPTIONS_OF_ONE, "soft_filter")}, "recipe": "vanilla"}
    masks = Config.from_dict({**plain, **masked})
    if like is not None and method not in _COUNTING[by_layer] and (method not in methods() or methods()[method].steps > 1):
        one = ", ".join(name for name, known in methods().items() if known.steps == 1)
        known = f"{', '.join(_COUNTING[by_layer])}, {one}"
        raise ValueError(f"method: expected one of {known} to keep as many weights as {like.method}, got {method!r}")
    if method not in SEARCHES:
        return Search(method, None, masks, None, False, like, by_layer)
    own: dict[str, Any] = {**plain, "backend": "dense", "steps": None if "epochs" in options else base.steps}
    own |= {name: value for name, value in options.items() if name not in OPTIONS_OF_ONE}
    if method == SPLITLBI:
        if masked["include"] is not None or masked["exclude"] is not None:
            raise ValueError(f"include, exclude: expected none with {SPLITLBI}, which prunes all layers, got some")
        if options.get("optimizer", SPLITLBI) != SPLITLBI:
            raise ValueError(f"optimizer: expected none in the search of {SPLITLBI}, which is one, got {options['optimizer']!r}")
        own |= {"optimizer": SPLITLBI, "split_lbi": options.get("split_lbi", base.split_lbi)}
    elif own["optimizer"] == SPLITLBI:
        raise ValueError(f"optimizer: expected another than {SPLITLBI} with the method {method!r}, got it")
    elif method == SLIMMING:
        own["bn_l1"] = options.get("bn_l1", _BN_L1)
    elif method == "soft-filter":
        own |= {**masked, "soft_filter": True}
    return Search(method, Config.from_dict(own), masks, epoch, keep, like, by_layer)


def check_search(search: Search) -> None:
    """Raise what would be wrong with a search after its training, or with the data it needs: before anything is trained.

    Whether SplitLBI lets enough weights in is known by its training alone.

    Raises:
        TypeError, ValueError, FileNotFoundError.
    """
    if search.like is not None:
        check_search(search.like)
    config = search.training or search.masks
    dense = dataclasses.replace(config, backend="dense")
    dense.check_names()
    dataset = load(config.dataset, config.data_dir)
    model = initial_model(dense, dataset)
    if search.training is not None:
        per_epoch = len(train_batches(search.training, dataset))
        epochs = math.ceil(search.training.total_steps(per_epoch) / per_epoch)
        if search.epoch is not None and search.epoch > epochs:
            raise ValueError(f"at: expected an epoch of the search, 1 to {epochs}, got {search.epoch}")
    if search.method == SLIMMING:
        _scales(model, dataset.input_shape)
    if search.like is None and search.method != SPLITLBI:
        _choose(search, model, dataset)  # a rehearsal, on untrained weights


def find_masks(search: Search) -> Found:
    """The masks of a search whose trainings are finished, as a file named after what it holds.

    Raises:
        ValueError: SplitLBI let fewer weights in than the masks are to keep, or none. DamagedFile: a file is damaged.

    Works under torchrun: rank 0 writes.
    """
    with distributed.processes() as me:
        masks = masks_of(search)
        folder = Path(search.masks.out) / FOUND
        file = folder / f"{search.name.replace(', ', '-').replace(' ', '-')}-{masks.fingerprint[:16]}.safetensors"
        if me.is_main and masks.empty_layers():
            warnings.warn(
                f"the masks of {search.name} (seed {search.masks.seed}, density {masks.density:.4g}) leave no weight in "
                f"{', '.join(masks.empty_layers())}",
                UserWarning,
                stacklevel=2,
            )
        if me.is_main and not file.is_file():
            folder.mkdir(parents=True, exist_ok=True)
            masks.save(file)
        distributed.from_main(True)  # it is there
    weights = None
    if search.training is not None:
        of_run = RunFolder.of(search.training)
        weights = of_run.model if search.epoch is None else of_run.snapshot(search.epoch) if search.keep else None
    return Found(file, weights)


def masks_of(search: Search) -> Masks:
    """The masks of a search whose trainings are finished; errors as those of `find_masks`."""
    if search.method == SPLITLBI and search.training is not None:
        path = SolutionPath.load(RunFolder.of(search.training).path_points)
        try:
            if search.epoch is None:
                return path.masks(density=search.masks.density, exact=True)
        except DamagedFile:
            raise
        except ValueError as error:
            raise ValueError(f"{error}: lower split_lbi.lam or split_lbi.nu of the search, or give it more epochs") from error
        masks = path.masks(epoch=search.epoch)
        if masks.kept == 0:
            raise ValueError(f"at: expected an epoch with weights in the support, got {search.epoch}, which has none")
        return masks
    config = search.training or search.masks
    dataset = load(config.dataset, config.data_dir)
    if search.training is None:
        return _choose(search, initial_model(search.masks, dataset), dataset)
    model = trained_model(search.training, dataset, RunFolder.of(search.training).load_model())
    return _choose(search, model, dataset)


def _choose(search: Search, model: nn.Module, dataset: Dataset) -> Masks:
    """The masks that a network gives (not SplitLBI's)."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".* leaves no weight in ", category=UserWarning)  # `find_masks` says it of all
        if search.like is not None:
            return _as_many(search, masks_of(search.like), model, dataset)
        return _judged(search, model, dataset)


def _judged(search: Search, model: nn.Module, dataset: Dataset) -> Masks:
    """The masks of the density of the search."""
    config = search.masks
    layers: dict[str, Any] = {"density": config.density, "include": config.include, "exclude": config.exclude}
    if search.method == SLIMMING:
        return best_filters(model, _scales(model, dataset.input_shape), **layers)
    if search.method == "soft-filter":
        return strongest_filters(model, **layers)
    return prune(model, "magnitude", **layers)


def _as_many(search: Search, like: Masks, model: nn.Module, dataset: Dataset) -> Masks:
    """Masks that keep as many weights as `like`."""
    if search.method == SLIMMING:
        same = dataclasses.replace(search.masks, density=like.density)
        return _judged(dataclasses.replace(search, masks=same), model, dataset)
    method = methods()["magnitude" if search.method in SEARCHES else search.method]
    if search.by_layer:
        counts = [layer.kept for layer in like.per_layer()]
        method = dataclasses.replace(method, distribution=lambda shapes, k: counts)
    return prune(
        model,
        method,
        like.density,
        data=scoring_batches(search.masks, dataset),
        input_shape=dataset.input_shape,
        include=tuple(like),
        seed=derive_seed("prune", search.masks.seed),
    )


def _scales(model: nn.Module, input_shape: tuple[int, ...]) -> dict[str, Tensor]:
    """Convolution -> |weight| of the BatchNorm that its result goes to: a number a filter.

    Raises:
        ValueError: there is no BatchNorm behind a convolution.
    """
    batch_norm_scales(model)
    names = {module: name for name, module in model.named_modules()}
    results: dict[int, tuple[Tensor, str]] = {}  # the tensors too: an address must not be used again
    scales: dict[str, Tensor] = {}

    def after(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        if is_weighted(module):
            results[id(output)] = (output, names[module])
        elif id(inputs[0]) in results and isinstance(weight := getattr(module, "weight", None), Tensor):
            scales[results[id(inputs[0])][1]] = weight.detach().abs()

    norms = (nn.BatchNorm1d, nn.BatchNorm2d)
    hooks = [m.register_forward_hook(after) for m in model.modules() if is_weighted(m) or isinstance(m, norms)]
    was_training = model.training
    try:
        with isolated(0, ()), torch.no_grad():
            model.eval()(torch.zeros(1, *input_shape))
    finally:
        model.train(was_training)
        for hook in hooks:
            hook.remove()
    if not scales:
        raise ValueError("bn_l1: expected a BatchNorm behind a convolution, found none")
    return scales


def as_many_flops(config: Config) -> Config:
    """`config` with more epochs (or steps), to make up for the multiply-adds that its file of masks spares; at most
    MOST_EPOCHS times as many.

    Scratch-B of https://arxiv.org/abs/1810.05270. Fractions of the training, such as the milestones, stay; counted is what
    `tost.count_macs` does of one image.
    """
    dataset = load(config.dataset, config.data_dir)
    file = config.masks_file
    assert file is not None
    macs = count_macs(Masks.load(file).apply_to(initial_model(config, dataset)), dataset.input_shape)
    factor = min(MOST_EPOCHS, macs.dense / max(1, macs.kept))
    steps = None if config.steps is None else round(factor * config.steps)
    return dataclasses.replace(config, epochs=round(factor * config.epochs), steps=steps)
