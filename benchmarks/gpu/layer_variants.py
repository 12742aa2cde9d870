"""One layer on the device, as calls of every way to compute it; each part on several copies of the activations."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

import tost_kernels as tk
from benchmarks.cases import Layer
from benchmarks.csr import columns
from benchmarks.gpu.device import DTYPES, precision
from benchmarks.gpu.measure import Calls
from benchmarks.layer_calls import PARTS
from tost_kernels.layout import as_layout
from tost_kernels.plan import Plan

FORWARD, INPUT, VALUES = PARTS
ALL = "all three"

# ||ours - dense in fp32|| / ||dense||, on equal inputs. TF32 has 10 bits of mantissa, bf16 rounds its results to 8.
TOLERANCE = {"fp32": 1e-5, "tf32": 1e-3, "bf16": 1e-2}


@dataclass(frozen=True)
class Problem:
    """A layer with data, in the precision's dtype. x, grad: copies of input and output gradient, contiguous; weight: dense."""

    layer: Layer
    precision: str
    x: tuple[Tensor, ...]
    grad: tuple[Tensor, ...]
    weight: Tensor

    @classmethod
    def of(cls, layer: Layer, batch: int, kind: str, copies: int, device: str) -> Problem:
        """Normally distributed data; the weights as torch's layers draw them."""

        def normal(shape: tuple[int, ...]) -> Tensor:
            return torch.randn(shape, device=device).to(DTYPES[kind])

        x = tuple(normal(layer.input_shape(batch)) for _ in range(copies))
        grad = tuple(normal(layer.output_shape(batch)) for _ in range(copies))
        fan_in = layer.weight_shape[1] * layer.kernel**2
        return cls(layer, kind, x, grad, normal(layer.weight_shape) / fan_in**0.5)

    @property
    def geometry(self) -> tuple[list[int], list[int], list[int], int]:
        """Stride, padding, dilation and groups."""
        layer = self.layer
        return [layer.stride] * 2, [layer.padding] * 2, [layer.dilation] * 2, layer.groups


def activation_bytes(layer: Layer, batch: int, kind: str) -> int:
    """Input and output together."""
    sizes = (torch.Size(shape).numel() for shape in (layer.input_shape(batch), layer.output_shape(batch)))
    return sum(sizes) * DTYPES[kind].itemsize


def _gradients(problem: Problem, x: Tensor, grad: Tensor, weight: Tensor, mask: list[bool]) -> list[Tensor | None]:
    stride, padding, dilation, groups = problem.geometry
    backward = torch.ops.aten.convolution_backward
    return list(backward(grad, x, weight, None, stride, padding, dilation, False, [0, 0], groups, [*mask, False]))


def dense(problem: Problem) -> dict[str, Calls]:
    """cuDNN, channels_last: the baseline."""
    form = torch.channels_last
    weight = problem.weight.contiguous(memory_format=form)
    pairs = [
        (x.contiguous(memory_format=form), g.contiguous(memory_format=form)) for x, g in zip(problem.x, problem.grad, strict=True)
    ]

    def forward(x: Tensor) -> Tensor:
        return F.conv2d(x, weight, None, *problem.geometry)

    def both(x: Tensor, g: Tensor) -> object:
        return forward(x), _gradients(problem, x, g, weight, [True, True])

    return {
        FORWARD: Calls([lambda x=x: forward(x) for x, _ in pairs]),  # type: ignore[misc]
        INPUT: Calls([lambda x=x, g=g: _gradients(problem, x, g, weight, [True, False]) for x, g in pairs]),  # type: ignore[misc]
        VALUES: Calls([lambda x=x, g=g: _gradients(problem, x, g, weight, [False, True]) for x, g in pairs]),  # type: ignore[misc]
        ALL: Calls([lambda x=x, g=g: both(x, g) for x, g in pairs]),  # type: ignore[misc]
    }


def eager(problem: Problem, function: Callable[[Tensor, Tensor], Tensor]) -> dict[str, Calls]:
    """`function` (input, weight) and its gradients as a user's program launches them: no graph."""
    form = torch.channels_last
    weight = problem.weight.contiguous(memory_format=form).requires_grad_()
    inputs = [x.contiguous(memory_format=form).requires_grad_() for x in problem.x]
    grads = [g.contiguous(memory_format=form) for g in problem.grad]

    def both(x: Tensor, g: Tensor) -> object:
        return torch.autograd.grad(function(x, weight), [x, weight], g)

    return {
        ALL: Calls([lambda x=x, g=g: both(x, g) for x, g in zip(inputs, grads, strict=True)], replayed=False),  # type: ignore[misc]
    }


def masked_dense(problem: Problem, pattern: tk.Pattern) -> dict[str, Calls]:
    """What torch.nn.utils.prune does: the mask times the weight, every time."""
    mask = pattern.mask().to(problem.weight)
    return eager(problem, lambda x, weight: F.conv2d(x, weight * mask, None, *problem.geometry))


def compiled(problem: Problem, options: dict[str, str]) -> dict[str, Calls]:
    """The dense layer under torch.compile."""
    function = torch.compile(lambda x, weight: F.conv2d(x, weight, None, *problem.geometry), dynamic=False, **options)  # type: ignore[call-overload]
    return eager(problem, function)


def csr(problem: Problem, pattern: tk.Pattern) -> dict[str, Calls]:
    """cuSPARSE: the sparse weight times the unfolded input. Unfolding is not counted, which no network could spare but a 1x1."""
    built = columns(tk.to_batch_last(problem.x[0]), problem.layer)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Sparse CSR tensor support is in beta")
        weight = (problem.weight * pattern.mask()).view(problem.layer.out, -1).to_sparse_csr()
    return {FORWARD: Calls([lambda: weight @ built])}


def ours(problem: Problem, pattern: tk.Pattern, plan: Plan, layout: str) -> dict[str, Calls]:
    """Our op under a plan, on activations in `layout`."""
    values = pattern.gather(problem.weight)
    pairs = [(as_layout(x, layout), as_layout(g, layout)) for x, g in zip(problem.x, problem.grad, strict=True)]

    def op(x: Tensor, v: Tensor) -> Tensor:
        return tk.masked_conv2d(x, v, pattern, None, *problem.geometry, plan=plan)

    def alone(differentiate_x: bool) -> list[Callable[[], object]]:
        """One gradient, its forward pass made beforehand."""
        calls: list[Callable[[], object]] = []
        for x, g in pairs:
            leaf = (x if differentiate_x else values).detach().requires_grad_()
            out = op(leaf, values) if differentiate_x else op(x, leaf)
            calls.append(lambda out=out, leaf=leaf, g=g: torch.autograd.grad(out, leaf, g, retain_graph=True)[0])  # type: ignore[misc]
        return calls

    def both(x: Tensor, v: Tensor, g: Tensor) -> object:
        out = op(x, v)
        return out.detach(), torch.autograd.grad(out, [x, v], g)

    leaves = [(x.detach().requires_grad_(), values.detach().requires_grad_(), g) for x, g in pairs]
    return {
        FORWARD: Calls([lambda x=x: op(x, values) for x, _ in pairs]),  # type: ignore[misc]
        INPUT: Calls(alone(True)),
        VALUES: Calls(alone(False)),
        ALL: Calls([lambda x=x, v=v, g=g: both(x, v, g) for x, v, g in leaves]),  # type: ignore[misc]
    }


def expected(problem: Problem, pattern: tk.Pattern) -> dict[str, Tensor]:
    """The first copy's results by torch's dense convolution in fp32."""
    with precision("fp32"):
        x, g, weight = (t.float() for t in (problem.x[0], problem.grad[0], problem.weight * pattern.mask()))
        grad_x, grad_weight, _ = _gradients(problem, x, g, weight, [True, True])
        assert grad_x is not None
        assert grad_weight is not None
        return {FORWARD: F.conv2d(x, weight, None, *problem.geometry), INPUT: grad_x, VALUES: pattern.gather(grad_weight)}


def check(name: str, kind: str, calls: dict[str, Calls], right: dict[str, Tensor]) -> None:
    """Compare the parts that `calls` has with `expected`.

    Raises:
        ArithmeticError: one is farther away than rounding explains.
    """
    for part in PARTS:
        if part in calls:
            got = calls[part].each[0]()
            assert isinstance(got, Tensor)
            got = got.detach().float()
            wanted = right[part] if got.shape == right[part].shape else right[part].permute(1, 2, 3, 0).reshape(got.shape)
            error = float((got - wanted).norm() / wanted.norm().clamp_min(1e-30))
            if not error <= TOLERANCE[kind]:
                raise ArithmeticError(f"{name}, {part}: expected dense's result, got one {error:.1e} away ({kind})")
