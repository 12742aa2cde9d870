"""SparseConv2d: torch.nn.Conv2d whose trainable weight is the vector of kept weights."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn

from tost_kernels.nn.conv2d import convolve
from tost_kernels.nn.sparse_module import SparseModule
from tost_kernels.pattern import Pattern


class SparseConv2d(SparseModule):
    """torch.nn.Conv2d with sparse WEIGHTS under a fixed mask (activations are dense); the weight is `pattern.scatter(values)`.

    in_channels ... padding_mode, device, dtype: all as in torch.nn.Conv2d ("same" and "valid" padding, every padding mode,
    groups and depthwise included). mask: bool or 0/1 tensor (out_channels, in_channels / groups, kh, kw), or a Pattern.
    Initialised as torch.nn.Conv2d is: the same seed gives the same kept weights.
    Input (N, C, H, W) or (C, H, W); the output takes the layout of the input (batch-last is the fast one).
    """

    _DENSE = nn.Conv2d
    _GEOMETRY = (
        "in_channels", "out_channels", "kernel_size", "stride", "padding", "dilation", "groups", "padding_mode",
    )  # fmt: skip

    in_channels: int
    out_channels: int
    kernel_size: tuple[int, int]
    stride: tuple[int, int]
    padding: str | tuple[int, int]
    dilation: tuple[int, int]
    groups: int
    padding_mode: str

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int | tuple[int, int],
        stride: int | tuple[int, int] = 1,
        padding: str | int | tuple[int, int] = 0,
        dilation: int | tuple[int, int] = 1,
        groups: int = 1,
        bias: bool = True,
        padding_mode: Literal["zeros", "reflect", "replicate", "circular"] = "zeros",
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        *,
        mask: Tensor | Pattern,
    ) -> None:
        shell = nn.Conv2d(
            in_channels, out_channels, kernel_size, stride, padding, dilation, groups, bias, padding_mode, "meta", dtype
        )
        super().__init__(shell, mask, device)

    def forward(self, input: Tensor) -> Tensor:
        """(N, C, H, W) -> (N, out_channels, H', W'), or without N in both. Raises ValueError for other shapes."""
        if input.dim() == 3:
            return self.forward(input.unsqueeze(0)).squeeze(0)
        if input.dim() != 4:
            raise ValueError(f"input: expected shape (N, C, H, W) or (C, H, W), got {tuple(input.shape)}")
        return convolve(self, input, self.values, self.pattern)
