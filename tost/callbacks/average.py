"""An exponential moving average of the weights."""

from __future__ import annotations

import math
from typing import Any

from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from tost.loop import Callback, Run
from tost_kernels.nn.surgery import duplicate


class Average(Callback):
    """Keeps `run.averaged`: average = decay * average + (1 - decay) * network after each step, BatchNorm statistics included.

    Of a sparse layer only the kept weights are averaged. The ghosts' strength in it is averaged too, and means nothing: the
    average is measured and saved in its finalized form only.
    """

    def __init__(self, decay: float) -> None:
        self.decay = decay

    def on_start(self, run: Run) -> None:
        self._averaged(run)

    def after_step(self, run: Run) -> None:
        if math.isfinite(run.loss):
            self._averaged(run).update_parameters(run.net)

    def _averaged(self, run: Run) -> AveragedModel:
        if run.averaged is None:
            mean = get_ema_multi_avg_fn(self.decay)  # type: ignore[no-untyped-call]
            self._average = AveragedModel(duplicate(run.net), multi_avg_fn=mean, use_buffers=True)
            run.averaged = self._average.module
        return self._average

    def state_dict(self) -> dict[str, Any]:
        return dict(self._average.state_dict())

    def load_state_dict(self, state: dict[str, Any], run: Run) -> None:
        self._averaged(run).load_state_dict(state)
