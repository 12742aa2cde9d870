"""What tiles (tost_kernels/tiles.py) and the gathered index (tost_kernels/gather.py) share: the kept weights as (row, channel,
tap), and which rows of the weight are computed together.

There are two views of a weight. In the forward one a row is an output channel and a channel is an input channel; in the
transposed one, by which the gradient of the input is computed, it is the other way round. Here input channels are absolute,
I * groups of them, unlike those of the packed index, which count within their group.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from tost_kernels.packed_index import compiled

Index = npt.NDArray[np.int32]
Integers = npt.NDArray[np.int64]
INT32 = np.iinfo(np.int32).max


class Kept(NamedTuple):
    """One view of the kept weights, in the order of the values."""

    rows: int  # of the weight
    channels: int
    row: Integers  # of each value
    channel: Integers
    tap: Integers

    def transposed(self) -> Kept:
        """The other view."""
        return Kept(self.channels, self.rows, self.channel, self.row, self.tap)


def kept_weights(index: Index, groups: int) -> Kept:
    """The forward view of a packed index (tost_kernels/packed_index.py). Raises ValueError where 32 bits are too few."""
    outputs, inputs, kh, kw, _nnz, _block, blocks = index[1:8].tolist()
    at_ptr, at_col, at_t_ptr = index[9:12].tolist()
    row = np.repeat(np.arange(outputs), np.diff(index[at_ptr:at_col:blocks]))
    if inputs * groups * kh * kw > INT32:
        raise ValueError(f"pattern: expected input channels * kh * kw below 2**31, got {inputs * groups * kh * kw}")
    channel, tap = np.divmod(index[at_col:at_t_ptr].astype(np.int64), kh * kw)
    return Kept(outputs, inputs * groups, row, channel + row // (outputs // groups) * inputs, tap)


def natural_order(count: int, rows: int) -> Index:
    """Rows 0, 1, 2, ... in groups of `rows`; -1: an empty slot, which only the last group has, at its end."""
    order = np.full(-(-count // rows) * rows, -1, np.int32)
    order[:count] = np.arange(count)
    return order


def _natural_orders(index: Index, rows: int, groups: int, block: int) -> tuple[Index, Index]:
    return natural_order(int(index[1]), rows), natural_order(int(index[2]) * groups, rows)


# (packed index, rows of a group, groups of the convolution, channels of a column) -> the order of the rows in each view. Groups
# of the compiled one's orders share columns: csrc/pattern/row_order.cpp
row_orders = compiled("row_orders", _natural_orders)


def group_and_slot(row: Integers, order: Index, rows: int) -> tuple[Integers, Integers]:
    """The group, and the slot in it, of each of the rows of the weight in `row`."""
    slots = np.empty(len(order), np.int64)
    slots[order[order >= 0]] = np.flatnonzero(order >= 0)
    group, slot = np.divmod(slots[row], rows)
    return group, slot


def check_groups(groups: int, outputs: int) -> None:
    """Raise ValueError unless a convolution with this many output channels can have `groups`."""
    if groups < 1 or outputs % groups:
        raise ValueError(f"groups: expected a divisor of the {outputs} output channels, got {groups}")


def check_lengths(kind: str, length: int, columns: int, rows: int) -> None:
    """Raise ValueError where 32 bits are too few for an index of this length, or a packed weight of these columns."""
    if max(length, rows * columns) > INT32:
        raise ValueError(
            f"pattern: expected its {kind} index and its packed weight below 2**31 numbers, got {length} and {rows * columns}"
        )
