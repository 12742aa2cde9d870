"""The loss around a network, along two random directions in the space of its active weights.

Directions as in "Visualizing the Loss Landscape of Neural Nets" (https://arxiv.org/abs/1712.09913), but masked: pruned weights do
not move, and a filter's direction is as long as the filter's active weights. Biases and BatchNorm do not move.
"""

from __future__ import annotations

import dataclasses
import hashlib
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import tost_kernels as tk
from tost.analysis.networks import FORMS, active
from tost.analysis.of_runs import Origin, labels, networks
from tost.checks import integer
from tost.choices import check_choice
from tost.config import Config
from tost.data import Dataset, eval_batches
from tost.files import DamagedFile, read_json, write_json
from tost.ghosts import add_ghosts, ghosts_of
from tost.preparation import LAYOUTS, kernels_of, layout_of, plain_form, set_layout, split_images, weights_fingerprint
from tost.recipe import Recipe
from tost.runs import Result
from tost.seeds import generator
from tost_kernels.nn import SparseConv2d, SparseLinear
from tost_kernels.nn.surgery import duplicate

__all__ = ["Plane", "Surface", "Surfaces", "analyze_surface", "directions"]

IMAGES, POINTS, REACH = 128, 51, 1.0
_BATCH = 256
_VERSION = 1  # of the numbers: half-measured surfaces of another one are measured anew


@dataclass(frozen=True)
class Surface:
    """The loss around one network.

    Attributes:
        origin: of the network.
        losses: mean cross entropy, a row for each step along the second direction, in it a number for each step along the
            first; inf where it is infinite or no number.
    """

    origin: Origin
    losses: tuple[tuple[float, ...], ...]

    @property
    def centre(self) -> float:
        """The network's own loss."""
        return self.losses[len(self.losses) // 2][len(self.losses) // 2]

    def rise(self, steps: Sequence[float], radius: float) -> float | None:
        """How much higher than at the centre the loss is on average at this distance from it: on a ring one grid step wide.

        None: the grid is too coarse, its first points lie farther away.
        """
        width = steps[1] - steps[0]
        if radius < width - 1e-9:
            return None
        ring = [
            loss
            for y, row in zip(steps, self.losses, strict=True)
            for x, loss in zip(steps, row, strict=True)
            if abs(math.hypot(x, y) - radius) <= 0.5 * width + 1e-9
        ]
        return sum(ring) / len(ring) - self.centre

    def share_below(self, limit: float) -> float:
        """Fraction of the grid where the loss is at most `limit`."""
        losses = [loss for row in self.losses for loss in row]
        return sum(loss <= limit and loss < math.inf for loss in losses) / len(losses)


@dataclass(frozen=True)
class Surfaces:
    """Those of every network, along the same directions.

    Attributes:
        title: what the runs share.
        part: of the data set, "train" or "test", whose images are used, unaugmented.
        images: how many, the same for every network.
        classes: of the data set; guessing costs ln(classes).
        seed: of the directions and the choice of images.
        steps: along either direction, in filter norms.
        surfaces: in the order of the runs and epochs.
    """

    kind: ClassVar[str] = "surface"

    title: str
    part: str
    images: int
    classes: int
    seed: int
    steps: tuple[float, ...]
    surfaces: tuple[Surface, ...]

    def as_dict(self) -> dict[str, Any]:
        """Plain JSON types; a loss that is not finite is None."""
        values = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}
        found = [{"origin": one.origin.as_dict(), "losses": [_row(row) for row in one.losses]} for one in self.surfaces]
        return {"kind": self.kind, **values, "steps": list(self.steps), "surfaces": found}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Surfaces:
        """What `as_dict` gave."""
        plain = {name: values[name] for name in ("title", "part", "images", "classes", "seed")}
        found = (Surface(Origin(**one["origin"]), tuple(map(_losses, one["losses"]))) for one in values["surfaces"])
        return cls(**plain, steps=tuple(values["steps"]), surfaces=tuple(found))


def analyze_surface(
    results: Sequence[Result],
    epochs: Sequence[int] | None = None,
    *,
    folder: Path,
    points: int = POINTS,
    images: int = IMAGES,
    part: str = "train",
    form: str = "training",
    seed: int = 0,
    overwrite: bool = False,
    progress: Callable[[int], object] = lambda done: None,
    data_dir: str | Path | None = None,
) -> Surfaces:
    """Measure the loss on a square around each network, `points` x `points` times, in eval mode.

    Every row is kept in `folder` as soon as it is measured: what was cut off goes on there, and what is finished is read back.

    Args:
        results: finished runs.
        epochs: after which their networks were kept; None: the finished networks.
        folder: of the rows.
        points: steps from -1 to 1 along either direction, an odd number, so that the network itself is among them.
        images: how many are used.
        part: of which part of the data set: "train" (those that were trained on) or "test".
        form: of a network with living ghosts: "training" or "finalized".
        seed: of the directions and of the choice of images.
        overwrite: measure what was measured already.
        progress: called with the number of rows that are done.
        data_dir: of the data set, where it has moved since the training; None: where it was.

    Raises:
        ValueError, FileNotFoundError: as `tost.analysis.of_runs.networks`. ValueError: an argument is out of range.
    """
    if integer("points", points, least=3) % 2 == 0:
        raise ValueError(f"points: expected an odd number, so that the network itself is one of them, got {points}")
    integer("images", images, least=1)
    integer("seed", seed, least=0)
    check_choice("part", part, ("train", "test"))
    check_choice("form", form, FORMS)
    steps = tuple(REACH * (2 * i - (points - 1)) / (points - 1) for i in range(points))
    found: list[Surface] = []
    used = classes = 0
    for origin, snapshot in networks(results, epochs, (form,), data_dir=data_dir):
        chosen = _chosen(snapshot.config, snapshot.dataset, part, images, seed)
        used, classes = len(chosen), snapshot.dataset.num_classes
        key = [_VERSION, weights_fingerprint(snapshot.net), origin.form, points, chosen.tolist(), part, seed]
        file = folder / f"{origin.run}-{origin.epoch:04d}-{hashlib.sha256(repr(key).encode()).hexdigest()[:12]}.json"
        rows = _kept(file, points) if not overwrite else {}
        if len(rows) < points:
            plane = Plane(snapshot.net, snapshot.masks, seed)
            batches = list(eval_batches(snapshot.dataset, _BATCH, part, chosen))
            for number, y in enumerate(steps):
                if number not in rows:
                    rows[number] = tuple(plane.losses([(x, y) for x in steps], batches))
                    _keep(file, rows)
                progress(len(found) * points + number + 1)
        found.append(Surface(origin, tuple(rows[number] for number in range(points))))
        progress(len(found) * points)
    title = labels([result.config for result in results]).title
    return Surfaces(title, part, used, classes, seed, steps, tuple(found))


def _chosen(config: Config, dataset: Dataset, part: str, count: int, seed: int) -> Tensor:
    """Positions of the images that are used: int64 (n,), rising."""
    training, _ = split_images(config, dataset)
    whole = torch.arange(len(dataset.train if part == "train" else dataset.test))
    there = training if part == "train" and training is not None else whole
    if count > len(there):
        raise ValueError(f"images: expected at most {len(there)} (the {part} images of {dataset.name}), got {count}")
    return there[torch.randperm(len(there), generator=generator("surface images", seed))[:count]].sort().values


def _kept(file: Path, points: int) -> dict[int, tuple[float, ...]]:
    """The rows that were measured earlier: number -> losses. A damaged file has none."""
    try:
        rows = {int(number): _losses(row) for number, row in read_json(file)["rows"].items()}
    except (FileNotFoundError, DamagedFile, ValueError, TypeError, KeyError, AttributeError):
        return {}
    whole = all(len(row) == points for row in rows.values()) and set(rows) <= set(range(points))
    return rows if whole else {}


def _keep(file: Path, rows: Mapping[int, Sequence[float]]) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    write_json(file, {"rows": {str(number): _row(row) for number, row in rows.items()}})


def _row(losses: Sequence[float]) -> list[float | None]:
    return [loss if math.isfinite(loss) else None for loss in losses]


def _losses(row: Sequence[float | None]) -> tuple[float, ...]:
    return tuple(math.inf if loss is None else float(loss) for loss in row)


def directions(net: nn.Module, masks: Mapping[str, Tensor] | None, seed: int, number: int) -> dict[str, Tensor]:
    """A random direction in the space of the active weights: name of the weight -> a tensor of its shape.

    Normal, 0 where a weight is pruned, and in each filter (row of a linear layer) as long as that filter's active weights. The
    random numbers depend on the seed, on `number` and on the names of the layers alone: networks of one architecture get the
    same, up to their masks and the lengths of their filters.
    """
    found = {}
    for name, (parameter, mask) in active(net, masks).items():
        weight = (parameter.detach() * mask).flatten(1)
        drawn = torch.randn(parameter.shape, generator=generator("surface", seed, number, name)) * mask
        lengths = drawn.flatten(1).norm(dim=1, keepdim=True)
        scale = torch.where(lengths > 0, weight.norm(dim=1, keepdim=True) / lengths, 0.0)
        found[name] = (drawn.flatten(1) * scale).view(parameter.shape)
    return found


class Plane:
    """A copy of a network whose weights move in the plane of two directions.

    It computes what the network does, as fast as it can be had: with the compiled sparse kernels where they are there.

    Args:
        net: dense modules, masked where there are `masks`; it is left alone.
        masks: of its layers; None: a dense network.
        seed: of the directions.
    """

    def __init__(self, net: nn.Module, masks: Any, seed: int) -> None:
        first, second = (directions(net, masks, seed, number) for number in (0, 1))
        config = Config(backend="dense" if masks is None else "sparse")
        device = torch.device("cpu")
        if kernels_of(config, device) == "cpu":
            self.net = tk.sparsify(net, masks)
            if not ghosts_of(self.net):
                self.net = add_ghosts(self.net, Recipe.vanilla(), inplace=True)  # fused tails
        else:
            self.net = plain_form(duplicate(net), masks)
        self._layout = LAYOUTS[layout_of(config, device)]
        set_layout(self.net, layout_of(config, device)).eval()
        self._moved: list[tuple[Tensor, Tensor, Tensor, Tensor]] = []
        for name in first:
            layer = self.net.get_submodule(name.removesuffix(".weight"))
            if isinstance(layer, SparseConv2d | SparseLinear):
                there, gather = layer.values.detach(), layer.pattern.gather
                self._moved.append((there, there.clone(), gather(first[name]), gather(second[name])))
            else:
                assert isinstance(layer, nn.Conv2d | nn.Linear)
                there = layer.weight.detach()
                self._moved.append((there, there.clone(), first[name], second[name]))

    @torch.no_grad()
    def losses(self, places: Sequence[tuple[float, float]], batches: Sequence[tuple[Tensor, Tensor]]) -> Iterator[float]:
        """The mean cross entropy over all images of `batches` at each place (x, y); inf where it is not finite."""
        images = [(self._layout(inputs), targets) for inputs, targets in batches]
        count = sum(len(targets) for _, targets in images)
        for x, y in places:
            for there, centre, first, second in self._moved:
                # from the centre each time: the same bits whatever was measured before
                there.copy_(centre + x * first + y * second)
            total = sum(float(F.cross_entropy(self.net(inputs), targets, reduction="sum")) for inputs, targets in images)
            yield total / count if math.isfinite(total) else math.inf
