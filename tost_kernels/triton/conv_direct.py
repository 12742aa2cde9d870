"""Convolutions on the CUDA cores: exactly one multiply-add a kept weight, image and position; for few kept weights.

Memory is batch-last, [C][H][W][N]: a kept weight multiplies rows of the batch, which are contiguous, and whether its tap falls
into the padding is one question for a whole row. Nothing but the packed index of the mask is needed
(tost_kernels/packed_index.py).

Forward: a program computes one pixel of BN images, for R output channels at a time. Its inner loop takes the next BK
kept weights of each channel: the lanes of a warp first decode different ones (channel, tap -> where the row begins, -1 in the
padding) and hand them round through shared memory, then every lane loads 16 bytes of each row and multiplies. R is chosen so
that 32 lanes x 16 bytes are covered by whole rows of BN images: the sum over BK stays inside a thread, whatever BN is. The
input gradient is the same kernel on the transposed view: rows are input channels, kept weights are found through t_perm, and a
tap counts where the stride divides.

Unstructured rows share no operands, so every multiply-add has to get its x from the L1 cache: 128 bytes a clock, a quarter of
the fp32 peak. The cache has to hold the (channels x taps x BN) numbers that the program gathers from, or they come from L2 at
less than half that rate: hence one program loops over many channels of one pixel instead of one program for each, and BN is
small where there are many input channels.

Values' gradient: a program has BK kept weights of one output channel and part of the sum over pixels and batch; it keeps
BK x BN products in registers, adds them up at the end, and writes them to its part of a buffer that `sum_parts` reduces.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from tost_kernels.layout import BATCH_LAST, as_layout, empty_layout
from tost_kernels.ops.masked_conv2d import output_shape
from tost_kernels.packed_index import BLOCK, HEADER
from tost_kernels.triton.options import Geometry, Options
from tost_kernels.triton.specimen import Specimen
from tost_kernels.triton.sum_parts import sum_parts

PROGRAMS = 4 * 132  # that keep a large GPU busy: about four for each of its multiprocessors


@triton.jit(do_not_specialize=["at_ptr", "at_col", "at_perm"])  # else they would compile it anew for one mask in sixteen
def _multiply(
    source,
    values,
    bias,
    target,
    index,
    at_ptr,
    at_col,
    at_perm,
    blocks,  # entries of ptr a row
    rows,  # channels of target
    rows_per_group,
    columns_per_group,
    height,  # of source
    width,
    target_height,
    target_width,
    batch_units,  # batch / ALIGN
    row_parts,  # that the rows are cut into
    KY: tl.constexpr,
    KX: tl.constexpr,
    SY: tl.constexpr,
    SX: tl.constexpr,
    PY: tl.constexpr,
    PX: tl.constexpr,
    DY: tl.constexpr,
    DX: tl.constexpr,
    TRANSPOSED: tl.constexpr,
    GROUPED: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    ALIGN: tl.constexpr,
    EVEN: tl.constexpr,  # BN divides the batch
    WIDE: tl.constexpr,  # element offsets need 64 bits
    CHANNEL_BLOCK: tl.constexpr,
    R: tl.constexpr,
    BK: tl.constexpr,
    BN: tl.constexpr,
):
    batch = batch_units * ALIGN
    pixels = target_height * target_width
    batch_blocks = tl.cdiv(batch, BN)
    pixel = tl.program_id(0) % pixels  # neighbours in time read the same rows of source
    rest = tl.program_id(0) // pixels
    part = rest // batch_blocks
    ty = pixel // target_width
    tx = pixel % target_width
    n = rest % batch_blocks * BN + tl.arange(0, BN)

    per_part = tl.cdiv(tl.cdiv(rows, R), row_parts) * R
    for first in range(part * per_part, min((part + 1) * per_part, rows), R):
        row = first + tl.arange(0, R)
        line = row
        group = row // rows_per_group
        first_channel = group * columns_per_group
        if TRANSPOSED and GROUPED:
            # The index knows no groups: of a line's columns, which are output channels, only those of the group count.
            line = row % rows_per_group
            begin = line * blocks + first_channel // CHANNEL_BLOCK
            end = line * blocks + tl.cdiv(first_channel + columns_per_group, CHANNEL_BLOCK)
        else:
            begin = line * blocks
            end = begin + blocks
        begin = tl.load(index + at_ptr + begin, row < rows, 0)
        end = tl.load(index + at_ptr + end, row < rows, 0)

        sums = tl.zeros([R, BN], tl.float32)
        for step in range(0, tl.max(end - begin, 0), BK):
            k = (begin + step)[:, None] + tl.arange(0, BK)[None, :]
            live = k < end[:, None]
            column = tl.load(index + at_col + k, live, 0, eviction_policy="evict_first")
            place = tl.load(index + at_perm + k, live, 0, eviction_policy="evict_first") if TRANSPOSED else k
            weight = tl.load(values + place, live, 0.0, eviction_policy="evict_first").to(tl.float32)
            channel = column // (KY * KX)
            dy = column // KX % KY
            dx = column % KX
            if TRANSPOSED:
                if GROUPED:
                    live &= (channel >= first_channel[:, None]) & (channel < (first_channel + columns_per_group)[:, None])
                y = ty + PY - dy * DY
                x = tx + PX - dx * DX
                live &= (y >= 0) & (x >= 0) & (y % SY == 0) & (x % SX == 0)
                y = y // SY
                x = x // SX
                live &= (y < height) & (x < width)
            else:
                if GROUPED:
                    channel += first_channel[:, None]
                y = ty * SY - PY + dy * DY
                x = tx * SX - PX + dx * DX
                live &= (y >= 0) & (y < height) & (x >= 0) & (x < width)
            if WIDE:
                channel = channel.to(tl.int64)
            # -1 says that there is nothing to load: one number to hand round instead of a number and a mask.
            offset = (tl.where(live, (channel * height + y) * width + x, -1) * batch)[:, :, None]
            mask = offset >= 0
            if not EVEN:
                mask = mask & (n < batch)[None, None, :]
            inputs = tl.load(source + (offset + n[None, None, :]), mask, 0.0).to(tl.float32)
            sums += tl.sum(inputs * weight[:, :, None], 1)

        if HAS_BIAS:
            sums += tl.load(bias + row, row < rows, 0.0).to(tl.float32)[:, None]
        if WIDE:
            row = row.to(tl.int64)
        offset = ((row * target_height + ty) * target_width + tx) * batch
        mask = (row < rows)[:, None] & (n < batch)[None, :]
        tl.store(target + (offset[:, None] + n[None, :]), sums.to(target.dtype.element_ty), mask)


@triton.jit(do_not_specialize=["at_ptr", "at_col", "nnz"])
def _correlate(
    grad,
    source,
    parts,
    index,
    at_ptr,
    at_col,
    nnz,
    blocks,
    rows,
    rows_per_group,
    columns_per_group,
    height,
    width,
    out_height,
    out_width,
    batch_units,
    chunks,  # programs that share a row
    split,
    KY: tl.constexpr,
    KX: tl.constexpr,
    SY: tl.constexpr,
    SX: tl.constexpr,
    PY: tl.constexpr,
    PX: tl.constexpr,
    DY: tl.constexpr,
    DX: tl.constexpr,
    GROUPED: tl.constexpr,
    ALIGN: tl.constexpr,
    EVEN: tl.constexpr,
    WIDE: tl.constexpr,
    BK: tl.constexpr,
    BN: tl.constexpr,
):
    batch = batch_units * ALIGN
    batch_blocks = tl.cdiv(batch, BN)
    row = tl.program_id(0) % rows  # neighbours in time read the same images
    rest = tl.program_id(0) // rows
    chunk = rest % chunks
    part = rest // chunks
    steps = out_height * out_width * batch_blocks
    per_part = tl.cdiv(steps, split)
    first = part * per_part
    last = min(first + per_part, steps)

    begin = tl.load(index + at_ptr + row * blocks)
    end = tl.load(index + at_ptr + (row + 1) * blocks)
    lane = tl.arange(0, BN)
    for start in range(begin + chunk * BK, end, chunks * BK):
        k = start + tl.arange(0, BK)
        kept = k < end
        column = tl.load(index + at_col + k, kept, 0)
        channel = column // (KY * KX)
        if GROUPED:
            channel += row // rows_per_group * columns_per_group
        y0 = column // KX % KY * DY - PY
        x0 = column % KX * DX - PX
        if WIDE:
            channel = channel.to(tl.int64)
        corner = (channel * height + y0) * width + x0

        block = first % batch_blocks
        oy = first // batch_blocks // out_width
        ox = first // batch_blocks % out_width
        products = tl.zeros([BK, BN], tl.float32)
        for _ in range(first, last):
            n = block * BN + lane
            y = y0 + oy * SY
            x = x0 + ox * SX
            mask = (kept & (y >= 0) & (y < height) & (x >= 0) & (x < width))[:, None]
            offset = corner + (oy * SY * width + ox * SX)
            position = (row.to(tl.int64) if WIDE else row) * out_height + oy
            position = (position * out_width + ox) * batch
            if EVEN:
                gradients = tl.load(grad + (position + n)).to(tl.float32)
            else:
                gradients = tl.load(grad + (position + n), n < batch, 0.0).to(tl.float32)
                mask = mask & (n < batch)[None, :]
            inputs = tl.load(source + ((offset * batch)[:, None] + n[None, :]), mask, 0.0).to(tl.float32)
            products += inputs * gradients[None, :]
            # The next block of the batch, else the next pixel: dividing costs more.
            block += 1
            ox += (block == batch_blocks).to(tl.int32)
            block = tl.where(block == batch_blocks, 0, block)
            oy += (ox == out_width).to(tl.int32)
            ox = tl.where(ox == out_width, 0, ox)
        place = part.to(tl.int64) * nnz + k
        tl.store(parts + place, tl.sum(products, 1).to(parts.dtype.element_ty), kept)


class _Sections(NamedTuple):
    """Where the sections of a packed index begin, and the entries of ptr a row."""

    ptr: int
    col: int
    t_ptr: int
    t_col: int
    t_perm: int
    blocks: int
    t_blocks: int


def sections(weight_shape: Sequence[int], nnz: int) -> _Sections:
    """The sections of the packed index of a weight (O, I, kh, kw), from numbers that the host knows."""
    outputs, inputs = weight_shape[:2]
    blocks, t_blocks = -(-inputs // BLOCK), -(-outputs // BLOCK)
    col = HEADER + outputs * blocks + 1
    t_ptr = col + nnz
    t_col = t_ptr + inputs * t_blocks + 1
    return _Sections(HEADER, col, t_ptr, t_col, t_col + nnz, blocks, t_blocks)


def taps(geometry: Geometry) -> dict[str, int]:
    """Kernel, stride, padding and dilation, as the kernels name them."""
    pairs = (geometry.weight_shape[2:], geometry.stride, geometry.padding, geometry.dilation)
    return {f"{name}{axis}": pair[i] for name, pair in zip("KSPD", pairs, strict=True) for i, axis in enumerate("YX")}


def batch_constants(batch: int, bn: int, *tensors: Tensor) -> dict[str, Any]:
    """What depends on the batch, and on whether 32 bits reach the end of the tensors."""
    bn = min(bn, triton.next_power_of_2(batch))
    # Rows of the batch begin at multiples of ALIGN: loads of up to 16 bytes.
    return {"ALIGN": math.gcd(batch, 16), "EVEN": batch % bn == 0, "WIDE": any(t.numel() >= 2**31 for t in tensors), "BN": bn}


def _rows_at_once(rows: int, bn: int, align: int, warps: int, itemsize: int) -> int:
    """So many rows that each warp has whole ones: none of its lanes then shares a sum with another."""
    vector = min(align, 16 // itemsize)
    lanes = min(32, max(bn // vector, 1))
    return min(warps * 32 // lanes, int(triton.next_power_of_2(rows)))


def _launch(
    source: Tensor,
    values: Tensor,
    bias: Tensor | None,
    target: Tensor,
    index: Tensor,
    geometry: Geometry,
    options: Options,
    transposed: bool,
) -> None:
    outputs, inputs = geometry.weight_shape[:2]
    at = sections(geometry.weight_shape, values.shape[0])
    batch, rows, target_height, target_width = target.shape
    constants = batch_constants(batch, options.bn, source, target)
    at_once = _rows_at_once(rows, constants["BN"], constants["ALIGN"], options.warps, source.element_size())
    places = target_height * target_width * triton.cdiv(batch, constants["BN"])
    # Fewer weights a step than lanes, and each lane would decode those of its neighbours too.
    at_least = options.warps * 32 // at_once
    row_parts = min(triton.cdiv(rows, at_once), triton.cdiv(PROGRAMS, places))
    per_group = (inputs, outputs // geometry.groups) if transposed else (outputs // geometry.groups, inputs)
    with torch.cuda.device_of(source):
        _multiply[(places * row_parts,)](
            source,
            values,
            values if bias is None else bias,
            target,
            index,
            at.t_ptr if transposed else at.ptr,
            at.t_col if transposed else at.col,
            at.t_perm,
            at.t_blocks if transposed else at.blocks,
            rows,
            *per_group,
            *source.shape[2:],
            target_height,
            target_width,
            batch // constants["ALIGN"],
            row_parts,
            **taps(geometry),
            **constants,
            TRANSPOSED=transposed,
            GROUPED=geometry.groups > 1,
            HAS_BIAS=bias is not None,
            CHANNEL_BLOCK=BLOCK,
            R=at_once,
            BK=max(options.bk, triton.next_power_of_2(at_least)),
            num_warps=options.warps,
            num_stages=1,
        )


def forward(x: Tensor, values: Tensor, bias: Tensor | None, index: Tensor, geometry: Geometry, options: Options) -> Tensor:
    """The convolution of `x` (N, C, H, W): a batch-last tensor (N, O, H_out, W_out).

    values, bias: of x's dtype, float32 or bfloat16, contiguous. index: one that starts with the packed index of the mask.
    options: bn, bk and warps are used.
    """
    x = as_layout(x, BATCH_LAST)
    out = empty_layout(output_shape(x.shape, *geometry), BATCH_LAST, x)
    if out.numel():
        _launch(x, values, bias, out, index, geometry, options, transposed=False)
    return out


def input_grad(
    grad: Tensor, values: Tensor, index: Tensor, input_shape: Sequence[int], geometry: Geometry, options: Options
) -> Tensor:
    """The gradient of the input, batch-last, of `input_shape`, for `grad` (N, O, H_out, W_out)."""
    grad = as_layout(grad, BATCH_LAST)
    result = empty_layout(input_shape, BATCH_LAST, grad)
    if result.numel():
        _launch(grad, values, None, result, index, geometry, options, transposed=True)
    return result


def values_grad(grad: Tensor, x: Tensor, index: Tensor, nnz: int, geometry: Geometry, options: Options) -> Tensor:
    """The gradient (nnz,) of the values, for `grad` (N, O, H_out, W_out) and the input `x` (N, C, H, W).

    options: bn, bk, warps, and split: the parts that the sum over images and positions is cut into, 0: enough to fill a GPU.
    """
    if not nnz or not grad.numel():
        return x.new_zeros(nnz)
    grad, x = as_layout(grad, BATCH_LAST), as_layout(x, BATCH_LAST)
    outputs, inputs = geometry.weight_shape[:2]
    at = sections(geometry.weight_shape, nnz)
    constants = batch_constants(x.shape[0], options.bn, grad, x)
    chunks = triton.cdiv(nnz, outputs * options.bk)  # as the average row needs; a longer one loops
    steps = grad.shape[2] * grad.shape[3] * triton.cdiv(x.shape[0], constants["BN"])
    split = min(options.split or triton.cdiv(PROGRAMS, outputs * chunks), steps)
    parts = torch.empty(split, nnz, dtype=x.dtype if split == 1 else torch.float32, device=x.device)
    with torch.cuda.device_of(x):
        _correlate[(outputs * chunks * split,)](
            grad,
            x,
            parts,
            index,
            at.ptr,
            at.col,
            nnz,
            at.blocks,
            outputs,
            outputs // geometry.groups,
            inputs,
            *x.shape[2:],
            *grad.shape[2:],
            x.shape[0] // constants["ALIGN"],
            chunks,
            split,
            **taps(geometry),
            **constants,
            GROUPED=geometry.groups > 1,
            BK=options.bk,
            num_warps=options.warps,
            num_stages=1,
        )
    return parts.view(nnz) if split == 1 else sum_parts(parts, nnz, x.dtype)


def specimens() -> list[Specimen]:
    """What `make gpu-check` compiles: 128@16, batch 256."""
    convolution = {"KY": 3, "KX": 3, "SY": 1, "SX": 1, "PY": 1, "PX": 1, "DY": 1, "DX": 1}
    constants = convolution | {"GROUPED": False, "ALIGN": 16, "EVEN": True, "WIDE": False}
    found = []
    for name, kernel, itemsize, bn, bk, warps, extra in (
        ("forward", _multiply, 4, 32, 8, 16, {"TRANSPOSED": False, "HAS_BIAS": True}),
        ("forward", _multiply, 4, 128, 32, 4, {"TRANSPOSED": False, "HAS_BIAS": True}),
        ("forward", _multiply, 2, 64, 8, 16, {"TRANSPOSED": False, "HAS_BIAS": True}),
        ("input_grad", _multiply, 4, 32, 8, 16, {"TRANSPOSED": True, "HAS_BIAS": False}),
        ("values_grad", _correlate, 4, 128, 32, 8, {}),
    ):
        dtype = "fp32" if itemsize == 4 else "bf16"
        chosen = constants | extra | {"BK": bk, "BN": bn}
        if kernel is _multiply:
            chosen |= {"CHANNEL_BLOCK": BLOCK, "R": _rows_at_once(128, bn, 16, warps, itemsize)}
        pointers = dict.fromkeys(("source", "values", "bias", "target", "grad"), f"*{dtype}")
        pointers |= {"index": "*i32", "parts": "*fp32"}
        types = {key: "constexpr" if key in chosen else pointers.get(key, "i32") for key in kernel.arg_names}
        found.append(
            Specimen(
                name=f"conv_direct.{name}.{dtype}.{bn}",
                kernel=kernel,
                signature=types,
                constexprs=chosen,
                num_warps=warps,
                num_stages=1,
                attrs={key: 16 for key in types if key in pointers or key == "batch_units"},
            )
        )
    return found
