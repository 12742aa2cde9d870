"""SplitLBI's solution path, filter by filter: norms, and which are in the support."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, ClassVar

from tost.analysis.networks import config_in
from tost.analysis.what_differs import what_differs
from tost.checks import check_types, filled
from tost.masks.layers import matched
from tost.optim import SolutionPath
from tost.runs import RunFolder

__all__ = ["FilterPath", "LayerPath", "analyze_path", "path_of"]


@dataclass(frozen=True)
class LayerPath:
    """The filters (or units) of a layer along the path.

    Attributes:
        name: of the layer.
        norms: ||W_o||_2, a row an epoch, a number a filter.
        inside: for each epoch a text with a character a filter: "1" where a weight of it is in the support, else "0".
        densities: for each epoch the fraction of the layer's weights in the support.
    """

    name: str
    norms: tuple[tuple[float, ...], ...]
    inside: tuple[str, ...]
    densities: tuple[float, ...]

    @property
    def filters(self) -> int:
        """How many it has."""
        return len(self.inside[0])

    @property
    def entries(self) -> tuple[int | None, ...]:
        """For each filter the index of the first epoch at which it is in the support; None: never."""
        return tuple(next((i for i, row in enumerate(self.inside) if row[o] == "1"), None) for o in range(self.filters))


@dataclass(frozen=True)
class FilterPath:
    """The path of a run.

    Attributes:
        title: what was trained.
        epochs: at which the path was recorded; 0 is before the first step.
        layers: in the order of the network.

    Raises:
        ValueError: no epoch or layer, or not a row of every filter at each epoch.
    """

    kind: ClassVar[str] = "path"

    title: str
    epochs: tuple[int, ...]
    layers: tuple[LayerPath, ...]

    def __post_init__(self) -> None:
        if not self.epochs or any(a >= b for a, b in pairwise(self.epochs)):
            raise ValueError(f"epochs: expected some, rising, got {list(self.epochs)}")
        for layer in filled("layers", self.layers):
            rows = {len(layer.norms), len(layer.inside), len(layer.densities)}
            if rows != {len(self.epochs)} or len({*map(len, layer.norms), *map(len, layer.inside)}) != 1:
                raise ValueError(f"layers: {layer.name}: expected {len(self.epochs)} epochs of as many filters each")
            if not set("".join(layer.inside)) <= {"0", "1"}:
                raise ValueError(f"layers: {layer.name}: inside: expected 0 and 1, got {sorted(set(''.join(layer.inside)))}")

    def as_dict(self) -> dict[str, Any]:
        """Plain JSON types."""
        return {"kind": self.kind, **dataclasses.asdict(self)}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> FilterPath:
        """What `as_dict` gave, or what JSON made of it."""
        layers = (
            LayerPath(one["name"], tuple(map(tuple, one["norms"])), tuple(one["inside"]), tuple(one["densities"]))
            for one in values["layers"]
        )
        return check_types(cls(values["title"], tuple(values["epochs"]), tuple(layers)))


def path_of(folder: str | Path) -> SolutionPath:
    """The path of a run, finished or not; or the one that `tost.optim.SolutionPath` wrote into a folder of its own.

    Raises:
        FileNotFoundError: there is none.
    """
    for place in (RunFolder(Path(folder)).path_points, Path(folder)):
        try:
            return SolutionPath.load(place)
        except FileNotFoundError:
            continue
    raise FileNotFoundError(f"run: no solution path in {folder}; `tost train --optimizer splitlbi` records one")


def analyze_path(folder: str | Path, layer: str | Sequence[str] | None = None) -> FilterPath:
    """Norms and support of the filters, epoch by epoch (Fig. 1 of https://arxiv.org/abs/2007.02010).

    Args:
        folder: of a run, finished or not, or of a path alone (see `path_of`).
        layer: names or patterns; None: every layer that has a Gamma.

    Raises:
        FileNotFoundError: no path there. ValueError: a pattern that means no layer; a file is damaged.
    """
    path, of_run = path_of(folder), RunFolder(Path(folder))
    title = what_differs([config_in(of_run)]).title if of_run.config.is_file() else of_run.path.resolve().name
    names = list(path.point(path.epochs[0]).masks)
    chosen = set(names) if layer is None else matched("layer", layer, names)
    norms: dict[str, list[tuple[float, ...]]] = {name: [] for name in names if name in chosen}
    inside: dict[str, list[str]] = {name: [] for name in norms}
    densities: dict[str, list[float]] = {name: [] for name in norms}
    for _, point in path.points():
        for name in norms:
            norms[name].append(tuple(float(f"{norm:.6g}") for norm in point.norms[name].tolist()))
            inside[name].append("".join("01"[held] for held in point.in_support(name).tolist()))
            densities[name].append(point.densities[name])
    layers = (LayerPath(name, tuple(norms[name]), tuple(inside[name]), tuple(densities[name])) for name in norms)
    return FilterPath(title, path.epochs, tuple(layers))
