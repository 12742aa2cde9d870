"""masked_linear on the GPU: a 1x1 convolution on images of one pixel.

A batch-last input, [F][N] in memory, is what algo=tiles and direct gather from; algo=blocks takes the usual [N][F].
"""

from __future__ import annotations

from torch import Tensor

from tost_kernels.triton import masked_conv2d as conv2d
from tost_kernels.triton.implement import implement


def _image(x: Tensor) -> Tensor:
    return x[:, :, None, None]


def _geometry(weight_shape: list[int], plan: str) -> tuple[list[int], list[int], list[int], list[int], int, str]:
    return [*weight_shape, 1, 1], [1, 1], [0, 0], [1, 1], 1, plan


def forward(input: Tensor, values: Tensor, bias: Tensor | None, index: Tensor, weight_shape: list[int], plan: str) -> Tensor:
    return conv2d.forward(_image(input), values, bias, index, *_geometry(weight_shape, plan))[:, :, 0, 0]


def input_grad(
    grad_output: Tensor,
    values: Tensor,
    index: Tensor,
    input_shape: list[int],
    input_layout: str,
    weight_shape: list[int],
    plan: str,
) -> Tensor:
    shape = [*input_shape, 1, 1]
    grad = conv2d.input_grad(_image(grad_output), values, index, shape, input_layout, *_geometry(weight_shape, plan))
    return grad[:, :, 0, 0]


def values_grad(grad_output: Tensor, input: Tensor, index: Tensor, nnz: int, weight_shape: list[int], plan: str) -> Tensor:
    return conv2d.values_grad(_image(grad_output), _image(input), index, nnz, *_geometry(weight_shape, plan))


implement("masked_linear", forward)
implement("masked_linear_input_grad", input_grad)
implement("masked_linear_values_grad", values_grad)
