"""The loss of a configuration; where its recipe distils, with a trained network as the teacher."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, nn

from tost import models
from tost.config import Config
from tost.data import Dataset
from tost.files import read_json
from tost.ghosts import add_ghosts
from tost.losses import Distillation, cross_entropy
from tost.preparation import is_rewired
from tost.runs import RunFolder
from tost.update import LossOf

__all__ = ["load_teacher", "loss_of"]


def loss_of(config: Config, dataset: Dataset, device: torch.device) -> LossOf:
    """What training minimises: cross entropy with the recipe's label smoothing, distilled from `config.teacher` where asked.

    Raises:
        FileNotFoundError, ValueError: `config.teacher` is no finished run of a network that fits the data set.
    """
    recipe = config.recipe
    if not recipe.distillation:
        plain = cross_entropy(recipe.label_smoothing)
        return lambda outputs, inputs, targets: plain(outputs, targets)
    assert config.teacher is not None  # Config checks it
    teacher = load_teacher(config.teacher, dataset).to(device)
    distil = Distillation(recipe.temperature, recipe.distillation, recipe.label_smoothing)

    def loss(outputs: Tensor, inputs: Tensor, targets: Tensor) -> Tensor:
        with torch.no_grad():
            wanted = teacher(inputs)
        distance: Tensor = distil(outputs, wanted, targets)
        return distance

    return loss


def load_teacher(folder: str | Path, dataset: Dataset) -> nn.Module:
    """The network of a finished run, with the ghosts of a permanent recipe, in eval mode and without gradients.

    Raises:
        FileNotFoundError: `folder` holds no finished run.
        ValueError: its files are damaged, its network cannot be built, or it has other inputs or classes than `dataset`.
    """
    run = RunFolder(Path(folder))
    for path in (run.config, run.model):
        if not path.is_file():
            raise FileNotFoundError(f"teacher: expected the folder of a finished run, got {folder} without {path.name}")
    try:
        config, state = Config.from_dict(read_json(run.config)), run.load_model()
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"teacher: {folder} is damaged: {error}") from error
    channels, height, width = dataset.input_shape
    try:
        teacher = models.build(config.model, dataset.num_classes, channels, (height, width))
    except (ValueError, TypeError) as error:
        raise ValueError(f"teacher: the network in {folder} cannot be built for {dataset.name}: {error}") from error
    if config.recipe.permanent and is_rewired(config):
        teacher = add_ghosts(teacher, config.recipe, inplace=True)
    try:
        teacher.load_state_dict(state)
    except RuntimeError as error:
        reason = " ".join(str(error).split())
        raise ValueError(f"teacher: the network in {folder} does not fit {config.model} for {dataset.name}: {reason}") from error
    return teacher.eval().requires_grad_(False)
