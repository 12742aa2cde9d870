"""Conv2d that keeps the batch-last layout, and what it shares with SparseConv2d."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from tost_kernels import backend
from tost_kernels.layout import CHANNELS_LAST, is_batch_last, lend, pad, to_batch_last
from tost_kernels.ops.masked_conv2d import masked_conv2d, same_padding
from tost_kernels.pattern import Pattern, full_pattern, known_full_pattern
from tost_kernels.plan import dense_weight_may_pay


def convolve(layer: Any, input: Tensor, values: Tensor, pattern: Pattern) -> Tensor:
    """The convolution of `layer`, its padding mode included, with the weight that is `values` at the positions of `pattern`.

    layer: a Conv2d or SparseConv2d. input: (N, C, H, W). Raises what `tost_kernels.masked_conv2d` raises.
    """
    padding = layer.padding
    if layer.padding_mode != "zeros":
        input, padding = pad(input, _surround(layer), layer.padding_mode), 0
    return masked_conv2d(input, values, pattern, layer.bias, layer.stride, padding, layer.dilation, layer.groups)


def _surround(layer: Any) -> tuple[int, int, int, int]:
    """The padding as (left, right, top, bottom)."""
    if layer.padding == "same":
        return same_padding(layer.kernel_size, layer.dilation)
    top, left = (0, 0) if isinstance(layer.padding, str) else layer.padding
    return left, left, top, top


class Conv2d(nn.Conv2d):
    """torch.nn.Conv2d, batch-last in, batch-last out; the same parameters and state_dict.

    A batch-last input goes to the op of sparse layers with a mask that keeps everything where its kernels may win (few
    weights an output, as in a network's first layer; 1x1), and `tune` chooses as for a sparse layer. Elsewhere torch's own op
    runs on a channels_last copy. Every other input is torch's own business. No state is added: the patterns belong to the
    shapes (`tost_kernels.pattern.full_pattern`).
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.compile_pattern()

    def forward(self, input: Tensor) -> Tensor:
        """(N, C, H, W) -> (N, out_channels, H', W'), or without N in both."""
        if input.dim() != 4 or not is_batch_last(input):
            return super().forward(input)
        pattern = self._pattern(input)
        if pattern is None:
            return to_batch_last(super().forward(lend(input, CHANNELS_LAST)))
        return convolve(self, input, self.weight.flatten(), pattern)

    def compile_pattern(self) -> None:
        """Compile the pattern of this shape, so that a torch.compile'd forward, which cannot, finds it."""
        if dense_weight_may_pay(self.weight.shape) and self.weight.numel() and not self.weight.is_meta:
            full_pattern(self.weight.shape, self.weight.device)

    def _pattern(self, input: Tensor) -> Pattern | None:
        """The pattern that keeps everything; None where torch's own op is to run."""
        weight = self.weight
        if not (dense_weight_may_pay(weight.shape) or backend.forced() is not None):
            return None
        if weight.is_meta or not weight.numel() or not input.is_floating_point():
            return None
        if torch.compiler.is_compiling():
            return known_full_pattern(weight.shape, weight.device)
        return full_pattern(weight.shape, weight.device)

    def __setstate__(self, state: Any) -> None:
        super().__setstate__(state)  # type: ignore[no-untyped-call]
        if isinstance(self._parameters.get("weight"), Tensor):
            self.compile_pattern()
