"""Small networks on few images."""

from pathlib import Path

import pytest

from tost import Config, Recipe, training
from tost.analysis import Setting
from tost.analysis import setting as setting_module
from tost.data import Dataset


@pytest.fixture
def setting(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, toy_images: Dataset) -> Setting:
    monkeypatch.setattr(setting_module, "load", lambda name, folder: toy_images)
    monkeypatch.setattr(training, "load", lambda name, folder: toy_images)
    config = Config(
        model="mlp", recipe=Recipe.vanilla(), method_steps=3, density=0.2, steps=2, batch_size=16, out=str(tmp_path / "runs")
    )
    return Setting(config, (0, 1))
