"""Pooling layers that keep the batch-last layout: torch's own in every other respect."""

from __future__ import annotations

from torch import Tensor, nn

from tost_kernels.layout import is_batch_last
from tost_kernels.nn.keep_layout import KeepsLayout


class MaxPool2d(KeepsLayout, nn.MaxPool2d):
    """torch.nn.MaxPool2d, batch-last in, batch-last out; `return_indices` gives torch's indices."""


class AvgPool2d(KeepsLayout, nn.AvgPool2d):
    """torch.nn.AvgPool2d, batch-last in, batch-last out."""


class AdaptiveAvgPool2d(KeepsLayout, nn.AdaptiveAvgPool2d):
    """torch.nn.AdaptiveAvgPool2d, batch-last in, batch-last out."""

    def forward(self, input: Tensor) -> Tensor:
        """(N, C, H, W) -> (N, C, H', W'). The mean of whole images is taken over rows of the batch.

        torch's own would hand a gradient in another layout to everything before it.
        """
        if self.output_size not in (1, (1, 1)) or input.dim() != 4 or not is_batch_last(input) or not input.numel():
            output: Tensor = super().forward(input)
            return output
        samples, channels, height, width = input.shape
        rows = input.permute(1, 2, 3, 0).reshape(channels, height * width, samples)
        return rows.mean(1).t()[:, :, None, None]


class AdaptiveMaxPool2d(KeepsLayout, nn.AdaptiveMaxPool2d):
    """torch.nn.AdaptiveMaxPool2d, batch-last in, batch-last out; `return_indices` gives torch's indices."""
