"""A data set: images as bytes, and how they become a network's inputs."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor


@dataclass(frozen=True)
class Picks:
    """Which images make one batch.

    Attributes:
        index: int64 (n,), positions in the set.
        crop_seeds: int64 (n,), what decides each image's random-resized crop where the set takes such crops; None: no
            random crop.
    """

    index: Tensor
    crop_seeds: Tensor | None = None


class Images(Protocol):
    """Images that are read as uint8 pixels, from memory or from files, and their classes."""

    @property
    def targets(self) -> Tensor:
        """int64 (N,), classes from 0, on the device where batches are made."""

    @property
    def shape(self) -> tuple[int, int, int]:
        """(C, H, W) of every image as it is read."""

    @property
    def takes_crop_seeds(self) -> bool:
        """Whether reading can take a random-resized crop of each image."""

    def __len__(self) -> int:
        """Number of images."""

    def batches(self, picks: Iterable[Picks], workers: int = 0) -> Iterator[Tensor]:
        """uint8 (n, C, H, W) for each of `picks`, in their order; the same bits whatever the number of worker processes.

        `picks` may be consumed ahead of what is yielded.

        Raises, when the batch is asked for:
            ValueError, FileNotFoundError: an image cannot be read; names the file.
        """


class MemoryImages:
    """Images held in memory.

    Args:
        pixels: uint8 (N, C, H, W).
        targets: int64 (N,), classes from 0, on the same device.
    """

    takes_crop_seeds = False

    def __init__(self, pixels: Tensor, targets: Tensor) -> None:
        if pixels.dtype != torch.uint8 or pixels.dim() != 4:
            raise TypeError(f"pixels: expected a uint8 tensor (N, C, H, W), got {pixels.dtype} {tuple(pixels.shape)}")
        if targets.dtype != torch.int64 or targets.shape != pixels.shape[:1]:
            expected = f"an int64 tensor ({len(pixels)},), a class for each image"
            raise TypeError(f"targets: expected {expected}, got {targets.dtype} {tuple(targets.shape)}")
        self.pixels = pixels
        self.targets = targets

    @property
    def shape(self) -> tuple[int, int, int]:
        """(C, H, W) of one image."""
        _, channels, height, width = self.pixels.shape
        return channels, height, width

    def __len__(self) -> int:
        return len(self.pixels)

    def batches(self, picks: Iterable[Picks], workers: int = 0) -> Iterator[Tensor]:
        """See `Images`; there is nothing to do for workers here."""
        return (self.pixels[pick.index] for pick in picks)


@dataclass(frozen=True)
class Dataset:
    """Training and test images of the same shape, and what may be done to them.

    Attributes:
        name: as in `tost.data.names()`.
        train, test: the images.
        num_classes: number of classes.
        mean, std: float32 (C,), of pixel / 255: what inputs are normalised with.
        crop_padding: pixels that a random crop may move an image, each way; what comes in from outside is black.
        flip: whether mirrored images belong to the same class.
    """

    name: str
    train: Images
    test: Images
    num_classes: int
    mean: Tensor
    std: Tensor
    crop_padding: int
    flip: bool

    @property
    def input_shape(self) -> tuple[int, int, int]:
        """(C, H, W) of one image."""
        return self.train.shape

    def normalised(self, pixels: Tensor) -> Tensor:
        """float32 (N, C, H, W): (pixel / 255 - mean) / std of uint8 pixels, the same bits in a batch of any size."""
        channels = (1, -1, 1, 1)
        return pixels.float().div_(255).sub_(self.mean.view(channels)).div_(self.std.view(channels))
