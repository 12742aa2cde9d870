"""pswish: x * sigmoid(beta * x), the ghost swish, with a beta that can move towards ReLU during training."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from tost_kernels.backend import PREFERRED, pick
from tost_kernels.layout import as_layout, empty_layout, layout_of
from tost_kernels.ops.arguments import check_floating, compute_dtype, per_channel, scalar
from tost_kernels.register import apply, define, define_reference, differentiate, once_differentiable, op, run_below_autograd

_SCHEMA = "(Tensor input, Tensor beta, str plan) -> Tensor"
_BACKWARD_SCHEMA = "(Tensor grad_output, Tensor input, Tensor beta, str plan) -> (Tensor grad_input, Tensor grad_beta)"


def reference(input: Tensor, beta: Tensor, plan: str = "") -> Tensor:
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
        return run_below_autograd("pswish", backend, input, beta, plan)  # type: ignore[no-any-return]

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


define("pswish", _SCHEMA, _fake)
define("pswish_backward", _BACKWARD_SCHEMA, _backward_fake)
define_reference("pswish", _SCHEMA, reference)
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
    backend = pick("pswish", PREFERRED, x)
    if backend in ("reference", "dense"):
        return reference(x, beta)
    return apply(_PSwish, backend, x, beta, "")  # type: ignore[no-any-return]
