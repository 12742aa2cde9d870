"""Training and test batches; the training ones depend on the seed and the epoch, on nothing else."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator

import torch
from torch import Tensor

from tost.data.augment import apply_moves, draw_moves
from tost.data.dataset import Dataset
from tost.seeds import generator


class TrainBatches:
    """Shuffled, augmented batches of a data set's training images.

    Args:
        dataset: where the images come from.
        batch_size: images a batch; an epoch's last, incomplete batch is left out.
        seed: two objects with the same seed and stream give the same batches, epoch by epoch.
        stream: name of the random stream ("train", "rescale", ...): streams of one seed are independent.
        augment: random crops and mirrors as the data set declares them.

    Iterating gives epoch 0, 1, 2, ... on and on, a new epoch for each `iter()`: what a consumer of "an iterable of
    batches" wants that goes through it several times. `epoch(e)` gives one epoch by number.

    `fingerprint` is a hash of every shuffle and every move handed out so far.
    """

    def __init__(self, dataset: Dataset, batch_size: int, seed: int, stream: str = "train", augment: bool = True) -> None:
        images = len(dataset.train_targets)
        if not 1 <= batch_size <= images:
            raise ValueError(f"batch_size: expected 1 to {images} (the training images of {dataset.name}), got {batch_size}")
        self.dataset = dataset
        self.batch_size = batch_size
        self.seed = seed
        self.stream = stream
        self.augment = augment
        self._digest = hashlib.sha256()
        self._next_epoch = 0

    def __len__(self) -> int:
        """Batches an epoch."""
        return len(self.dataset.train_targets) // self.batch_size

    def epoch(self, number: int) -> Iterator[tuple[Tensor, Tensor]]:
        """The batches of one epoch: float32 (batch_size, C, H, W) and int64 (batch_size,)."""
        data, size = self.dataset, self.batch_size
        random = generator(self.stream, self.seed, number)
        order = torch.randperm(len(data.train_targets), generator=random)
        for start in range(0, len(self) * size, size):
            index = order[start : start + size]
            inputs = data.train_inputs[index]
            self._digest.update(index.numpy().tobytes())
            if self.augment:
                moves = draw_moves(size, data.crop_padding, data.flip, random)
                inputs = apply_moves(inputs, moves, data.crop_padding, data.black)
                for part in (moves.dy, moves.dx, moves.flip):
                    self._digest.update(part.numpy().tobytes())
            yield inputs, data.train_targets[index]

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        number = self._next_epoch
        self._next_epoch += 1
        return self.epoch(number)

    @property
    def fingerprint(self) -> str:
        """16 hex digits; equal for two runs that drew the same batches."""
        return self._digest.hexdigest()[:16]


def eval_batches(dataset: Dataset, batch_size: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Every test image once, in order; the last batch may be smaller."""
    inputs, targets = torch.split(dataset.test_inputs, batch_size), torch.split(dataset.test_targets, batch_size)
    return zip(inputs, targets, strict=True)
