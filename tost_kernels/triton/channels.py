"""How the elementwise kernels walk over a tensor: as (outer, C, inner), the one shape that fits all three layouts.

batch-last [C][H][W][N] is outer = 1, inner = H W N; contiguous is outer = N, inner = H W; channels_last is outer = N H W,
inner = 1. A channel has outer * inner positions. A tile is (POSITIONS, CHANNELS): where inner > 1 one channel and a run of
positions, which are neighbours in memory; where inner = 1 the channels are the neighbours and a tile takes up to 64 of them.
Either way a thread moves 16 bytes at a time (8 of channels_last bfloat16), and what a channel needs (its scale, say) is worked
out once a tile, not once an element.

Sums over a channel: its tiles are dealt out to `splits` programs, each of which leaves one partial sum; who reads them adds
them up in order. No atomics: the same bits every time. A few programs per SM are all there are, so the partial sums are few.
"""

from __future__ import annotations

import functools
from contextlib import AbstractContextManager, nullcontext
from math import prod
from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from tost_kernels.layout import BATCH_LAST, CHANNELS_LAST, layout_of
from tost_kernels.triton.specimen import Specimen

THREADS = 256
WARPS = THREADS // 32
PROGRAMS_PER_SM = 6  # that share out a sum
MOST_SPLITS = 256  # of a channel that others add up at their beginning
MOST_CHANNELS = 64  # of a tile with inner = 1
_WITHOUT_GPU = 4  # SMs, under the interpreter: enough for more than one split


class View(NamedTuple):
    """A dense tensor as (outer, channels, inner), row-major, and the tile that walks over it."""

    outer: int
    channels: int
    inner: int
    tile_positions: int
    tile_channels: int

    @property
    def positions(self) -> int:
        """Elements a channel."""
        return self.outer * self.inner

    @property
    def tiles(self) -> int:
        return -(-self.positions // self.tile_positions)

    @property
    def channel_tiles(self) -> int:
        return -(-self.channels // self.tile_channels)

    def splits(self, device: torch.device, most: int = MOST_SPLITS) -> int:
        """How many programs share out the positions of a channel: few SMs' worth of them, none without a tile."""
        wanted = -(-PROGRAMS_PER_SM * processors(device) // max(self.channel_tiles, 1))
        return max(1, min(wanted, self.tiles, most))

    def steps(self, device: torch.device) -> int:
        """How many tiles a program of a pass without sums takes: enough to pay for its beginning, few enough to fill the GPU."""
        programs = self.tiles * self.channel_tiles
        full = 4 * PROGRAMS_PER_SM * processors(device)
        return 4 if programs >= 4 * full else 2 if programs >= 2 * full else 1

    def constants(self) -> dict[str, Any]:
        """The constexpr arguments that all these kernels share."""
        return {
            "POSITIONS": self.tile_positions,
            "CHANNELS": self.tile_channels,
            "ONE_RUN": self.outer == 1,
            # positions past the end are counted, too, before they are found not to exist
            "WIDE": self.outer * self.channels * self.inner + 2**20 >= 2**31,
        }


def view_of(x: Tensor, shared: bool = False) -> View:
    """The view of `x` (N, C, ...), dense in the layout that `layout_of` names; `shared`: of any x, all of it one channel."""
    if shared:
        return tiled(1, 1, x.numel(), x.dtype)
    batch, channels, rest = x.shape[0], x.shape[1], prod(x.shape[2:])
    if channels == 1 or layout_of(x) == BATCH_LAST:
        return tiled(1, channels, rest * batch, x.dtype)
    if layout_of(x) == CHANNELS_LAST:
        return tiled(batch * rest, channels, 1, x.dtype)
    return tiled(batch, channels, rest, x.dtype)


def tiled(outer: int, channels: int, inner: int, dtype: torch.dtype) -> View:
    """A view with the tile for elements of `dtype`: 16 bytes a thread and tensor, less only where all is small."""
    if inner == 1 and channels > 1:
        # 8 bytes of bfloat16: what a thread holds of its channels' coefficients, not the loads, is what limits the programs here
        width = min(triton.next_power_of_2(channels), MOST_CHANNELS)
        return View(outer, channels, inner, THREADS * 4 // width, width)
    elements = THREADS * 16 // dtype.itemsize
    return View(outer, channels, inner, min(elements, max(128, triton.next_power_of_2(outer * inner))), 1)


@functools.cache
def _processors(index: int) -> int:
    return torch.cuda.get_device_properties(index).multi_processor_count


def processors(device: torch.device) -> int:
    """The streaming multiprocessors of `device`."""
    if device.type != "cuda":
        return _WITHOUT_GPU
    return _processors(torch.cuda.current_device() if device.index is None else device.index)


def on_device_of(x: Tensor) -> AbstractContextManager[Any]:
    """Triton launches on the current device: make it the one of `x`."""
    return torch.cuda.device_of(x) if x.is_cuda else nullcontext()


def specimen(name: str, kernel: Any, x: View, given: dict[str, Any], constants: dict[str, Any], like: torch.dtype) -> Specimen:
    """What `make gpu-check` compiles, of a kernel that takes the sizes of the view `x`.

    given: the arguments that are not sizes: the name of a type, or None for a tensor that is absent. All others are tensors of
    dtype `like`. A size of 1 is a constant, and a size that 16 divides says so, as in a launch.
    """
    element = {torch.float32: "*fp32", torch.bfloat16: "*bf16"}[like]
    sizes = x._asdict() | {"channel_tiles": x.channel_tiles, "tiles": x.tiles, "splits": 16}
    absent = {argument: None for argument, kind in given.items() if kind is None}
    ones = {argument: 1 for argument, size in sizes.items() if size == 1}
    constants = {k: v for k, v in (constants | x.constants() | absent | ones).items() if k in kernel.arg_names}
    signature, attrs = {}, {}
    for argument in kernel.arg_names:
        size = sizes.get(argument, 16)
        signature[argument] = (
            "constexpr" if argument in constants else "i32" if argument in sizes else given.get(argument, element)
        )
        if signature[argument].startswith(("*", "i")) and size % 16 == 0:
            attrs[argument] = 16
    return Specimen(name, kernel, signature, constants, WARPS, 3, attrs=attrs)


@triton.jit
def channels_of(tile, WIDE: tl.constexpr, CHANNELS: tl.constexpr):
    """The channels of a tile, int64 where offsets need it."""
    c = tile * CHANNELS + tl.arange(0, CHANNELS)
    return c.to(tl.int64) if WIDE else c


@triton.jit
def offsets_of(
    tile, c, outer, channels, inner,
    POSITIONS: tl.constexpr, CHANNELS: tl.constexpr, ONE_RUN: tl.constexpr, WIDE: tl.constexpr,
):  # fmt: skip
    """Offsets (POSITIONS, CHANNELS) of the elements of one tile, and which of them exist."""
    tile = tile.to(tl.int64) if WIDE else tile
    p = tile * POSITIONS + tl.arange(0, POSITIONS)
    count = tl.cast(outer, tl.int64) * inner if WIDE else outer * inner
    exists = (p < count)[:, None]
    if CHANNELS > 1:  # inner = 1
        return p[:, None] * channels + c[None, :], exists & (c < channels)[None, :]
    else:
        if ONE_RUN:
            return p[:, None] + c[None, :] * inner, exists
        else:
            row = p // inner  # (a run of `inner` positions at a time: the compiler proves that they are neighbours)
            return (row * inner * channels + (p - row * inner))[:, None] + c[None, :] * inner, exists


@triton.jit
def load(pointer, offsets, mask):
    """Elements as float32; 0 where there are none."""
    return tl.load(pointer + offsets, mask=mask, other=0.0).to(tl.float32)


@triton.jit
def store(pointer, offsets, value, mask):
    tl.store(pointer + offsets, value.to(pointer.dtype.element_ty), mask=mask)


@triton.jit
def slots_of(row, c, channels, splits, SPLITS: tl.constexpr):
    """Where the partial sums (row, split, channel) of channels c lie, (SPLITS, channels of c), and which of them exist."""
    s = tl.arange(0, SPLITS)[:, None]
    return (row * splits + s) * channels + c[None, :], (s < splits) & (c < channels)[None, :]


@triton.jit
def total(partial, row, c, channels, splits, SPLITS: tl.constexpr):
    """The sum of the partial sums in one row of `partial`, for each of the channels c."""
    at, exists = slots_of(row, c, channels, splits, SPLITS)
    return tl.sum(tl.load(partial + at, mask=exists, other=0.0), 0)
