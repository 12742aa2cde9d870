"""Accuracy now and then, always on the finalized form, and the best network so far."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from torch import nn

from tost.ghosts import as_finalized
from tost.loop import Callback, Run

Measure = Callable[[nn.Module], tuple[float, float]]
"""network -> (accuracy, loss)"""


class Evaluate(Callback):
    """Measures accuracy on the finalized form, every `eval_every` epochs and at the end.

    Args:
        parts: name ("test", "validation") -> measurement; each fills `<name>_accuracy` and `<name>_loss` of the line.
        alive: whether the finalized form differs from the trained one now: then the test accuracy is measured on both
            (permanent ghosts stay in it: there is one form).
    """

    def __init__(self, parts: dict[str, Measure], alive: Callable[[], bool] = lambda: False) -> None:
        self.parts = parts
        self.alive = alive

    def on_epoch_end(self, run: Run) -> None:
        if run.epoch % run.config.eval_every and not run.finished:
            return
        for name, measure in self.parts.items():
            with as_finalized(run.result_net):
                accuracy, loss = measure(run.result_net)
            # a finalized form that is far from the trained one may overflow; JSON has no infinity
            run.line.update({f"{name}_accuracy": accuracy, f"{name}_loss": loss if math.isfinite(loss) else None})
        if self.alive():
            run.line["test_accuracy_with_ghosts"], _ = self.parts["test"](run.net)


class KeepBest(Callback):
    """Saves the finalized network of the epoch with the best validation accuracy, the first of equals.

    Args:
        save: called with the network amid its training; it saves the finalized form.

    Attributes:
        best: epoch, validation_accuracy and test_accuracy of that epoch; empty before the first measurement.
    """

    def __init__(self, save: Callable[[nn.Module], None]) -> None:
        self.best: dict[str, Any] = {}
        self._save = save

    def on_epoch_end(self, run: Run) -> None:
        accuracy = run.line.get("validation_accuracy")
        if accuracy is not None and accuracy > self.best.get("validation_accuracy", -1.0):
            self._save(run.result_net)
            names = ("validation_accuracy", "test_accuracy")
            self.best = {"epoch": run.epoch, **{name: run.line[name] for name in names}}

    def state_dict(self) -> dict[str, Any]:
        return self.best

    def load_state_dict(self, state: dict[str, Any], run: Run) -> None:
        self.best = state
