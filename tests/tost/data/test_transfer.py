"""Data sets that lie on the device that trains, and what reaches it for each batch."""

import dataclasses
from collections.abc import Iterable, Iterator
from itertools import islice

import pytest
import torch
from torch import Tensor

from tost.data import Dataset, Picks, TrainBatches, eval_batches, near, validation_split
from tost.data.transfer import _fits, moved, together

META = torch.device("meta")  # shapes and devices only: an operator that met a tensor of the CPU too would refuse
BYTES = 68 * (64 + 8)  # of toy_images: 68 images of 8x8 and their classes


@pytest.fixture
def mirrored(toy_images: Dataset) -> Dataset:
    return dataclasses.replace(toy_images, flip=True, crop_padding=2)


def test_what_is_copied_together_arrives_as_it_was() -> None:
    tensors = [torch.tensor([2**62, 0, -1]), torch.tensor([True, False, True]), torch.tensor([1, 2, 3], dtype=torch.int32)]
    for here, there in zip(tensors, together(tensors, torch.device("cpu")), strict=True):
        assert here.dtype == there.dtype
        assert torch.equal(here, there)


def test_a_set_is_near_where_it_lies_in_memory_and_fits(toy_images: Dataset) -> None:
    assert near(toy_images, torch.device("cpu")) is toy_images
    assert _fits(toy_images, 4 * BYTES)
    assert not _fits(toy_images, 4 * BYTES - 1)
    files = dataclasses.replace(toy_images, train=FromFiles())
    assert not _fits(files, 1 << 40)
    assert moved(files, META).train is files.train


class FromFiles:
    """Images that are read when they are asked for."""

    targets, shape, takes_crop_seeds = torch.zeros(3, dtype=torch.int64), (1, 8, 8), False

    def __len__(self) -> int:
        return 3

    def batches(self, picks: Iterable[Picks], workers: int = 0) -> Iterator[Tensor]:
        return (torch.zeros(len(pick.index), *self.shape, dtype=torch.uint8) for pick in picks)


def test_batches_are_made_where_the_images_are_from_the_same_draws(mirrored: Dataset) -> None:
    there = moved(mirrored, META)
    settings = {"batch_size": 12, "seed": 5, "cutout": 3, "subset": validation_split(mirrored, 0.25)[0], "shard": (1, 2)}
    ours, theirs = TrainBatches(mirrored, **settings), TrainBatches(there, **settings)
    for (inputs, targets), (theirs_inputs, theirs_targets) in zip(ours.epoch(0), theirs.epoch(0), strict=True):
        assert (theirs_inputs.device, theirs_targets.device) == (META, META)
        assert (inputs.shape, targets.shape) == (theirs_inputs.shape, theirs_targets.shape)
    assert ours.fingerprint == theirs.fingerprint
    for inputs, targets in eval_batches(there, 16):
        assert (inputs.device, targets.device) == (META, META)


@pytest.mark.gpu
def test_batches_made_on_a_gpu_are_those_of_the_cpu(mirrored: Dataset) -> None:
    there = near(mirrored, torch.device("cuda"))
    assert there.train.targets.is_cuda
    before = torch.cuda.get_sync_debug_mode()
    ours = list(TrainBatches(mirrored, 12, 5, cutout=3).epoch(0))
    batches = TrainBatches(there, 12, 5, cutout=3).epoch(0)
    first = next(batches)
    torch.cuda.set_sync_debug_mode("error")  # from the second on the host waits for nothing
    try:
        theirs = [first, *batches]
    finally:
        torch.cuda.set_sync_debug_mode(before)
    for one, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(other[0].cpu(), one[0], rtol=1e-6, atol=1e-6)  # a division
        assert torch.equal(other[1].cpu(), one[1])
    for one, other in islice(zip(eval_batches(mirrored, 16), eval_batches(there, 16), strict=True), 3):
        torch.testing.assert_close(other[0].cpu(), one[0], rtol=1e-6, atol=1e-6)
