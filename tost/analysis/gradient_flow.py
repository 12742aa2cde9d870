"""How much gradient reaches the weights that are there, at initialisation and while a network is trained."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain, islice, repeat
from pathlib import Path
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tost.analysis.networks import Snapshot, active
from tost.analysis.of_runs import Origin, kept_epochs, labels, networks
from tost.checks import integer
from tost.data import TrainBatches
from tost.isolation import isolated
from tost.preparation import split_images
from tost.runs import Result
from tost.seeds import derive_seed
from tost_kernels.nn.surgery import duplicate

__all__ = ["GradientFlow", "GradientNorms", "NetworkGradients", "analyze_gradient_flow", "gradient_norms"]

BATCHES = 10


@dataclass(frozen=True)
class GradientNorms:
    """Euclidean norms of the loss's gradient with respect to the active weights, each the mean over the batches.

    Attributes:
        total: of the whole gradient, all layers in one vector.
        layers: of each layer's part, by its name.
    """

    total: float
    layers: Mapping[str, float]

    @property
    def summed(self) -> float:
        """The layers' norms added up."""
        return math.fsum(self.layers.values())


@dataclass(frozen=True)
class NetworkGradients:
    """One network's norms."""

    origin: Origin
    norms: GradientNorms


@dataclass(frozen=True)
class GradientFlow:
    """Those of every network.

    Attributes:
        title: what the runs share.
        batches: of training images, unaugmented, over which norms are averaged; as large as in the training.
        seed: of the batches, the same images for every network.
        networks: in the order of the runs and epochs.
    """

    kind: ClassVar[str] = "gradients"

    title: str
    batches: int
    seed: int
    networks: tuple[NetworkGradients, ...]

    def as_dict(self) -> dict[str, Any]:
        """Plain JSON types; a norm that is not finite is None."""
        found = [
            {
                "origin": one.origin.as_dict(),
                "total": _finite(one.norms.total),
                "layers": {name: _finite(norm) for name, norm in one.norms.layers.items()},
            }
            for one in self.networks
        ]
        return {"kind": self.kind, "title": self.title, "batches": self.batches, "seed": self.seed, "networks": found}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> GradientFlow:
        """What `as_dict` gave."""
        found = (
            NetworkGradients(
                Origin(**one["origin"]),
                GradientNorms(_infinite(one["total"]), {name: _infinite(norm) for name, norm in one["layers"].items()}),
            )
            for one in values["networks"]
        )
        return cls(values["title"], values["batches"], values["seed"], tuple(found))


def analyze_gradient_flow(
    results: Sequence[Result],
    epochs: Sequence[int] | None = None,
    batches: int = BATCHES,
    seed: int = 0,
    progress: Callable[[int], object] = lambda done: None,
    data_dir: str | Path | None = None,
) -> GradientFlow:
    """Measure the gradient of the cross entropy, without label smoothing, at each network.

    Args:
        results: finished runs.
        epochs: after which their networks were kept, 0: as initialised, re-scaled where the recipe does that; None: all that
            every run has. Where ghosts live, both forms are measured.
        batches: to average over.
        seed: of the batches.
        progress: called with the number of epochs of runs that are done.
        data_dir: of the data set, where it has moved since the training; None: where it was.

    Raises:
        ValueError, FileNotFoundError: as `tost.analysis.of_runs.networks`.
    """
    integer("batches", batches, least=1)
    integer("seed", seed, least=0)
    if epochs is None and results:
        epochs = kept_epochs(results)
    found = []
    for origin, snapshot in networks(results, epochs, progress=progress, data_dir=data_dir):
        with isolated(derive_seed("gradient flow", seed), devices=()):  # dropout
            norms = gradient_norms(snapshot.net, snapshot.masks, _batches(snapshot, batches, seed))
        found.append(NetworkGradients(origin, norms))
    return GradientFlow(labels([result.config for result in results]).title, batches, seed, tuple(found))


def _batches(snapshot: Snapshot, count: int, seed: int) -> Iterable[tuple[Tensor, Tensor]]:
    config, dataset = snapshot.config, snapshot.dataset
    images, _ = split_images(config, dataset)
    source = TrainBatches(dataset, config.batch_size, seed, stream="gradient flow", augment=False, subset=images)
    return islice(chain.from_iterable(repeat(source)), count)  # epoch after epoch


def gradient_norms(net: nn.Module, masks: Mapping[str, Tensor] | None, batches: Iterable[tuple[Tensor, Tensor]]) -> GradientNorms:
    """Norms of the gradient of the mean cross entropy over the weights that `masks` keep, averaged over the batches.

    Batch normalisation uses the batch, as in the training: running statistics mean nothing before the first step.

    Args:
        net: of `tost.analysis.networks.network_of`; it is left alone.
        masks: of its layers; None: all weights count.
        batches: (inputs, targets).
    """
    net = duplicate(net).train()
    weights = active(net, masks)
    parameters = [parameter for parameter, _ in weights.values()]
    squares = []  # one row a batch, one number a layer
    for inputs, targets in batches:
        gradients = torch.autograd.grad(F.cross_entropy(net(inputs), targets), parameters, allow_unused=True)
        kept = (None if g is None else g * mask for g, (_, mask) in zip(gradients, weights.values(), strict=True))
        squares.append([0.0 if g is None else float(g.double().square().sum()) for g in kept])
    layers = [math.fsum(map(math.sqrt, column)) / len(squares) for column in zip(*squares, strict=True)]
    total = math.fsum(math.sqrt(math.fsum(row)) for row in squares) / len(squares)
    return GradientNorms(total, dict(zip(weights, layers, strict=True)))


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None


def _infinite(value: float | None) -> float:
    return math.inf if value is None else value
