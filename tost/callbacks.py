"""What happens around a training step: the loop in training.py only steps, everything else enters here."""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from torch import nn

from tost.config import Config
from tost.ghosts import as_finalized, fade_window, ghost_parameters, set_strength, strength_at


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
        loss: of the last step.
        step_seconds: duration of each step done: forward, backward and update.
        line: what the record will say about this epoch.
    """

    config: Config
    net: nn.Module
    optimizer: torch.optim.Optimizer
    total_steps: int
    step: int = 0
    epoch: int = 0
    loss: float = float("nan")
    step_seconds: list[float] = field(default_factory=list)
    line: dict[str, Any] = field(default_factory=dict)

    @property
    def finished(self) -> bool:
        return self.step >= self.total_steps


class Callback:
    """Override what you need; callbacks are called in the order they are given."""

    def on_start(self, run: Run) -> None:
        """Before the first step."""

    def before_step(self, run: Run) -> None:
        """Before step number `run.step`."""

    def after_step(self, run: Run) -> None:
        """After a step; `run.step`, `run.loss` and `run.step_seconds` count it already."""

    def on_epoch_end(self, run: Run) -> None:
        """After an epoch, and after the last step where that ends amid one; fill `run.line`."""

    def on_end(self, run: Run) -> None:
        """When the training is over, also when it failed."""


def learning_rate_at(step: int, total_steps: int, config: Config) -> float:
    """Learning rate of step number `step`: a linear rise over the warm-up, then a drop by gamma at each milestone."""
    if step < config.warmup_steps:
        return config.lr * (step + 1) / config.warmup_steps
    drops = sum(step >= round(m * total_steps) for m in config.milestones)
    return config.lr * config.gamma**drops


class LearningRate(Callback):
    """Sets the learning rate of every parameter group before each step."""

    def before_step(self, run: Run) -> None:
        rate = learning_rate_at(run.step, run.total_steps, run.config)
        for group in run.optimizer.param_groups:
            group["lr"] = rate
        run.line["lr"] = rate


class GhostFade(Callback):
    """Moves the ghosts' strengths at every step; dead ghosts leave the optimizer.

    A dead ghost's parameters would still feel weight decay and momentum, and would cost time and memory.

    Attributes:
        live_seconds: durations of the steps with living ghosts.
    """

    def __init__(self) -> None:
        self.live_seconds: list[float] = []
        self.alive = True

    def on_start(self, run: Run) -> None:
        milestones = run.config.milestones
        first_drop = round(milestones[0] * run.total_steps) if milestones else None
        self.window = fade_window(run.config.recipe, run.total_steps, first_drop)

    def before_step(self, run: Run) -> None:
        self._move(run)

    def after_step(self, run: Run) -> None:
        if self.alive:
            self.live_seconds.append(run.step_seconds[-1])
        if run.finished:
            self._move(run)  # a fade over the whole training ends here, before anything is finalized

    def _move(self, run: Run) -> None:
        recipe = run.config.recipe
        if self.alive:
            alpha, beta = strength_at(recipe, run.step, *self.window)
            set_strength(run.net, alpha, beta)
            if recipe.permanent or run.step < self.window[1]:
                run.line.update(alpha=alpha if recipe.ghost_skip else 0.0, beta=beta if recipe.ghost_swish else None)
                return
            self.alive = False
            _drop_parameters(run.optimizer, ghost_parameters(run.net))
        run.line.update(alpha=0.0, beta=None)  # no skips, exact ReLU


def _drop_parameters(optimizer: torch.optim.Optimizer, parameters: list[nn.Parameter]) -> None:
    dead = {id(p) for p in parameters}
    for group in optimizer.param_groups:
        group["params"] = [p for p in group["params"] if id(p) not in dead]
    for parameter in parameters:
        optimizer.state.pop(parameter, None)
        parameter.grad = None


class Evaluate(Callback):
    """Measures test accuracy on the finalized form, every `eval_every` epochs and at the end.

    Args:
        evaluate: network -> (accuracy, loss).
        alive: whether the finalized form differs from the trained one now: then both are measured (permanent ghosts stay in
            it: there is one form).
    """

    def __init__(self, evaluate: Callable[[nn.Module], tuple[float, float]], alive: Callable[[], bool] = lambda: False) -> None:
        self.evaluate = evaluate
        self.alive = alive

    def on_epoch_end(self, run: Run) -> None:
        if run.epoch % run.config.eval_every and not run.finished:
            return
        with as_finalized(run.net):
            accuracy, loss = self.evaluate(run.net)
        # a finalized form that is far from the trained one may overflow; JSON has no infinity
        run.line.update(test_accuracy=accuracy, test_loss=loss if math.isfinite(loss) else None)
        if self.alive():
            run.line["test_accuracy_with_ghosts"], _ = self.evaluate(run.net)


class Record(Callback):
    """Appends one JSON line an epoch to a file and keeps them as `history`.

    Keys: epoch, step, lr, train_loss (mean over the epoch's steps), ms_per_step (median), and where they apply alpha,
    beta (null: exact ReLU), test_accuracy, test_loss, test_accuracy_with_ghosts.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.history: list[dict[str, Any]] = []
        self._losses: list[float] = []
        self._file: IO[str] | None = None

    def on_start(self, run: Run) -> None:
        self._file = self.path.open("w")  # an unfinished run starts anew

    def after_step(self, run: Run) -> None:
        self._losses.append(run.loss)

    def on_epoch_end(self, run: Run) -> None:
        steps = len(self._losses)
        line = {
            "epoch": run.epoch,
            "step": run.step,
            "train_loss": statistics.fmean(self._losses),
            "ms_per_step": 1e3 * statistics.median(run.step_seconds[-steps:]),
            **run.line,
        }
        self._losses.clear()
        run.line = {}
        self.history.append(line)
        assert self._file is not None
        self._file.write(json.dumps(line) + "\n")
        self._file.flush()

    def on_end(self, run: Run) -> None:
        if self._file is not None:
            self._file.close()


class ProgressBar(Callback):
    """A bar on stderr, gone when the run ends; nothing where stderr is no terminal."""

    def __init__(self, title: str) -> None:
        self.title = title
        console = Console(stderr=True)
        self.progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("steps"),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            console=console,
            transient=True,
            disable=not console.is_terminal,
        )
        self.task = self.progress.add_task(title, total=None)

    def on_start(self, run: Run) -> None:
        self.progress.update(self.task, total=run.total_steps)
        self.progress.start()

    def after_step(self, run: Run) -> None:
        self.progress.update(self.task, completed=run.step)

    def on_epoch_end(self, run: Run) -> None:
        accuracy = run.line.get("test_accuracy")
        if accuracy is not None:
            self.progress.update(self.task, description=f"{self.title}  {100 * accuracy:.1f}%")

    def on_end(self, run: Run) -> None:
        self.progress.stop()
