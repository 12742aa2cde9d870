"""tiles: columns that groups of rows share, of all there are, with rows as they are and permuted (tost_kernels/tiles.py).

Nothing is timed here: these are counts, the same on every machine.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from dataclasses import replace

import torch

from benchmarks.cases import SPARSITIES
from benchmarks.ledger import Record
from benchmarks.table import Table, percent
from benchmarks.timing import Summary
from tost.masks import methods, prune
from tost.models import build
from tost_kernels import Pattern
from tost_kernels.tiles import offsets, tile_reference

DEFAULT_ROUNDS = 1
RANDOM = "random"


def arguments(parser: argparse.ArgumentParser) -> None:
    """The question's own options."""
    parser.add_argument("--masks", nargs="+", default=[RANDOM, "synflow", "snip", "magnitude"], help="methods")
    parser.add_argument("--network", default="resnet18", help="of which the methods make masks")
    parser.add_argument("--widths", nargs="+", type=int, default=[128, 256, 512], help="channels of the 3x3 layers")
    parser.add_argument("--sparsity", nargs="+", type=float, default=list(SPARSITIES), help="of the layer, or of the network")
    parser.add_argument("--rows", nargs="+", type=int, default=[16, 32, 64], help="of a group")
    parser.add_argument("--steps", type=int, default=10, help="most steps that a method may take: SynFlow's 100 take minutes")


def run(options: argparse.Namespace, threads: int) -> list[Record]:
    """Print the table; `--rounds` repeats nothing here."""
    table = Table(
        "Columns of the groups, in percent of the dense ones: rows as they are -> permuted, forward / transposed",
        ("masks", "layer", "sparsity", "kept", *(f"{rows} rows" for rows in options.rows)),
    )
    records: list[Record] = []
    for name in options.masks:
        for sparsity in options.sparsity:
            for layer, mask in masks(name, sparsity, options):
                pattern = Pattern(mask)
                cells = []
                for rows in options.rows:
                    views = list(zip(columns(pattern, rows, permuted=False), columns(pattern, rows, permuted=True), strict=True))
                    cells.append(" / ".join(f"{before:.0%} -> {after:.0%}" for before, after in views))
                    for view, (before, after) in zip(("forward", "transposed"), views, strict=True):
                        case = {"masks": name, "layer": layer, "sparsity": sparsity, "kept": pattern.density, "rows": rows}
                        case["view"] = view
                        for variant, value in (("natural", before), ("permuted", after)):
                            summary = Summary(value, value, value)
                            records.append(Record("tiles", case, variant, threads, summary, unit="of the dense columns"))
                table.row(name, layer, percent(sparsity), f"{pattern.density:.1%}", *cells)
    print(
        f"\nA group's columns are padded to a multiple of 16 at each tap. Masks of a method are those of the whole "
        f"{options.network}, for random images and in at most {options.steps} steps; of each width the last layer is shown."
    )
    return records


def masks(name: str, sparsity: float, options: argparse.Namespace) -> Iterator[tuple[str, torch.Tensor]]:
    """(layer, its mask), one of each width."""
    if name == RANDOM:
        for width in options.widths:
            yield f"{width}x{width}x3x3", torch.rand(width, width, 3, 3) >= sparsity
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
