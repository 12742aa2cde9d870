"""FORCE's saliency of a network whose weights were removed for now (sparsified) or for good (pruned); its Figs. 6 and 7.

FORCE looks for the masks whose kept weights have the largest sum of |w * dL/dw|, the gradient taken at the masked network: the
pruning saliency. On its way it only sparsifies: a removed weight has the value 0, but still a gradient, by which it can
return; the sum over all weights, |w| being what they were, is the sparsification saliency. It can but be the larger one.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor, nn

from tost.analysis.setting import Setting, each, is_iterative
from tost.checks import check_types, filled
from tost.config import Config
from tost.masks import Masks, PruneStep, methods, score
from tost.masks.probe import Data, Loss

__all__ = ["Saliencies", "Saliency", "SaliencyPoint", "analyze_saliency", "saliency"]

BATCHES = 5  # over which gradients are averaged
POINTS = 12  # densities at which a method of one step is measured


@dataclass(frozen=True)
class Saliency:
    """Sums of |w * dL/dw|, the gradient taken at the network with masked weights.

    Attributes:
        sparsification: over all weights, the removed ones with the values they had.
        pruning: over the kept ones.
    """

    sparsification: float
    pruning: float


def saliency(
    model: nn.Module,
    masks: Mapping[str, Tensor],
    data: Data,
    batches: int = BATCHES,
    loss: Loss | None = None,
) -> Saliency:
    """Both saliencies of `model` under `masks`.

    Args:
        model: a dense network; it comes back as it was.
        masks: bool, one for each layer that counts.
        data: iterable of batches (inputs, targets).
        batches: how many of them the signed gradients are averaged over.
        loss: (outputs, targets) -> scalar; default: cross-entropy.

    Raises:
        TypeError, ValueError: as `tost.score`.
    """
    snip = dataclasses.replace(methods()["snip"], batches=batches)
    scores = score(model, snip, data=data, loss=loss, include=list(masks), masks=masks)
    everything = sum(float(part.double().sum()) for part in scores.values())
    return Saliency(everything, sum(float(part[masks[name]].double().sum()) for name, part in scores.items()))


@dataclass(frozen=True)
class SaliencyPoint:
    """A network at one density: on the way of a method of several steps, or where a method of one step ends."""

    method: str
    seed: int
    density: float
    saliency: Saliency


@dataclass(frozen=True)
class Saliencies:
    """Points of every method and seed, from the highest density to the lowest."""

    kind: ClassVar[str] = "saliency"
    setting: Setting
    batches: int
    points: tuple[SaliencyPoint, ...]

    def as_dict(self) -> dict[str, Any]:
        """Plain JSON types."""
        points = [dataclasses.asdict(point) for point in self.points]
        return {"kind": self.kind, **self.setting.as_dict(), "batches": self.batches, "points": points}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Saliencies:
        """What `as_dict` gave."""
        points = [
            SaliencyPoint(**{**point, "saliency": check_types(Saliency(**point["saliency"]))}) for point in values["points"]
        ]
        return check_types(cls(Setting.from_dict(values), values["batches"], filled("points", points)))


def analyze_saliency(
    setting: Setting,
    names: Sequence[str] = ("snip", "iter_snip", "force"),
    batches: int = BATCHES,
    progress: Callable[[int], object] = lambda done: None,
) -> Saliencies:
    """Measure both saliencies while each method prunes, after every step.

    A method of one step has no way to the density of `setting`: it prunes anew at each of 12 densities.

    Args:
        setting: networks and density.
        names: methods.
        batches: over which gradients are averaged, the same for every point of a seed.
        progress: called with the number of finished pairs of a method and a seed.
    """
    points: list[SaliencyPoint] = []
    for name, config in each(setting, names, progress):
        model = setting.model(config)

        def measure(masks: Masks, config: Config = config, model: nn.Module = model) -> None:
            found = saliency(model, masks, setting.batches(config), batches)
            points.append(SaliencyPoint(config.method, config.seed, masks.density, found))

        def after(step: PruneStep, measure: Callable[[Masks], None] = measure) -> None:
            measure(step.masks)

        if is_iterative(config):
            setting.masks(config, after)
        else:
            for i in range(1, POINTS + 1):
                measure(setting.masks(setting.of(name, config.seed, density=config.density ** (i / POINTS))))
    return Saliencies(setting, batches, tuple(points))
