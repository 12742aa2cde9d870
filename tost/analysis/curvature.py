"""How sharp the minima are: the largest eigenvalues of the loss's Hessian over the weights that are there, along a training.

The usual tools take all weights of a masked network for free, and move those that are pruned. Here they do not exist.
"""

from __future__ import annotations

import dataclasses
import hashlib
import math
import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain, islice, repeat
from pathlib import Path
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tost.analysis.hessian import Hessian, require_scipy
from tost.analysis.networks import Snapshot, active
from tost.analysis.of_runs import Origin, labels, networks
from tost.checks import integer, number
from tost.choices import check_choice
from tost.data import TrainBatches, eval_batches
from tost.files import DamagedFile, read_json, write_json
from tost.ghosts import ghost_parameters
from tost.preparation import split_images, weights_fingerprint
from tost.runs import Result
from tost.seeds import generator

__all__ = [
    "PARAMETERS",
    "WHICH",
    "Curvature",
    "Line",
    "Measure",
    "NetworkCurvature",
    "analyze_curvature",
    "losses_along",
    "moving",
]

PARAMETERS = ("weights", "all")
WHICH = ("LA", "LM")  # as scipy calls them
_EVAL_BATCH = 256
_VERSION = 3  # of the numbers: half-measured networks of another one are measured anew


@dataclass(frozen=True)
class Line:
    """The places along an eigenvector at which the test loss is measured.

    Attributes:
        reach: the farthest, to either side.
        points: how many from -reach to reach, an odd number, so that the network itself is among them.
        images: of the test set, the first so many; None: all.
    """

    reach: float = 0.5
    points: int = 21
    images: int | None = None

    def __post_init__(self) -> None:
        number("reach", self.reach, above=0.0)
        if integer("points", self.points, least=3) % 2 == 0:
            raise ValueError(f"points: expected an odd number, so that the network itself is one of them, got {self.points}")
        if self.images is not None:
            integer("images", self.images, least=1)

    @property
    def distances(self) -> tuple[float, ...]:
        """From -reach to reach: how far the weights are moved, in their Euclidean norm."""
        return tuple(self.reach * (2 * i - (self.points - 1)) / (self.points - 1) for i in range(self.points))


@dataclass(frozen=True)
class Measure:
    """How the eigenvalues are measured.

    Attributes:
        batches: of training images, unaugmented; each has a Hessian of its own.
        batch_size: images in each.
        count: eigenvalues of each.
        which: "LA", the largest, or "LM", the largest in size.
        parameters: what moves: "weights" (those of convolutions and linear layers that are kept) or "all" (also biases and what
            BatchNorm learns). Never what belongs to ghosts.
        tolerance: relative, of the eigenvalues.
        seed: of the batches: the same images for every network of a data set.
        line: along the first batch's top eigenvector; None: none.
    """

    batches: int = 10
    batch_size: int = 128
    count: int = 1
    which: str = "LA"
    parameters: str = "weights"
    tolerance: float = 1e-3
    seed: int = 0
    line: Line | None = None

    def __post_init__(self) -> None:
        for name in ("batches", "batch_size", "count"):
            integer(name, getattr(self, name), least=1)
        check_choice("which", self.which, WHICH)
        check_choice("parameters", self.parameters, PARAMETERS)
        number("tolerance", self.tolerance, above=0.0)
        integer("seed", self.seed, least=0)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Measure:
        """What `dataclasses.asdict` gave."""
        return cls(**{**values, "line": None if values["line"] is None else Line(**values["line"])})


@dataclass(frozen=True)
class NetworkCurvature:
    """What was found at one network.

    Attributes:
        origin: of the network.
        eigenvalues: for each batch the largest first.
        products: of the Hessian and a vector that they took, all batches together.
        losses: of the test images at each distance of the line, higher at its end than at its beginning; inf where there is no
            finite one; (): there is no line.
    """

    origin: Origin
    eigenvalues: tuple[tuple[float, ...], ...]
    products: int
    losses: tuple[float, ...]

    def mean(self, place: int = 0) -> float:
        """The eigenvalue at this place (0: the largest), mean over the batches."""
        return statistics.fmean(batch[place] for batch in self.eigenvalues)

    def spread(self, place: int = 0) -> float:
        """Its standard deviation over the batches."""
        return statistics.stdev(batch[place] for batch in self.eigenvalues) if len(self.eigenvalues) > 1 else 0.0


@dataclass(frozen=True)
class Curvature:
    """That of every network.

    Attributes:
        title: what the runs share.
        measure: how.
        images: test images that the loss along the line is the mean over; 0: there is no line.
        networks: in the order of the runs and epochs.
    """

    kind: ClassVar[str] = "curvature"

    title: str
    measure: Measure
    images: int
    networks: tuple[NetworkCurvature, ...]

    def as_dict(self) -> dict[str, Any]:
        """Plain JSON types; a loss that is not finite is None."""
        found = [
            {
                "origin": one.origin.as_dict(),
                "eigenvalues": [list(batch) for batch in one.eigenvalues],
                "products": one.products,
                "losses": _finite(one.losses),
            }
            for one in self.networks
        ]
        return {
            "kind": self.kind,
            "title": self.title,
            "measure": dataclasses.asdict(self.measure),
            "images": self.images,
            "networks": found,
        }

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Curvature:
        """What `as_dict` gave."""
        found = (
            NetworkCurvature(
                Origin(**one["origin"]), tuple(map(tuple, one["eigenvalues"])), one["products"], _infinite(one["losses"])
            )
            for one in values["networks"]
        )
        return cls(values["title"], Measure.from_dict(values["measure"]), values["images"], tuple(found))


def analyze_curvature(
    results: Sequence[Result],
    epochs: Sequence[int] | None = None,
    measure: Measure | None = None,
    *,
    folder: Path,
    overwrite: bool = False,
    progress: Callable[[int], object] = lambda done: None,
    data_dir: str | Path | None = None,
) -> Curvature:
    """The largest eigenvalues of the Hessian of the cross entropy at each network, a batch at a time, in eval mode.

    The loss has no label smoothing and no teacher, whatever the recipe trained with: so recipes can be compared. Where ghosts
    live both forms of a network are measured, over the same weights.

    Each batch is kept in `folder` as soon as it is measured: what was cut off goes on there, and what is finished is read back.

    Args:
        results: finished runs.
        epochs: after which their networks were kept; None: the finished networks.
        measure: how; None: as its defaults say.
        folder: of what is half measured.
        overwrite: measure what was measured already.
        progress: called with the number of epochs of runs that are done.
        data_dir: of the data set, where it has moved since the training; None: where it was.

    Raises:
        ModuleNotFoundError: scipy is missing.
        ValueError, FileNotFoundError: as `tost.analysis.of_runs.networks`. ValueError: more images are asked for than there are.
        ArithmeticError: a network has diverged, or its eigenvalues do not converge.
    """
    require_scipy()
    measure = measure if measure is not None else Measure()
    found, images = [], 0
    for origin, snapshot in networks(results, epochs, progress=progress, data_dir=data_dir):
        parts = _Parts(folder, origin, snapshot, measure, overwrite)
        test = _test_images(snapshot, measure.line)
        images = len(test)
        for place, batch in enumerate(_batches(snapshot, measure)):
            if place not in parts.done:
                parts.keep(place, _measured(snapshot, measure, batch, place, test))
        batches = [parts.done[place] for place in range(measure.batches)]
        values = tuple(tuple(one["eigenvalues"]) for one in batches)
        found.append(NetworkCurvature(origin, values, sum(one["products"] for one in batches), _infinite(batches[0]["losses"])))
    return Curvature(labels([result.config for result in results]).title, measure, images, tuple(found))


def moving(net: nn.Module, masks: Mapping[str, Tensor] | None, parameters: str) -> dict[str, tuple[nn.Parameter, Tensor]]:
    """Name -> (parameter, bool mask of its shape) of what `Measure.parameters` lets move, see there."""
    weights = active(net, masks)
    if check_choice("parameters", parameters, PARAMETERS) == "weights":
        return weights
    taken = {*(parameter for parameter, _ in weights.values()), *ghost_parameters(net)}
    others = {name: parameter for name, parameter in net.named_parameters() if parameter not in taken}
    return weights | {name: (value, torch.ones_like(value, dtype=torch.bool)) for name, value in others.items()}


@torch.no_grad()
def losses_along(
    net: nn.Module,
    weights: Mapping[str, tuple[nn.Parameter, Tensor]],
    direction: Tensor,
    distances: Sequence[float],
    batches: Sequence[tuple[Tensor, Tensor]],
) -> Iterator[float]:
    """The mean cross entropy in eval mode over all images of `batches` with the weights moved by each distance times `direction`,
    (n,) over the weights that the masks keep; inf where it is not finite. The network is left as it was found.
    """
    parameters = [parameter for parameter, _ in weights.values()]
    before, was_training = [parameter.clone() for parameter in parameters], net.training
    sizes = [int(mask.sum()) for _, mask in weights.values()]
    steps = []
    for (parameter, mask), part in zip(weights.values(), torch.split(direction, sizes), strict=True):
        steps.append(torch.zeros_like(parameter).masked_scatter_(mask, part.to(parameter)))
    net.eval()
    try:
        for distance in distances:
            for parameter, centre, step in zip(parameters, before, steps, strict=True):
                parameter.copy_(centre + distance * step)
            total = sum(float(F.cross_entropy(net(inputs), targets, reduction="sum")) for inputs, targets in batches)
            count = sum(len(targets) for _, targets in batches)
            yield total / count if math.isfinite(total) else math.inf
    finally:
        for parameter, centre in zip(parameters, before, strict=True):
            parameter.copy_(centre)
        net.train(was_training)


def _measured(snapshot: Snapshot, measure: Measure, batch: tuple[Tensor, Tensor], place: int, test: Tensor) -> dict[str, Any]:
    """What is kept of one batch."""
    weights = moving(snapshot.net, snapshot.masks, measure.parameters)
    hessian = Hessian(snapshot.net, weights, *batch)
    start = torch.randn(len(hessian), generator=generator("curvature start", measure.seed, place), dtype=torch.float64)
    found = hessian.top(start, measure.count, measure.which, measure.tolerance)
    losses: list[float] = []
    if measure.line is not None and place == 0:
        images = list(eval_batches(snapshot.dataset, _EVAL_BATCH, "test", test))
        losses = list(losses_along(snapshot.net, weights, found.vectors[0], measure.line.distances, images))
        if losses[0] > losses[-1]:  # an eigenvector has no sign of its own: of all networks the steeper side is the right one
            losses.reverse()
    return {"eigenvalues": list(found.values), "products": hessian.products, "losses": _finite(losses)}


def _batches(snapshot: Snapshot, measure: Measure) -> Iterator[tuple[Tensor, Tensor]]:
    config, dataset = snapshot.config, snapshot.dataset
    images, _ = split_images(config, dataset)
    source = TrainBatches(dataset, measure.batch_size, measure.seed, stream="curvature", augment=False, subset=images)
    return islice(chain.from_iterable(repeat(source)), measure.batches)  # epoch after epoch


def _test_images(snapshot: Snapshot, line: Line | None) -> Tensor:
    """Their positions."""
    there = len(snapshot.dataset.test) if line is not None else 0
    count = there if line is None or line.images is None else line.images
    if count > there:
        raise ValueError(f"images: expected at most {there} (the test images of {snapshot.dataset.name}), got {count}")
    return torch.arange(count)


class _Parts:
    """The file of what is measured already of one network.

    Attributes:
        done: place of the batch -> what is kept of it.
    """

    def __init__(self, folder: Path, origin: Origin, snapshot: Snapshot, measure: Measure, overwrite: bool) -> None:
        # fewer batches are the first of more
        how = {name: value for name, value in dataclasses.asdict(measure).items() if name != "batches"}
        key = repr((_VERSION, weights_fingerprint(snapshot.net), origin.form, how))
        self._file = folder / f"{origin.run}-{origin.epoch:04d}-{hashlib.sha256(key.encode()).hexdigest()[:12]}.json"
        self.done = {} if overwrite else self._read()

    def keep(self, place: int, part: dict[str, Any]) -> None:
        self.done[place] = part
        self._file.parent.mkdir(parents=True, exist_ok=True)
        write_json(self._file, {"batches": {str(place): part for place, part in self.done.items()}})

    def _read(self) -> dict[int, dict[str, Any]]:
        """A damaged file has nothing."""
        try:
            parts = {int(place): dict(part) for place, part in read_json(self._file)["batches"].items()}
            whole = all(part.keys() == {"eigenvalues", "products", "losses"} for part in parts.values())
        except (FileNotFoundError, DamagedFile, ValueError, TypeError, KeyError, AttributeError):
            return {}
        return parts if whole else {}


def _finite(values: Sequence[float]) -> list[float | None]:
    return [value if math.isfinite(value) else None for value in values]


def _infinite(values: Sequence[float | None]) -> tuple[float, ...]:
    return tuple(math.inf if value is None else float(value) for value in values)
