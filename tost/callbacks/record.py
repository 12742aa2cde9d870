"""The record of a run: a line of JSON an epoch."""

from __future__ import annotations

import json
import math
import statistics
import time
from pathlib import Path
from typing import Any

from tost.files import write_atomic
from tost.loop import Callback, Run


class Record(Callback):
    """Keeps a dict an epoch in `history` and writes them as JSON lines.

    Keys: epoch, step, lr, train_loss (mean over the epoch's steps that were not skipped; null: there was none), ms_per_step
    (median; forward, backward and update), images_per_second (of the epoch's training, batches and checkpoints included,
    measurements of the accuracy not), and where they apply skipped_steps, alpha, beta (null: exact ReLU), test_accuracy,
    test_loss, test_accuracy_with_ghosts, validation_accuracy, validation_loss.

    Args:
        path: file to write; None: only `history`.
    """

    def __init__(self, path: Path | None) -> None:
        self.path = path
        self.history: list[dict[str, Any]] = []
        self._losses: list[float] = []
        self._seconds = 0.0  # of this epoch's training
        self._last = 0.0

    def on_start(self, run: Run) -> None:
        self._last = time.perf_counter()
        self._write()  # what an earlier process wrote behind its last checkpoint is done again

    def after_step(self, run: Run) -> None:
        self._losses.append(run.loss)
        now = time.perf_counter()
        self._seconds += now - self._last
        self._last = now

    def on_epoch_end(self, run: Run) -> None:
        steps = len(self._losses)
        finite = [loss for loss in self._losses if math.isfinite(loss)]
        line = {
            "epoch": run.epoch,
            "step": run.step,
            "train_loss": statistics.fmean(finite) if finite else None,
            "ms_per_step": 1e3 * statistics.median(run.step_seconds[-steps:]),
            "images_per_second": steps * run.config.batch_size / self._seconds,
            **({"skipped_steps": steps - len(finite)} if len(finite) < steps else {}),
            **run.line,
        }
        self._losses.clear()
        run.line = {}
        self.history.append(line)
        self._write()
        self._seconds, self._last = 0.0, time.perf_counter()

    def state_dict(self) -> dict[str, Any]:
        return {"history": list(self.history), "losses": list(self._losses), "seconds": self._seconds}

    def load_state_dict(self, state: dict[str, Any], run: Run) -> None:
        self.history, self._losses, self._seconds = list(state["history"]), list(state["losses"]), state["seconds"]

    def _write(self) -> None:
        if self.path is not None:
            write_atomic(self.path, "".join(json.dumps(line) + "\n" for line in self.history))
