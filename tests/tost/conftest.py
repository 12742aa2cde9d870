"""A data set small enough to train on in a test."""

import pytest
import torch

from tost.data import Dataset


@pytest.fixture
def toy_images() -> Dataset:
    """48 training and 20 test images of 8x8, three classes that differ in brightness."""
    random = torch.Generator().manual_seed(0)
    targets = torch.arange(68) % 3
    inputs = torch.randn(68, 1, 8, 8, generator=random) + targets.view(-1, 1, 1, 1)
    return Dataset("toy", inputs[:48], targets[:48], inputs[48:], targets[48:], 3, torch.tensor([-1.0]), 1, False)
