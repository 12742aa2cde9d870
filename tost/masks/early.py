"""Early pruning: the largest weights after a short dense training of a private copy."""

from __future__ import annotations

from collections import deque

import torch
from torch import Tensor

from tost.masks.probe import Probe
from tost.masks.selection import keep_largest

LEARNING_RATE, MOMENTUM, WEIGHT_DECAY = 0.1, 0.9, 1e-4
UPDATES_A_CHECK = 50
CHECKS = 5
DISTANCE = 0.1


def early_magnitude(probe: Probe) -> list[Tensor]:
    """|w| after a short training of all parameters but frozen ones with SGD, until the largest weights stay the same.

    As Early-Bird tickets are drawn (https://arxiv.org/abs/1909.11957), with single weights in the place of channels: every 50
    updates the mask that would be drawn is compared with the one before, and training ends when the last 5 distances are
    all below 0.1, or with the method's number of batches. The distance is the fraction of the kept weights that changed:
    with the fraction of ALL weights that differ, as for channels, two masks of density 0.05 were never further apart than 0.1.

    A batch an update, learning rate 0.1, momentum 0.9, weight decay 1e-4, no schedule. Without a number of weights to keep
    (`tost.score`) it trains on all the batches. Weights that are removed already stay so.
    """
    last: Tensor | None = None
    distances: deque[float] = deque(maxlen=CHECKS)
    with probe.trainable() as (parameters, weights):
        optimizer = torch.optim.SGD(parameters, LEARNING_RATE, MOMENTUM, weight_decay=WEIGHT_DECAY)
        for update in range(1, probe.batches + 1):
            optimizer.zero_grad()
            torch.autograd.backward(probe.loss())
            optimizer.step()
            probe.remask()
            if probe.keep is None or update % UPDATES_A_CHECK:
                continue
            drawn = keep_largest(torch.cat([w.detach().abs().flatten().cpu() for w in weights]).float(), probe.keep)
            if last is not None:
                distances.append(int((drawn & ~last).count_nonzero()) / probe.keep)
            last = drawn
            if len(distances) == CHECKS and max(distances) < DISTANCE:
                break
        return [w.detach().abs().to(like.dtype) for w, like in zip(weights, probe.weights, strict=True)]
