"""The weight as the tile kernels want it: the values written to their places in one matrix a row group.

The matrices are made anew at every pass, since training changes the values: nnz scattered writes into a buffer of zeros, and
beside them a table of columns that saves the main loop from knowing where one tap ends and the next begins. Both are small: a
buffer is at most as large as the dense weight, so a pass of the convolution moves them hundreds of times as often from L2 as
this kernel moves them once.

Every value has a place of its own, so nothing here depends on the order in which programs run.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from tost_kernels.triton.specimen import Specimen

_BLOCK = 512


class View(NamedTuple):
    """The sections of one view of a tiled index (tost_kernels/tiles.py), int32."""

    order: Tensor  # (G * rows,)
    ptr: Tensor  # (G * T + 1,)
    channel: Tensor  # (K,)
    place: Tensor  # (nnz,)


class ColumnNumbers(NamedTuple):
    """The number of a column: plane * channel + step_y * dy + step_x * dx."""

    plane: int
    step_y: int
    step_x: int
    wide: bool  # whether the numbers need 64 bits


class Packed(NamedTuple):
    """The weight of one view in tiles, for one pass."""

    view: View
    weight: Tensor  # (rows * K,): group g's matrix begins at rows * ptr[g * T]
    column: Tensor  # (K,) int32 or int64: the number of each column that is in use


@triton.jit(
    do_not_specialize=["nnz", "segments", "plane", "step_y", "step_x"],
    do_not_specialize_on_alignment=["values", "place", "ptr", "channel"],
)
def _pack_kernel(
    values, place, weight, ptr, channel, column,
    nnz, segments, plane, step_y, step_x,
    TAPS: tl.constexpr, KW: tl.constexpr, ROUND: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """The first `segments` programs write the columns of a (group, tap) each, the others BLOCK values each."""
    program = tl.program_id(0)
    lanes = tl.arange(0, BLOCK)
    if program < segments:
        tap = program % TAPS
        step = (tap // KW) * step_y + (tap % KW) * step_x
        end = tl.load(ptr + program + 1)
        for k in range(tl.load(ptr + program), end, BLOCK):
            here = k + lanes < end
            which = tl.load(channel + k + lanes, mask=here, other=0).to(column.dtype.element_ty)
            tl.store(column + k + lanes, which * plane + step, mask=here)
    else:
        j = (program - segments) * BLOCK + lanes
        here = j < nnz
        value = tl.load(values + j, mask=here)
        if ROUND:
            rounded = (value.to(tl.int32, bitcast=True) + 0x1000) & -8192
            value = tl.where(value == value, rounded.to(tl.float32, bitcast=True), value)  # NaN stays NaN
        tl.store(weight + tl.load(place + j, mask=here, other=0), value, mask=here)


def pack(values: Tensor, view: View, taps: tuple[int, ...], rows: int, numbers: ColumnNumbers, round_to_tf32: bool) -> Packed:
    """Scatter `values` (nnz,) into zeros, and number the columns.

    taps: (kh, kw). rows: of a group. round_to_tf32: the values to the nearest of TF32's, halves away from zero (the matrix unit
    alone would cut the bits off).
    """
    weight = values.new_zeros(rows * view.channel.shape[0])
    column = view.channel.new_empty(view.channel.shape, dtype=torch.int64 if numbers.wide else torch.int32)
    segments, nnz = view.ptr.shape[0] - 1, values.shape[0]
    _pack_kernel[(segments + triton.cdiv(nnz, _BLOCK),)](
        values, view.place, weight, view.ptr, view.channel, column,
        nnz, segments, numbers.plane, numbers.step_y, numbers.step_x,
        TAPS=taps[0] * taps[1], KW=taps[1], ROUND=round_to_tf32 and values.dtype == torch.float32, BLOCK=_BLOCK, num_warps=4,
    )  # fmt: skip
    return Packed(view, weight, column)


def specimens() -> list[Specimen]:
    """What `make gpu-check` compiles: the weight of a 3x3 convolution, rounded to TF32."""
    signature = dict.fromkeys(_pack_kernel.arg_names, "i32")
    signature |= {name: "*fp32" if name in ("values", "weight") else "*i32" for name in _pack_kernel.arg_names[:6]}
    constants = {"TAPS": 9, "KW": 3, "ROUND": True, "BLOCK": _BLOCK}
    signature |= dict.fromkeys(constants, "constexpr")
    return [Specimen("pack.tf32", _pack_kernel, signature, constants, 4, 3, attrs={"weight": 16, "column": 16})]
