"""csr: the forward pass as MKL's sparse matrix product (torch.sparse_csr), beside ours and dense oneDNN."""

from __future__ import annotations

import argparse
import warnings
from collections.abc import Callable

import torch
from torch import Tensor

import tost_kernels as tk
from benchmarks.cases import SPARSITIES, Layer, select
from benchmarks.layer_calls import Problem, dense_calls, plan_of, sparse_calls
from benchmarks.ledger import Record
from benchmarks.table import Table, ms, percent, times
from benchmarks.timing import clock_for, interleave

DEFAULT_ROUNDS = 5


def arguments(parser: argparse.ArgumentParser) -> None:
    """The question's own options."""
    parser.add_argument("--layers", nargs="+", default=["resnet", "64-128@32k1"], help="sets or layers, see kernels; no groups")
    parser.add_argument("--sparsity", nargs="+", type=float, default=list(SPARSITIES), help="of the random masks")
    parser.add_argument("--batch", type=int, default=64, help="images")


def run(options: argparse.Namespace, threads: int) -> list[Record]:
    """Time every layer; print the table."""
    table = Table(
        f"Forward pass by MKL CSR: {threads} thread(s), batch {options.batch}, fp32; ms (ratio to dense oneDNN)",
        ("layer", "sparsity", "dense", "CSR product alone", "columns and CSR product", "sparse (tost)", "tost against CSR alone"),
    )
    records: list[Record] = []
    for layer in select(options.layers):
        if layer.groups != 1 or layer.is_linear:
            raise ValueError(f"layers: expected convolutions without groups, got {layer.name}")
        records += measure(layer, options, threads, table)
    print(
        "\nCSR: the sparse weight (O, C k k) times the columns (C k k, H W N); the product alone has its columns built "
        "beforehand, which no network could spare. Dense: the faster of contiguous and channels_last."
    )
    return records


def columns(x: Tensor, layer: Layer) -> Tensor:
    """im2col in the batch-last layout: x (N, C, H, W) batch-last -> (C k k, H_out W_out N), contiguous."""
    memory = x.permute(1, 2, 3, 0)  # contiguous (C, H, W, N)
    if (layer.kernel, layer.stride, layer.padding) == (1, 1, 0):
        return memory.reshape(layer.channels, -1)
    p, d, s, side = layer.padding, layer.dilation, layer.stride, layer.out_side
    padded = x.new_zeros(layer.channels, layer.side + 2 * p, layer.side + 2 * p, x.shape[0])
    padded[:, p : p + layer.side, p : p + layer.side] = memory
    result = x.new_empty(layer.channels, layer.kernel, layer.kernel, side, side, x.shape[0])
    reach = s * (side - 1) + 1
    for dy in range(layer.kernel):
        for dx in range(layer.kernel):
            result[:, dy, dx] = padded[:, d * dy : d * dy + reach : s, d * dx : d * dx + reach : s]
    return result.view(layer.channels * layer.kernel**2, -1)


def measure(layer: Layer, options: argparse.Namespace, threads: int, table: Table) -> list[Record]:
    """One layer at every density."""
    problem = Problem.of(layer, options.batch)
    x = tk.to_batch_last(problem.x)
    built = columns(x, layer)
    variants: dict[str, Callable[[], object]] = {
        f"dense {layout}": forward for layout, (forward, _) in dense_calls(problem).items()
    }
    dense = [(name,) for name in variants]
    for sparsity in options.sparsity:
        pattern = tk.Pattern(torch.rand(layer.weight_shape) >= sparsity)
        ours = sparse_calls(problem, pattern, plan_of("kernel", layer, x, pattern))[0]
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="Sparse CSR tensor support is in beta")
            weight = (problem.weight * pattern.mask()).view(layer.out, -1).to_sparse_csr()
        expected, got = ours(), weight @ built
        assert isinstance(expected, Tensor)
        error = float((got.view(layer.out, -1) - expected.permute(1, 2, 3, 0).reshape(layer.out, -1)).norm() / expected.norm())
        if not error <= 1e-5:
            raise ArithmeticError(f"{layer.name}: CSR and ours are {error:.1e} apart")
        variants[f"{sparsity} alone"] = lambda w=weight: w @ built  # type: ignore[misc]
        variants[f"{sparsity} whole"] = lambda w=weight: w @ columns(x, layer)  # type: ignore[misc]
        variants[f"{sparsity} ours"] = ours
    timed = interleave(variants, options.rounds, clock_for(threads))
    best = timed.fastest(dense)
    records = []
    for sparsity in options.sparsity:
        cells = []
        for kind in ("alone", "whole", "ours"):
            name = f"{sparsity} {kind}"
            value, ratio = timed.summary(name), timed.ratio(best, [name])
            cells.append(f"{ms(value)} ({times(ratio)})")
            case = {"layer": layer.name, "batch": options.batch, "sparsity": sparsity}
            records.append(Record("csr", case, _VARIANTS[kind], threads, value, ratio, "dense float32"))
        against = times(timed.ratio([f"{sparsity} alone"], [f"{sparsity} ours"]))
        table.row(layer.name, percent(sparsity), ms(timed.summary(*best)), *cells, against)
    return records


_VARIANTS = {"alone": "MKL CSR product", "whole": "MKL CSR with columns", "ours": "sparse float32"}
