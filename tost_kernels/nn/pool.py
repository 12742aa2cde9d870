"""Pooling layers that keep the batch-last layout: torch's own in every other respect."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from tost_kernels.layout import is_batch_last
from tost_kernels.nn.keep_layout import KeepsLayout
from tost_kernels.ops.pool2d import avg_pool2d, has_kernel_for, max_pool2d, pair


class MaxPool2d(KeepsLayout, nn.MaxPool2d):
    """torch.nn.MaxPool2d, batch-last in, batch-last out; `return_indices` gives torch's indices.

    A batch-last float32 or bfloat16 tensor of 16 or more images on the CPU runs in a kernel of our own, differentiable once like
    the others. With dilation, `return_indices` or more than 256 taps, and for every other tensor, torch's own layer runs.
    """

    def forward(self, input: Tensor) -> Any:
        """(N, C, H, W) -> (N, C, H', W')."""
        windows = pair(self.kernel_size), pair(self.stride), pair(self.padding), self.ceil_mode
        if self.return_indices or pair(self.dilation) != (1, 1) or not has_kernel_for("max_pool2d", input, windows):
            return super().forward(input)
        return max_pool2d(input, windows)


class AvgPool2d(KeepsLayout, nn.AvgPool2d):
    """torch.nn.AvgPool2d, batch-last in, batch-last out.

    A batch-last float32 or bfloat16 tensor of 16 or more images on the CPU runs in a kernel of our own, differentiable once like
    the others. With more than 256 taps, and for every other tensor, torch's own layer runs.
    """

    def forward(self, input: Tensor) -> Any:
        """(N, C, H, W) -> (N, C, H', W')."""
        windows = pair(self.kernel_size), pair(self.stride), pair(self.padding), self.ceil_mode
        if self.divisor_override == 0 or not has_kernel_for("avg_pool2d", input, windows):  # torch refuses to divide by 0
            return super().forward(input)
        return avg_pool2d(input, windows, self.count_include_pad, self.divisor_override or 0)


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
