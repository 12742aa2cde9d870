"""Random crop and mirror of a whole batch at once."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Moves:
    """What happens to each image of a batch: its crop's corner and whether it is mirrored.

    Attributes:
        dy, dx: int64 (N,), 0 .. 2 * padding; `padding` leaves the image where it is.
        flip: bool (N,).
    """

    dy: Tensor
    dx: Tensor
    flip: Tensor


def draw_moves(count: int, padding: int, flip: bool, generator: torch.Generator) -> Moves:
    """Random moves of `count` images."""
    dy = torch.randint(0, 2 * padding + 1, (count,), generator=generator)
    dx = torch.randint(0, 2 * padding + 1, (count,), generator=generator)
    mirrored = torch.rand(count, generator=generator) < 0.5 if flip else torch.zeros(count, dtype=torch.bool)
    return Moves(dy, dx, mirrored)


def apply_moves(images: Tensor, moves: Moves, padding: int, fill: Tensor) -> Tensor:
    """Crop each image out of its padded self, then mirror it where asked.

    Args:
        images: (N, C, H, W).
        moves: of N images.
        padding: pixels added on each side.
        fill: (C,), the value of the added pixels (black, after normalisation).

    Returns:
        A new contiguous tensor (N, C, H, W).
    """
    count, channels, height, width = images.shape
    padded = fill.view(1, channels, 1, 1).repeat(count, 1, height + 2 * padding, width + 2 * padding)
    padded[:, :, padding : padding + height, padding : padding + width] = images
    columns = torch.arange(width).expand(count, width)
    columns = torch.where(moves.flip[:, None], width - 1 - columns, columns) + moves.dx[:, None]
    rows = torch.arange(height)[None] + moves.dy[:, None]
    image = torch.arange(count)[:, None, None, None]
    channel = torch.arange(channels)[None, :, None, None]
    return padded[image, channel, rows[:, None, :, None], columns[:, None, None, :]]
