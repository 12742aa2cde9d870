"""How many weights are in the support after each epoch, over the seeds of a setting."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from tost.analysis.solution_path import path_of
from tost.analysis.what_differs import what_differs
from tost.checks import check_types, filled
from tost.masks.layers import matched
from tost.runs import Result

__all__ = ["PathDensities", "RunDensities", "analyze_density"]


@dataclass(frozen=True)
class RunDensities:
    """The path of one run.

    Attributes:
        variant: what tells its setting from the others; "" where all runs have the same.
        seed: of the run.
        run: hash of its configuration.
        epochs: at which the path was recorded.
        overall: fraction of the weights in the support, of all layers that have a Gamma.
        layers: the same of single layers that were asked for.
    """

    variant: str
    seed: int
    run: str
    epochs: tuple[int, ...]
    overall: tuple[float, ...]
    layers: Mapping[str, tuple[float, ...]]

    def __post_init__(self) -> None:
        for name, values in (("overall", self.overall), *self.layers.items()):
            if len(values) != len(self.epochs) or not values:
                raise ValueError(f"{name}: expected {len(self.epochs)} densities, one an epoch, got {len(values)}")


@dataclass(frozen=True)
class PathDensities:
    """Those of every run.

    Attributes:
        title: what the runs share.
        runs: in the order in which they were given.
    """

    kind: ClassVar[str] = "density"

    title: str
    runs: tuple[RunDensities, ...]

    def __post_init__(self) -> None:
        filled("runs", self.runs)

    @property
    def layers(self) -> tuple[str, ...]:
        """The single layers, in the order of the network."""
        return tuple(dict.fromkeys(name for run in self.runs for name in run.layers))

    def as_dict(self) -> dict[str, Any]:
        """Plain JSON types."""
        return {"kind": self.kind, **dataclasses.asdict(self)}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> PathDensities:
        """What `as_dict` gave, or what JSON made of it."""
        runs = (
            RunDensities(
                one["variant"],
                one["seed"],
                one["run"],
                tuple(one["epochs"]),
                tuple(one["overall"]),
                {name: tuple(densities) for name, densities in one["layers"].items()},
            )
            for one in values["runs"]
        )
        return check_types(cls(values["title"], tuple(runs)))


def analyze_density(results: Sequence[Result], layer: str | Sequence[str] | None = None) -> PathDensities:
    """Density along the paths of finished runs (Fig. 8 of https://arxiv.org/abs/2007.02010).

    Args:
        results: runs of SplitLBI; those that differ in the seed alone are one setting.
        layer: names or patterns of layers to look at by themselves, too; None: none.

    Raises:
        FileNotFoundError: a run has no path. ValueError: no run, or two of the same setting and seed; a pattern that means no
            layer; a file is damaged.
    """
    label = what_differs([result.config for result in results])
    runs = []
    for variant, result in zip(label.variants, results, strict=True):
        path = path_of(result.run_dir)
        found = [(point.density, point.densities) for _, point in path.points()]  # points are large: one at a time
        names = list(found[0][1])
        chosen = matched("layer", layer, names) if layer is not None else set()
        layers = {name: tuple(of_layers[name] for _, of_layers in found) for name in names if name in chosen}
        overall = tuple(density for density, _ in found)
        runs.append(RunDensities(variant, result.config.seed, result.config.hash, path.epochs, overall, layers))
    return PathDensities(label.title, tuple(runs))
