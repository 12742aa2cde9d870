"""tiles: columns that groups of rows share, of all there are, with rows as they are and permuted (tost_kernels/tiles.py); and
what the gathered index (tost_kernels/gather.py) makes of them: padding of its segments, conflicts of shared memory's banks.

Nothing is timed here: these are counts, the same on every machine.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import NamedTuple

import torch

from benchmarks.cases import SPARSITIES
from benchmarks.ledger import Record
from benchmarks.table import Table, percent
from benchmarks.timing import Summary
from tost.masks import methods, prune
from tost.models import build
from tost_kernels import Pattern, gather
from tost_kernels.tiles import offsets, tile_reference

DEFAULT_ROUNDS = 1
RANDOM = "random"
VIEWS = ("forward", "transposed")
GATHERED_ROWS = 16


def arguments(parser: argparse.ArgumentParser) -> None:
    """The question's own options."""
    parser.add_argument("--masks", nargs="+", default=[RANDOM, "synflow", "snip", "magnitude"], help="methods")
    parser.add_argument("--network", default="resnet18", help="of which the methods make masks")
    parser.add_argument("--widths", nargs="+", type=int, default=[128, 256, 512], help="channels of the 3x3 layers")
    parser.add_argument("--sparsity", nargs="+", type=float, default=list(SPARSITIES), help="of the layer, or of the network")
    parser.add_argument("--kernel", type=int, default=3, help="of the random layers")
    parser.add_argument("--rows", nargs="+", type=int, default=[16, 32, 64], help="of a group")
    parser.add_argument("--chunks", nargs="+", type=int, default=[8, 16, 32, 64], help="source channels of a segment of 16 rows")
    parser.add_argument(
        "--stride", type=int, default=1, help="of the convolutions: segments of the transposed view are of a phase"
    )
    parser.add_argument("--steps", type=int, default=10, help="most steps that a method may take: SynFlow's 100 take minutes")


class Met(NamedTuple):
    """A mask that is looked at, and what it is called in the tables."""

    masks: str
    layer: str
    sparsity: float
    pattern: Pattern

    def record(self, variant: str, value: float, threads: int, **more: object) -> Record:
        case = {"masks": self.masks, "layer": self.layer, "sparsity": self.sparsity, "kept": self.pattern.density, **more}
        return Record("tiles", case, variant, threads, Summary(value, value, value), unit="of the dense columns")


def run(options: argparse.Namespace, threads: int) -> list[Record]:
    """Print the tables; `--rounds` repeats nothing here."""
    met = [
        Met(name, layer, sparsity, Pattern(mask))
        for name in options.masks
        for sparsity in options.sparsity
        for layer, mask in masks(name, sparsity, options)
    ]
    records = [*of_tiles(met, options, threads), *of_chunks(met, options, threads)]
    print(
        f"\nMasks of a method are those of the whole {options.network}, for random images and in at most {options.steps} steps; "
        "of each width the last layer is shown. Tiles pad a group's columns to a multiple of 16 at each tap, the gathered index "
        "those of a chunk to a multiple of 8 (float32) or 16 (bfloat16). Half as many are read at once, and again for each "
        "further one of the same bank."
    )
    return records


def of_tiles(met: Sequence[Met], options: argparse.Namespace, threads: int) -> Iterator[Record]:
    """What permuting the rows gains."""
    table = Table(
        "Columns of the groups, in percent of the dense ones: rows as they are -> permuted, forward / transposed",
        ("masks", "layer", "sparsity", "kept", *(f"{rows} rows" for rows in options.rows)),
    )
    for one in met:
        cells = []
        for rows in options.rows:
            views = zip(columns(one.pattern, rows, permuted=False), columns(one.pattern, rows, permuted=True), strict=True)
            shares = list(views)
            cells.append(" / ".join(f"{before:.0%} -> {after:.0%}" for before, after in shares))
            for view, share in zip(VIEWS, shares, strict=True):
                for variant, value in zip(("natural", "permuted"), share, strict=True):
                    yield one.record(variant, value, threads, rows=rows, view=view)
        table.row(one.masks, one.layer, percent(one.sparsity), f"{one.pattern.density:.1%}", *cells)


def of_chunks(met: Sequence[Met], options: argparse.Namespace, threads: int) -> Iterator[Record]:
    """What cutting the permuted rows' columns into chunks costs."""
    table = Table(
        f"Columns of {GATHERED_ROWS} rows, permuted and cut, in percent of the dense ones: kept -> padded -> read, counting "
        f"conflicts, forward / transposed of stride {options.stride}",
        ("masks", "layer", "sparsity", "dtype", *(f"chunk {chunk}" for chunk in options.chunks)),
    )
    for one in met:
        for dtype, depth in (("float32", 8), ("bfloat16", 16)):
            cells = []
            for chunk in options.chunks:
                views = gathered_columns(one.pattern, chunk, depth, options.stride)
                cells.append(" / ".join(" -> ".join(f"{share:.1%}" for share in view) for view in views))
                for view, shares in zip(VIEWS, views, strict=True):
                    for variant, value in shares._asdict().items():
                        yield one.record(variant, value, threads, rows=GATHERED_ROWS, view=view, dtype=dtype, chunk=chunk)
            table.row(one.masks, one.layer, percent(one.sparsity), dtype, *cells)


def masks(name: str, sparsity: float, options: argparse.Namespace) -> Iterator[tuple[str, torch.Tensor]]:
    """(layer, its mask), one of each width."""
    if name == RANDOM:
        for width in options.widths:
            shape = (width, width, options.kernel, options.kernel)
            yield "x".join(map(str, shape)), torch.rand(shape) >= sparsity
        return
    torch.manual_seed(options.seed)
    network = build(options.network, 10, 3, (32, 32))
    batch = (torch.randn(32, 3, 32, 32), torch.randint(10, (32,)))
    method = methods()[name]
    short = replace(method, steps=min(method.steps, options.steps))
    chosen = prune(network, short, 1 - sparsity, data=[batch], keep_alive=True)
    last = {mask.shape[0]: layer for layer, mask in chosen.items() if tuple(mask.shape[1:]) == (mask.shape[0], 3, 3)}
    for width in options.widths:
        yield f"{last[width]}, {width}x{width}x3x3", chosen[last[width]]


def columns(pattern: Pattern, rows: int, permuted: bool) -> tuple[float, float]:
    """Columns of all groups of both views, over those of a mask that keeps everything."""
    tiled = pattern.tiled(rows) if permuted else torch.from_numpy(tile_reference(pattern.index.cpu().numpy(), rows))
    at = offsets(pattern.shape, 1, pattern.nnz, rows, tiled.numel())
    outputs, inputs, *kernel = pattern.shape
    taps = int(torch.Size(kernel).numel())
    dense = (at.groups_forward * inputs * taps, at.groups_transposed * outputs * taps)
    counts = (int(tiled[at.at_channel - 1]), int(tiled[at.at_t_channel - 1]))  # the last of ptr
    return counts[0] / dense[0], counts[1] / dense[1]


class Gathered(NamedTuple):
    """Columns of all groups of one view, over those of a mask that keeps everything."""

    kept: float
    padded: float
    read: float  # padded ones, a read counted again for each time that a bank of it has to be read again


def gathered_columns(pattern: Pattern, chunk: int, depth: int, stride: int) -> tuple[Gathered, Gathered]:
    """Of both views of the gathered index."""
    strides = (stride, stride)
    index = pattern.gathered(GATHERED_ROWS, chunk, depth, 1, strides)
    at = gather.offsets(pattern.shape, 1, pattern.nnz, GATHERED_ROWS, chunk, strides, index.numel())
    outputs, inputs, kh, kw = pattern.shape
    taps = kh * kw
    banks = depth // 2  # of columns that one read has: 128 bytes, by 32 bytes a column of float32 or 16 of bfloat16
    views = []
    for start, at_column, dense in (
        (at.at_ptr, at.at_column, at.groups_forward * inputs * taps),
        (at.at_t_ptr, at.at_t_column, at.groups_transposed * outputs * taps),
    ):
        column = index[at_column : at_column + int(index[at_column - 1])].view(-1, banks)  # the number before: the last of ptr
        fresh = torch.ones_like(column, dtype=torch.bool)
        fresh[:, 1:] = column[:, 1:] != column[:, :-1]  # a copy is at the end of a read, of what was just read
        again = (column // taps % banks)[..., None] == torch.arange(banks)
        reads = (again & fresh[..., None]).sum(1).amax(1)
        ptr = index[start:at_column]
        segment = torch.repeat_interleave(torch.arange(len(ptr) - 1), ptr.diff())
        kept = len(set(zip(segment.tolist(), column.flatten().tolist(), strict=True)))
        views.append(Gathered(kept / dense, column.numel() / dense, int(reads.sum()) * banks / dense))
    return views[0], views[1]
