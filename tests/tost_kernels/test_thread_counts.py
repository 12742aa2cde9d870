"""The compiled CPU kernels give the same bits with any number of threads: every op, every gradient, every instruction set."""

from collections.abc import Callable
from functools import partial

import pytest
import torch
from torch import Tensor

import tost_kernels as tk
from tost_kernels import library
from tost_kernels.layout import as_layout

pytestmark = pytest.mark.skipif(library.reason("cpu") is not None, reason="the compiled CPU library is not built")
THREADS = (1, 2, 3, 4)
# name: (N, C, H, W), (O, kh, kw), stride, padding, dilation, groups, density. Each is work for several threads.
CONVS = {
    "plain 3x3": ((20, 16, 12, 12), (24, 3, 3), 1, 1, 1, 1, 0.2),
    "one image, many tiles": ((1, 8, 40, 37), (9, 3, 3), 1, 1, 1, 1, 0.4),
    "one tile, many channels": ((16, 128, 4, 4), (256, 3, 3), 1, 1, 1, 1, 0.2),
    "2x2 images": ((65, 96, 2, 2), (160, 3, 3), 1, 1, 1, 1, 0.1),
    "stride 2": ((17, 12, 15, 15), (20, 3, 3), 2, 1, 1, 1, 0.3),
    "1x1, stride 2": ((33, 32, 9, 9), (48, 1, 1), 2, 0, 1, 1, 0.3),
    "depthwise": ((18, 24, 10, 10), (24, 3, 3), 1, 1, 1, 24, 0.8),
    "depthwise, two channels, large planes": ((33, 2, 40, 41), (4, 3, 3), 2, 1, 1, 2, 0.8),
    "5x5, dilation 2, groups": ((9, 12, 14, 14), (15, 5, 5), 1, 4, 2, 3, 0.3),
    "dense stem": ((35, 3, 20, 20), (16, 3, 3), 1, 1, 1, 1, 1.0),
}
LINEARS = {"wide": (70, 300, 200, 0.1), "two rows": (2, 512, 512, 0.2), "many rows": (500, 24, 10, 0.5)}  # N, I, O, density
PICTURES = (9, 11, 64, 65)  # the pixels of a channel are work for one thread


def with_gradients(function: Callable[..., Tensor], *leaves: Tensor) -> list[Tensor]:
    """The result and the gradient of every leaf, on the compiled kernels."""
    leaves = tuple(leaf.detach().requires_grad_() for leaf in leaves)
    with tk.use_backend("cpu"):
        out = function(*leaves)
    upstream = torch.randn(out.shape, generator=torch.Generator().manual_seed(1)).to(out.dtype)
    return [out.detach(), *torch.autograd.grad(out, leaves, upstream)]


def conv(name: str, layout: str, dtype: torch.dtype) -> list[Tensor]:
    shape, (out, *kernel), stride, padding, dilation, groups, density = CONVS[name]
    pattern = tk.Pattern(torch.rand(out, shape[1] // groups, *kernel) < density)
    x, values, bias = (
        as_layout(torch.randn(shape), layout).to(dtype),
        torch.randn(pattern.nnz).to(dtype),
        torch.randn(out).to(dtype),
    )
    return with_gradients(
        lambda x, values, bias: tk.masked_conv2d(x, values, pattern, bias, stride, padding, dilation, groups), x, values, bias
    )


def linear(name: str, layout: str, dtype: torch.dtype) -> list[Tensor]:
    batch, inputs, outputs, density = LINEARS[name]
    pattern = tk.Pattern(torch.rand(outputs, inputs) < density)
    x, values, bias = as_layout(torch.randn(batch, inputs), layout), torch.randn(pattern.nnz), torch.randn(outputs)
    return with_gradients(
        lambda x, values, bias: tk.masked_linear(x, values, pattern, bias), x.to(dtype), values.to(dtype), bias.to(dtype)
    )


def pswish(per_channel: bool, layout: str, dtype: torch.dtype) -> list[Tensor]:
    beta = torch.rand(PICTURES[1]) + 0.5 if per_channel else torch.tensor(1.2)
    return with_gradients(tk.pswish, as_layout(torch.randn(PICTURES), layout).to(dtype), beta)


def ghost_skip_add(act: str, layout: str, dtype: torch.dtype) -> list[Tensor]:
    """With the batch statistics of all three branches, which are results too."""
    channels = PICTURES[1]
    stats = []

    def call(u: Tensor, ghost: Tensor, shortcut: Tensor, alpha: Tensor, beta: Tensor, *affine: Tensor) -> Tensor:
        norms = [tk.Norm(*affine[2 * i : 2 * i + 2], batch_stats=True) for i in range(3)]
        beta_or_none = beta if act == "pswish" else None
        out, of_batch = tk.ghost_skip_add(
            u, ghost, alpha, shortcut, norm=norms[0], ghost_norm=norms[1], shortcut_norm=norms[2], act=act, beta=beta_or_none
        )
        stats.append(of_batch)
        return out if act == "pswish" else out + 0 * beta  # every leaf has a gradient

    tensors = [as_layout(torch.randn(PICTURES) + 0.3, layout).to(dtype) for _ in range(3)]
    scalars = [torch.tensor(0.7), torch.tensor(1.4)]
    affine = [torch.rand(channels) + 0.5 for _ in range(6)]
    return [*with_gradients(call, *tensors, *scalars, *affine), *stats]


def pool(name: str, layout: str, dtype: torch.dtype) -> list[Tensor]:
    """Windows that overlap, so that the gradients are sums."""
    windows = [3, 3], [2, 2], [1, 1], True
    x = as_layout(torch.randn(33, 11, 30, 31), layout).to(dtype)
    if name == "max":
        return with_gradients(lambda x: torch.ops.tost.max_pool2d_cpu(x, *windows)[0], x)
    return with_gradients(lambda x: torch.ops.tost.avg_pool2d_cpu(x, *windows, False, 0), x)


def to_batch_last(shape: tuple[int, ...], layout: str, dtype: torch.dtype) -> list[Tensor]:
    return [torch.ops.tost.to_batch_last_cpu(as_layout(torch.randn(shape), layout).to(dtype))]


CALLS: dict[str, Callable[[str, torch.dtype], list[Tensor]]] = {
    **{f"masked_conv2d, {name}": partial(conv, name) for name in CONVS},
    **{f"masked_linear, {name}": partial(linear, name) for name in LINEARS},
    "pswish": partial(pswish, False),
    "pswish, beta per channel": partial(pswish, True),
    "ghost_skip_add, pswish": partial(ghost_skip_add, "pswish"),
    "ghost_skip_add, relu": partial(ghost_skip_add, "relu"),
    "max_pool2d": partial(pool, "max"),
    "avg_pool2d": partial(pool, "avg"),
    "to_batch_last": partial(to_batch_last, (33, 7, 31, 30)),
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("layout", ["batch_last", "contiguous"])
@pytest.mark.parametrize("name", CALLS)
def test_same_bits_with_any_number_of_threads(name: str, layout: str, dtype: torch.dtype) -> None:
    before, results = torch.get_num_threads(), []
    try:
        for count in THREADS:
            torch.set_num_threads(count)
            torch.manual_seed(0)
            results.append(CALLS[name](layout, dtype))
    finally:
        torch.set_num_threads(before)
    assert all(tensor.isfinite().all() for tensor in results[0])
    for count, other in zip(THREADS, results, strict=True):
        for number, (one, many) in enumerate(zip(results[0], other, strict=True)):
            assert torch.equal(one, many), f"result {number} with {count} threads"


LOWER_ISA = """
import torch, test_thread_counts as t
for name in t.CALLS:
    for dtype in (torch.float32, torch.bfloat16):
        t.test_same_bits_with_any_number_of_threads(name, "batch_last", dtype)
"""


@pytest.mark.parametrize("isa", ["avx512", "avx2", "portable"])
def test_lower_instruction_sets(isa: str, run_on: Callable[[str, str], None]) -> None:
    run_on(isa, LOWER_ISA)
