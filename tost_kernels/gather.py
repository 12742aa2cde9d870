"""The gathered index: groups of rows that share one list of columns, cut into chunks of source channels.

The CUDA kernels compute `rows` rows of the weight together, like those of tost_kernels/tiles.py, but take their operands from
shared memory: a block stages all that it needs of `chunk` source channels, then multiplies the columns of these channels that
its rows keep. So here the columns of a group are sorted by chunk, and a column is any tap of any of the chunk's channels.

A step of a matrix product has `depth` columns (8 of TF32, 16 of bfloat16), and reads them from shared memory in two halves.
What is staged lies there so that the bank of a column is its channel mod depth / 2. A read is served once for each column of the
bank that has most in it, so columns are ordered such that each bank has few.

The views are those of tost_kernels/row_groups.py: output channels are the rows in the forward view, and sources are input
channels; the other way round in the transposed one. Channels are absolute there. A column is channel * T + tap, T = kh * kw,
tap = dy * kw + dx. In the gradient of the input of a strided convolution a pixel meets only some of the taps: those of its
phase. P = sy * sx is the number of phases; the phase of a tap is (dy * dilation_y % sy) * sx + dx * dilation_x % sx, and a
pixel (y, x) of the gradient is of phase ((y + padding_y) % sy) * sx + (x + padding_x) % sx. The forward view has one phase.

With G = ceil(O / rows) groups and S = ceil(I * groups / chunk) chunks in the forward view, H = ceil(I * groups / rows) and
Z = ceil(O / chunk) in the transposed one, the gathered index is the packed index (tost_kernels/packed_index.py), unchanged,
followed by

    order      G * rows      the row in each slot of each group; -1: an empty slot, which only the last group has, at its end
    ptr        G * S + 1     the columns of group g in chunk s, the channels from s * chunk up to (s + 1) * chunk, are those from
                             ptr[g * S + s] up to ptr[g * S + s + 1]: a multiple of `depth`
    column     K             those columns, in the order of `read_order`
    place      nnz           where value j lies in the packed weight (K, rows): its column's position * rows + its row's slot.
                             What no value lies in is 0
    t_order    H * rows      the same for the transposed view, whose segments are (group, phase, chunk): those of group g at
    t_ptr      H * P * Z + 1 phase p in chunk z are t_ptr[(g * P + p) * Z + z] up to the next. t_place too has one number for
    t_column   K             each value, in the order of the values
    t_place    nnz

K is the number of columns of the view that has more; the other view's list ends in zeros that nothing refers to. So every offset
follows from the weight's shape, nnz, rows, chunk, stride and the length of the tensor alone (`offsets`): a launch reads nothing
back from the device. Columns are padded to a multiple of `depth`, that of a matrix instruction, by repeating the segment's last
one; no value lies in the copies, so the products with them are 0 (times a finite input).

Bytes: 4 * (2 K + 2 nnz + (G + H) * rows + G * S + H * P * Z + 2) beside the packed index.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from tost_kernels.packed_index import compiled, packed_length
from tost_kernels.row_groups import (
    INT32,
    Index,
    Integers,
    Kept,
    check_groups,
    check_lengths,
    group_and_slot,
    kept_weights,
    natural_order,
)

ROWS = (1, 2, 4, 8, 16, 32, 64, 128)
CHUNKS = (8, 16, 32, 64, 128)
DEPTHS = (1, 2, 4, 8, 16)


class GatherSections(NamedTuple):
    """Where the sections of a gathered index begin, and how many groups, chunks, phases and columns there are."""

    at_order: int
    at_ptr: int
    at_column: int
    at_place: int
    at_t_order: int
    at_t_ptr: int
    at_t_column: int
    at_t_place: int
    groups_forward: int
    groups_transposed: int
    chunks_forward: int
    chunks_transposed: int
    phases: int  # of the transposed view
    columns: int  # K, of each view: a packed weight has columns * rows numbers


def offsets(
    shape: Sequence[int], groups: int, nnz: int, rows: int, chunk: int, stride: Sequence[int], numel: int
) -> GatherSections:
    """The sections of the gathered index, of `numel` numbers, of a weight of `shape`, (O, I) or (O, I / groups, kh, kw).

    Raises ValueError if no gathered index of these arguments has that length.
    """
    outputs, inputs = shape[0], shape[1] * groups
    forward, transposed = -(-outputs // rows), -(-inputs // rows)
    chunks, t_chunks, phases = -(-inputs // chunk), -(-outputs // chunk), stride[0] * stride[1]
    packed = packed_length(shape, nnz)
    fixed = [forward * rows, forward * chunks + 1, nnz, transposed * rows, transposed * phases * t_chunks + 1, nnz]
    columns, odd = divmod(numel - packed - sum(fixed), 2)
    if columns < 0 or odd:
        raise ValueError(
            f"index: {numel} numbers are no gathered index of weight {tuple(shape)} in groups of {rows} rows and chunks of "
            f"{chunk} channels"
        )
    sizes = [*fixed[:2], columns, *fixed[2:5], columns]
    starts = [packed + sum(sizes[:k]) for k in range(len(sizes) + 1)]
    return GatherSections._make([*starts, forward, transposed, chunks, t_chunks, phases, columns])


def gather_reference(
    index: Index,
    rows: int,
    chunk: int,
    depth: int,
    groups: int = 1,
    stride: Sequence[int] = (1, 1),
    dilation: Sequence[int] = (1, 1),
    order: Index | None = None,
    t_order: Index | None = None,
) -> Index:
    """The gathered index of the packed `index`, in numpy: the specification of the compiled one, and its stand-in.

    order, t_order: the two permutations, by default rows stay where they are. Raises ValueError where 32 bits are too few.
    """
    kh, kw = index[3:5].tolist()
    forward = kept_weights(index, groups)
    backward = forward.transposed()
    phases = stride[0] * stride[1]
    for view, ways in ((forward, 1), (backward, phases)):
        row_groups, chunks = -(-view.rows // rows), -(-view.channels // chunk)
        if row_groups * ways * chunks > INT32:
            raise ValueError(
                f"pattern: expected fewer than 2**31 segments in its gathered index, got {row_groups} row groups x "
                f"{ways} phases x {chunks} chunks"
            )
    dy, dx = np.divmod(np.arange(kh * kw), kw)
    phase_of_tap = dy * dilation[0] % stride[0] * stride[1] + dx * dilation[1] % stride[1]

    views = [
        _view(forward, rows, chunk, depth, np.zeros_like(phase_of_tap), 1, order),
        _view(backward, rows, chunk, depth, phase_of_tap, phases, t_order),
    ]
    columns = max(len(column) for _, _, column, _ in views)
    sections: list[npt.NDArray[Any]] = [index]
    for order, ptr, column, place in views:
        sections += [order, ptr, np.pad(column, (0, columns - len(column))), place]
    check_lengths("gathered", sum(map(len, sections)), columns, rows)
    return np.concatenate(sections).astype(np.int32)


def _view(
    kept: Kept, rows: int, chunk: int, depth: int, phase_of_tap: Integers, phases: int, order: Index | None
) -> tuple[Index, Integers, Integers, Integers]:
    """order, ptr, column and place of one view."""
    if order is None:
        order = natural_order(kept.rows, rows)
    taps, chunks = len(phase_of_tap), -(-kept.channels // chunk)
    group, slot = group_and_slot(kept.row, order, rows)
    of_value = (group * phases + phase_of_tap[kept.tap]) * chunks + kept.channel // chunk
    # every column that a segment keeps, ascending
    of_column = kept.channel % chunk * taps + kept.tap
    columns, which = np.unique(of_value * (chunk * taps) + of_column, return_inverse=True)
    segment, in_chunk = np.divmod(columns, chunk * taps)
    lengths = np.bincount(segment, minlength=len(order) // rows * phases * chunks)
    padded = -(-lengths // depth) * depth
    ptr, starts = (np.concatenate([[0], np.cumsum(n)]) for n in (padded, lengths))
    banks = max(1, depth // 2)
    sort = np.empty(len(columns), np.int64)
    for one in np.flatnonzero(lengths):
        begin, end = starts[one : one + 2]
        sort[begin:end] = begin + np.array(read_order((in_chunk[begin:end] // taps % banks).tolist(), banks))
    within = np.arange(ptr[-1]) - np.repeat(ptr[:-1], padded)
    nearest = np.minimum(within, np.repeat(lengths - 1, padded)) + np.repeat(starts[:-1], padded)  # padding repeats the last
    column = (segment % chunks * (chunk * taps) + in_chunk)[sort][nearest]
    position = np.empty_like(sort)
    position[sort] = np.arange(len(sort)) + (ptr - starts)[segment[sort]]
    return order, ptr, column, position[which] * rows + slot


def read_order(bank: Sequence[int], banks: int) -> list[int]:
    """In which order a segment lists its columns, given the bank of each of them in ascending order: `banks` are read at once.

    A read has no more columns of one bank than it must; the banks that have most left give first, of equal ones the lower. So all
    banks last as long as they can. Within a read columns are sorted by bank, within a bank they ascend.
    """
    left: list[list[int]] = [[] for _ in range(banks)]
    for position, one in enumerate(bank):
        left[one].append(position)
    if banks == 1:
        return [*range(len(bank))]
    order: list[int] = []
    while len(order) < len(bank):
        room, most = min(banks, len(bank) - len(order)), 1
        while sum(min(len(queue), most) for queue in left) < room:
            most += 1
        taken = [0] * banks
        for one in sorted(range(banks), key=lambda one: -len(left[one])):
            taken[one] = min(most, len(left[one]), room - sum(taken))
        for queue, count in zip(left, taken, strict=True):
            order += queue[:count]
            del queue[:count]
    return order


def check_gathering(
    outputs: int, rows: int, chunk: int, depth: int, groups: int, stride: Sequence[int], dilation: Sequence[int]
) -> None:
    """Raise TypeError or ValueError, naming the argument, unless these describe a gathered index of a weight with `outputs`
    rows.
    """
    for name, value in (("rows", rows), ("chunk", chunk), ("depth", depth), ("groups", groups)):
        if type(value) is not int:
            raise TypeError(f"{name}: expected an int, got {type(value).__name__}")
    for name, value, choices in (("rows", rows, ROWS), ("chunk", chunk, CHUNKS), ("depth", depth, DEPTHS)):
        if value not in choices:
            raise ValueError(f"{name}: expected a power of two from {choices[0]} to {choices[-1]}, got {value}")
    check_groups(groups, outputs)
    for name, pair in (("stride", stride), ("dilation", dilation)):
        if len(pair) != 2 or any(type(value) is not int or not 1 <= value <= INT32 for value in pair):
            raise ValueError(f"{name}: expected two ints from 1 to 2**31 - 1, got {tuple(pair)}")


gather = compiled("gather_index", gather_reference)
