"""Compact: a weight without its dead filters and dead input channels, those of which the mask keeps nothing.

What is left out computes nothing: a dead filter's output is its bias, a dead channel's input reaches no output. Random masks have
next to none, others many (SynFlow on ResNet-20 at 98%: 0.075 of the median layer's filters x channels are alive). torch's dense
op on the rest does that part of the work.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

WORTH = 0.9  # the rest must be at most this part of the weight: taking out and putting back costs passes over activations


class Compact(NamedTuple):
    """The live part of a weight (O, I, ...); values keep their order in it.

    Attributes:
        filters: int64 (F,), ascending: the output channels that stay.
        channels: int64 (C,), ascending: the input channels that stay.
        positions: int64 (nnz,): flat positions of the kept weights in the weight of `shape`.
        shape: (F, C, ...).
    """

    filters: Tensor
    channels: Tensor
    positions: Tensor
    shape: tuple[int, ...]

    def to(self, device: torch.device) -> Compact:
        """The same with its tensors on `device`."""
        return Compact(self.filters.to(device), self.channels.to(device), self.positions.to(device), self.shape)

    def scatter(self, values: Tensor) -> Tensor:
        """The weight of `shape`: `values` (nnz,) at their places, 0 elsewhere. Differentiable to any order."""
        return values.new_zeros(math.prod(self.shape)).index_copy(0, self.positions, values).view(self.shape)


def live_parts(mask: npt.NDArray[np.bool_]) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """The output channels, and the input channels, of which `mask` (O, I, ...) keeps anything."""
    taps = tuple(range(2, mask.ndim))
    return np.flatnonzero(np.any(mask, (1, *taps))), np.flatnonzero(np.any(mask, (0, *taps)))


def compact(mask: npt.NDArray[np.bool_]) -> Compact | None:
    """The live part of `mask` (O, I, ...); None where it is more than `WORTH` of the whole.

    One filter and one channel stay even where nothing is kept, so that the op still runs on all of its arguments.
    """
    filters, channels = (part if len(part) else np.zeros(1, np.int64) for part in live_parts(mask))
    if len(filters) * len(channels) > WORTH * mask.shape[0] * mask.shape[1]:
        return None
    live = mask[np.ix_(filters, channels)]
    positions = torch.from_numpy(np.flatnonzero(live))
    return Compact(torch.from_numpy(filters), torch.from_numpy(channels), positions, live.shape)
