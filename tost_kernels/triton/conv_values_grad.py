"""The values' gradient on tensor cores: for each row group and tap, one matrix product over positions and batch.

Row groups share one list of columns (tost_kernels/tiles.py), so the gradients of a group's weights at a tap are those of a
dense matrix: dY[rows, q] x X[columns, q]^T over all q = (output pixel at which the tap meets the image, image). A program
computes BC columns x all rows of it, over a part of the pixels and the batch, and writes the sums to a buffer
[split, rows * K] of float32 from which `sum_parts` picks the entries that are kept: no atomics, the same bits at every run.

Both operands are read along the batch, which is contiguous in batch-last memory: 16-byte loads, and the K-major order that
Hopper's wgmma asks of TF32. The columns are the M of the product (64 at least for wgmma, where row groups may have 16) and the
rows its N. A step reads (BC + R) * BN numbers for BC * R * BN multiply-adds. Groups vary fastest in the grid: programs that
run at the same time read the same inputs through the L2 cache. The grid is for the longest list of columns there can be; a
program past the end of its own ends at once.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from tost_kernels.layout import BATCH_LAST, as_layout
from tost_kernels.tiles import SEGMENT, offsets
from tost_kernels.triton.conv_direct import PROGRAMS, batch_constants, taps
from tost_kernels.triton.options import Geometry, Options
from tost_kernels.triton.specimen import Specimen
from tost_kernels.triton.sum_parts import sum_parts

SMALLEST_BATCH_TILE = 16  # the depth of a matrix instruction


# Numbers of a mask or a layer that only scalars are made of: specialised, they would compile it anew for layer after layer.
_UNSPECIAL = ["at_order", "at_ptr", "at_channel", "groups", "column_blocks", "channels", "split"]
_UNSPECIAL += ["height", "width", "out_height", "out_width"]


@triton.jit(do_not_specialize=_UNSPECIAL)
def _tile(
    grad,
    source,
    parts,
    index,
    at_order,
    at_ptr,
    at_channel,
    groups,  # of rows
    column_blocks,
    channels,
    height,
    width,
    out_height,
    out_width,
    batch_units,  # batch / ALIGN
    split,
    size,  # of a part: rows * K
    KY: tl.constexpr,
    KX: tl.constexpr,
    SY: tl.constexpr,
    SX: tl.constexpr,
    PY: tl.constexpr,
    PX: tl.constexpr,
    DY: tl.constexpr,
    DX: tl.constexpr,
    ALIGN: tl.constexpr,
    EVEN: tl.constexpr,  # BN divides the batch
    WIDE: tl.constexpr,  # element offsets need 64 bits
    PRECISION: tl.constexpr,
    R: tl.constexpr,
    BC: tl.constexpr,
    BN: tl.constexpr,
):
    group = tl.program_id(0) % groups
    rest = tl.program_id(0) // groups
    column_block = rest % column_blocks
    rest = rest // column_blocks
    tap = rest % (KY * KX)
    part = rest // (KY * KX)

    segment = group * (KY * KX) + tap
    begin = tl.load(index + at_ptr + segment) + column_block * BC
    end = tl.load(index + at_ptr + segment + 1)
    if begin >= end:
        return
    matrix = tl.load(index + at_ptr + group * (KY * KX))
    stride = tl.load(index + at_ptr + (group + 1) * (KY * KX)) - matrix

    slot = tl.arange(0, R)
    row = tl.load(index + at_order + group * R + slot)
    column = begin + tl.arange(0, BC)
    channel = tl.load(index + at_channel + column, column < end, channels)
    row_kept = (row >= 0)[:, None]
    column_kept = (channel < channels)[:, None]
    if WIDE:
        row = row.to(tl.int64)
        channel = channel.to(tl.int64)

    # The output pixels at which the tap meets the image are a rectangle, from (top, left).
    up = PY - tap // KX * DY
    back = PX - tap % KX * DX
    top = (tl.maximum(up, 0) + (SY - 1)) // SY
    left = (tl.maximum(back, 0) + (SX - 1)) // SX
    bottom = tl.minimum((tl.maximum(height - 1 + up, -1) + SY) // SY, out_height)
    right = tl.minimum((tl.maximum(width - 1 + back, -1) + SX) // SX, out_width)
    wide = tl.maximum(right - left, 0)
    batch = batch_units * ALIGN
    batch_blocks = tl.cdiv(batch, BN)
    steps = tl.maximum(bottom - top, 0) * wide * batch_blocks
    per_part = tl.cdiv(steps, split)

    sums = tl.zeros([BC, R], tl.float32)
    for step in range(part * per_part, tl.minimum((part + 1) * per_part, steps)):
        pixel = step // batch_blocks
        n = (step % batch_blocks * BN + tl.arange(0, BN))[None, :]
        oy = top + pixel // wide
        ox = left + pixel % wide
        y_offset = ((row * out_height + oy) * out_width + ox) * batch
        x_offset = ((channel * height + (oy * SY - up)) * width + (ox * SX - back)) * batch
        y_mask = row_kept
        x_mask = column_kept
        if not EVEN:
            y_mask = y_mask & (n < batch)
            x_mask = x_mask & (n < batch)
        gradients = tl.load(grad + (y_offset[:, None] + n), y_mask, 0.0)
        inputs = tl.load(source + (x_offset[:, None] + n), x_mask, 0.0)
        sums = tl.dot(inputs, tl.trans(gradients), sums, input_precision=PRECISION)

    # Row-major in each group's matrix, as the packed weights are: R * (columns of the groups before) numbers come first.
    start = part.to(tl.int64) * size + matrix * R
    place = slot[None, :] * stride + (column - matrix)[:, None]
    tl.store(parts + (start + place), sums, (column < end)[:, None])


def values_grad(grad: Tensor, x: Tensor, index: Tensor, nnz: int, geometry: Geometry, options: Options) -> Tensor:
    """The gradient (nnz,) of the values, for `grad` (N, O, H_out, W_out) and the input `x` (N, C, H, W).

    index: `Pattern.tiled(options.rows, groups, ...)`. options: bn images and bk columns of a tile, warps, stages, precision, and
    split: the parts that the sum over images and positions is cut into, 0: enough to fill a GPU.
    """
    if not nnz or not grad.numel():
        return x.new_zeros(nnz)
    grad, x = as_layout(grad, BATCH_LAST), as_layout(x, BATCH_LAST)
    kernel = taps(geometry)
    at = offsets(geometry.weight_shape, geometry.groups, nnz, options.rows, index.numel())
    batch, channels = x.shape[:2]
    # Of the three products of tf32x3 a wider tile does not fit the registers.
    constants = batch_constants(batch, min(options.bn, 32) if options.precision == "tf32x3" else options.bn, grad, x)
    constants["BN"] = max(constants["BN"], SMALLEST_BATCH_TILE)
    constants["EVEN"] = batch % constants["BN"] == 0
    column_blocks = triton.cdiv(min(triton.cdiv(channels, SEGMENT) * SEGMENT, at.columns), options.bk)
    programs = at.groups_forward * column_blocks * kernel["KY"] * kernel["KX"]
    steps = grad.shape[2] * grad.shape[3] * triton.cdiv(batch, constants["BN"])
    split = min(options.split or triton.cdiv(PROGRAMS, programs), steps)
    size = options.rows * at.columns
    parts = torch.empty(split, size, dtype=torch.float32, device=x.device)
    with torch.cuda.device_of(x):
        _tile[(programs * split,)](
            grad,
            x,
            parts,
            index,
            at.at_order,
            at.at_ptr,
            at.at_channel,
            at.groups_forward,
            column_blocks,
            channels,
            *x.shape[2:],
            *grad.shape[2:],
            batch // constants["ALIGN"],
            split,
            size,
            **kernel,
            **constants,
            PRECISION=options.precision,
            R=options.rows,
            BC=options.bk,
            num_warps=options.warps,
            num_stages=options.stages,
        )
    return sum_parts(parts, nnz, x.dtype, index, at.at_place)


def specimens() -> list[Specimen]:
    """What `make gpu-check` compiles: 128@16, batch 256."""
    constants = {"KY": 3, "KX": 3, "SY": 1, "SX": 1, "PY": 1, "PX": 1, "DY": 1, "DX": 1}
    constants |= {"ALIGN": 16, "EVEN": True, "WIDE": False, "BC": 64, "BN": 64}
    signature = {name: "i32" for name in _tile.arg_names if name not in constants}
    signature |= dict.fromkeys([*constants, "PRECISION", "R"], "constexpr") | {"parts": "*fp32", "index": "*i32"}
    return [
        Specimen(
            name=f"conv_values_grad.{name}.{rows}x64",
            kernel=_tile,
            signature={key: signature[key] for key in _tile.arg_names} | {"grad": dtype, "source": dtype},
            constexprs=constants | {"PRECISION": precision, "R": rows} | ({"BN": 32} if precision == "tf32x3" else {}),
            num_warps=4,
            num_stages=3,
            matrix=precision != "ieee",
            attrs=dict.fromkeys(["grad", "source", "parts", "index", "batch_units", "size"], 16),
        )
        for name, dtype, precision, rows in (
            ("bf16", "*bf16", "tf32", 64),
            ("bf16", "*bf16", "tf32", 16),
            ("tf32", "*fp32", "tf32", 64),
            ("tf32x3", "*fp32", "tf32x3", 64),
            ("fp32", "*fp32", "ieee", 64),
        )
    ]
