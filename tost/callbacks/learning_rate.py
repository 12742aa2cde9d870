"""The learning rate of each step: pure functions of the step's number, so that a resumed run needs no state."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from tost.config import Config
from tost.loop import Callback, Run


def learning_rate_at(step: int, total_steps: int, config: Config) -> float:
    """Learning rate of step number `step`: a linear rise over the warm-up, then what `config.schedule` says.

    multistep: a drop by gamma at each milestone; step: one every `drop_every` of the training; cosine: half a cosine from
    the end of the warm-up down to 0 behind the last step (arXiv 1608.03983); constant.
    """
    if step < config.warmup_steps:
        return config.lr * (step + 1) / config.warmup_steps
    if config.schedule == "multistep":
        return config.lr * config.gamma ** sum(step >= round(m * total_steps) for m in config.milestones)
    if config.schedule == "step":
        return config.lr * config.gamma ** (step // max(1, round(config.drop_every * total_steps)))
    if config.schedule == "cosine":
        done = (step - config.warmup_steps) / max(1, total_steps - config.warmup_steps)
        return config.lr * 0.5 * (1.0 + math.cos(math.pi * done))
    return config.lr


def set_learning_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    """Give all parameters of `optimizer` this learning rate; one that is a tensor stays the same tensor."""
    for group in optimizer.param_groups:
        if isinstance(group["lr"], Tensor):
            group["lr"].fill_(rate)
        else:
            group["lr"] = rate


class LearningRate(Callback):
    """Sets the learning rate of every parameter group before each step."""

    def before_step(self, run: Run) -> None:
        rate = learning_rate_at(run.step, run.total_steps, run.config)
        set_learning_rate(run.optimizer, rate)
        run.line["lr"] = rate
