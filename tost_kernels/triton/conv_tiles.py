"""Masked convolution on tensor cores: forward and input gradient, by row groups that share a list of columns.

A row group is some 64 output channels with the columns (tap, input channel) that any of them keeps (tost_kernels/tiles.py); its
weight is a small dense matrix. Forward and input gradient are the same kernel: the gradient takes the transposed view, where
rows are input channels and columns are output channels, and reads dY.

tiles, on batch-last memory, [C][H][W][N]. A program computes one output pixel of one group for `bn` images:

    out[row of g, pixel, n] = sum over the group's columns k:  weight[row, k] * x[column[k] + pixel, n]

x is a matrix here, of C * H * W rows of N numbers, and im2col is nothing but the table `column`, made by pack.py: the row that a
column reads, relative to the pixel. Every row read is contiguous along the batch, 16 bytes a thread. Whether a tap lies inside
the image is one answer for the whole program, so the columns of taps that do not are never visited: at stride 1 the valid
taps of a pixel are a rectangle, whose rows are contiguous ranges of columns and, where it is as wide as the kernel, one range.
That is one long loop for all pixels but those at the left and right border, with the loads of later steps in flight
(cp.async) while the matrix unit works on this one. On images of 4 x 4 that skips 31% of a 3x3 kernel's work (a dense convolution
multiplies zeros).

Bytes: each step brings bk * (bn + rows) numbers from L2 for 2 * rows * bn * bk operations; x itself comes from memory about
once, because the groups vary fastest in the grid and neighbouring pixels follow.

The tile of the result is [images, rows]: the batch is the M of the matrix instruction, which Hopper's has at 64 or more, and a
row group may be as small as 16. For TF32, whose instruction wants both operands contiguous along the columns, the images'
tile then goes through registers, with its low bits cut off by hand as the instruction would; without that step the compiler
transposes it by copies of 4 bytes each.

blocks, on channels_last memory, [N][H][W][C]: the classic implicit GEMM, positions (n, y, x) by rows, for masks that keep
whole blocks of channels. A step is one aligned block of channels at one tap; a block of which the group keeps nothing is not in
its list. The values lie among zeros in the packed weight, so no mask is loaded or multiplied. Borders are masked: they differ
within a program.

Sums run in the order of the columns: the same result each time.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from tost_kernels.layout import BATCH_LAST, CHANNELS_LAST, empty_layout
from tost_kernels.ops.masked_conv2d import output_shape
from tost_kernels.tiles import offsets
from tost_kernels.triton.options import Geometry, Options
from tost_kernels.triton.pack import ColumnNumbers, Packed, View, pack
from tost_kernels.triton.specimen import Specimen

_INT32_ELEMENTS = 2**31  # a tensor of fewer is indexed by 32 bits
_MOST_PROGRAMS = 2**31 - 1


@triton.jit
def _valid_taps(first, size, STEP: tl.constexpr, TAPS: tl.constexpr, BACKWARD: tl.constexpr):
    """The taps from `low` to `high` (excluded) whose place, first + tap * STEP (BACKWARD: minus), lies in 0 ... size - 1."""
    if BACKWARD:
        low = (tl.maximum(first - size + 1, 0) + STEP - 1) // STEP
        high = tl.minimum(first // STEP + 1, TAPS)
    else:
        low = (tl.maximum(-first, 0) + STEP - 1) // STEP
        high = tl.minimum((tl.maximum(size - first, 0) + STEP - 1) // STEP, TAPS)
    return tl.minimum(low, high), high


@triton.jit
def _multiply(acc, x, weight, PRECISION: tl.constexpr):
    """acc + x weight: [BN, BK] times [BK, ROWS]."""
    if PRECISION == "tf32":
        x = (x.to(tl.int32, bitcast=True) & -8192).to(tl.float32, bitcast=True)  # the 13 bits that TF32 lacks
    return tl.dot(x, weight, acc, input_precision=PRECISION)


@triton.jit(
    do_not_specialize=["groups", "height", "width", "out_height", "out_width"],
    do_not_specialize_on_alignment=["bias", "order", "ptr"],
)
def _tiles_kernel(
    x, weight, bias, order, ptr, column, out,
    batch, groups, height, width, out_height, out_width,
    KH: tl.constexpr, KW: tl.constexpr, STRIDE_H: tl.constexpr, STRIDE_W: tl.constexpr, PAD_H: tl.constexpr, PAD_W: tl.constexpr,
    DIL_H: tl.constexpr, DIL_W: tl.constexpr, TRANSPOSED: tl.constexpr, HAS_BIAS: tl.constexpr,
    ROWS: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """x: (C * height * width, batch), what is read: the input; dY if TRANSPOSED. out: (rows * out_height * out_width, batch)."""
    TAPS: tl.constexpr = KH * KW
    # Gradient of a strided convolution: a tap is valid where y + pad - dilation * dy is a multiple of the stride.
    SINGLE_TAPS: tl.constexpr = TRANSPOSED and (STRIDE_H > 1 or STRIDE_W > 1)
    program = tl.program_id(0)
    g = program % groups
    pixel = program // groups % (out_height * out_width)
    first_image = program // groups // (out_height * out_width) * BN
    y, z = pixel // out_width, pixel % out_width
    if TRANSPOSED:
        y, z = y + PAD_H, z + PAD_W
    else:
        y, z = y * STRIDE_H - PAD_H, z * STRIDE_W - PAD_W

    top, bottom = _valid_taps(y, height, DIL_H, KH, TRANSPOSED)
    left, right = _valid_taps(z, width, DIL_W, KW, TRANSPOSED)
    runs = bottom - top
    if right - left == KW:
        runs = tl.minimum(runs, 1)
    if SINGLE_TAPS:
        runs = TAPS

    n = first_image + tl.arange(0, BN)
    slots = tl.arange(0, ROWS)
    steps = tl.arange(0, BK)
    # Multiples of 16 all: said so that the compiler loads 16 bytes at once.
    begin = tl.load(ptr + g * TAPS) // 16 * 16
    columns = tl.load(ptr + (g + 1) * TAPS) // 16 * 16 - begin
    weight_row = weight + begin * ROWS + slots * columns
    acc = tl.zeros((BN, ROWS), tl.float32)
    if HAS_BIAS:
        row = tl.load(order + g * ROWS + slots)
        acc += tl.load(bias + row, mask=row >= 0, other=0.0).to(tl.float32)[None, :]
    for run in range(runs):
        if SINGLE_TAPS:
            down, along = y - run // KW * DIL_H, z - run % KW * DIL_W
            here = (down >= 0) & (down % STRIDE_H == 0) & (along >= 0) & (along % STRIDE_W == 0)
            down, along = down // STRIDE_H, along // STRIDE_W
            here = here & (down < height) & (along < width)
            first = g * TAPS + run
            last = first + here.to(tl.int32)
            pixel_row = down * width + along
        else:
            first = g * TAPS + (top + run) * KW + left
            last = first + right - left
            if right - left == KW:
                last = g * TAPS + bottom * KW
            pixel_row = y * width + z
        end = tl.load(ptr + last) // 16 * 16
        for k in range(tl.load(ptr + first) // 16 * 16, end, BK):
            kept = k + steps < end
            source = tl.load(column + k + steps, mask=kept, other=0) + pixel_row
            x_tile = tl.load(x + source[None, :] * batch + n[:, None], mask=(n < batch)[:, None] & kept[None, :], other=0.0)
            w_tile = tl.load(weight_row[None, :] + (k - begin + steps)[:, None], mask=kept[:, None], other=0.0)
            acc = _multiply(acc, x_tile, w_tile, PRECISION)

    result = tl.trans(acc)
    row = tl.load(order + g * ROWS + slots)  # not kept in registers through the loop
    to = (row.to(tl.int64) * (out_height * out_width) + pixel) * batch
    mask = (row >= 0)[:, None] & (n < batch)[None, :]
    tl.store(out + to[:, None] + n[None, :], result.to(out.dtype.element_ty), mask=mask)


@triton.jit(
    do_not_specialize=["groups", "height", "width", "out_height", "out_width"],
    do_not_specialize_on_alignment=["bias", "order", "ptr", "channel"],
)
def _blocks_kernel(
    x, weight, bias, order, ptr, channel, tap, out,
    batch, channels, rows, groups, height, width, out_height, out_width,
    KH: tl.constexpr, KW: tl.constexpr, STRIDE_H: tl.constexpr, STRIDE_W: tl.constexpr, PAD_H: tl.constexpr, PAD_W: tl.constexpr,
    DIL_H: tl.constexpr, DIL_W: tl.constexpr, TRANSPOSED: tl.constexpr, HAS_BIAS: tl.constexpr, WIDE: tl.constexpr,
    ROWS: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """x: (batch * height * width, channels), what is read. out: (batch * out_height * out_width, rows)."""
    TAPS: tl.constexpr = KH * KW
    program = tl.program_id(0)
    g = program % groups
    position = (program // groups).to(tl.int64) * BN + tl.arange(0, BN)
    pixels = out_height * out_width
    image = position // pixels
    pixel = (position % pixels).to(tl.int32)
    y, z = pixel // out_width, pixel % out_width
    if not WIDE:
        image = image.to(tl.int32)
    slots = tl.arange(0, ROWS)
    steps = tl.arange(0, BK)
    begin = tl.load(ptr + g * TAPS) // 16 * 16
    end = tl.load(ptr + (g + 1) * TAPS) // 16 * 16
    weight_row = weight + begin * ROWS + slots * (end - begin)
    acc = tl.zeros((BN, ROWS), tl.float32)
    for k in range(begin, end, BK):
        at = tl.load(tap + k)
        c = tl.load(channel + k) // 16 * 16 + steps
        if TRANSPOSED:
            down, along = y + PAD_H - at // KW * DIL_H, z + PAD_W - at % KW * DIL_W
            here = (down >= 0) & (down % STRIDE_H == 0) & (along >= 0) & (along % STRIDE_W == 0)
            down, along = down // STRIDE_H, along // STRIDE_W
        else:
            down, along = y * STRIDE_H - PAD_H + at // KW * DIL_H, z * STRIDE_W - PAD_W + at % KW * DIL_W
            here = (down >= 0) & (along >= 0)
        here = here & (down < height) & (along < width) & (image < batch)
        source = ((image * height + down) * width + along) * channels
        x_tile = tl.load(x + source[:, None] + c[None, :], mask=here[:, None] & (c < channels)[None, :], other=0.0)
        w_tile = tl.load(weight_row[None, :] + (k - begin + steps)[:, None])
        acc = _multiply(acc, x_tile, w_tile, PRECISION)

    row = tl.load(order + g * ROWS + slots)
    if HAS_BIAS:
        acc += tl.load(bias + row, mask=row >= 0, other=0.0).to(tl.float32)[None, :]
    mask = (image < batch)[:, None] & (row >= 0)[None, :]
    tl.store(out + position[:, None] * rows + row[None, :], acc.to(out.dtype.element_ty), mask=mask)


def forward(x: Tensor, values: Tensor, bias: Tensor | None, index: Tensor, geometry: Geometry, options: Options) -> Tensor:
    """The convolution of x (N, C, H, W), batch-last (blocks: channels_last), in that layout. values, bias: contiguous."""
    shape = output_shape(x.shape, geometry.weight_shape, geometry.stride, geometry.padding, geometry.dilation)
    return _run(x, values, bias, index, shape, geometry, options, transposed=False)


def input_grad(
    grad: Tensor, values: Tensor, index: Tensor, input_shape: list[int], geometry: Geometry, options: Options
) -> Tensor:
    """The gradient of the input, of `input_shape`, from the output's, batch-last (blocks: channels_last), in that layout."""
    return _run(grad, values, None, index, input_shape, geometry, options, transposed=True)


def _run(
    read: Tensor, values: Tensor, bias: Tensor | None, index: Tensor, shape: list[int], geometry: Geometry,
    options: Options, transposed: bool,
) -> Tensor:  # fmt: skip
    blocks = options.algo == "blocks"
    out = empty_layout(shape, CHANNELS_LAST if blocks else BATCH_LAST, read)
    if out.numel() == 0:
        return out
    batch, channels, height, width = read.shape
    wide = read.numel() >= _INT32_ELEMENTS
    packed = _pack(values, index, geometry, options, transposed, height, width, wide)
    groups = packed.view.order.shape[0] // options.rows
    constants: dict[str, Any] = {
        "KH": geometry.weight_shape[2], "KW": geometry.weight_shape[3],
        "STRIDE_H": geometry.stride[0], "STRIDE_W": geometry.stride[1],
        "PAD_H": geometry.padding[0], "PAD_W": geometry.padding[1],
        "DIL_H": geometry.dilation[0], "DIL_W": geometry.dilation[1],
        "TRANSPOSED": transposed, "HAS_BIAS": bias is not None,
        "ROWS": options.rows, "BN": options.bn, "BK": options.bk,
        "PRECISION": options.precision if read.dtype == torch.float32 else "ieee",
        "num_warps": options.warps, "num_stages": options.stages,
    }  # fmt: skip
    shared = (packed.weight, out if bias is None else bias, packed.view.order, packed.view.ptr)
    sizes = (groups, height, width, shape[2], shape[3])
    if blocks:
        programs = groups * triton.cdiv(batch * shape[2] * shape[3], options.bn)
        _blocks_kernel[_grid(programs)](
            read, *shared, packed.view.channel, packed.column, out, batch, channels, shape[1], *sizes, WIDE=wide, **constants
        )
    else:
        programs = groups * shape[2] * shape[3] * triton.cdiv(batch, options.bn)
        _tiles_kernel[_grid(programs)](read, *shared, packed.column, out, batch, *sizes, **constants)
    return out


def _pack(
    values: Tensor, index: Tensor, geometry: Geometry, options: Options, transposed: bool, height: int, width: int, wide: bool
) -> Packed:
    """The packed weight of one view, with the table of columns that its kernel reads. height, width: of what is read."""
    (kh, kw), nnz, rows = geometry.weight_shape[2:], values.shape[0], options.rows
    at = offsets(geometry.weight_shape, geometry.groups, nnz, rows, index.numel())
    if transposed:
        at_order, at_ptr, at_channel, at_place = at.at_t_order, at.at_t_ptr, at.at_t_channel, at.at_t_place
        groups, sign = at.groups_transposed, -1
    else:
        at_order, at_ptr, at_channel, at_place = at.at_order, at.at_ptr, at.at_channel, at.at_place
        groups, sign = at.groups_forward, 1
    if options.algo == "blocks":  # the table holds the tap of each column
        plane, step_y, step_x, wide = 0, kw, 1, False
    elif transposed and max(geometry.stride) > 1:  # the kernel adds the tap's step, which the stride divides
        plane, step_y, step_x = height * width, 0, 0
    else:
        plane, step_y, step_x = height * width, sign * geometry.dilation[0] * width, sign * geometry.dilation[1]
    view = View(
        index[at_order : at_order + groups * rows],
        index[at_ptr : at_ptr + groups * kh * kw + 1],
        index[at_channel : at_channel + at.columns],
        index[at_place : at_place + nnz],
    )
    rounded = options.precision == "tf32"
    return pack(values, view, (kh, kw), rows, ColumnNumbers(plane, step_y, step_x, wide), round_to_tf32=rounded)


def _grid(programs: int) -> tuple[int]:
    if programs > _MOST_PROGRAMS:
        raise RuntimeError(f"triton: expected fewer than 2**31 programs, got {programs}: choose larger rows or bn")
    return (programs,)


def specimens() -> list[Specimen]:
    """3x3 convolutions: both kernels, both passes, each precision, with the tiles of the static rule."""
    tf32, bf16 = Options("tiles", 64, 0, 128, 32, 4, 5, 1, "tf32"), Options("tiles", 64, 0, 128, 64, 4, 5)
    ieee = Options("tiles", 64, 0, 128, 16, 8, 5)
    return [
        _specimen("forward", "fp32", tf32),
        _specimen("forward", "fp32", tf32._replace(rows=128, warps=8)),
        _specimen("forward", "fp32", tf32._replace(rows=16)),
        _specimen("forward", "fp32", tf32._replace(precision="tf32x3", warps=8)),
        _specimen("forward", "fp32", ieee),
        _specimen("forward", "bf16", bf16),
        _specimen("input_grad", "fp32", tf32),
        _specimen("input_grad", "fp32", tf32, stride=2),
        _specimen("input_grad", "bf16", bf16),
        _specimen("forward", "fp32", tf32._replace(algo="blocks", block=32, stages=4)),
        _specimen("forward", "bf16", bf16._replace(algo="blocks", block=32, bk=32, stages=4)),
        _specimen("input_grad", "bf16", bf16._replace(algo="blocks", block=32, bk=32, stages=4), stride=2),
    ]


def _specimen(which: str, dtype: str, options: Options, stride: int = 1) -> Specimen:
    blocks, transposed = options.algo == "blocks", which == "input_grad"
    constants: dict[str, Any] = {
        "KH": 3, "KW": 3, "STRIDE_H": stride, "STRIDE_W": stride, "PAD_H": 1, "PAD_W": 1, "DIL_H": 1, "DIL_W": 1,
        "TRANSPOSED": transposed, "HAS_BIAS": not transposed,
        "ROWS": options.rows, "BN": options.bn, "BK": options.bk, "PRECISION": options.precision,
    } | ({"WIDE": False} if blocks else {})  # fmt: skip
    kernel = _blocks_kernel if blocks else _tiles_kernel
    aligned = ["x", "weight", "out", "batch", *(("tap", "channels", "rows") if blocks else ("column",))]
    floats, integers = ("x", "weight", "bias", "out"), ("order", "ptr", "column", "channel", "tap")

    def kind(name: str) -> str:
        if name in constants:
            return "constexpr"
        return f"*{dtype}" if name in floats else "*i32" if name in integers else "i32"

    return Specimen(
        f"masked_conv2d.{options.algo}.{which}{'.stride2' if stride > 1 else ''}.{dtype}"
        f"{'' if dtype == 'bf16' else '.' + options.precision}.{options.rows}x{options.bn}",
        kernel,
        {name: kind(name) for name in kernel.arg_names},
        constants,
        options.warps,
        options.stages,
        matrix=dtype == "bf16" or options.precision != "ieee",
        attrs=dict.fromkeys(aligned, 16),
    )
