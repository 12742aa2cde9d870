"""masked_conv2d on the GPU: reads the plan, brings the operands into the layout of the kernel it names, and back.

What the kernels do is in conv_tiles.py, conv_values_grad.py (tensor cores) and conv_direct.py (CUDA cores).
"""

from __future__ import annotations

from contextlib import nullcontext
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from tost_kernels.layout import BATCH_LAST, CHANNELS_LAST, as_layout, layout_of, strides_of
from tost_kernels.triton import conv_direct, conv_tiles, conv_values_grad
from tost_kernels.triton.implement import implement
from tost_kernels.triton.options import Geometry, Options, of_pass


def forward(
    input: Tensor,
    values: Tensor,
    bias: Tensor | None,
    index: Tensor,
    weight_shape: list[int],
    stride: list[int],
    padding: list[int],
    dilation: list[int],
    groups: int,
    plan: str,
) -> Tensor:
    options, layout = _options(plan, "forward")
    geometry = Geometry(tuple(weight_shape), tuple(stride), tuple(padding), tuple(dilation), groups)
    with _device_of(input):
        values, bias = values.contiguous(), None if bias is None else bias.contiguous()
        out = _kernels(options).forward(as_layout(input, layout), values, bias, index, geometry, options)
        return _exactly(out, layout_of(input))


def input_grad(
    grad_output: Tensor,
    values: Tensor,
    index: Tensor,
    input_shape: list[int],
    input_layout: str,
    weight_shape: list[int],
    stride: list[int],
    padding: list[int],
    dilation: list[int],
    groups: int,
    plan: str,
) -> Tensor:
    options, layout = _options(plan, "input_grad")
    geometry = Geometry(tuple(weight_shape), tuple(stride), tuple(padding), tuple(dilation), groups)
    with _device_of(grad_output):
        grad_output, values = as_layout(grad_output, layout), values.contiguous()
        grad = _kernels(options).input_grad(grad_output, values, index, input_shape, geometry, options)
        return _exactly(grad, input_layout)


def values_grad(
    grad_output: Tensor,
    input: Tensor,
    index: Tensor,
    nnz: int,
    weight_shape: list[int],
    stride: list[int],
    padding: list[int],
    dilation: list[int],
    groups: int,
    plan: str,
) -> Tensor:
    options, _ = _options(plan, "values_grad")
    geometry = Geometry(tuple(weight_shape), tuple(stride), tuple(padding), tuple(dilation), groups)
    with _device_of(grad_output):
        grad_output, input = as_layout(grad_output, BATCH_LAST), as_layout(input, BATCH_LAST)
        if options.algo == "direct":
            return conv_direct.values_grad(grad_output, input, index, nnz, geometry, options)
        return conv_values_grad.values_grad(grad_output, input, index, nnz, geometry, options)


def _options(plan: str, which: str) -> tuple[Options, str]:
    """The options of a pass and the layout in which its kernel takes and gives tensors."""
    try:
        options = of_pass(plan, which)
    except ValueError as error:
        raise RuntimeError(str(error)) from error
    return options, CHANNELS_LAST if options.algo == "blocks" else BATCH_LAST


def _kernels(options: Options) -> ModuleType:
    return conv_direct if options.algo == "direct" else conv_tiles


def _exactly(out: Tensor, layout: str) -> Tensor:
    """`out` in `layout`, down to the strides of dimensions of size 1, as the ops' fakes promise them."""
    out = as_layout(out, layout)
    strides = strides_of(out.shape, layout)
    return out if out.stride() == strides else out.as_strided(out.shape, strides)


def _device_of(tensor: Tensor) -> Any:
    """Launches go to the current device, which need not be the tensor's."""
    return torch.cuda.device_of(tensor) if tensor.is_cuda else nullcontext()


implement("masked_conv2d", forward)
implement("masked_conv2d_input_grad", input_grad)
implement("masked_conv2d_values_grad", values_grad)
