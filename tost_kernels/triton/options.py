"""What a triton plan may ask for, and the rule that fills in what it leaves open.

The keys (tost_kernels/plan_options.py has the grammar):

    algo        tiles: tensor cores on row groups with condensed columns; direct: one multiply-add a kept weight on the CUDA
                cores; blocks: tensor cores on dense tiles of a channels_last input, empty tiles skipped
    rows        output channels (input channels in the input gradient) of a row group: tiles and blocks, all passes alike
    block       channels of a dense tile: blocks, all passes alike
    bn          images of the batch (blocks: positions) that a program computes at once
    bk          columns (direct: kept weights) of a step
    warps       of a program
    stages      steps whose loads are under way at once
    split       parts that a sum over images and positions is cut into: values_grad; by default enough to fill a large GPU
    precision   of float32 products: ieee, tf32, or tf32x3 (three tf32 products, nearly ieee); all passes alike

The ops take the string that `resolve` completed, or "": direct with the defaults of `Options`, all that the base index allows.

The static rule (`tune` knows better: it measures), with its reasons:

- direct where a channel sees few others (depthwise and the like: most of a tensor-core tile would be padding), for a handful
  of images (a tile has 16 at least), and where so little is kept that even 16 rows share few columns.
- blocks where the input is channels_last and the mask random-like and dense enough (10%) that 64 rows leave next to no column
  out: condensing saves nothing there, and a change of layout would cost a pass over the activations each way.
- tiles else. Tall groups: every group reads its columns anew, through the L2 cache. With c = 1 - (1 - density)**rows of the
  columns kept, a random mask's bytes go as c * (1 / rows + 1 / bn), which 128 rows make least down to a density of 1%; below,
  64 rows read as little and multiply less.
- bn 128: with 64 to 128 rows a step then does 20 to 30 operations a byte that comes from L2.
- stages 5: the table of columns is loaded two steps before the rows it names, these two before they are multiplied.
- direct: so few images at once that what they read stays in the L1 cache, from which every multiply-add takes its operand.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from tost_kernels.layout import CHANNELS_LAST, layout_of
from tost_kernels.plan_options import PASSES, Asked, Grammar, filled, product_precision

if TYPE_CHECKING:
    from tost_kernels.pattern import Pattern


class Geometry(NamedTuple):
    """A convolution. A linear layer is one with a 1x1 kernel, on images of one pixel."""

    weight_shape: tuple[int, ...]  # (O, I / groups, kh, kw)
    stride: tuple[int, ...]
    padding: tuple[int, ...]
    dilation: tuple[int, ...]
    groups: int


class Options(NamedTuple):
    """The variant of one pass; see the module. 0: does not apply; split 0: as many parts as fill a large GPU."""

    algo: str = "direct"
    rows: int = 0
    block: int = 0
    bn: int = 128
    bk: int = 16
    warps: int = 4
    stages: int = 3
    split: int = 0
    precision: str = "ieee"


_CHOICES: dict[str, Sequence[str | int]] = {
    "algo": ("tiles", "direct", "blocks"),
    "rows": (16, 32, 64, 128),
    "block": (16, 32),
    "bn": (16, 32, 64, 128, 256, 512, 1024),
    "bk": (1, 2, 4, 8, 16, 32, 64, 128),
    "warps": (1, 2, 4, 8, 16),
    "stages": range(1, 9),
    "split": range(1, 257),
    "precision": ("ieee", "tf32", "tf32x3"),
}
_WHOLE_PLAN = ("rows", "block", "precision")  # one for the three passes
_CACHED = 160 * 1024  # bytes that a program of the direct kernel gathers from: they should stay in the L1 cache


def _check(plan: str, passes: dict[str, Options]) -> None:
    algos = {options.algo for options in passes.values()}
    if {"tiles", "blocks"} <= algos:
        raise ValueError(f"triton plan: expected tiles or blocks, not both: they need different indices; got {plan!r}")
    for name, options in passes.items():
        if options.algo == "direct":
            continue
        if not options.rows or (options.algo == "blocks" and not options.block):
            raise ValueError(f"triton plan: expected rows (and block) with algo={options.algo}, got {plan!r}")
        if options.bk < 16:
            raise ValueError(f"triton plan: expected {name}.bk of at least 16 with algo={options.algo}, got {plan!r}")
        if options.algo == "blocks" and name != "values_grad" and options.bk != options.block:
            raise ValueError(f"triton plan: expected {name}.bk to be the block, {options.block}, got {plan!r}")


def _index(passes: dict[str, Options], x: Tensor, pattern: Pattern, geometry: Sequence[int]) -> Tensor:
    for options in passes.values():
        if options.algo != "direct":
            groups = geometry[-1] if geometry else 1
            return pattern.tiled(options.rows, groups, options.block if options.algo == "blocks" else 1)
    return pattern.index


def _rule(asked: Asked, op: str, x: Tensor, pattern: Pattern, geometry: Sequence[int]) -> dict[str, Options]:
    algo = str(asked.get(("", "algo"), "")) or _algo(x, pattern, geometry)
    rows, block = _rows(pattern), 32
    rows, block = int(asked.get(("", "rows"), rows)), int(asked.get(("", "block"), block))
    precision = str(asked.get(("", "precision"), "")) or product_precision(op, x)
    algos = {name: str(asked.get((name, "algo"), algo)) for name in PASSES}
    rows = 0 if set(algos.values()) == {"direct"} else rows
    block = block if "blocks" in algos.values() else 0
    passes = {}
    for name in PASSES:
        default = _default(name, algos[name], rows, block, precision, x, pattern)
        shared = default._replace(algo=algos[name], rows=rows, block=block, precision=precision)
        passes[name] = filled(asked, name, shared)
    return passes


def _algo(x: Tensor, pattern: Pattern, geometry: Sequence[int]) -> str:
    channels = pattern.shape[1] * (pattern.shape[2] * pattern.shape[3] if len(pattern.shape) == 4 else 1)
    outputs = pattern.shape[0] // (geometry[-1] if geometry else 1)
    if pattern.shape[1] < 16 or outputs < 16 or x.shape[0] < 16:
        return "direct"
    if 16 * pattern.density * channels < 16:  # 16 rows keep fewer than 16 columns between them
        return "direct"
    if layout_of(x) == CHANNELS_LAST and pattern.density >= 0.1:
        return "blocks"
    return "tiles"


def _rows(pattern: Pattern) -> int:
    wanted = 128 if pattern.density >= 0.01 else 64
    for rows in (16, 32, 64):
        if rows >= pattern.shape[0]:
            return min(rows, wanted)
    return wanted


def _default(name: str, algo: str, rows: int, block: int, precision: str, x: Tensor, pattern: Pattern) -> Options:
    bn = 128
    for fewer in (64, 32, 16):
        if x.shape[0] <= fewer and algo != "blocks":  # of positions, of which there are always many
            bn = fewer
    if algo == "direct":
        return _direct(name, bn, x, pattern)
    if name == "values_grad":
        return Options(algo, rows, block, bn=min(bn, 64), bk=64, warps=4, stages=3)
    bk = block or (64 if x.dtype == torch.bfloat16 else 32 if precision != "ieee" else 16)
    # ieee products keep operands in registers: more warps for the same tile
    warps = 8 if rows * bn > 64 * 128 or (x.dtype == torch.float32 and precision != "tf32") else 4
    return Options(algo, rows, block, bn, bk, warps, stages=4 if block else 5)


def _direct(name: str, bn: int, x: Tensor, pattern: Pattern) -> Options:
    if name == "values_grad":
        return Options(bn=bn, bk=32, warps=8)
    channels = pattern.shape[1 if name == "forward" else 0] * math.prod(pattern.shape[2:])
    while bn > 16 and channels * bn * x.element_size() > _CACHED:
        bn //= 2
    return Options(bn=bn, bk=8 if bn < 128 else 32, warps=16 if bn < 128 else 4)


GRAMMAR = Grammar("triton", Options(), _CHOICES, _WHOLE_PLAN, _check, _rule, _index)
parse, of_pass, complete, resolve = GRAMMAR.parse, GRAMMAR.of_pass, GRAMMAR.complete, GRAMMAR.resolve
