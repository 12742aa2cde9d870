"""What ends a run before its time: a loss that stays without a number, Ctrl-C, SIGTERM."""

from __future__ import annotations

import math
import signal
import threading
from types import FrameType
from typing import Any

from tost.loop import Callback, Run


class NonFiniteLoss(ArithmeticError):
    """The loss became NaN or infinite; the run is not finished and its folder holds no result."""


class StopAtNonFinite(Callback):
    """Bears `config.max_skipped` skipped steps in a row, then raises NonFiniteLoss."""

    def __init__(self) -> None:
        self.in_a_row = 0

    def after_step(self, run: Run) -> None:
        self.in_a_row = 0 if math.isfinite(run.loss) else self.in_a_row + 1
        if self.in_a_row > run.config.max_skipped:
            before = f", as at the {self.in_a_row - 1} steps before" if self.in_a_row > 1 else ""
            raise NonFiniteLoss(
                f"the loss became {run.loss} at step {run.step} of {run.total_steps}{before} "
                f"(lr {run.line.get('lr')}): lower lr, add warmup_steps or set clip_norm"
            )

    def state_dict(self) -> dict[str, Any]:
        return {"in_a_row": self.in_a_row}

    def load_state_dict(self, state: dict[str, Any], run: Run) -> None:
        self.in_a_row = state["in_a_row"]


# the last one comes when a terminal is closed; Windows has none
_SIGNALS = [getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)]


class StopAtSignal(Callback):
    """SIGINT (Ctrl-C) and SIGTERM end the run after the step in progress; a second Ctrl-C ends it at once.

    A second SIGTERM changes nothing: batch systems send it to a process and to the launcher, which passes it on, and torchrun
    sends it to those that still save when the first process has left.

    Handlers can only be set in the main thread; elsewhere, and where a signal is ignored, nothing changes.

    Attributes:
        number: the signal that came; None: none.
    """

    def __init__(self) -> None:
        self.number: int | None = None
        self._before: dict[int, Any] = {}

    def on_start(self, run: Run) -> None:
        if threading.current_thread() is not threading.main_thread():
            return

        def stop(number: int, frame: FrameType | None) -> None:
            self.number, run.stop_wanted = number, True
            if number == signal.SIGINT:
                self._restore()

        for number in _SIGNALS:
            if signal.getsignal(number) not in (signal.SIG_IGN, None):
                self._before[number] = signal.signal(number, stop)

    def on_end(self, run: Run) -> None:
        self._restore()

    def _restore(self) -> None:
        while self._before:
            number, handler = self._before.popitem()
            signal.signal(number, handler)
