"""What shrinking a network has changed, layer by layer."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

__all__ = ["KeptDead", "LayerChange", "ShrinkReport"]


class LayerChange(NamedTuple):
    """Inputs and outputs of one layer (channels or features), before and after. dead: filters without a weight, before."""

    name: str
    kind: str
    inputs: int
    outputs: int
    inputs_left: int
    outputs_left: int
    dead: int


class KeptDead(NamedTuple):
    """Filters of a layer without a weight that had to stay: their places before, and why."""

    layer: str
    filters: tuple[int, ...]
    reason: str


@dataclass(frozen=True)
class ShrinkReport:
    """What was removed, and what was not.

    Attributes:
        layers: every convolution, linear layer and BatchNorm that the network runs, in the order of their first calls.
        kept: dead filters that stay, and why.
        zeroed: with `zero_constants`: BatchNorm or convolution -> channels, places before, whose weight and bias were made 0
            first. This changes what the network computes; they are all removed.
        folded: layers whose bias has taken over the constants of removed inputs.
        parameters: trained numbers of the network, before and after (numbers, also those that a mask prunes).
        macs: multiply-adds of one input with all weights of the layers, before and after, as `tost.count_macs` counts them;
            FLOPs are twice as many.
        macs_kept: the same with the weights that are not 0, or that the masks keep.
    """

    layers: tuple[LayerChange, ...]
    kept: tuple[KeptDead, ...]
    zeroed: dict[str, tuple[int, ...]]
    folded: tuple[str, ...]
    parameters: tuple[int, int]
    macs: tuple[int, int]
    macs_kept: tuple[int, int]
