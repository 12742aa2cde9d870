"""What a cuda plan may ask for, and the rule that fills in what it leaves open.

The keys (tost_kernels/plan_options.py has the grammar):

    algo        gather: tensor cores on row groups with condensed columns, read from a patch of the input in shared memory;
                direct: one multiply-add a kept weight, on the CUDA cores, from the same patch
    rows        rows of the weight (output channels; in the input gradient input channels) that share a list of columns, all
                passes alike. gather: 16 or 32. direct: 1 needs the packed index alone; with 2 or 4 what one of them loads the
                others have in registers. In a plan of gather a direct pass has 1
    chunk       source channels that are staged in shared memory at once, all passes alike
    pixels      of the target that a block computes, times 128 bytes of images: 32 of float32, 64 of bfloat16
    warps       of a block
    stages      chunks on their way to shared memory at once
    split       parts that a sum over images and pixels is cut into: values_grad; by default enough to fill the device
    precision   of float32 products: ieee or, gather alone, tf32; all passes alike. bfloat16 has nothing to choose: ieee

The ops take the string that `resolve` completed, or "": direct with the defaults of `Options`, all that the base index allows;
csrc/cuda/conv_options.cu reads it.

Infinities and NaN spread as far as zeros are multiplied. Direct with rows=1 multiplies kept weights alone; row groups also the
zeros of the rows that do not keep a column that another row of the group keeps, so what is not finite there reaches all of them,
in the output and the input's gradient; the values' gradient has no such sums. All multiply the zeros around an image: a weight
that is not finite, or a gradient of the output at the border, makes NaN with them. Pixels past the output's edge never count.

The static rule (`tune` knows better: it measures) is arithmetic on an H200, of which nothing is measured yet:

- gather needs TF32 or bfloat16: tensor cores have no IEEE products of float32. Elsewhere a pass is direct.
- direct below 64 source channels a group, for less than four chunks do not keep copies and products apart, and a group of rows
  that meets the border of a convolution's groups shares no column; and below 16 images, where both pay for 32 or 64.
- Between the two the columns decide. Both are bound by what they read of shared memory, 128 bytes a clock and SM. direct reads
  16 bytes a lane for 4 (float32) or 8 (bfloat16) multiply-adds: 6.3e12 or 1.1e13 a second. gather reads 256 bytes for a product
  of 16 x 8 x 8 (16 x 8 x 16): 1.2e14 or 2.3e14, 19 or 22 times as many; but it multiplies each column of 16 rows by all 16, and
  reads some again for bank conflicts. So it pays where a kept weight costs it no more than 19 or 22 columns of a row. A random
  mask that keeps d has p = 1 - (1 - d)**16 of a chunk's C columns. They fall on b = 4 (float32) or 8 (bfloat16) banks, and the
  fullest has about 1.1 or 1.5 standard deviations more than the average: C p + 1.1 sqrt(C p (1 - p) b) + padding of half a step.
  Permuting the rows saves 5% of that (docs/notes/cuda-gather-index.md has the counts). 3x3 convolutions cross the line at
  densities of about 1.7% (float32) and 2.2% (bfloat16) in chunks of 16, 1.1% and 1.5% in chunks of 32. Dead filters and
  channels are left out of C and d: they do not disturb the others.
- The input gradient of a strided convolution has segments of one phase, so a fourth of the columns at stride 2, and more padding.
- rows 32 read shared memory once for two products. These take 1.6 clocks each at 60% of the tensor cores' peak, about what
  mma.sync reaches, and the read 2. So 16 rows cost 2 clocks a step, 32 cost 3.2, and pay where they have less than 1.25 times the
  columns of 16: 1 + (1 - d)**16 < 1.25, a density of 8.3% and more. Skewed masks reach that earlier: `tune` tries.
- chunk, where all passes are gather and their blocks have 8 warps: the largest of which two stages fit into a block's 227 KB,
  32 for 3x3, 64 for 1x1, 16 for 5x5, if there are three chunks or more. Sums take the registers of an SM for such a block, so a
  second one has no room whatever the chunk is. In 3x3, 32 channels in place of 16 read 4 to 10% less of shared memory in
  float32, 7 to 16% in bfloat16, and the values' gradient reads the output's gradient from L2 half as often: 44 us in place of
  68 (128 channels of 16x16, batch 256, 95%), less than its 58 of shared memory. The price: a block of forward waits 2.3 us for
  its first 96 KB, in place of 1.2, of some 26 us with 128 channels and more with more. Where a block has fewer warps (of
  float32 below 128 channels) or a pass is direct, SMs run two blocks: the largest chunk whose patch is no more than 56 KB, 16
  for 3x3, 32 for 1x1, 8 for 5x5. (An A100 has 163 KB, which hold one stage of the large ones: `tune` there.)
- pixels 8: the 4x6 pixels of a 3x3 patch are read from L2 three times in all, those of 2x2 four times. But 4 where twice the
  blocks of 8 pixels and 128 output channels (bfloat16: 64) still are no more than the 132 SMs: with more, some SM would have
  two of the smaller ones, and as much to do as before. A lane of direct holds the sums of 8, so it has no fewer.
- stages 2, unless one chunk is all there is.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from tost_kernels.plan_options import PASSES, Asked, Grammar, filled, product_precision

if TYPE_CHECKING:
    from tost_kernels.pattern import Pattern


class Options(NamedTuple):
    """The variant of one pass; see the module. split 0: as many parts as fill the device."""

    algo: str = "direct"
    rows: int = 1
    chunk: int = 16
    pixels: int = 8
    warps: int = 8
    stages: int = 2
    split: int = 0
    precision: str = "ieee"


_CHOICES: dict[str, Sequence[str | int]] = {
    "algo": ("direct", "gather"),
    "rows": (1, 2, 4, 16, 32),
    "chunk": (8, 16, 32, 64),
    "pixels": (4, 8, 16),
    "warps": (4, 8, 16),
    "stages": range(1, 4),
    "split": range(1, 257),
    "precision": ("ieee", "tf32"),
}
_WHOLE_PLAN = ("rows", "chunk", "precision")  # one for the three passes

_ROW_BYTES = 128  # of images
_SMALL_PATCH, _LARGE_PATCH = 56 * 1024, 112 * 1024  # bytes of a chunk, where an SM runs two blocks, or one
_PROCESSORS = 132
_BLOCK_CHANNELS = {torch.float32: 128, torch.bfloat16: 64}  # of the target, that a block of gather does with 8 warps and 8 pixels
_FEWEST_CHANNELS, _FEWEST_IMAGES = 64, 16  # for tensor cores
_FEWEST_DIRECT_PIXELS = 8  # of which a lane of direct holds sums
_SHARES = 1.25  # 32 rows pay with this many times the columns of 16
_GAINS = {torch.float32: 19, torch.bfloat16: 22}  # multiply-adds of gather in the time of one of direct
_PERMUTED = 0.95  # of the columns, where rows that share more come together
_FULLEST = {torch.float32: 1.1, torch.bfloat16: 1.5}  # of the banks: standard deviations above the average


class _Layer(NamedTuple):
    """A convolution from the side of one pass: what the gathered index makes of it. A linear layer is one with a 1x1 kernel."""

    sources: int  # channels of a group that are read
    targets: int  # and that are written
    taps: float  # of a segment
    alive: float  # of the sources
    density: float  # of what is left without dead filters and channels


def depth_of(algo: str, dtype: torch.dtype) -> int:
    """Columns of a step, of which a segment of the gathered index has a multiple."""
    return 1 if algo == "direct" else 16 if dtype == torch.bfloat16 else 8


def _check(plan: str, passes: dict[str, Options]) -> None:
    for name, options in passes.items():
        if options.algo == "direct" and options.pixels < _FEWEST_DIRECT_PIXELS:
            raise ValueError(f"cuda plan: expected {name}.pixels=8 or {name}.pixels=16 with algo=direct, got 4 in {plan!r}")
    gathers = "gather" in [options.algo for options in passes.values()]
    some = passes["forward"]  # for what is one for the plan
    if gathers and some.rows < 16:
        raise ValueError(f"cuda plan: expected rows=16 or rows=32 with algo=gather, got rows={some.rows} in {plan!r}")
    if some.precision == "tf32" and not gathers:
        raise ValueError(f"cuda plan: expected precision=tf32 with algo=gather alone, got {plan!r}")


def _check_products(plan: dict[str, Options], dtype: torch.dtype) -> None:
    """Raise ValueError unless the tensor cores have the products that the plan asks for."""
    wanted = "tf32" if dtype == torch.float32 else "ieee"
    for name, options in plan.items():
        if options.algo == "gather" and options.precision != wanted:
            raise ValueError(
                f"cuda plan: expected precision={wanted} with {name}.algo=gather for {dtype}, got {options.precision}: tensor "
                f"cores multiply TF32 and bfloat16 (torch's settings of float32 precision are the default)"
            )


def _index(passes: dict[str, Options], x: Tensor, pattern: Pattern, geometry: Sequence[int]) -> Tensor:
    algo = "gather" if "gather" in [options.algo for options in passes.values()] else "direct"
    shared = passes["forward"]
    if shared.rows == 1:
        return pattern.index
    stride, dilation, groups = _strides(geometry)
    return pattern.gathered(shared.rows, shared.chunk, depth_of(algo, x.dtype), groups, stride, dilation)


def _strides(geometry: Sequence[int]) -> tuple[tuple[int, int], tuple[int, int], int]:
    """stride, dilation and groups; a linear layer has all 1."""
    if not geometry:
        return (1, 1), (1, 1), 1
    sy, sx, _, _, dy, dx, groups = geometry
    return (sy, sx), (dy, dx), groups


def _rule(asked: Asked, op: str, x: Tensor, pattern: Pattern, geometry: Sequence[int]) -> dict[str, Options]:
    pixels = int(asked.get(("", "pixels"), 0)) or _pixels(x, pattern, geometry)
    sizes = pattern.shape[0], pattern.shape[1] * _strides(geometry)[2]
    patch = _patch_pixels(pixels, pattern, _target(x, geometry), geometry) * _ROW_BYTES
    given = int(asked.get(("", "chunk"), 0))
    chunk = given or _chunk(patch, _SMALL_PATCH, 2 * max(sizes))
    large = _chunk(patch, _LARGE_PATCH, min(sizes) // 2)
    if not given and large > chunk and _has_an_sm(x, pattern, geometry):
        passes = _passes(asked, op, x, pattern, geometry, pixels, large)
        if all(options.algo == "gather" for options in passes.values()):
            return passes
    return _passes(asked, op, x, pattern, geometry, pixels, chunk)


def _passes(
    asked: Asked, op: str, x: Tensor, pattern: Pattern, geometry: Sequence[int], pixels: int, chunk: int
) -> dict[str, Options]:
    torchs = product_precision(op, x)
    precision = str(asked.get(("", "precision"), "")) or torchs
    can_gather = precision == ("tf32" if x.dtype == torch.float32 else "ieee")
    passes = {}
    for name in PASSES:
        layer = _layer(name, pattern, geometry)
        best = "gather" if can_gather and x.shape[0] >= _FEWEST_IMAGES and _gather_pays(layer, chunk, x.dtype) else "direct"
        algo = str(asked.get((name, "algo"), asked.get(("", "algo"), best)))
        stages = 1 if layer.sources <= chunk and name != "values_grad" else 2
        enough = pixels if algo == "gather" else max(_FEWEST_DIRECT_PIXELS, pixels)
        passes[name] = filled(asked, name, Options(algo, chunk=chunk, pixels=enough, stages=stages))
    gathers = "gather" in [options.algo for options in passes.values()]
    rows = int(asked.get(("", "rows"), _rows(pattern) if gathers else 1))
    if not gathers:  # each pass of a plan of gather chose direct
        rows = rows if rows < 16 else 1
        precision = str(asked.get(("", "precision"), "ieee"))
    passes = {name: options._replace(rows=rows, precision=precision) for name, options in passes.items()}
    _check_products(passes, x.dtype)
    return passes


def _layer(which: str, pattern: Pattern, geometry: Sequence[int]) -> _Layer:
    stride, dilation, groups = _strides(geometry)
    outputs, inputs, *kernel = pattern.shape
    filters, channels = pattern.live
    taps = math.prod(kernel)
    density = pattern.nnz / max(1, filters * channels * taps)
    if which != "input_grad":
        return _Layer(inputs, outputs // groups, taps, channels / inputs, density)
    with_taps = [min(k, s // math.gcd(s, d)) for k, s, d in zip(kernel, stride, dilation, strict=False)]  # phases of an axis
    return _Layer(outputs // groups, inputs, taps / math.prod(with_taps), filters / outputs, density)


def _gather_pays(layer: _Layer, chunk: int, dtype: torch.dtype) -> bool:
    if min(layer.sources, layer.targets) < _FEWEST_CHANNELS or layer.density == 0:
        return False
    if dtype not in _GAINS:
        return False
    depth = depth_of("gather", dtype)
    columns = chunk * layer.taps * layer.alive
    share = 1 - (1 - layer.density) ** 16
    conflicts = _FULLEST[dtype] * math.sqrt(columns * share * (1 - share) * depth / 2)
    read = columns * share + conflicts + (depth - 1) / 2
    return _PERMUTED * read / (columns * layer.density) <= _GAINS[dtype]


def _rows(pattern: Pattern) -> int:
    return 32 if 1 + (1 - _layer("forward", pattern, ()).density) ** 16 < _SHARES else 16


def _target(x: Tensor, geometry: Sequence[int]) -> tuple[int, int]:
    """Height and width of the output, but for the border."""
    stride, _, _ = _strides(geometry)
    return (-(-x.shape[2] // stride[0]), -(-x.shape[3] // stride[1])) if geometry else (1, 1)


def _pixels(x: Tensor, pattern: Pattern, geometry: Sequence[int]) -> int:
    rows_of_images = -(-x.shape[0] * x.element_size() // _ROW_BYTES)
    groups = -(-pattern.shape[0] // _BLOCK_CHANNELS.get(x.dtype, 128))
    blocks = math.ceil(math.prod(_target(x, geometry)) * rows_of_images / 8) * groups
    return 8 if 2 * blocks > _PROCESSORS else 4


def _has_an_sm(x: Tensor, pattern: Pattern, geometry: Sequence[int]) -> bool:
    """Whether blocks of gather are alone on their SMs: its registers are for no more, or there are fewer blocks than SMs."""
    fewest = min(pattern.shape[0], pattern.shape[1] * _strides(geometry)[2])
    return fewest >= _BLOCK_CHANNELS.get(x.dtype, 128) or _pixels(x, pattern, geometry) == 4


def _chunk(patch: int, most_bytes: int, below: int) -> int:
    """The largest chunk below `below`, whose channels take `patch` bytes each and no more than `most_bytes` together."""
    chunk = 64
    while chunk > 8 and (chunk * patch > most_bytes or chunk >= below):
        chunk //= 2
    return chunk


def _patch_pixels(pixels: int, pattern: Pattern, target: tuple[int, int], geometry: Sequence[int]) -> int:
    """What a tile of the target reads of the source, as csrc/cuda/conv_patch.h lays it out: rows of images of small ones."""
    stride, dilation, _ = _strides(geometry)
    tile, images = [1, 1], 1
    while tile[0] * tile[1] * images < pixels:
        axis = 1 if tile[1] < target[1] and (tile[1] <= tile[0] or tile[0] >= target[0]) else 0
        if tile[axis] < target[axis]:
            tile[axis] *= 2
        else:
            images *= 2
    size = images
    for n, k, s, d in zip(tile, pattern.shape[2:] or (1, 1), stride, dilation, strict=True):
        size *= (n - 1) * min(s // math.gcd(s, d), k) + k
    return size


GRAMMAR = Grammar("cuda", Options(), _CHOICES, _WHOLE_PLAN, _check, _rule, _index)
parse, of_pass, complete, resolve = GRAMMAR.parse, GRAMMAR.of_pass, GRAMMAR.complete, GRAMMAR.resolve
