"""Batches depend on seed, stream and epoch, and on nothing else."""

import hashlib
from itertools import islice
from typing import Any

import pytest
import torch
from torch import Tensor

from tost.data import Dataset, MemoryImages, TrainBatches, eval_batches, validation_split
from tost.seeds import generator

Batches = list[tuple[Tensor, Tensor]]


def numbered(count: int) -> MemoryImages:
    """Images of one brightness each: their number plus 10."""
    pixels = torch.arange(10, 10 + count, dtype=torch.uint8).view(-1, 1, 1, 1).expand(-1, 1, 6, 6).contiguous()
    return MemoryImages(pixels, torch.arange(count))


@pytest.fixture
def dataset() -> Dataset:
    # normalised, a pixel is itself
    return Dataset("toy", numbered(20), numbered(7), 20, torch.tensor([0.0]), torch.tensor([1 / 255]), 1, False)


@pytest.fixture
def colours() -> Dataset:
    random = torch.Generator().manual_seed(0)
    pixels = torch.randint(0, 256, (40, 3, 8, 8), generator=random, dtype=torch.uint8)
    images = MemoryImages(pixels, torch.arange(40) % 4)
    return Dataset("colours", images, images, 4, torch.tensor([0.5, 0.4, 0.3]), torch.tensor([0.2, 0.25, 0.3]), 2, True)


def labels(batches: TrainBatches, epoch: int) -> list[list[int]]:
    return [targets.tolist() for _, targets in batches.epoch(epoch)]


def equal(first: Batches, second: Batches) -> bool:
    return len(first) == len(second) and all(
        torch.equal(a, b) and torch.equal(s, t) for (a, s), (b, t) in zip(first, second, strict=True)
    )


def test_same_seed_same_batches_whatever_was_drawn_elsewhere(dataset: Dataset) -> None:
    first, second = TrainBatches(dataset, 6, seed=3), TrainBatches(dataset, 6, seed=3)
    a = list(first.epoch(2))
    torch.manual_seed(99)
    torch.rand(5)
    assert equal(a, list(second.epoch(2)))
    assert first.fingerprint == second.fingerprint


def test_epochs_seeds_and_streams_differ(dataset: Dataset) -> None:
    batches = TrainBatches(dataset, 6, seed=3)
    assert labels(batches, 0) != labels(batches, 1)
    assert labels(batches, 0) != labels(TrainBatches(dataset, 6, seed=4), 0)
    assert labels(batches, 0) != labels(TrainBatches(dataset, 6, seed=3, stream="rescale"), 0)


def test_an_epoch_is_a_shuffle_without_its_incomplete_end(dataset: Dataset) -> None:
    batches = TrainBatches(dataset, 6, seed=0)
    seen = [label for batch in labels(batches, 0) for label in batch]
    assert len(batches) == 3
    assert len(seen) == len(set(seen)) == 18
    whole = labels(TrainBatches(dataset, 5, seed=0), 0)
    assert sorted(label for batch in whole for label in batch) == list(range(20))


def test_inputs_belong_to_their_targets(dataset: Dataset) -> None:
    for inputs, targets in TrainBatches(dataset, 6, seed=0).epoch(0):
        assert inputs.shape == (6, 1, 6, 6)
        shown = inputs.round()
        assert torch.equal(shown[:, 0, 2, 2], targets.float() + 10)  # a crop by 1 never reaches the middle
        assert set(shown.unique().tolist()) <= {0.0, *(targets.float() + 10).tolist()}  # black comes in
    plain = TrainBatches(dataset, 6, seed=0, augment=False)
    assert all((inputs.round() == targets.view(-1, 1, 1, 1) + 10).all() for inputs, targets in plain.epoch(0))


def test_bits_are_those_of_normalising_first_and_padding_with_normalised_black(colours: Dataset) -> None:
    pixels = colours.train.pixels
    normal = (pixels.float() / 255 - colours.mean.view(3, 1, 1)) / colours.std.view(3, 1, 1)
    black = (-colours.mean / colours.std).view(3, 1, 1)
    random = generator("train", 5, 1)
    order = torch.randperm(40, generator=random)
    for (inputs, targets), index in zip(TrainBatches(colours, 10, seed=5).epoch(1), order.split(10), strict=True):
        dy, dx = (torch.randint(0, 5, (10,), generator=random) for _ in range(2))
        flip = torch.rand(10, generator=random) < 0.5
        assert torch.equal(targets, colours.train.targets[index])
        for i in range(10):
            padded = black.repeat(1, 12, 12)
            padded[:, 2:10, 2:10] = normal[index[i]]
            crop = padded[:, dy[i] : dy[i] + 8, dx[i] : dx[i] + 8]
            assert torch.equal(inputs[i], crop.flip(2) if flip[i] else crop)


def test_normalised_bits_do_not_depend_on_the_batch(colours: Dataset) -> None:
    pixels = torch.arange(256, dtype=torch.uint8).repeat(3, 3).reshape(1, 3, 16, 48).repeat(5, 1, 1, 1)
    whole = colours.normalised(pixels)
    assert whole.dtype == torch.float32
    for size in (1, 2, 3):
        assert torch.equal(torch.cat([colours.normalised(part) for part in pixels.split(size)]), whole)
    assert torch.equal(colours.normalised(pixels[:, :, :, 3:10]), whole[:, :, :, 3:10])


def test_augmentation_does_not_change_the_order(dataset: Dataset) -> None:
    # the shuffle is drawn first
    assert labels(TrainBatches(dataset, 6, 0), 0) == labels(TrainBatches(dataset, 6, 0, augment=False), 0)


def test_iterating_again_is_the_next_epoch(dataset: Dataset) -> None:
    batches = TrainBatches(dataset, 6, seed=0)
    twice = [[t.tolist() for _, t in batches] for _ in range(2)]
    fresh = TrainBatches(dataset, 6, seed=0)
    assert twice == [labels(fresh, 0), labels(fresh, 1)]


@pytest.mark.parametrize("cutout", [0, 3])
def test_an_epoch_goes_on_from_any_batch(colours: Dataset, cutout: int) -> None:
    whole = TrainBatches(colours, 6, seed=1, cutout=cutout)
    everything = list(whole.epoch(3))
    for start in range(len(whole) + 1):
        before, after = (TrainBatches(colours, 6, seed=1, cutout=cutout) for _ in range(2))
        taken = list(islice(before.epoch(3), start))
        after.chain = before.chain
        assert equal(taken + list(after.epoch(3, start)), everything)
        assert after.chain == whole.chain


def test_skipped_batches_are_counted(colours: Dataset) -> None:
    whole = TrainBatches(colours, 6, seed=1)
    chains = [whole.chain]
    for epoch in range(2):
        for _ in whole.epoch(epoch):
            chains.append(whole.chain)
    for steps, chain in enumerate(chains):
        late = TrainBatches(colours, 6, seed=1)
        late.skip(steps)
        assert late.chain == chain


def test_start_and_chain_are_checked(dataset: Dataset) -> None:
    batches = TrainBatches(dataset, 6, seed=0)
    with pytest.raises(ValueError, match="start: expected a whole number of at least 0 and below 4, got 4"):
        next(batches.epoch(0, 4))
    for wrong in ("", "0" * 63, "g" * 64, None):
        with pytest.raises(ValueError, match="chain: expected 64 hex digits, got"):
            batches.chain = wrong  # type: ignore[assignment]


def test_the_chain_hashes_the_order_and_the_moves(dataset: Dataset) -> None:
    batches = TrainBatches(dataset, 6, seed=3, augment=False)
    assert batches.chain == "0" * 64
    order = torch.randperm(20, generator=generator("train", 3, 0))
    state = bytes(32)
    for _, index in zip(batches.epoch(0), order.split(6), strict=False):
        state = hashlib.sha256(state + index.numpy().tobytes()).digest()
        assert batches.chain == state.hex()
        assert batches.fingerprint == state.hex()[:16]
    moved = TrainBatches(dataset, 6, seed=3)
    next(moved.epoch(0))
    still = TrainBatches(dataset, 6, seed=3, augment=False)
    next(still.epoch(0))
    assert moved.chain != still.chain


def test_shards_are_slices_of_the_same_batches(colours: Dataset) -> None:
    whole = TrainBatches(colours, 6, seed=1, cutout=3)
    shards = [TrainBatches(colours, 6, seed=1, cutout=3, shard=(rank, 3)) for rank in range(3)]
    for (inputs, targets), *parts in zip(whole.epoch(0), *(shard.epoch(0) for shard in shards), strict=True):
        assert torch.equal(torch.cat([x for x, _ in parts]), inputs)
        assert torch.equal(torch.cat([t for _, t in parts]), targets)
    assert {shard.chain for shard in shards} == {whole.chain}
    with pytest.raises(ValueError, match=r"batch_size: expected a multiple of 4 \(shards\), got 6"):
        TrainBatches(colours, 6, seed=1, shard=(0, 4))
    with pytest.raises(ValueError, match="shard: rank: expected a whole number of at least 0 and below 2, got 2"):
        TrainBatches(colours, 6, seed=1, shard=(2, 2))


def test_a_subset_only(dataset: Dataset) -> None:
    subset = torch.tensor([3, 4, 9, 15])
    batches = TrainBatches(dataset, 2, seed=0, subset=subset)
    assert len(batches) == 2
    assert sorted(label for batch in labels(batches, 0) for label in batch) == subset.tolist()
    with pytest.raises(ValueError, match="batch_size: expected 1 to 4"):
        TrainBatches(dataset, 5, seed=0, subset=subset)
    assert [t.tolist() for _, t in eval_batches(dataset, 3, "train", subset)] == [[3, 4, 9], [15]]
    with pytest.raises(TypeError, match=r"subset: expected an int64 tensor \(n,\), got torch.float32"):
        TrainBatches(dataset, 1, seed=0, subset=torch.ones(3))
    for wrong in ([], [-1], [3, 20]):
        with pytest.raises(ValueError, match="subset: expected at least one index, all of 0 to 19"):
            TrainBatches(dataset, 1, seed=0, subset=torch.tensor(wrong, dtype=torch.int64))


def test_cutout_fills_with_the_mean_colour(colours: Dataset) -> None:
    inputs = next(iter(TrainBatches(colours, 6, seed=1, cutout=3)))[0]
    empty = (inputs == 0).all(1).flatten(1).sum(1)
    assert ((empty >= 4) & (empty <= 9)).all()  # a corner clips a hole of 3 x 3 to 2 x 2
    with pytest.raises(ValueError, match=r"^cutout: expected 0 without augment, got 3"):
        TrainBatches(colours, 6, seed=1, augment=False, cutout=3)


def test_test_images_come_once_in_order(dataset: Dataset) -> None:
    assert [t.tolist() for _, t in eval_batches(dataset, 3)] == [[0, 1, 2], [3, 4, 5], [6]]
    inputs = torch.cat([inputs for inputs, _ in eval_batches(dataset, 3, "train")])
    assert torch.equal(inputs.round()[:, 0, 0, 0], torch.arange(10.0, 30.0))
    with pytest.raises(ValueError, match="part: unknown name 'validation'"):
        eval_batches(dataset, 3, "validation")


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"batch_size": 21}, ValueError, r"batch_size: expected 1 to 20 \(the training images of toy\), got 21"),
        ({"batch_size": 0}, ValueError, "batch_size: expected a whole number of at least 1, got 0"),
        ({"batch_size": 2.5}, TypeError, "batch_size: expected a whole number of at least 1, got float"),
        ({"batch_size": True}, TypeError, "batch_size: expected a whole number of at least 1, got bool"),
        ({"seed": "a"}, TypeError, "seed: expected a whole number of at least 0, got str"),
        ({"seed": -1}, ValueError, "seed: expected a whole number of at least 0, got -1"),
        ({"subset": [0, 1]}, TypeError, r"subset: expected an int64 tensor \(n,\), got list"),
        ({"subset": torch.tensor([5, 3, 5, 3])}, ValueError, "subset: expected each index once, got 3 more often"),
    ],
)
def test_wrong_arguments_are_named(dataset: Dataset, options: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=f"^{message}"):
        TrainBatches(dataset, **{"batch_size": 2, "seed": 0, **options})


@pytest.mark.parametrize(("number", "error"), [("x", TypeError), (1.0, TypeError), (-1, ValueError)])
def test_epochs_are_numbered_from_0(dataset: Dataset, number: Any, error: type[Exception]) -> None:
    with pytest.raises(error, match=r"^number: expected a whole number of at least 0, got "):
        next(TrainBatches(dataset, 2, seed=0).epoch(number))


def of_classes(targets: list[int]) -> Dataset:
    images = MemoryImages(torch.zeros(len(targets), 1, 2, 2, dtype=torch.uint8), torch.tensor(targets))
    return Dataset("toy", images, images, 10, torch.tensor([0.0]), torch.tensor([1.0]), 0, False)


def test_validation_split_by_hand() -> None:
    # six of class 0 at 0, 2, 4, ..; four of class 1; two of class 2
    train, validation = validation_split(of_classes([0, 1, 0, 1, 0, 1, 0, 1, 0, 2, 0, 2]), 0.34)
    # two 0s at equal distances (the 2nd and 5th), one 1 (the 3rd of four), one 2 (the second)
    assert validation.tolist() == [2, 5, 8, 11]
    assert train.tolist() == [0, 1, 3, 4, 6, 7, 9, 10]
    assert train.dtype == validation.dtype == torch.int64


def test_validation_split_is_stratified() -> None:
    targets = torch.randint(0, 7, (900,), generator=torch.Generator().manual_seed(0))
    dataset = of_classes(targets.tolist())
    for fraction in (0.01, 0.1, 0.5, 0.9):
        train, validation = validation_split(dataset, fraction)
        assert sorted(train.tolist() + validation.tolist()) == list(range(900))
        counts, held = targets.bincount(), targets[validation].bincount()
        assert ((held - fraction * counts).abs() <= 0.5).all()


def test_impossible_validation_splits() -> None:
    dataset = of_classes([0, 1] * 10)
    for wrong in (0, 1, -0.1, 1.5, float("nan")):
        with pytest.raises(ValueError, match=r"fraction: expected a number in \(0, 1\)"):
            validation_split(dataset, wrong)
    for wrong in (0.01, 0.99):
        with pytest.raises(ValueError, match="fraction: expected at least one image of each of the 2 classes of toy"):
            validation_split(dataset, wrong)
    with pytest.raises(ValueError, match="fraction: class 2 of toy has a single training image"):
        validation_split(of_classes([0, 0, 0, 1, 1, 1, 2]), 0.5)


def test_images_in_memory_are_checked() -> None:
    pixels = torch.zeros(3, 1, 2, 2, dtype=torch.uint8)
    with pytest.raises(TypeError, match=r"pixels: expected a uint8 tensor \(N, C, H, W\), got torch.float32"):
        MemoryImages(pixels.float(), torch.arange(3))
    with pytest.raises(TypeError, match=r"targets: expected an int64 tensor \(3,\), a class for each image, got .* \(2,\)"):
        MemoryImages(pixels, torch.arange(2))
