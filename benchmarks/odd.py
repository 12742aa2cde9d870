"""odd: layers of odd sizes after `tost_kernels.tune`, in the layout that suits them, against dense: is any slower?

A network of its own may stay in any layout, so a layer is tuned and timed on batch-last tensors and on those of the faster
dense layout, and the faster of the two counts: where `tune` takes torch's dense op, batch-last would add two layout changes
that such a network does not have. All that is left then is scattering the kept weights.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

import tost_kernels as tk
from benchmarks.cases import Layer, select
from benchmarks.layer_calls import module_of
from benchmarks.ledger import Record
from benchmarks.networks import LAYOUTS
from benchmarks.table import Table, ms, percent, times
from benchmarks.timing import Times, clock_for, interleave
from tost_kernels.layout import BATCH_LAST, as_layout

DEFAULT_ROUNDS = 3
SPARSITIES = (0.5, 0.9)


def arguments(parser: argparse.ArgumentParser) -> None:
    """The question's own options."""
    parser.add_argument("--layers", nargs="+", default=["odd"], help="sets or layers, see kernels")
    parser.add_argument("--sparsity", nargs="+", type=float, default=list(SPARSITIES), help="of the random masks")
    parser.add_argument("--batch", type=int, default=64, help="images; layers with a batch of their own keep it")


def run(options: argparse.Namespace, threads: int) -> list[Record]:
    """Tune and time every layer; print the table."""
    table = Table(
        f"Layers as tuned against dense: {threads} thread(s), batch {options.batch}; ms, forward and both gradients",
        ("layer", "sparsity", "layout", "plan", "tuned", "dense fp32", "dense / tuned [quartiles]", "tuned, other layout"),
    )
    records: list[Record] = []
    for layer in select(options.layers):
        x, weight = torch.randn(layer.input_shape(options.batch)), torch.randn(layer.weight_shape)
        dense = {layout: dense_step(layer, as_layout(x, layout), weight) for layout in layouts_of(layer)}
        (usual,) = interleave(dense, 3, clock_for(threads)).fastest([(layout,) for layout in dense])
        for sparsity in options.sparsity:
            pattern = tk.Pattern(torch.rand(layer.weight_shape) >= sparsity)
            plans, calls = {}, {f"dense {layout}": call for layout, call in dense.items()}
            for layout in (BATCH_LAST, usual):
                plans[layout], calls[layout] = tuned_step(layer, as_layout(x, layout), pattern)
            timed = interleave(calls, options.rounds, clock_for(threads))
            records.append(report(table, layer, options.batch, threads, sparsity, plans, timed))
    print(
        "\nEach layer was tuned alone (tost_kernels.tune and its cache) on batch-last tensors and on those of the faster dense "
        "layout; the faster one is shown. Dense: the faster of contiguous and channels_last, with a stored weight."
    )
    return records


def layouts_of(layer: Layer) -> tuple[str, ...]:
    """The layouts torch's own op can have."""
    return ("contiguous",) if layer.is_linear else tuple(LAYOUTS)


def _step(call: Callable[[Tensor], Tensor], x: Tensor, weight: Tensor) -> Callable[[], object]:
    x = x.detach().requires_grad_()
    grad = torch.randn_like(call(x).detach())
    return lambda: torch.autograd.grad(call(x), (x, weight), grad)


def dense_step(layer: Layer, x: Tensor, weight: Tensor) -> Callable[[], object]:
    """Forward and both gradients by torch, its weight in the layout of `x`."""
    if layer.is_linear:
        return _step(lambda x: F.linear(x, weight), x, weight.requires_grad_())
    layout = torch.contiguous_format if x.is_contiguous() else torch.channels_last
    weight = weight.detach().contiguous(memory_format=layout).requires_grad_()
    geometry = (None, layer.stride, layer.padding, layer.dilation, layer.groups)
    return _step(lambda x: F.conv2d(x, weight, *geometry), x, weight)


def tuned_step(layer: Layer, x: Tensor, pattern: tk.Pattern) -> tuple[str, Callable[[], object]]:
    """The plan chosen for this layout, and forward and both gradients by it."""
    module = module_of(layer, pattern)
    plan = tk.tune(module, x.detach().requires_grad_()).plan_of("", training=True)
    return f"{plan.backend} {plan.options}".strip(), _step(module, x, module.values)


def report(table: Table, layer: Layer, batch: int, threads: int, sparsity: float, plans: dict[str, str], timed: Times) -> Record:
    """Print one row."""
    dense = timed.fastest([(name,) for name in timed.ms if name.startswith("dense ")])
    (layout,) = timed.fastest([(layout,) for layout in plans])
    value, ratio = timed.summary(layout), timed.ratio(dense, [layout])
    others = [f"{ms(timed.summary(other))} ({other})" for other in plans if other != layout]
    table.row(
        layer.name, percent(sparsity), layout, plans[layout], ms(value), ms(timed.summary(*dense)), times(ratio, spread=True),
        *(others or ["-"]),
    )  # fmt: skip
    case: dict[str, Any] = {"layer": layer.name, "batch": layer.batch or batch, "sparsity": sparsity}
    case |= {"layout": layout, "plan": plans[layout]}
    return Record("odd", case, "tuned", threads, value, ratio, "dense float32")
