"""Between batch-last memory and the others on a GPU: a tiled transpose, which reads and writes whole cache lines.

torch copies a permuted tensor in the order of its destination: every 4 bytes it reads are in another cache line. Here a program
reads a tile along what is consecutive in the source and writes it along what is consecutive in the destination; in between the
compiler exchanges the tile through shared memory. Only bits move, so the kernel knows integers of 1, 2, 4 and 8 bytes, no dtypes.

Every conversion is one of (slabs, columns, rows): element (z, j, i) goes from source[z * slab + j * row + i] to
destination[z * slab' + i * row' + j]. Contiguous -> batch-last: one slab, i runs over C H W, j over the batch; channels_last ->
batch-last: a slab a pixel, i runs over the channels; the ways back the same with source and destination exchanged.
"""

from __future__ import annotations

from math import prod

import torch
import triton
import triton.language as tl
from torch import Tensor

from tost_kernels.layout import BATCH_LAST, CHANNELS_LAST, CONTIGUOUS, empty_layout, layout_of
from tost_kernels.triton.channels import on_device_of
from tost_kernels.triton.checks import check, shape_string
from tost_kernels.triton.implement import implement
from tost_kernels.triton.specimen import Specimen

EDGE = 64  # of a tile: 256 bytes of 4-byte elements, and room for both in the 16 KB that a few programs an SM can have
SPARE = 2**20  # more positions than a tile adds past the end
BITS = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


@triton.jit
def transpose_kernel(
    source, destination, rows, columns, slab, row, slab_out, row_out, tiles_i, tiles_j,
    WIDTH: tl.constexpr, HEIGHT: tl.constexpr, WIDE: tl.constexpr,
):  # fmt: skip
    """rows: how many i; columns: how many j. A program moves one tile (HEIGHT, WIDTH) of one slab."""
    program = tl.program_id(0)
    i = program % tiles_i * WIDTH + tl.arange(0, WIDTH)
    j = program // tiles_i % tiles_j * HEIGHT + tl.arange(0, HEIGHT)
    z = program // tiles_i // tiles_j
    if WIDE:
        i, j, z = i.to(tl.int64), j.to(tl.int64), z.to(tl.int64)
    exists = (j < columns)[:, None] & (i < rows)[None, :]
    tile = tl.load(source + (z * slab + j[:, None] * row + i[None, :]), mask=exists)
    tl.store(destination + (z * slab_out + i[None, :] * row_out + j[:, None]), tile, mask=exists)


def _convert(x: Tensor, to: str) -> Tensor:
    """A copy of x, dense in one of the three layouts, in another one of them, of which one is batch-last."""
    out = empty_layout(x.shape, to, x)
    source = layout_of(x)
    batch, channels, rest = x.shape[0], x.shape[1], prod(x.shape[2:])
    if CHANNELS_LAST in (source, to):
        slabs, inner, slab, slab_last = rest, channels, channels, batch  # a slab a pixel
        row, row_last = rest * channels, rest * batch
    else:
        slabs, inner, slab, slab_last = 1, channels * rest, 0, 0
        row, row_last = channels * rest, batch
    strides = (slab, row, slab_last, row_last) if to == BATCH_LAST else (slab_last, row_last, slab, row)
    rows, columns = (inner, batch) if to == BATCH_LAST else (batch, inner)
    width, height = min(EDGE, triton.next_power_of_2(rows)), min(EDGE, triton.next_power_of_2(columns))
    tiles = triton.cdiv(rows, width), triton.cdiv(columns, height)
    bits = BITS[x.element_size()]
    with on_device_of(x):
        transpose_kernel[(slabs * tiles[0] * tiles[1],)](
            x.view(bits),
            out.view(bits),
            rows,
            columns,
            *strides,
            *tiles,
            WIDTH=width,
            HEIGHT=height,
            WIDE=x.numel() + SPARE >= 2**31,
            num_warps=4,
        )
    return out


def _checked(op: str, input: Tensor) -> Tensor:
    """The input, dense: one of any other strides is copied first."""
    check(op, input.dim() in (2, 4), f"input: expected (N, C, H, W) or (N, F), got shape {shape_string(input.shape)}")
    return input.contiguous() if layout_of(input) == CONTIGUOUS else input


def _to(input: Tensor, layout: str) -> Tensor:
    """A new tensor: a copy where there is nothing to transpose, or no integer that wide."""
    one_of_two = (layout_of(input) == BATCH_LAST) != (layout == BATCH_LAST)
    if not one_of_two or input.numel() == 0 or input.element_size() not in BITS:
        return empty_layout(input.shape, layout, input).copy_(input)
    return _convert(input, layout)


def to_batch_last(input: Tensor) -> Tensor:
    return _to(_checked("to_batch_last", input), BATCH_LAST)


def from_batch_last(input: Tensor, layout: str) -> Tensor:
    op = "from_batch_last"
    fits = layout == CONTIGUOUS or (layout == CHANNELS_LAST and input.dim() == 4)
    check(op, fits, f"layout: expected contiguous or, of 4 dimensions, channels_last, got {layout!r}")
    return _to(_checked(op, input), layout)


implement("to_batch_last", to_batch_last)
implement("from_batch_last", from_batch_last)


def specimens() -> list[Specimen]:
    signature = dict.fromkeys(transpose_kernel.arg_names, "i32") | {"source": "*i32", "destination": "*i32"}
    constants = {"WIDTH": EDGE, "HEIGHT": EDGE, "WIDE": False}
    signature |= dict.fromkeys(constants, "constexpr")
    sizes = ("source", "destination", "rows", "columns", "slab", "row", "slab_out", "row_out")
    return [Specimen("batch_last.4_bytes", transpose_kernel, signature, constants, 4, 3, attrs=dict.fromkeys(sizes, 16))]
