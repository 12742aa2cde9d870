"""A data set small enough to train on in a test."""

import signal
from collections.abc import Iterator

import pytest
import torch

from tost.data import Dataset, MemoryImages


@pytest.fixture(scope="session")
def toy_images() -> Dataset:
    """48 training and 20 test images of 8x8, three classes that differ in brightness."""
    random = torch.Generator().manual_seed(0)
    targets = torch.arange(68) % 3
    inputs = torch.randn(68, 1, 8, 8, generator=random) + targets.view(-1, 1, 1, 1)
    pixels = (128 + 32 * inputs).clamp(0, 255).to(torch.uint8)
    train, test = MemoryImages(pixels[:48], targets[:48]), MemoryImages(pixels[48:], targets[48:])
    return Dataset("toy", train, test, 3, torch.tensor([0.5]), torch.tensor([0.125]), 1, False)


@pytest.fixture
def ctrl_c() -> Iterator[None]:
    """SIGINT and SIGHUP as programs at a terminal have them: what a shell starts in the background, or under nohup, ignores them,
    and so do its children."""
    normal = {signal.SIGINT: signal.default_int_handler, signal.SIGHUP: signal.SIG_DFL}
    before = {number: signal.signal(number, handler) for number, handler in normal.items()}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)
