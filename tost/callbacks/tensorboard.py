"""Curves for TensorBoard (pip install "tost-sparse[tensorboard]")."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

from tost.callbacks.record import Record
from tost.loop import Callback, Run


class TensorBoard(Callback):
    """Writes every number of the record's lines as a curve over the steps; comes behind `record` among the callbacks.

    Raises:
        ModuleNotFoundError: tensorboard is not installed.
    """

    def __init__(self, folder: Path, record: Record) -> None:
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError as error:
            raise ModuleNotFoundError(
                'tensorboard is not installed: pip install "tost-sparse[tensorboard]", or leave --tensorboard away'
            ) from error
        self._open = SummaryWriter
        self._folder = folder
        self._record = record
        self._writer: Any = None

    def on_start(self, run: Run) -> None:
        if not self._record.history:
            shutil.rmtree(self._folder, ignore_errors=True)  # curves of a run that is begun anew
        # those behind the last checkpoint of a run that was cut off are drawn again
        self._writer = self._open(str(self._folder), purge_step=run.step + 1 if run.step else None)

    def on_epoch_end(self, run: Run) -> None:
        for name, value in self._record.history[-1].items():
            if name not in ("epoch", "step") and isinstance(value, int | float):
                self._writer.add_scalar(name, value, run.step)
        self._writer.flush()

    def on_end(self, run: Run) -> None:
        if self._writer is not None:
            self._writer.close()
