"""Batches depend on seed, stream and epoch, and on nothing else."""

import pytest
import torch

from tost.data import Dataset, TrainBatches, eval_batches


@pytest.fixture
def dataset() -> Dataset:
    inputs = torch.arange(20.0).view(20, 1, 1, 1).expand(20, 1, 6, 6).contiguous()
    return Dataset("toy", inputs, torch.arange(20), inputs[:7], torch.arange(7), 20, torch.tensor([-1.0]), 1, False)


def labels(batches: TrainBatches, epoch: int) -> list[list[int]]:
    return [targets.tolist() for _, targets in batches.epoch(epoch)]


def test_same_seed_same_batches_whatever_was_drawn_elsewhere(dataset: Dataset) -> None:
    first, second = TrainBatches(dataset, 6, seed=3), TrainBatches(dataset, 6, seed=3)
    a = list(first.epoch(2))
    torch.manual_seed(99)
    torch.rand(5)
    b = list(second.epoch(2))
    assert all(torch.equal(x, y) and torch.equal(s, t) for (x, s), (y, t) in zip(a, b, strict=True))
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
        assert torch.equal(inputs[:, 0, 2, 2], targets.float())  # a crop by 1 never reaches the middle
        assert set(inputs.unique().tolist()) <= {-1.0, *targets.float().tolist()}
    plain = TrainBatches(dataset, 6, seed=0, augment=False)
    assert all((inputs == targets.view(-1, 1, 1, 1)).all() for inputs, targets in plain.epoch(0))


def test_augmentation_does_not_change_the_order(dataset: Dataset) -> None:
    # the shuffle is drawn first
    assert labels(TrainBatches(dataset, 6, 0), 0) == labels(TrainBatches(dataset, 6, 0, augment=False), 0)


def test_iterating_again_is_the_next_epoch(dataset: Dataset) -> None:
    batches = TrainBatches(dataset, 6, seed=0)
    twice = [[t.tolist() for _, t in batches] for _ in range(2)]
    fresh = TrainBatches(dataset, 6, seed=0)
    assert twice == [labels(fresh, 0), labels(fresh, 1)]


def test_test_images_come_once_in_order(dataset: Dataset) -> None:
    assert [t.tolist() for _, t in eval_batches(dataset, 3)] == [[0, 1, 2], [3, 4, 5], [6]]


@pytest.mark.parametrize("size", [0, 21])
def test_impossible_batch_size(dataset: Dataset, size: int) -> None:
    with pytest.raises(ValueError, match=f"batch_size: expected 1 to 20 .* got {size}"):
        TrainBatches(dataset, size, seed=0)
