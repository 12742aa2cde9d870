"""SparseLinear: torch.nn.Linear whose trainable weight is the vector of kept weights."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from tost_kernels.nn.sparse_module import SparseModule
from tost_kernels.ops.masked_linear import masked_linear
from tost_kernels.pattern import Pattern


class SparseLinear(SparseModule):
    """torch.nn.Linear with sparse WEIGHTS under a fixed mask: y = x W^T + b, W = `pattern.scatter(values)`.

    in_features, out_features, bias, device, dtype: as in torch.nn.Linear. mask: bool or 0/1 tensor (out_features, in_features),
    or a Pattern. Initialised as torch.nn.Linear is: the same seed gives the same kept weights.
    Input (..., in_features) of any number of leading dimensions, output (..., out_features).
    """

    _DENSE = nn.Linear
    _GEOMETRY = ("in_features", "out_features")

    in_features: int
    out_features: int

    def __init__(
        self,
        in_features: int,
        out_features: int,
        bias: bool = True,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        *,
        mask: Tensor | Pattern,
    ) -> None:
        shell = nn.Linear(in_features, out_features, bias, device="meta", dtype=dtype)
        super().__init__(shell, mask, device)

    def forward(self, input: Tensor) -> Tensor:
        """(..., in_features) -> (..., out_features)."""
        return masked_linear(input, self.values, self.pattern, self.bias)
