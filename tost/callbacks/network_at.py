"""The network as it is at one step of its training: to return to it later (lotteries), to look at it (snapshots)."""

from __future__ import annotations

from collections.abc import Callable

from torch import nn

from tost.loop import Callback, Run


class NetworkAt(Callback):
    """Calls `save` with the network in training when `step` steps are done (0: before the first).

    A run that was cut off behind that step does not come past it again, one that was cut off before does. So it comes before
    `Checkpoint` among the callbacks.
    """

    def __init__(self, step: int, save: Callable[[nn.Module], None]) -> None:
        self.step = step
        self._save = save

    def on_start(self, run: Run) -> None:
        self.after_step(run)

    def after_step(self, run: Run) -> None:
        if run.step == self.step:
            self._save(run.net)
