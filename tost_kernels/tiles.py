"""Tiles: the pattern as groups of rows that share one list of columns, which is what a matrix unit can use.

A matrix unit multiplies whole tiles, so rows of the weight that are computed together need the same columns. `rows` of them
form a group; a column that any of them keeps is a column of the group, and the others hold a zero there. Rows are permuted so
that rows with similar columns meet: fewer columns, less work (docs/notes/gpu-tiles.md has what this gains).

There are two views of a weight (tost_kernels/row_groups.py): in the forward one a row is an output channel; in the transposed
one, by which the gradient of the input is computed, it is an input channel, absolute. A column is a tap, dy * kw + dx in both
views, and a channel: an input channel in the forward view, an output channel in the transposed one. With T = kh * kw taps,
G = ceil(O / rows) groups of rows in the forward view and H = ceil(I * groups / rows) in the transposed one, the tiled index is
the packed index (tost_kernels/packed_index.py), unchanged, followed by

    order      G * rows    the row in each slot of each group; -1: an empty slot, which only the last group has, at its end
    ptr        G * T + 1   the columns of group g at tap t are those from ptr[g * T + t] up to ptr[g * T + t + 1]: a multiple of
                           16, and none where the group keeps nothing at that tap
    channel    K           the channel of each column, ascending within (group, tap)
    place      nnz         where value j lies in the packed weight, of rows * K numbers: the matrix of group g begins at
                           rows * ptr[g * T] and has shape (rows, ptr[(g + 1) * T] - ptr[g * T]), columns contiguous.
                           What no value lies in is 0
    t_order    H * rows    the same for the transposed view; t_place too has one number for each value, in the order of the
    t_ptr      H * T + 1   values
    t_channel  K
    t_place    nnz

K is the number of columns of the view that has more; the other view's list of channels ends in zeros that nothing refers to.
So every offset follows from the weight's shape, nnz, rows and the length of the tensor alone (`offsets`): a kernel's launch
reads nothing back from the device.

block = 1: a column is a single channel. Columns are padded to the multiple of 16 by repeating the last channel of (group, tap);
no value lies in the copies, so the products with them are 0 (times a finite input).
block = 16, 32, ...: channels come in whole aligned blocks, those in which the group keeps anything: dense tiles, of which the
empty ones are skipped. A channel may then be at or above the number of channels there are: a kernel masks it.

Bytes: 4 * (2 K + 2 nnz + (G + H) * (rows + T) + 2) beside the packed index.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from tost_kernels.packed_index import compiled, packed_length
from tost_kernels.row_groups import (
    Index,
    Integers,
    Kept,
    check_groups,
    check_lengths,
    group_and_slot,
    kept_weights,
    natural_order,
)

SEGMENT = 16  # columns of a group at a tap are a multiple of this: the depth of a matrix instruction
LARGEST = 1024  # rows of a group, channels of a block


class TileSections(NamedTuple):
    """Where the sections of a tiled index begin, and how many groups and columns there are."""

    at_order: int
    at_ptr: int
    at_channel: int
    at_place: int
    at_t_order: int
    at_t_ptr: int
    at_t_channel: int
    at_t_place: int
    groups_forward: int
    groups_transposed: int
    columns: int  # K, of each view: a packed weight has rows * columns numbers


def offsets(shape: Sequence[int], groups: int, nnz: int, rows: int, numel: int) -> TileSections:
    """The sections of the tiled index, of `numel` numbers, of a weight of `shape`, (O, I) or (O, I / groups, kh, kw).

    Raises ValueError if no tiled index of these arguments has that length.
    """
    outputs, inputs, *kernel = shape
    taps = int(np.prod(kernel, dtype=np.int64))
    forward, transposed = -(-outputs // rows), -(-inputs * groups // rows)
    packed = packed_length(shape, nnz)
    fixed = [forward * rows, forward * taps + 1, nnz, transposed * rows, transposed * taps + 1, nnz]
    columns, odd = divmod(numel - packed - sum(fixed), 2)
    if columns < 0 or odd or columns % SEGMENT:
        raise ValueError(f"index: {numel} numbers are no index of weight {tuple(shape)} in groups of {rows} rows")
    sizes = [*fixed[:2], columns, *fixed[2:5], columns]
    starts = [packed + sum(sizes[:k]) for k in range(len(sizes) + 1)]
    return TileSections._make([*starts, forward, transposed, columns])


def tile_reference(
    index: Index, rows: int, groups: int = 1, block: int = 1, order: Index | None = None, t_order: Index | None = None
) -> Index:
    """The tiled index of the packed `index`, in numpy: the specification of the compiled one, and its stand-in.

    order, t_order: the two permutations, by default rows stay where they are. Raises ValueError where 32 bits are too few.
    """
    taps = int(index[3]) * int(index[4])
    kept = kept_weights(index, groups)

    def view(kept: Kept, order: Index | None) -> tuple[Index, Integers, Integers, Integers]:
        if order is None:
            order = natural_order(kept.rows, rows)
        group, slot = group_and_slot(kept.row, order, rows)
        # every block of channels that a segment, which is a group at a tap, keeps anything of; ascending
        units = -(-kept.channels // block)
        blocks, which = np.unique((group * taps + kept.tap) * units + kept.channel // block, return_inverse=True)
        segment, unit = np.divmod(blocks, units)
        lengths = np.bincount(segment, minlength=len(order) // rows * taps)
        padded = -(-lengths * block // SEGMENT) * SEGMENT
        ptr, starts = (np.concatenate([[0], np.cumsum(n)]) for n in (padded, lengths))
        place_in_segment = np.arange(ptr[-1]) - np.repeat(ptr[:-1], padded)
        within = np.minimum(place_in_segment // block, np.repeat(lengths - 1, padded))  # padding repeats the last
        channel_of = unit[np.repeat(starts[:-1], padded) + within] * block + place_in_segment % block
        column = (ptr[segment] + (np.arange(len(blocks)) - starts[segment]) * block)[which] + kept.channel % block
        begin, end = ptr[group * taps], ptr[(group + 1) * taps]
        return order, ptr, channel_of, rows * begin + slot * (end - begin) + column - begin

    forward, transposed = view(kept, order), view(kept.transposed(), t_order)
    columns = max(len(forward[2]), len(transposed[2]))
    sections: list[npt.NDArray[Any]] = [index]
    for order, ptr, channel_of, place in (forward, transposed):
        sections += [order, ptr, np.pad(channel_of, (0, columns - len(channel_of))), place]
    check_lengths("tiled", sum(map(len, sections)), columns, rows)
    return np.concatenate(sections).astype(np.int32)


def check_tiling(outputs: int, rows: int, groups: int, block: int) -> None:
    """Raise TypeError or ValueError, naming the argument, unless these describe tiles of a weight with `outputs` rows."""
    for name, value in (("rows", rows), ("groups", groups), ("block", block)):
        if type(value) is not int:
            raise TypeError(f"{name}: expected an int, got {type(value).__name__}")
    if not _is_size(rows):
        raise ValueError(f"rows: expected a power of two from {SEGMENT} to {LARGEST}, got {rows}")
    check_groups(groups, outputs)
    if block != 1 and not _is_size(block):
        raise ValueError(f"block: expected 1 or a power of two from {SEGMENT} to {LARGEST}, got {block}")


def _is_size(value: int) -> bool:
    return SEGMENT <= value <= LARGEST and value & (value - 1) == 0


tile = compiled("tile_index", tile_reference)
