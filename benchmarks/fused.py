"""fused: the fused tails of a convolution, pswish and pooling in batch-last, against eager torch and the memory floor.

The floor of a pass over tensors: the bytes that must move at least once, at the speed at which torch copies 64 MB, measured in
the same rounds. No call is repeated within a round, so what one op left in the cache, the others have driven out; small tensors
can still be partly there.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

import tost_kernels as tk
from benchmarks.cases import Layer
from benchmarks.layer_times import DTYPES
from benchmarks.ledger import Record
from benchmarks.networks import LAYOUTS
from benchmarks.table import Table, ms, times
from benchmarks.timing import Summary, Times, clock_for, interleave

DEFAULT_ROUNDS = 9
_COPIED = 64 << 20  # bytes
_TOLERANCE = {torch.float32: 1e-4, torch.bfloat16: 1e-2}  # ||ours - torch's in float32|| / ||torch's||


@dataclass(frozen=True)
class Tail:
    """An op on `inputs` tensors of one shape, by us and by torch; both take the inputs and the shared parameters.

    forward_passes, backward_passes: the bytes that must move, counted in tensors of the input's size. Forward reads each input
    and writes the result; backward reads the result's gradient and each input, and writes each input's gradient.
    """

    inputs: int
    ours: Callable[[list[Tensor], Parameters], Tensor]
    eager: Callable[[list[Tensor], Parameters], Tensor]
    forward_passes: float
    backward_passes: float


@dataclass(frozen=True)
class Parameters:
    """weights, biases: three BatchNorms', (C,), leaves; alpha, beta: 0-dim."""

    weights: list[Tensor]
    biases: list[Tensor]
    alpha: Tensor
    beta: Tensor

    def norm(self, i: int) -> tk.Norm:
        """BatchNorm i for our op."""
        return tk.Norm(self.weights[i], self.biases[i], batch_stats=True)

    def normed(self, x: Tensor, i: int) -> Tensor:
        """BatchNorm i by torch; neither side updates running statistics."""
        return F.batch_norm(x, None, None, self.weights[i], self.biases[i], training=True)

    def swish(self, x: Tensor) -> Tensor:
        """pswish by torch."""
        return x * torch.sigmoid(self.beta.to(x.dtype) * x)


_MAX, _AVERAGE, _GLOBAL = tk.nn.MaxPool2d(2), tk.nn.AvgPool2d(2), tk.nn.AdaptiveAvgPool2d(1)

TAILS = {
    "bn-relu": Tail(
        1,
        lambda x, p: tk.ghost_skip_add(x[0], norm=p.norm(0), act="relu").out,
        lambda x, p: F.relu(p.normed(x[0], 0)),
        2,
        3,
    ),
    "bn-skip-relu": Tail(
        2,
        lambda x, p: tk.ghost_skip_add(x[0], shortcut=x[1], norm=p.norm(0), act="relu").out,
        lambda x, p: F.relu(p.normed(x[0], 0) + x[1]),
        3,
        5,
    ),
    "bn-ghost-skip-pswish": Tail(
        3,
        lambda x, p: (
            tk.ghost_skip_add(x[0], x[1], p.alpha, x[2], norm=p.norm(0), ghost_norm=p.norm(1), act="pswish", beta=p.beta).out
        ),
        lambda x, p: p.swish(p.normed(x[0], 0) + p.alpha.to(x[0].dtype) * p.normed(x[1], 1) + x[2]),
        4,
        7,
    ),
    "pswish": Tail(1, lambda x, p: tk.pswish(x[0], p.beta), lambda x, p: p.swish(x[0]), 2, 3),
    "max-pool": Tail(1, lambda x, _: _MAX(x[0]), lambda x, _: F.max_pool2d(x[0], 2), 1.25, 1.25),
    "average-pool": Tail(1, lambda x, _: _AVERAGE(x[0]), lambda x, _: F.avg_pool2d(x[0], 2), 1.25, 1.25),
    "global-average": Tail(1, lambda x, _: _GLOBAL(x[0]), lambda x, _: F.adaptive_avg_pool2d(x[0], 1), 1, 1),
}


def arguments(parser: argparse.ArgumentParser) -> None:
    """The question's own options."""
    parser.add_argument("--ops", nargs="+", choices=TAILS, default=list(TAILS), help="what to measure")
    parser.add_argument("--layers", nargs="+", default=["64@32", "128@16", "256@8", "512@4"], help="whose output: channels@side")
    parser.add_argument("--batch", type=int, default=64, help="images")
    parser.add_argument("--dtypes", nargs="+", choices=DTYPES, default=list(DTYPES), help="to measure")


def run(options: argparse.Namespace, threads: int) -> list[Record]:
    """Time every op on every shape; print the table."""
    table = Table(
        f"Fused ops against eager torch: {threads} thread(s), batch {options.batch}; forward + backward, ms",
        ("output of", "dtype", "op", "torch", "ours", "ratio [quartiles]", "floor", "forward / floor", "backward / floor"),
    )
    records: list[Record] = []
    for layer in map(Layer.parse, options.layers):
        for dtype in options.dtypes:
            records += measure(layer, dtype, options, threads, table)
    print(
        "\ntorch: the faster of contiguous and channels_last. Floor: bytes that must move, at the speed of a copy of 64 MB in "
        "the same round. / floor: how many times the floor ours takes."
    )
    return records


def sides(tail: Tail, shape: tuple[int, ...], dtype: torch.dtype) -> Iterator[tuple[str, Callable[[], Tensor], list[Tensor]]]:
    """(side, forward, leaves) of ours, of torch in both layouts, and of torch in float32, all on equal numbers."""
    plain = [torch.randn(shape).to(dtype) for _ in range(tail.inputs)]
    channels = shape[1]
    weights, biases = ([f(channels) for _ in range(3)] for f in (torch.rand, torch.randn))
    forms: dict[str, Callable[[Tensor], Tensor]] = {"ours": tk.to_batch_last, "float32": Tensor.float}
    forms |= {name: partial(Tensor.contiguous, memory_format=layout) for name, layout in LAYOUTS.items()}
    for side, form in forms.items():
        x = [form(t) for t in plain]
        x = [t.detach().requires_grad_() for t in x]
        own_weights, own_biases = ([t.clone().requires_grad_() for t in tensors] for tensors in (weights, biases))
        parameters = Parameters(own_weights, own_biases, torch.tensor(0.7), torch.tensor(2.0))
        function = tail.ours if side == "ours" else tail.eager
        yield side, lambda f=function, x=x, p=parameters: f(x, p), [*x, *own_weights, *own_biases]  # type: ignore[misc]


def calls(tail: Tail, shape: tuple[int, ...], dtype: torch.dtype) -> dict[tuple[str, str], Callable[[], object]]:
    """(side, forward or backward) -> what is timed, after a look whether ours agrees with torch in float32."""
    found: dict[tuple[str, str], Callable[[], object]] = {}
    results: dict[str, list[Tensor]] = {}
    incoming: Tensor | None = None
    for side, forward, leaves in sides(tail, shape, dtype):
        out = forward()
        incoming = torch.randn(out.shape) if incoming is None else incoming
        grad = torch.empty_like(out).copy_(incoming.to(dtype))
        gradients = torch.autograd.grad(out, leaves, grad, retain_graph=True, allow_unused=True)
        used = [leaf for leaf, gradient in zip(leaves, gradients, strict=True) if gradient is not None]

        def backward(out: Tensor = out, used: list[Tensor] = used, grad: Tensor = grad) -> tuple[Tensor, ...]:
            return torch.autograd.grad(out, used, grad, retain_graph=True)

        results[side] = [out.detach(), *backward()]
        found[side, "forward"], found[side, "backward"] = forward, backward
    for ours, right in zip(results["ours"], results["float32"], strict=True):
        error = float((ours.float() - right).norm() / right.norm().clamp_min(1e-30))
        if not error <= _TOLERANCE[dtype]:
            raise ArithmeticError(f"fused op on {shape}, {dtype}: expected torch's result, got one {error:.1e} away")
    return found


def measure(layer: Layer, dtype: str, options: argparse.Namespace, threads: int, table: Table) -> list[Record]:
    """All ops on one shape, interleaved; a row each."""
    shape = layer.output_shape(options.batch)
    source = torch.ones(_COPIED // 4)
    target = torch.empty_like(source)
    variants: dict[str, Callable[[], object]] = {"copy": lambda: target.copy_(source)}
    for name in options.ops:
        for (side, part), call in calls(TAILS[name], shape, DTYPES[dtype]).items():
            variants[f"{name} {side} {part}"] = call
    timed = interleave(variants, options.rounds, clock_for(threads), shortest_ms=0)
    records = []
    for name in options.ops:
        records += _report(layer, dtype, name, timed, threads, options.batch, table)
    return records


def _report(layer: Layer, dtype: str, name: str, timed: Times, threads: int, batch: int, table: Table) -> list[Record]:
    parts = ("forward", "backward")
    eager = timed.fastest([[f"{name} {layout} {part}" for part in parts] for layout in LAYOUTS])
    ours = [f"{name} ours {part}" for part in parts]
    tensor = DTYPES[dtype].itemsize * math.prod(layer.output_shape(batch))
    # the copy reads and writes
    copies = [passes * tensor / (2 * _COPIED) for passes in (TAILS[name].forward_passes, TAILS[name].backward_passes)]
    to_floor = [
        Summary.of([o / (count * c) for o, c in zip(timed.ms[which], timed.ms["copy"], strict=True)])
        for which, count in zip(ours, copies, strict=True)
    ]
    both = timed.ratio(eager, ours)
    copy = timed.summary("copy").median
    table.row(
        layer.name,
        dtype,
        name,
        " + ".join(ms(timed.summary(which)) for which in eager),
        " + ".join(ms(timed.summary(which)) for which in ours),
        times(both, spread=True),
        " + ".join(ms(count * copy) for count in copies),
        *(f"{r.median:.2f}" for r in to_floor),
    )
    case = {"op": name, "channels": layer.out, "side": layer.out_side, "batch": batch, "dtype": dtype}
    records = [
        Record("fused", case | {"part": "both"}, "fused", threads, timed.summary(*ours), both, f"torch {eager[0].split()[1]}"),
        Record("fused", case | {"part": "both"}, "torch", threads, timed.summary(*eager)),
    ]
    for part, which, ratio in zip(parts, ours, to_floor, strict=True):
        inverse = Summary(1 / ratio.median, 1 / ratio.high, 1 / ratio.low)
        records.append(Record("fused", case | {"part": part}, "fused", threads, timed.summary(which), inverse, "memory floor"))
    return records
