"""Checkpoints: at the end of each epoch, now and then amid one, and when the run is to stop."""

from __future__ import annotations

import time
from collections.abc import Callable

import torch

from tost.loop import Callback, Run


class Stopped(KeyboardInterrupt):
    """The run was asked to stop, and has saved where it was. A KeyboardInterrupt, so that no `except Exception` swallows Ctrl-C.

    Attributes:
        signal: number of the signal that asked; None: `run.stop_wanted` was set otherwise.
    """

    def __init__(self, message: str, signal: int | None = None) -> None:
        super().__init__(message)
        self.signal = signal


class Checkpoint(Callback):
    """Calls `save` at the end of each epoch, and after a step that is `seconds` or more behind the last save.

    A network with a parameter that is not finite is not saved: the last good checkpoint stays. When the run is to stop it
    saves and raises Stopped.

    Args:
        save: writes the whole state of the run.
        seconds: 0: after every step.
        signal: the signal that asked to stop, if one did.
    """

    def __init__(self, save: Callable[[], None], seconds: float, signal: Callable[[], int | None] = lambda: None) -> None:
        self._save = save
        self._seconds = seconds
        self._signal = signal
        self._last = time.monotonic()

    def after_step(self, run: Run) -> None:
        if run.stopping:
            saved = "which is saved: the same command goes on from there"
            if not self._save_if_good(run):
                saved = "whose weights are not finite: the same command goes on from the last good checkpoint"
            raise Stopped(f"stopped after step {run.step} of {run.total_steps}, {saved}", self._signal())
        if time.monotonic() - self._last >= self._seconds:
            self._save_if_good(run)

    def on_epoch_end(self, run: Run) -> None:
        self._save_if_good(run)

    def _save_if_good(self, run: Run) -> bool:
        good = all(bool(torch.isfinite(parameter).all()) for parameter in run.net.parameters())
        if good:
            self._save()
        self._last = time.monotonic()
        return good
