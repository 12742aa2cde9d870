"""fused: pswish with dbeta and ghost_skip_add, forward and backward, beside eager torch, torch.compile and the memory floor."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

import tost_kernels as tk
from benchmarks.cases import Layer
from benchmarks.fused import TAILS, Parameters, Tail
from benchmarks.gpu.device import DTYPES
from benchmarks.gpu.measure import Calls, copies_for, timed
from benchmarks.gpu.suite import Suite
from benchmarks.ledger import Record
from tost_kernels.backend import why_not
from tost_kernels.layout import as_layout

OPS = {
    "pswish": "pswish",
    "bn-ghost-skip-pswish": "ghost_skip_add",
    "bn-skip-relu": "ghost_skip_add",
    "bn-relu": "ghost_skip_add",
}
OURS = ("cuda", "triton")  # backends
EAGER, COMPILED, CHANNELS = "eager", "torch.compile", "torch.compile channels_last"
FORWARD, BACKWARD, BOTH = "forward", "backward", "forward and backward"
TOLERANCE = {"fp32": 1e-4, "bf16": 1e-2}  # ||ours - eager in float32|| / ||eager||


def run(suite: Suite) -> None:
    """Every op on every shape, both dtypes."""
    for kind in ("fp32", "bf16"):
        for name in suite.settings.fused_ops:
            for layer in suite.settings.fused:
                case = f"{name} {layer.name} {kind}"
                if suite.wants(case):
                    with suite.attempt(case):
                        _measure(suite, case, name, layer, kind)
                    torch.compiler.reset()
                    suite.device.release()


def _measure(suite: Suite, case: str, name: str, layer: Layer, kind: str) -> None:
    tail, device = TAILS[name], suite.device
    shape = layer.output_shape(suite.settings.batch)
    size = math.prod(shape) * DTYPES[kind].itemsize
    plain = [
        [torch.randn(shape, device=device.name).to(DTYPES[kind]) for _ in range(tail.inputs + 1)]
        for _ in range(copies_for(size * (tail.inputs + 1), device.l2_bytes))
    ]
    channels = shape[1]
    weights, biases = ([f(channels, device=device.name) for _ in range(3)] for f in (torch.rand, torch.randn))
    compile_it: Callable[..., Callable[[list[Tensor], Parameters], Tensor]] = partial(
        torch.compile, dynamic=False, **suite.settings.compiler
    )
    sides = {
        EAGER: (tail.eager, "contiguous"),
        COMPILED: (compile_it(tail.eager), "contiguous"),
        CHANNELS: (compile_it(tail.eager), "channels_last"),
    }
    for backend in OURS:
        reason = why_not(OPS[name], backend)
        if reason is None:
            sides[backend] = (tail.ours, "batch_last")
        else:
            suite.note(f"{OPS[name]}: no {backend} kernel: {reason}")

    def leaves_of(layout: str, tensors: list[Tensor]) -> tuple[list[Tensor], Parameters, list[Tensor], Tensor]:
        """Inputs, parameters, what is differentiated, incoming gradient: beta and alpha are learnt here, unlike on the CPU."""
        x = [as_layout(t, layout).detach().requires_grad_() for t in tensors[:-1]]
        own = [[t.clone().requires_grad_() for t in group] for group in (weights, biases)]
        alpha, beta = (torch.tensor(v, device=device.name, requires_grad=True) for v in (0.7, 2.0))
        return x, Parameters(own[0], own[1], alpha, beta), [*x, *own[0], *own[1], alpha, beta], as_layout(tensors[-1], layout)

    variants: dict[str, dict[str, Calls]] = {FORWARD: {}, BACKWARD: {}, BOTH: {}}
    results = {
        side: _calls(function, [leaves_of(layout, t) for t in plain], variants, side)
        for side, (function, layout) in sides.items()
    }
    exact = [[t.float() for t in plain[0]]]
    right = _calls(tail.eager, [leaves_of("contiguous", t) for t in exact], {FORWARD: {}, BACKWARD: {}, BOTH: {}}, EAGER)
    for backend in (backend for backend in OURS if backend in results):
        for ours, wanted in zip(results[backend], right, strict=True):
            error = float((ours.float() - wanted).norm() / wanted.norm().clamp_min(1e-30))
            if not error <= TOLERANCE[kind]:
                raise ArithmeticError(f"{case}, {backend}: expected eager's result, got one {error:.1e} away")
    for part, each in variants.items():
        times = timed(suite, each)
        moved = size * _passes(tail, part)
        about = {"op": name, "layer": layer.name, "batch": suite.settings.batch, "precision": kind, "part": part, "bytes": moved}
        fastest = times.fastest([(COMPILED,), (CHANNELS,)])
        for side in each:
            ratio = times.ratio(fastest, [side])
            suite.add([Record("fused", about, side, 1, times.summary(side), ratio, f"{fastest[0]}, the faster layout")])


def _passes(tail: Tail, part: str) -> float:
    return {FORWARD: tail.forward_passes, BACKWARD: tail.backward_passes}.get(part, tail.forward_passes + tail.backward_passes)


def _calls(
    function: Callable[[list[Tensor], Parameters], Tensor],
    copies: list[tuple[list[Tensor], Parameters, list[Tensor], Tensor]],
    variants: dict[str, dict[str, Calls]],
    side: str,
) -> list[Tensor]:
    """Add the calls of one side to `variants`; return what it computes on the first copy: result and gradients."""
    forwards: list[Callable[[], object]] = []
    backwards: list[Callable[[], object]] = []
    whole: list[Callable[[], object]] = []
    first: list[Tensor] = []

    def run(x: list[Tensor], parameters: Parameters) -> Tensor:
        if side not in OURS:
            return function(x, parameters)
        with tk.use_backend(side):
            return function(x, parameters)

    with torch._functorch.config.patch(donated_buffer=False):  # backward runs many times
        for x, parameters, leaves, grad in copies:
            out = run(x, parameters)
            gradients = torch.autograd.grad(out, leaves, grad, retain_graph=True, allow_unused=True)
            used = [leaf for leaf, gradient in zip(leaves, gradients, strict=True) if gradient is not None]
            first = first or [out.detach(), *(gradient for gradient in gradients if gradient is not None)]
            forwards.append(partial(run, x, parameters))
            backwards.append(partial(torch.autograd.grad, out, used, grad, retain_graph=True))
            whole.append(lambda x=x, p=parameters, u=used, g=grad: torch.autograd.grad(run(x, p), u, g))  # type: ignore[misc]
    for part, calls in ((FORWARD, forwards), (BACKWARD, backwards), (BOTH, whole)):
        variants[part][side] = Calls(calls)
    return first
