"""How far two masks agree, layer by layer and in all."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from tost.masks.masks import Masks, as_masks

__all__ = ["MaskComparison", "Overlap", "compare"]


@dataclass(frozen=True)
class Overlap:
    """Two masks of one layer, or of all of them.

    Attributes:
        name: of the layer; "all" for all together.
        shape: of the weight; () for all together.
        total: weights, kept or not.
        kept_a, kept_b: kept in the one, in the other.
        kept_both: kept in both.
        expected_both: how many random masks that keep as many in each layer would share, on average: kept_a * kept_b / total
            of a layer; for all together the sum over the layers.
    """

    name: str
    shape: tuple[int, ...]
    total: int
    kept_a: int
    kept_b: int
    kept_both: int
    expected_both: float

    @property
    def jaccard(self) -> float:
        """Kept in both, as a fraction of those kept in either (intersection over union); 1.0 where nothing is kept."""
        return _jaccard(self.kept_both, self.kept_a + self.kept_b)

    @property
    def expected_jaccard(self) -> float:
        """The same with `expected_both`: what chance gives."""
        return _jaccard(self.expected_both, self.kept_a + self.kept_b)

    @property
    def agreement(self) -> float:
        """Fraction of all weights on which the two decide alike, kept or not."""
        return 1 - (self.kept_a + self.kept_b - 2 * self.kept_both) / self.total

    def as_dict(self) -> dict[str, Any]:
        """Plain JSON types."""
        derived = {name: getattr(self, name) for name in ("jaccard", "expected_jaccard", "agreement")}
        return {**asdict(self), "shape": list(self.shape), **derived}


@dataclass(frozen=True)
class MaskComparison:
    """Two sets of masks.

    Attributes:
        layers: those that are in both, in the order of the first.
        all: these layers together.
        only_a, only_b: names of layers that are in one alone; they count nowhere.
    """

    layers: tuple[Overlap, ...]
    all: Overlap
    only_a: tuple[str, ...]
    only_b: tuple[str, ...]

    def as_dict(self) -> dict[str, Any]:
        """Plain JSON types."""
        return {
            "all": self.all.as_dict(),
            "layers": [layer.as_dict() for layer in self.layers],
            "only_a": list(self.only_a),
            "only_b": list(self.only_b),
        }


def compare(a: Mapping[str, Tensor], b: Mapping[str, Tensor]) -> MaskComparison:
    """Compare two masks of one network.

    Two good masks of one density may share hardly more than chance does: `expected_both` says what that is.

    Args:
        a, b: module name -> mask, as `Masks` or what it is made of.

    Raises:
        TypeError, ValueError: what `Masks` says of `a` and `b`; they have no layer in common, or one of another shape.
    """
    a, b = as_masks("a", a), as_masks("b", b)
    counts_b = {layer.name: layer for layer in b.per_layer()}
    layers = []
    for layer in a.per_layer():
        other = counts_b.get(layer.name)
        if other is None:
            continue
        if other.shape != layer.shape:
            raise ValueError(f"b: expected the shape of a's mask of {layer.name!r}, {layer.shape}, got {other.shape}")
        both = int(torch.logical_and(a[layer.name], b[layer.name]).sum())
        expected = layer.kept * other.kept / layer.total
        layers.append(Overlap(layer.name, layer.shape, layer.total, layer.kept, other.kept, both, expected))
    if not layers:
        raise ValueError(f"b: expected a layer in common with a, which has {_some(a)}; got {_some(b)}")
    return MaskComparison(
        layers=tuple(layers),
        all=Overlap(
            "all",
            (),
            sum(layer.total for layer in layers),
            sum(layer.kept_a for layer in layers),
            sum(layer.kept_b for layer in layers),
            sum(layer.kept_both for layer in layers),
            sum(layer.expected_both for layer in layers),
        ),
        only_a=tuple(name for name in a if name not in b),
        only_b=tuple(name for name in b if name not in a),
    )


def _jaccard(both: float, sizes: int) -> float:
    return both / (sizes - both) if sizes > both else 1.0


def _some(masks: Masks) -> str:
    names = list(masks)
    return ", ".join(names[:5]) + (", ..." if len(names) > 5 else "")
