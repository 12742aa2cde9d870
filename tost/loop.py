"""The training loop. It steps; everything else (learning rate, strengths, records, checkpoints) enters through callbacks."""

from __future__ import annotations

import itertools
import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from tost.config import Config
from tost.data import TrainBatches
from tost.update import Update

__all__ = ["Callback", "Run", "steps"]


@dataclass
class Run:
    """A training run in progress: what callbacks may read and change.

    Attributes:
        config: the run's configuration.
        net: the network being trained.
        optimizer: of the network's parameters.
        total_steps: steps of the whole run.
        step: steps done; in `before_step` the number of the coming step, from 0.
        epoch: epochs done.
        batch: steps done in this epoch.
        loss: of the last step, mean over all processes; not finite where the step was skipped.
        step_seconds: duration of each step done: forward, backward and update.
        line: what the record will say about this epoch.
        averaged: moving average of `net`, where there is one: then it is what is measured and saved.
        stop_wanted: set it (also from a signal handler) to stop after the coming step.
        stopping: the same, once all processes know.
    """

    config: Config
    net: nn.Module
    optimizer: torch.optim.Optimizer
    total_steps: int
    step: int = 0
    epoch: int = 0
    batch: int = 0
    loss: float = float("nan")
    step_seconds: list[float] = field(default_factory=list)
    line: dict[str, Any] = field(default_factory=dict)
    averaged: nn.Module | None = None
    stop_wanted: bool = False
    stopping: bool = False

    @property
    def finished(self) -> bool:
        return self.step >= self.total_steps

    @property
    def result_net(self) -> nn.Module:
        """What is measured and saved: the moving average where there is one."""
        return self.net if self.averaged is None else self.averaged


class Callback:
    """Override what you need; callbacks are called in the order they are given.

    What a callback remembers from step to step belongs into its state: a run that was cut off goes on with it.
    """

    def on_start(self, run: Run) -> None:
        """Before the first step of this process; `run.step` is above 0 where an earlier one was cut off."""

    def before_step(self, run: Run) -> None:
        """Before step number `run.step`."""

    def after_step(self, run: Run) -> None:
        """After a step; `run.step`, `run.loss` and `run.step_seconds` count it already."""

    def on_epoch_end(self, run: Run) -> None:
        """After an epoch, and after the last step where that ends amid one; fill `run.line`."""

    def on_end(self, run: Run) -> None:
        """When the training is over, also when it failed, or the `on_end` of another callback did."""

    def state_dict(self) -> dict[str, Any]:
        """Numbers, texts, lists, dicts and tensors that a checkpoint keeps."""
        return {}

    def load_state_dict(self, state: dict[str, Any], run: Run) -> None:
        """Take up what `state_dict` gave, before `on_start`; the network of `run` is loaded already, its optimizer not yet."""


def steps(run: Run, batches: TrainBatches, update: Update, callbacks: Sequence[Callback]) -> None:
    """`run.total_steps` updates, epoch after epoch; starts where `run` stands."""
    run.net.train()
    with ExitStack() as ends:
        for callback in reversed(callbacks):  # the last one in is called first
            ends.callback(callback.on_end, run)
        for callback in callbacks:
            callback.on_start(run)
        while run.epoch * len(batches) < run.total_steps:
            for inputs, targets in itertools.islice(batches.epoch(run.epoch, run.batch), run.total_steps - run.step):
                for callback in callbacks:
                    callback.before_step(run)
                start = time.perf_counter()
                run.loss, run.stopping = update(inputs, targets, run.stop_wanted)
                run.step_seconds.append(time.perf_counter() - start)
                run.step += 1
                run.batch += 1
                for callback in callbacks:
                    callback.after_step(run)
            run.epoch += 1
            run.batch = 0
            for callback in callbacks:
                callback.on_epoch_end(run)
