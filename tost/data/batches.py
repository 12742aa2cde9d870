"""Training and test batches; the training ones depend on the seed and the epoch, on nothing else."""

from __future__ import annotations

import dataclasses
import hashlib
import re
from collections.abc import Iterator
from itertools import islice, tee

import torch
from torch import Tensor

from tost.checks import integer, number
from tost.choices import check_choice
from tost.data.augment import Moves, apply_moves, cut_out, draw_moves
from tost.data.dataset import Dataset, Images, Picks
from tost.data.transfer import together
from tost.seeds import generator


class TrainBatches:
    """Shuffled, augmented batches of a data set's training images.

    Args:
        dataset: where the images come from; a batch is made on the device that they are on (see `tost.data.near`).
        batch_size: images a batch, over all shards; an epoch's last, incomplete batch is left out.
        seed: two objects with the same seed and stream give the same batches, epoch by epoch.
        stream: name of the random stream ("train", "rescale", ...): streams of one seed are independent.
        augment: random crops and mirrors as the data set declares them.
        cutout: side in pixels of the square that is filled with the mean colour; 0: none. Only with `augment`.
        subset: int64 (n,), the training images to use, each once; None: all.
        shard: (rank, world): this object yields the rank-th of `world` equal slices of each batch. All ranks draw the same.
        workers: processes that read and decode files; the bits do not depend on it.

    Iterating gives epoch 0, 1, 2, ... on and on, a new epoch for each `iter()`: what a consumer of "an iterable of
    batches" wants that goes through it several times. `epoch(e)` gives one epoch by number.

    `fingerprint` is a hash of every shuffle and every move handed out so far, the same on every shard. To go on where
    another object stopped, copy its `chain` and start the epoch there: `epoch(number, start)`. To begin where another object is
    after some steps, call `skip`.

    Raises:
        TypeError, ValueError: an argument is wrong; named.
    """

    def __init__(
        self,
        dataset: Dataset,
        batch_size: int,
        seed: int,
        stream: str = "train",
        augment: bool = True,
        *,
        cutout: int = 0,
        subset: Tensor | None = None,
        shard: tuple[int, int] = (0, 1),
        workers: int = 0,
    ) -> None:
        self._index = _checked_subset(subset, dataset.train)
        images = len(self._index)
        batch_size = integer("batch_size", batch_size, 1)
        if batch_size > images:
            raise ValueError(f"batch_size: expected 1 to {images} (the training images of {dataset.name}), got {batch_size}")
        rank, world = shard
        integer("shard: world", world, 1)
        integer("shard: rank", rank, 0, below=world)
        if batch_size % world:
            raise ValueError(f"batch_size: expected a multiple of {world} (shards), got {batch_size}")
        self.dataset = dataset
        self.batch_size = batch_size
        self.seed = integer("seed", seed, 0)
        self.stream = stream
        self.augment = augment
        self.cutout = integer("cutout", cutout, 0)
        if cutout and not augment:
            raise ValueError(f"cutout: expected 0 without augment, got {cutout}")
        self.workers = integer("workers", workers, 0)
        each = batch_size // world
        self._shard = slice(rank * each, (rank + 1) * each)
        self._chain = bytes(32)
        self._next_epoch = 0

    def __len__(self) -> int:
        """Batches an epoch."""
        return len(self._index) // self.batch_size

    def epoch(self, number: int, start: int = 0) -> Iterator[tuple[Tensor, Tensor]]:
        """The batches of one epoch: float32 (batch_size / world, C, H, W) and int64 (batch_size / world,).

        Args:
            number: which epoch, from 0.
            start: the batch to begin with; it and those after it have the bits they have in the whole epoch.
        """
        integer("number", number, 0)
        integer("start", start, 0, below=len(self) + 1)
        data = self.dataset
        drawn, ahead = tee((index, moves, *self._mine(index, moves)) for index, moves in self._draws(number, start))
        read = data.train.batches((self._picks(mine, moves) for _, _, mine, moves in ahead), self.workers)
        for (index, moves, mine, my_moves), pixels in zip(drawn, read, strict=True):
            self._count(index, moves)
            yield self._inputs(pixels, my_moves), data.train.targets[mine]

    def skip(self, steps: int) -> None:
        """Count the first `steps` batches, of as many epochs as they are, as handed out by this object, which is new.

        They are drawn, not made: no image is read.
        """
        integer("steps", steps, 0)
        for epoch in range(-(-steps // len(self))):
            for index, moves in islice(self._draws(epoch, 0), steps - epoch * len(self)):
                self._count(index, moves)

    def _count(self, index: Tensor, moves: Moves | None) -> None:
        content = index.numpy().tobytes() + (moves.tobytes() if moves else b"")
        self._chain = hashlib.sha256(self._chain + content).digest()

    def _draws(self, number: int, start: int) -> Iterator[tuple[Tensor, Moves | None]]:
        """For each batch from `start` on its images, of all shards, and their moves."""
        data, size = self.dataset, self.batch_size
        random = generator(self.stream, self.seed, number)
        order = self._index[torch.randperm(len(self._index), generator=random)]
        for batch, index in enumerate(torch.split(order, size)[: len(self)]):
            moves = None
            if self.augment:
                moves = draw_moves(
                    size,
                    data.crop_padding,
                    data.flip,
                    random,
                    hole_in=data.input_shape[1:] if self.cutout else None,
                    crop_seeds=data.train.takes_crop_seeds,
                )
            if batch >= start:
                yield index, moves

    def _mine(self, index: Tensor, moves: Moves | None) -> tuple[Tensor, Moves | None]:
        """This shard's images and moves, where the images are."""
        index, moves = index[self._shard], moves.of(self._shard) if moves else None
        drawn = moves.drawn() if moves else {}
        index, *rest = together([index, *drawn.values()], self.dataset.train.targets.device)
        return index, dataclasses.replace(moves, **dict(zip(drawn, rest, strict=True))) if moves else None

    def _picks(self, index: Tensor, moves: Moves | None) -> Picks:
        return Picks(index, moves.crop_seeds if moves else None)

    def _inputs(self, pixels: Tensor, moves: Moves | None) -> Tensor:
        data = self.dataset
        if moves is None:
            return data.normalised(pixels)
        inputs = data.normalised(apply_moves(pixels, moves, data.crop_padding))
        return cut_out(inputs, moves, self.cutout) if self.cutout else inputs

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        number = self._next_epoch
        self._next_epoch += 1
        return self.epoch(number)

    @property
    def fingerprint(self) -> str:
        """16 hex digits; equal for two runs that drew the same batches."""
        return self.chain[:16]

    @property
    def chain(self) -> str:
        """64 hex digits: a hash of the one before and of the last batch. Set it to continue another object's."""
        return self._chain.hex()

    @chain.setter
    def chain(self, value: str) -> None:
        if not isinstance(value, str) or not re.fullmatch("[0-9a-f]{64}", value):
            raise ValueError(f"chain: expected 64 hex digits, got {value!r}")
        self._chain = bytes.fromhex(value)


def eval_batches(
    dataset: Dataset, batch_size: int, part: str = "test", subset: Tensor | None = None, workers: int = 0
) -> Iterator[tuple[Tensor, Tensor]]:
    """Every image of `part` ("train" or "test"), or of its `subset`, once, in order and unaugmented.

    Yields float32 (n, C, H, W) and int64 (n,), n = `batch_size`; the last batch may be smaller.
    """
    check_choice("part", part, ("train", "test"))
    integer("batch_size", batch_size, 1)
    integer("workers", workers, 0)
    images = dataset.train if part == "train" else dataset.test
    index = torch.split(_checked_subset(subset, images).to(images.targets.device), batch_size)
    read = images.batches((Picks(i) for i in index), workers)
    return ((dataset.normalised(pixels), images.targets[i]) for pixels, i in zip(read, index, strict=True))


def validation_split(dataset: Dataset, fraction: float) -> tuple[Tensor, Tensor]:
    """Indices (training, validation), int64 and rising, that share out the training images of `dataset`.

    Each class gives its `fraction`, rounded, at least one image and never all of them, taken at equal distances in the
    set's order: a rule without a random generator, so that the validation images are the same for every seed, machine and
    version.

    Raises:
        ValueError: a side would be left without an image of some class.
    """
    fraction = number("fraction", fraction, above=0, below=1)
    targets = dataset.train.targets.cpu()
    held_out = torch.zeros(len(targets), dtype=torch.bool)
    classes = torch.unique(targets)
    sizes = round(fraction * len(targets)), round((1 - fraction) * len(targets))
    if min(sizes) < len(classes):
        raise ValueError(
            f"fraction: expected at least one image of each of the {len(classes)} classes of {dataset.name} on either side, "
            f"got {fraction}, which leaves {sizes[1]} images to train on and {sizes[0]} to validate"
        )
    for label in classes:
        members = (targets == label).nonzero().flatten()
        if len(members) < 2:
            raise ValueError(f"fraction: class {int(label)} of {dataset.name} has a single training image: it cannot be split")
        count = min(max(round(fraction * len(members)), 1), len(members) - 1)
        spread = (2 * torch.arange(count) + 1) * len(members) // (2 * count)
        held_out[members[spread]] = True
    return (~held_out).nonzero().flatten(), held_out.nonzero().flatten()


def _checked_subset(subset: Tensor | None, images: Images) -> Tensor:
    """Positions of the images to use."""
    if subset is None:
        return torch.arange(len(images))
    if not isinstance(subset, Tensor):
        raise TypeError(f"subset: expected an int64 tensor (n,), got {type(subset).__name__}")
    if subset.dtype != torch.int64 or subset.dim() != 1:
        raise TypeError(f"subset: expected an int64 tensor (n,), got {subset.dtype} {tuple(subset.shape)}")
    if len(subset) == 0 or int(subset.min()) < 0 or int(subset.max()) >= len(images):
        raise ValueError(f"subset: expected at least one index, all of 0 to {len(images) - 1}, got {subset.tolist()[:8]}")
    repeated = subset.bincount() > 1
    if repeated.any():
        raise ValueError(f"subset: expected each index once, got {int(repeated.nonzero()[0])} more often")
    return subset
