"""A data set held in memory."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class Dataset:
    """Images and labels in memory, normalised.

    Attributes:
        name: as in `tost.data.names()`.
        train_inputs, test_inputs: float32 (N, C, H, W), per channel (pixel / 255 - mean) / std.
        train_targets, test_targets: int64 (N,), classes from 0.
        num_classes: number of classes.
        black: float32 (C,), what a pixel of value 0 became: random crops pad with it.
        crop_padding: pixels that a random crop may move an image, each way.
        flip: whether mirrored images belong to the same class.
    """

    name: str
    train_inputs: Tensor
    train_targets: Tensor
    test_inputs: Tensor
    test_targets: Tensor
    num_classes: int
    black: Tensor
    crop_padding: int
    flip: bool

    @property
    def input_shape(self) -> tuple[int, int, int]:
        """(C, H, W) of one image."""
        _, channels, height, width = self.train_inputs.shape
        return channels, height, width
