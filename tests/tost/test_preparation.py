"""From a configuration to masks: how many steps a method takes, and on which images."""

import dataclasses

import pytest

from tost import Config, methods
from tost.data import Dataset
from tost.masks import PruneStep
from tost.preparation import make_masks, scoring_batches


@pytest.mark.parametrize(("asked", "taken"), [(None, methods()["force"].steps), (1, 1), (3, 3)])
def test_an_iterative_method_takes_the_steps_of_the_configuration(toy_images: Dataset, asked: int | None, taken: int) -> None:
    config = Config(model="mlp", method="force", method_steps=asked, density=0.1)
    steps: list[PruneStep] = []
    masks = make_masks(config, toy_images, on_step=steps.append)
    assert [step.number for step in steps] == list(range(1, taken + 1))
    assert steps[-1].masks == masks


def test_one_step_of_force_is_snip(toy_images: Dataset) -> None:
    config = Config(model="mlp", method="force", method_steps=1, density=0.1)
    snip = dataclasses.replace(config, method="snip", method_steps=None)
    assert make_masks(config, toy_images) == make_masks(snip, toy_images)


def test_masks_are_chosen_on_training_images_that_are_not_held_out(toy_images: Dataset) -> None:
    config = Config(validation=0.25)
    sizes = [len(targets) for _, targets in scoring_batches(config, toy_images).epoch(0)]
    assert sizes == [30]  # ten of each of three classes, 36 are left to train on
    other = next(iter(scoring_batches(config, toy_images, stream="another").epoch(0)))[0]
    assert not other.equal(next(iter(scoring_batches(config, toy_images).epoch(0)))[0])
