"""The filters of a layer after some epochs of a run: what they answer to, and which of them are in the support."""

from __future__ import annotations

import base64
import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from tost.analysis.networks import network_of
from tost.analysis.of_runs import kept_epochs, networks
from tost.analysis.solution_path import path_of
from tost.analysis.what_differs import what_differs
from tost.analysis.what_filters_see import guided_gradients, most_exciting
from tost.checks import check_types, filled, integer
from tost.choices import check_choice
from tost.data import eval_batches
from tost.isolation import isolated
from tost.masks.layers import masked_modules
from tost.optim import SolutionPath
from tost.runs import Result
from tost.seeds import derive_seed

__all__ = ["FilterView", "Filters", "Picture", "analyze_filters"]

STEPS, JITTER = 128, 2
_SHOWN = 12


@dataclass(frozen=True)
class Picture:
    """(C, H, W) numbers of an image, with 8 bits each.

    Attributes:
        scale: the largest in size.
        pixels: base64 of a byte for each: 128 is 0, 1 and 255 are -scale and scale.
    """

    scale: float
    pixels: str

    @classmethod
    def of(cls, values: Tensor) -> Picture:
        """Of float (C, H, W)."""
        scale = float(values.abs().max())
        levels = (128 + 127 * values / (scale or 1.0)).round().to(torch.uint8)
        return cls(scale, base64.b64encode(levels.contiguous().numpy().tobytes()).decode())

    def levels(self, shape: Sequence[int]) -> Tensor:
        """float32 of `shape`, from -1 to 1 (`scale`)."""
        data = base64.b64decode(self.pixels, validate=True)
        if len(data) != math.prod(shape):
            raise ValueError(f"pixels: expected {math.prod(shape)} bytes, got {len(data)}")
        return (torch.frombuffer(bytearray(data), dtype=torch.uint8).float() - 128).reshape(tuple(shape)) / 127


@dataclass(frozen=True)
class FilterView:
    """One filter after one epoch.

    Attributes:
        epoch: epochs done.
        filter: its index.
        inside: whether a weight of it is in the support; None: the run has no solution path.
        norm: ||W_o||_2.
        activation: that `exciting` reaches; 0: nothing excites it.
        exciting: the input that excites it most, see `tost.analysis.what_filters_see.most_exciting`.
        guided: for each test image, what in it excites the filter, by guided backpropagation.
    """

    epoch: int
    filter: int
    inside: bool | None
    norm: float
    activation: float
    exciting: Picture
    guided: tuple[Picture, ...]


@dataclass(frozen=True)
class Filters:
    """Filters of one layer of one run.

    Attributes:
        title: what was trained.
        layer: whose filters they are.
        count: how many it has.
        shape: (C, H, W) of an image.
        steps, jitter, seed: of the activation maximisation.
        images: which test images the guided gradients are of.
        inputs: these, normalised.
        views: epoch by epoch, of the same filters in the same order each.
    """

    kind: ClassVar[str] = "filters"

    title: str
    layer: str
    count: int
    shape: tuple[int, ...]
    steps: int
    jitter: int
    seed: int
    images: tuple[int, ...]
    inputs: tuple[Picture, ...]
    views: tuple[FilterView, ...]

    def __post_init__(self) -> None:
        for view in filled("views", self.views):
            if len(view.guided) != len(self.images):
                raise ValueError(f"guided: expected {len(self.images)} pictures, one an image, got {len(view.guided)}")
        if [(view.epoch, view.filter) for view in self.views] != [(epoch, o) for epoch in self.epochs for o in self.filters]:
            raise ValueError("views: expected the same filters after each epoch")
        for picture in (*self.inputs, *(one for view in self.views for one in (view.exciting, *view.guided))):
            picture.levels(self.shape)

    @property
    def epochs(self) -> tuple[int, ...]:
        """After which the filters were looked at."""
        return tuple(dict.fromkeys(view.epoch for view in self.views))

    @property
    def filters(self) -> tuple[int, ...]:
        """Their indices, in the order of the pictures."""
        return tuple(dict.fromkeys(view.filter for view in self.views))

    def as_dict(self) -> dict[str, Any]:
        """Plain JSON types."""
        return {"kind": self.kind, **dataclasses.asdict(self)}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Filters:
        """What `as_dict` gave, or what JSON made of it."""
        fields = {name: value for name, value in values.items() if name != "kind"}
        fields["views"] = tuple(
            FilterView(
                **{
                    **view,
                    "exciting": check_types(Picture(**view["exciting"])),
                    "guided": tuple(check_types(Picture(**one)) for one in view["guided"]),
                }
            )
            for view in values["views"]
        )
        fields["inputs"] = tuple(check_types(Picture(**one)) for one in values["inputs"])
        for name in ("shape", "images"):
            fields[name] = tuple(values[name])
        return check_types(cls(**fields))


def analyze_filters(
    result: Result,
    layer: str,
    epochs: Sequence[int] | None = None,
    filters: Sequence[int] | None = None,
    images: Sequence[int] = (0,),
    steps: int = STEPS,
    jitter: int = JITTER,
    seed: int = 0,
    progress: Callable[[int], object] = lambda done: None,
    data_dir: str | Path | None = None,
) -> Filters:
    """Look at the filters of a layer along a training (Figs. 1 and 2 of https://arxiv.org/abs/2007.02010).

    Args:
        result: a finished run, of SplitLBI or any other.
        layer: name of a Conv2d or Linear.
        epochs: after which its networks were kept; None: all that were.
        filters: indices; None: up to twelve, at equal distances in the order in which they entered the support (of equals, and
            of those that never did, the largest norm at the end first).
        images: indices of test images, for the guided gradients.
        steps, jitter, seed: of the activation maximisation.
        progress: called with the number of epochs that are done.
        data_dir: of the data set, where it has moved since the training; None: where it was.

    Raises:
        ValueError, FileNotFoundError: as `tost.analysis.of_runs.networks`. ValueError: no such layer, filter or image, or one
            twice.
    """
    integer("steps", steps, least=1)
    integer("jitter", jitter, least=0)
    integer("seed", seed, least=0)
    snapshots = networks([result], kept_epochs([result]) if epochs is None else epochs, ("finalized",), progress, data_dir)
    end = network_of(result.run_dir, data_dir=data_dir)
    norms, path = _norms(end.net, layer), _path(result)
    chosen = _spread_out(norms, path, layer) if filters is None else _distinct("filters", filters, len(norms))
    test = torch.tensor(_distinct("images", images, len(end.dataset.test)))
    inputs = torch.cat([batch for batch, _ in eval_batches(end.dataset, len(test), subset=test)])
    views: list[FilterView] = []
    for origin, snapshot in snapshots:
        with isolated(derive_seed("filters", seed), devices=()):  # what a network draws by itself
            exciting, activations = most_exciting(snapshot.net, layer, chosen, end.dataset.input_shape, steps, jitter, seed)
            guided = [guided_gradients(snapshot.net, layer, chosen, image) for image in inputs]
        norms = _norms(snapshot.net, layer)
        inside = path.point(origin.epoch).in_support(layer) if path is not None else None
        for i, o in enumerate(chosen):
            held = None if inside is None else bool(inside[o])
            pictures = Picture.of(exciting[i]), tuple(Picture.of(of_image[i]) for of_image in guided)
            views.append(FilterView(origin.epoch, o, held, float(norms[o]), float(activations[i]), *pictures))
    return Filters(
        what_differs([result.config]).title,
        layer,
        len(norms),
        end.dataset.input_shape,
        steps,
        jitter,
        seed,
        tuple(test.tolist()),
        tuple(map(Picture.of, inputs)),
        tuple(views),
    )


def _norms(net: nn.Module, layer: str) -> Tensor:
    """||W_o||_2 of each filter."""
    modules = masked_modules(net)
    weight = modules[check_choice("layer", layer, modules)].weight
    assert isinstance(weight, Tensor)
    norms: Tensor = torch.linalg.vector_norm(weight.detach().flatten(1), dim=1)
    return norms


def _path(result: Result) -> SolutionPath | None:
    """None: another optimizer than SplitLBI trained."""
    return path_of(result.run_dir) if result.config.optimizer == "splitlbi" else None


def _spread_out(norms: Tensor, path: SolutionPath | None, layer: str) -> tuple[int, ...]:
    """Filters at equal distances, in the order in which they entered."""
    entries = path.entry_epochs(layer).tolist() if path is not None else [-1] * len(norms)
    order = sorted(range(len(norms)), key=lambda o: (math.inf if entries[o] < 0 else entries[o], -float(norms[o])))
    shown = min(_SHOWN, len(order))
    return tuple(order[round(i * (len(order) - 1) / max(1, shown - 1))] for i in range(shown))


def _distinct(name: str, indices: Sequence[int], count: int) -> tuple[int, ...]:
    if not indices or len(set(indices)) != len(indices):
        raise ValueError(f"{name}: expected at least one and each once, got {list(indices)}")
    return tuple(integer(name, index, least=0, below=count) for index in indices)
