"""Soft Filter Pruning: filters that are zeroed after each epoch, and go on learning."""

from __future__ import annotations

import torch

from tost.loop import Callback, Run
from tost.masks.filters import strongest_filters


class SoftFilters(Callback):
    """Zeroes the filters of the lowest norms after each epoch, down to the density of the configuration.

    They take part in the next epoch, and may be among the strong ones after it (He et al., https://arxiv.org/abs/1808.06866). It
    comes first among the callbacks: what is measured and saved is the network without them, and an average of its weights
    without the same ones.
    """

    @torch.no_grad()
    def on_epoch_end(self, run: Run) -> None:
        config = run.config
        for name, mask in strongest_filters(run.net, config.density, config.include, config.exclude).items():
            for net in (run.net, run.averaged):
                if net is not None:
                    weight = net.get_submodule(name).weight
                    assert isinstance(weight, torch.Tensor)
                    weight.mul_(mask.to(weight.device))
