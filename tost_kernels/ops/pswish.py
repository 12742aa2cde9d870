"""pswish: x * sigmoid(beta * x), the ghost swish, with a beta that can move towards ReLU during training."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from tost_kernels.backend import pick
from tost_kernels.layout import as_layout, empty_layout, layout_of
from tost_kernels.ops.register import define, define_reference, differentiate, op

SCHEMA = "(Tensor input, Tensor beta, str plan) -> Tensor"
BACKWARD_SCHEMA = "(Tensor grad_output, Tensor input, Tensor beta, str plan) -> (Tensor grad_input, Tensor grad_beta)"


def compute_dtype(x: Tensor) -> torch.dtype:
    """The dtype to compute in for an input like `x`: float64 for float64, else float32."""
    return torch.float64 if x.dtype == torch.float64 else torch.float32


def per_channel(t: Tensor, x: Tensor) -> Tensor:
    """A 0-dim or (C,) tensor, seen so that it broadcasts against `x` (N, C, ...) in the dtype that x is computed in."""
    t = t.to(compute_dtype(x))
    return t if t.dim() == 0 else t.reshape(-1, *[1] * (x.dim() - 2))


def scalar(name: str, value: Tensor | float, like: Tensor, *, channels: bool, op_name: str) -> Tensor:
    """`value`, a number or a tensor, as the tensor an op takes: 0-dim or, where `channels`, also (C,), C = like.shape[1].

    A number is convenient for a call by hand; training passes tensors, whose changes a compiled graph sees.
    Raises TypeError / ValueError naming `name`.
    """
    dtype = compute_dtype(like)
    if not isinstance(value, Tensor):
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise TypeError(f"{op_name}: expected {name} to be a number or a Tensor, got {type(value).__name__}")
        return torch.full((), value, dtype=dtype, device=like.device)
    wanted = "of shape () or (C,)" if channels else "of shape ()"
    fits = value.dim() == 0 or (channels and value.dim() == 1 and like.dim() >= 2 and value.shape[0] == like.shape[1])
    if not fits:
        raise ValueError(
            f"{op_name}: expected {name} {wanted} for an input of shape {tuple(like.shape)}, got {tuple(value.shape)}"
        )
    if not value.is_floating_point():
        raise TypeError(f"{op_name}: expected {name} of a floating dtype, got {value.dtype}")
    if value.device != like.device:
        raise ValueError(f"{op_name}: expected {name} on {like.device}, got {value.device}")
    return value.to(dtype)


def check_floating(name: str, x: Any, op_name: str) -> None:
    """Raise TypeError unless `x` is a tensor of float16, bfloat16, float32 or float64."""
    if not isinstance(x, Tensor):
        raise TypeError(f"{op_name}: expected {name} to be a Tensor, got {type(x).__name__}")
    if x.dtype not in (torch.float16, torch.bfloat16, torch.float32, torch.float64):
        raise TypeError(f"{op_name}: expected {name} of float16, bfloat16, float32 or float64, got {x.dtype}")


def pswish_reference(input: Tensor, beta: Tensor, plan: str = "") -> Tensor:
    """The specification, in plain torch, differentiable to any order. input: (N, C, ...); beta: () or (C,)."""
    x = input.to(compute_dtype(input))
    y = (x * torch.sigmoid(per_channel(beta, input) * x)).to(input.dtype)
    return as_layout(y, layout_of(input))


def _fake(input: Tensor, beta: Tensor, plan: str) -> Tensor:
    return empty_layout(input.shape, layout_of(input), input)


def _backward_fake(grad_output: Tensor, input: Tensor, beta: Tensor, plan: str) -> tuple[Tensor, Tensor]:
    return empty_layout(input.shape, layout_of(input), input), beta.new_empty(beta.shape)


class _PSwish(torch.autograd.Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(backend: str, input: Tensor, beta: Tensor, plan: str) -> Tensor:
        return op("pswish", backend)(input, beta, plan)  # type: ignore[no-any-return]

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        ctx.backend, input, beta, ctx.plan = inputs
        ctx.save_for_backward(input, beta)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_output: Tensor) -> tuple[Tensor | None, ...]:
        input, beta = ctx.saved_tensors
        grad_input, grad_beta = op("pswish_backward", ctx.backend)(grad_output, input, beta, ctx.plan)
        return None, grad_input, grad_beta, None


define("pswish", SCHEMA, _fake)
define("pswish_backward", BACKWARD_SCHEMA, _backward_fake)
define_reference("pswish", SCHEMA, pswish_reference)
differentiate("pswish", _PSwish)


def pswish(x: Tensor, beta: Tensor | float) -> Tensor:
    """Parametric swish: x * sigmoid(beta * x). beta = 1 is Swish; from beta = 10 up it is within 0.03 of ReLU.

    x: any shape, float16, bfloat16, float32 or float64 (computed in float32 below float64). beta: a 0-dim tensor or, for x of
    shape (N, C, ...), one of shape (C,); a number is taken too, but a compiled graph would freeze it. Returns a tensor of x's
    shape and dtype, in x's layout. Differentiable in x and beta: dx = s + beta x s (1 - s), dbeta = sum dy x^2 s (1 - s),
    s = sigmoid(beta x). Autocast changes nothing: the dtype is x's.

    Raises TypeError or ValueError, naming the argument, for a wrong type, dtype, shape or device.
    Paper: "Training Your Sparse Neural Network Better with Any Mask" (ICML 2022), https://arxiv.org/abs/2206.12755.
    """
    check_floating("x", x, "pswish")
    beta = scalar("beta", beta, x, channels=True, op_name="pswish")
    backend = pick("pswish", ("cpu", "cuda", "triton", "reference"), x)
    if backend in ("reference", "dense"):
        return pswish_reference(x, beta)
    return _PSwish.apply(backend, x, beta, "")  # type: ignore[no-any-return]
