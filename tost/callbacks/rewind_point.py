"""The state of a network at one step of its training, to which a later run can return."""

from __future__ import annotations

from collections.abc import Callable

from torch import nn

from tost.loop import Callback, Run


class RewindPoint(Callback):
    """Calls `save` with the network when `step` steps are done (0: before the first).

    A run that was cut off behind that step does not come past it again, one that was cut off before does.
    """

    def __init__(self, step: int, save: Callable[[nn.Module], None]) -> None:
        self.step = step
        self._save = save

    def on_start(self, run: Run) -> None:
        self.after_step(run)

    def after_step(self, run: Run) -> None:
        if run.step == self.step:
            self._save(run.net)
