"""PSwish: the activation x * sigmoid(beta * x) as a module."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from tost_kernels.ops.pswish import pswish


def strength(value: float, trainable: bool, num_channels: int | None = None) -> Tensor:
    """A float32 tensor filled with `value`, 0-dim or (num_channels,): a Parameter if trainable, else a plain tensor."""
    if num_channels is not None and num_channels < 1:
        raise ValueError(f"expected num_channels to be at least 1 or None, got {num_channels}")
    tensor = torch.full(() if num_channels is None else (num_channels,), float(value), dtype=torch.float32)
    return nn.Parameter(tensor) if trainable else tensor


def hold(module: nn.Module, name: str, tensor: Tensor) -> None:
    """Give `module` the tensor as a parameter or as a persistent buffer, whichever it is: it is in the state_dict."""
    if isinstance(tensor, nn.Parameter):
        module.register_parameter(name, tensor)
    else:
        module.register_buffer(name, tensor)


class PSwish(nn.Module):
    """x * sigmoid(beta * x): Swish at beta = 1, towards ReLU as beta grows (`tost_kernels.pswish`).

    beta: its first value. trainable: `beta` is a Parameter, else a persistent buffer (fill_ it to follow a schedule: a
    compiled graph sees the change). num_channels: one beta for each channel, of shape (C,), instead of a 0-dim one.
    Input and output: (N, C, ...), same dtype and layout.
    """

    beta: Tensor

    def __init__(self, beta: float = 1.0, trainable: bool = False, num_channels: int | None = None) -> None:
        super().__init__()
        self.trainable = trainable
        self.num_channels = num_channels
        hold(self, "beta", strength(beta, trainable, num_channels))

    def forward(self, x: Tensor) -> Tensor:
        return pswish(x, self.beta)

    def extra_repr(self) -> str:
        return f"trainable={self.trainable}, num_channels={self.num_channels}"
