"""Runs of a few steps that kept their networks, for analyses to look at."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

import tost
from tost import Config, Recipe, Result, train, training
from tost.analysis import networks
from tost.data import Dataset
from tost.models.resnet import ResNet

RECIPES = {
    "vanilla": Recipe.vanilla(),
    "tost": Recipe(rescale_iterations=2),
    "mish": Recipe(ghost_skip=False, rescale_init=False, permanent=True, swish="mish"),
}


@contextmanager
def small_world(images: Dataset) -> Iterator[None]:
    """Inside, every run is on `images` and a network of two blocks."""
    with pytest.MonkeyPatch.context() as patch:
        for module in (training, networks):
            patch.setattr(module, "load", lambda name, folder: images)
        patch.setattr(tost.models, "build", lambda *args: ResNet((1, 1), (4, 8), args[1], args[2]))
        yield


def short_run(out: Path, recipe: str, seed: int = 0, **changes: Any) -> Result:
    """Four epochs of three steps, on the toy images; the ghosts fade over the first two. Kept: epochs 0 and 1."""
    values: dict[str, Any] = {"steps": 12, "batch_size": 16, "density": 0.3, "lr": 0.02, **changes}
    config = Config(recipe=RECIPES[recipe], seed=seed, out=str(out), **values)
    return train(config, snapshots=(0, 1))
