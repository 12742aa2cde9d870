"""Random crop, mirror and cutout of a whole batch at once."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Moves:
    """What happens to each image of a batch.

    Attributes:
        dy, dx: int64 (N,), the crop's corner, 0 .. 2 * padding; `padding` leaves the image where it is.
        flip: bool (N,), whether it is mirrored.
        hole_y, hole_x: int64 (N,), the pixel around which cutout fills a square; None without cutout.
        crop_seeds: int64 (N,), see `tost.data.Picks`; None for sets without random-resized crops.
    """

    dy: Tensor
    dx: Tensor
    flip: Tensor
    hole_y: Tensor | None = None
    hole_x: Tensor | None = None
    crop_seeds: Tensor | None = None

    def of(self, part: slice) -> Moves:
        """The moves of some of the images."""
        return dataclasses.replace(self, **{name: value[part] for name, value in self.drawn().items()})

    def drawn(self) -> dict[str, Tensor]:
        """Those of its attributes that are not None, by name."""
        fields = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        return {name: value for name, value in fields.items() if value is not None}

    def tobytes(self) -> bytes:
        """All of it, for a fingerprint."""
        return b"".join(part.numpy().tobytes() for part in self.drawn().values())


def draw_moves(
    count: int,
    padding: int,
    flip: bool,
    generator: torch.Generator,
    *,
    hole_in: tuple[int, int] | None = None,
    crop_seeds: bool = False,
) -> Moves:
    """Random moves of `count` images.

    Args:
        count: number of images.
        padding: pixels that the crop may move an image, each way.
        flip: whether half of them are mirrored.
        generator: what is drawn comes from here; the draws that are not asked for are not made.
        hole_in: (height, width) of the images, to draw the centres of cutout too.
        crop_seeds: draw seeds of random-resized crops too.
    """
    dy = torch.randint(0, 2 * padding + 1, (count,), generator=generator)
    dx = torch.randint(0, 2 * padding + 1, (count,), generator=generator)
    mirrored = torch.rand(count, generator=generator) < 0.5 if flip else torch.zeros(count, dtype=torch.bool)
    hole_y = hole_x = seeds = None
    if hole_in is not None:
        hole_y, hole_x = (torch.randint(0, side, (count,), generator=generator) for side in hole_in)
    if crop_seeds:
        seeds = torch.randint(0, 2**62, (count,), generator=generator)
    return Moves(dy, dx, mirrored, hole_y, hole_x, seeds)


def apply_moves(images: Tensor, moves: Moves, padding: int) -> Tensor:
    """Crop each image out of itself with a border of zeros, then mirror it where asked.

    Args:
        images: (N, C, H, W), pixels: 0 is black.
        moves: of N images, on the same device.
        padding: pixels added on each side.

    Returns:
        A new contiguous tensor (N, C, H, W).
    """
    count, channels, height, width = images.shape
    out = images
    if padding:
        padded = images.new_zeros(count, channels, height + 2 * padding, width + 2 * padding)
        padded[:, :, padding : padding + height, padding : padding + width] = images
        # every crop of every image is a window of this view: one index for each image copies whole rows
        windows = padded.unfold(2, height, 1).unfold(3, width, 1)
        out = windows[torch.arange(count, device=images.device), :, moves.dy, moves.dx]
    return torch.where(moves.flip.view(-1, 1, 1, 1), out.flip(3), out)


def cut_out(inputs: Tensor, moves: Moves, size: int) -> Tensor:
    """Set a square of `size` x `size` pixels around (hole_y, hole_x) of each image to 0, in place; borders clip it.

    For normalised inputs: 0 there is the mean colour, which uint8 pixels could only come near
    (DeVries & Taylor, https://arxiv.org/abs/1708.04552).
    """
    assert moves.hole_y is not None
    assert moves.hole_x is not None
    _, _, height, width = inputs.shape

    def covered(centre: Tensor, side: int) -> Tensor:
        offset = torch.arange(side, device=centre.device) - (centre[:, None] - size // 2)
        return (offset >= 0) & (offset < size)

    holes = covered(moves.hole_y, height)[:, None, :, None] & covered(moves.hole_x, width)[:, None, None, :]
    return inputs.masked_fill_(holes, 0)
