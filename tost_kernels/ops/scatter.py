"""The dense weight from the packed index alone: how every implementation reads the index, written in plain torch."""

from __future__ import annotations

import torch
from torch import Tensor

from tost_kernels.packed_index import BLOCK, HEADER


def scatter_index(values: Tensor, index: Tensor, weight_shape: list[int]) -> Tensor:
    """`values` (nnz,) at the positions that `index` (tost_kernels.pattern) holds, 0 elsewhere; of `weight_shape`."""
    outputs, nnz = weight_shape[0], values.shape[0]
    blocks = -(-weight_shape[1] // BLOCK)
    # The header says where the sections are too, but reading it would end a traced graph here.
    at_col = HEADER + outputs * blocks + 1
    row_ends = index[HEADER + blocks : at_col : blocks].long()
    kept = torch.diff(row_ends, prepend=row_ends.new_zeros(1))
    rows = torch.repeat_interleave(torch.arange(outputs, device=index.device), kept, output_size=nnz)
    columns = index[at_col : at_col + nnz].long()
    dense = values.new_zeros(weight_shape).flatten(1)
    return dense.index_put((rows, columns), values).view(weight_shape)
