"""The ghosts' strength at each step, and their end."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from tost.ghosts import fade_window, ghost_parameters, set_strength, strength_at
from tost.loop import Callback, Run


class GhostFade(Callback):
    """Moves the ghosts' strengths at every step; dead ghosts leave the optimizer.

    A dead ghost's parameters would still feel weight decay and momentum, and would cost time and memory.

    Args:
        died: called when they have.

    Attributes:
        live_steps: steps done with living ghosts.
    """

    def __init__(self, died: Callable[[], None] = lambda: None) -> None:
        self.live_steps = 0
        self.alive = True
        self._died = died

    def on_start(self, run: Run) -> None:
        drop = run.config.first_drop
        self.window = fade_window(run.config.recipe, run.total_steps, None if drop is None else round(drop * run.total_steps))

    def before_step(self, run: Run) -> None:
        self._move(run)

    def after_step(self, run: Run) -> None:
        if self.alive:
            self.live_steps += 1
        if run.finished:
            self._move(run)  # a fade over the whole training ends here, before anything is finalized

    def state_dict(self) -> dict[str, Any]:
        return {"alive": self.alive, "live_steps": self.live_steps}

    def load_state_dict(self, state: dict[str, Any], run: Run) -> None:
        self.live_steps = int(state["live_steps"])
        if not state["alive"]:
            self._end(run)

    def _move(self, run: Run) -> None:
        recipe = run.config.recipe
        if self.alive:
            alpha, beta = strength_at(recipe, run.step, *self.window)
            set_strength(run.net, alpha, beta)
            if recipe.permanent or run.step < self.window[1]:
                run.line.update(alpha=alpha if recipe.ghost_skip else 0.0, beta=beta if recipe.ghost_swish else None)
                return
            self._end(run)
        run.line.update(alpha=0.0, beta=None)  # no skips, exact ReLU

    def _end(self, run: Run) -> None:
        self.alive = False
        _drop_parameters(run.optimizer, ghost_parameters(run.net))
        self._died()


def _drop_parameters(optimizer: torch.optim.Optimizer, parameters: list[nn.Parameter]) -> None:
    dead = set(parameters)
    for group in optimizer.param_groups:
        group["params"] = [p for p in group["params"] if p not in dead]
    for parameter in parameters:
        optimizer.state.pop(parameter, None)
        parameter.grad = None
        parameter.requires_grad_(False)
