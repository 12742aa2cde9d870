"""One layer as calls to be timed: torch's dense ops in every layout, and the sparse kernels under a plan; none through autograd.

A sparse layer is three calls: forward, input gradient, values gradient. A dense one is two: forward and both gradients.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

import tost_kernels as tk
from benchmarks.cases import Layer
from tost_kernels.plan import Plan, static_plan

Call = Callable[[], Tensor | tuple[Tensor, ...]]

PARTS = ("forward", "input gradient", "values gradient")
# ||ours - torch's|| / ||torch's||: sums of many thousands of products; torch's own bfloat16 is as far from float32
_TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 1e-2}


@dataclass(frozen=True)
class Problem:
    """A layer with data. x, grad: input and output gradient, float32 and contiguous; weight: dense, of `layer.weight_shape`."""

    layer: Layer
    x: Tensor
    grad: Tensor
    weight: Tensor

    @classmethod
    def of(cls, layer: Layer, batch: int) -> Problem:
        """Normally distributed data out of torch's global generator."""
        shapes = layer.input_shape(batch), layer.output_shape(batch), layer.weight_shape
        return cls(layer, *(torch.randn(shape) for shape in shapes))

    @property
    def geometry(self) -> tuple[list[int], list[int], list[int], int]:
        """Stride, padding, dilation and groups of the convolution."""
        layer = self.layer
        return [layer.stride] * 2, [layer.padding] * 2, [layer.dilation] * 2, layer.groups


def dense_calls(problem: Problem, dtype: torch.dtype = torch.float32) -> dict[str, tuple[Call, Call]]:
    """Layout -> (forward, both gradients), in torch's own ops."""
    x, grad, weight = (t.to(dtype) for t in (problem.x, problem.grad, problem.weight))
    if problem.layer.is_linear:
        return {"rows": (lambda: F.linear(x, weight), lambda: (grad @ weight, grad.t() @ x))}
    stride, padding, dilation, groups = problem.geometry

    def calls(layout: torch.memory_format) -> tuple[Call, Call]:
        a, g, w = (t.contiguous(memory_format=layout) for t in (x, grad, weight))
        backward = (None, stride, padding, dilation, False, [0, 0], groups, [True, True, False])
        return (
            lambda: F.conv2d(a, w, None, stride, padding, dilation, groups),
            lambda: torch.ops.aten.convolution_backward(g, a, w, *backward)[:2],
        )

    return {"contiguous": calls(torch.contiguous_format), "channels_last": calls(torch.channels_last)}


def sparse_calls(
    problem: Problem, pattern: tk.Pattern, plan: Plan, dtype: torch.dtype = torch.float32
) -> tuple[Call, Call, Call]:
    """Forward, input gradient and values gradient on batch-last tensors; the kept weights are `problem.weight`'s."""
    layer = problem.layer
    x, grad = tk.to_batch_last(problem.x.to(dtype)), tk.to_batch_last(problem.grad.to(dtype))
    values = pattern.gather(problem.weight).to(dtype)
    if plan.backend != "cpu":
        return _differentiated(layer, x, grad, values, pattern, plan, problem.geometry)
    ops, index, shape = torch.ops.tost, pattern.index, list(x.shape)
    if layer.is_linear:
        linear = (list(pattern.shape), plan.options)
        return (
            lambda: ops.masked_linear_cpu(x, values, None, index, *linear),
            lambda: ops.masked_linear_input_grad_cpu(grad, values, index, shape, "batch_last", *linear),
            lambda: ops.masked_linear_values_grad_cpu(grad, x, index, pattern.nnz, *linear),
        )
    conv = (list(pattern.shape), *problem.geometry, plan.options)
    return (
        lambda: ops.masked_conv2d_cpu(x, values, None, index, *conv),
        lambda: ops.masked_conv2d_input_grad_cpu(grad, values, index, shape, "batch_last", *conv),
        lambda: ops.masked_conv2d_values_grad_cpu(grad, x, index, pattern.nnz, *conv),
    )


def _differentiated(
    layer: Layer, x: Tensor, grad: Tensor, values: Tensor, pattern: tk.Pattern, plan: Plan, geometry: tuple[object, ...]
) -> tuple[Call, Call, Call]:
    """The calls of a plan that has no ops of its own, by way of autograd."""
    x, values = x.requires_grad_(), values.requires_grad_()

    def forward() -> Tensor:
        if layer.is_linear:
            return tk.masked_linear(x, values, pattern, plan=plan)
        return tk.masked_conv2d(x, values, pattern, None, *geometry, plan=plan)  # type: ignore[arg-type]

    out = forward()
    return (
        torch.no_grad()(forward),
        lambda: torch.autograd.grad(out, x, grad, retain_graph=True)[0],
        lambda: torch.autograd.grad(out, values, grad, retain_graph=True)[0],
    )


def plan_of(choice: str, layer: Layer, x: Tensor, pattern: tk.Pattern) -> Plan:
    """THE place where a plan is made. choice: "kernel" (the compiled kernels, whatever they cost), "rule" (tost_kernels' static
    rule), "tuned" (what `tost_kernels.tune` chooses for a training step on `x`, or finds in its cache), or options of the
    compiled kernels such as "tile=4x4,block=32". x: batch-last, as the layer gets it.
    """
    if choice == "kernel":
        return Plan("cpu")
    if choice == "rule":
        return static_plan("masked_linear" if layer.is_linear else "masked_conv2d", x, pattern)
    if choice == "tuned":
        return tk.tune(module_of(layer, pattern, x.dtype), x.detach().requires_grad_()).plan_of("", training=True)
    return Plan("cpu", choice)


def module_of(layer: Layer, pattern: tk.Pattern, dtype: torch.dtype = torch.float32) -> tk.SparseConv2d | tk.SparseLinear:
    """The layer as a module without bias, its kept weights drawn as torch's own layers draw them."""
    if layer.is_linear:
        return tk.SparseLinear(layer.channels, layer.out, bias=False, dtype=dtype, mask=pattern)
    sizes = layer.kernel, layer.stride, layer.padding, layer.dilation, layer.groups
    return tk.SparseConv2d(layer.channels, layer.out, *sizes, bias=False, dtype=dtype, mask=pattern)


def check(problem: Problem, pattern: tk.Pattern, calls: tuple[Call, Call, Call], dtype: torch.dtype = torch.float32) -> None:
    """Compare the three sparse calls with torch's on the masked weight, in float32.

    Raises:
        ArithmeticError: a result is farther away than rounding explains.
    """
    rounded = (t.to(dtype).float() for t in (problem.x, problem.grad, problem.weight * pattern.mask()))
    exact = Problem(problem.layer, *rounded)
    forward, backward = next(iter(dense_calls(exact).values()))
    expected = (forward(), *backward())
    for part, call, right in zip(PARTS, calls, expected, strict=True):
        assert isinstance(right, Tensor)
        right = pattern.gather(right) if part == "values gradient" else right
        ours = call()
        assert isinstance(ours, Tensor)
        error = float((ours.detach().float() - right).norm() / right.norm().clamp_min(1e-30))
        if not error <= _TOLERANCE[dtype]:
            raise ArithmeticError(f"{problem.layer.name}, {part}: expected torch's result, got one {error:.1e} away ({dtype})")
