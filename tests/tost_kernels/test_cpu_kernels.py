"""The compiled CPU kernels of masked_conv2d, masked_linear and to_batch_last, called as raw ops."""

import os
import resource
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import tost_kernels as tk
from tost_kernels import library
from tost_kernels.layout import as_layout, layout_of
from tost_kernels.pattern import Pattern
from tost_kernels.plan import static_plan

pytestmark = pytest.mark.skipif(library.reason("cpu") is not None, reason="the compiled CPU library is not built")
OPS = torch.ops.tost

# name: (N, C, H, W), (O, kh, kw), stride, padding, dilation, groups, density
CASES = {
    "plain 3x3": ((64, 8, 8, 8), (16, 3, 3), (1, 1), (1, 1), (1, 1), 1, 0.1),
    "odd batch, ragged tiles": ((3, 5, 7, 9), (11, 3, 3), (1, 1), (1, 1), (1, 1), 1, 0.3),
    "one image, dense stem 7x7 stride 2": ((1, 3, 32, 32), (16, 7, 7), (2, 2), (3, 3), (1, 1), 1, 1.0),
    "rectangular, all numbers different": ((17, 6, 9, 8), (12, 3, 5), (2, 3), (1, 2), (1, 2), 3, 0.4),
    "depthwise": ((5, 8, 6, 6), (8, 3, 3), (1, 1), (1, 1), (1, 1), 8, 0.7),
    "depthwise, two outputs a channel, stride 2": ((20, 6, 7, 7), (12, 3, 3), (2, 2), (1, 1), (1, 1), 6, 0.5),
    "1x1 on 1x1 images": ((20, 16, 1, 1), (10, 1, 1), (1, 1), (0, 0), (1, 1), 1, 0.2),
    "2x2 images": ((33, 20, 2, 2), (40, 3, 3), (1, 1), (1, 1), (1, 1), 1, 0.1),
    "one row": ((6, 4, 1, 19), (6, 1, 3), (1, 1), (0, 1), (1, 1), 1, 0.5),
    "dilation wider than a tile": ((4, 10, 30, 30), (7, 3, 3), (2, 2), (9, 9), (9, 9), 1, 0.3),
    "stride beyond the kernel, pixels nobody reads": ((2, 4, 5, 5), (4, 1, 1), (3, 3), (0, 0), (1, 1), 2, 0.8),
    "dilation shares a factor with the stride": ((3, 4, 9, 9), (4, 3, 3), (2, 2), (2, 2), (2, 2), 1, 0.5),
    "padding beyond the kernel": ((2, 3, 4, 4), (5, 2, 2), (1, 1), (3, 4), (1, 1), 1, 0.6),
    "nothing kept": ((6, 12, 3, 17), (20, 2, 4), (2, 1), (0, 3), (2, 3), 4, 0.0),
    "many channels, several blocks": ((2, 300, 5, 5), (70, 3, 3), (1, 1), (1, 1), (1, 1), 1, 0.02),
    "kernel as large as the image": ((4, 3, 6, 5), (5, 6, 5), (1, 1), (0, 0), (1, 1), 1, 0.3),
    # Full 1x1 kernels (ghosts) have code of their own: tiles of 6 rows x 64, 16 or 8 columns, blocks 256 wide and 512 deep.
    "pointwise, one of everything": ((1, 1, 1, 1), (1, 1, 1), (1, 1), (0, 0), (1, 1), 1, 1.0),
    "pointwise, a ghost, whole tiles": ((64, 64, 8, 8), (48, 1, 1), (1, 1), (0, 0), (1, 1), 1, 1.0),
    "pointwise, a ghost across stride 2": ((64, 32, 8, 8), (64, 1, 1), (2, 2), (0, 0), (1, 1), 1, 1.0),
    "pointwise, odd everything": ((17, 13, 5, 7), (11, 1, 1), (1, 1), (0, 0), (1, 1), 1, 1.0),
    "pointwise, odd batch, stride 2": ((3, 9, 9, 7), (20, 1, 1), (2, 2), (0, 0), (1, 1), 1, 1.0),
    "pointwise, one image": ((1, 65, 9, 5), (7, 1, 1), (1, 1), (0, 0), (1, 1), 1, 1.0),
    "pointwise, one image, stride 3": ((1, 5, 10, 11), (13, 1, 1), (3, 3), (0, 0), (1, 1), 1, 1.0),
    "pointwise, no pixels but the first": ((64, 12, 2, 2), (16, 1, 1), (3, 3), (0, 0), (1, 1), 1, 1.0),
    "pointwise, a stride for each axis": ((20, 8, 7, 9), (6, 1, 1), (1, 3), (0, 0), (1, 1), 1, 1.0),
    "pointwise, 1x1 images": ((100, 70, 1, 1), (130, 1, 1), (1, 1), (0, 0), (1, 1), 1, 1.0),
    "pointwise, one row": ((100, 7, 1, 19), (5, 1, 1), (2, 2), (0, 0), (1, 1), 1, 1.0),
    "pointwise, one column": ((5, 30, 19, 1), (31, 1, 1), (2, 1), (0, 0), (1, 1), 1, 1.0),
    "pointwise, several blocks in depth, both ways": ((2, 1030, 3, 3), (600, 1, 1), (1, 1), (0, 0), (1, 1), 1, 1.0),
    "pointwise, many columns, several chunks": ((64, 10, 20, 20), (14, 1, 1), (1, 1), (0, 0), (1, 1), 1, 1.0),
    "pointwise, no output channel fills a tile": ((50, 129, 4, 4), (2, 1, 1), (1, 1), (0, 0), (1, 1), 1, 1.0),
    "pointwise but for its padding": ((9, 4, 5, 5), (6, 1, 1), (1, 1), (1, 1), (1, 1), 1, 1.0),
    "pointwise but for its groups": ((9, 4, 5, 5), (6, 1, 1), (1, 1), (0, 0), (1, 1), 2, 1.0),
    # One input channel a group has code of its own: runs of pixels, whose border has fewer taps, in pieces of 8, 4 and 1 vectors.
    "by channel, a MobileNet layer": ((64, 6, 16, 16), (6, 3, 3), (1, 1), (1, 1), (1, 1), 6, 1.0),
    "by channel, stride 2, odd batch": ((50, 5, 9, 8), (5, 3, 3), (2, 2), (1, 1), (1, 1), 5, 0.6),
    "by channel, three outputs a channel, odd everything": ((17, 4, 7, 11), (12, 5, 3), (1, 2), (2, 0), (2, 1), 4, 0.5),
    "by channel, past the caches": ((64, 24, 16, 16), (24, 3, 3), (1, 1), (1, 1), (1, 1), 24, 0.4),
    "by channel, a plane beyond the second cache": ((40, 2, 48, 50), (2, 3, 3), (1, 1), (1, 1), (1, 1), 2, 0.8),
    "by channel, 5x5, more taps than are summed together": ((20, 7, 8, 8), (7, 5, 5), (1, 1), (2, 2), (1, 1), 7, 1.0),
    "by channel, 7x7 on a smaller image": ((9, 4, 5, 3), (8, 7, 7), (1, 1), (3, 3), (1, 1), 4, 0.7),
    "by channel, one image": ((1, 5, 18, 21), (5, 3, 3), (1, 1), (1, 1), (1, 1), 5, 0.7),
    "by channel, eight images, stride 2": ((8, 5, 10, 10), (5, 3, 3), (2, 2), (1, 1), (1, 1), 5, 0.9),
    "by channel, stride 3 and dilation 2": ((7, 3, 13, 14), (3, 3, 3), (3, 3), (1, 1), (2, 2), 3, 0.8),
    "by channel, stride beyond the kernel": ((18, 3, 11, 10), (6, 2, 2), (5, 4), (0, 0), (1, 1), 3, 0.8),
    "by channel, padding beyond the kernel": ((5, 3, 4, 4), (3, 2, 2), (1, 1), (3, 4), (1, 1), 3, 0.8),
    "by channel, one column": ((33, 4, 12, 1), (4, 3, 1), (1, 1), (1, 0), (1, 1), 4, 0.8),
    "by channel, 1x1": ((19, 6, 5, 5), (12, 1, 1), (1, 1), (0, 0), (1, 1), 6, 0.7),
    "by channel, nothing kept": ((20, 6, 4, 4), (6, 3, 3), (1, 1), (1, 1), (1, 1), 6, 0.0),
    "by channel but for its many outputs": ((6, 2, 5, 5), (10, 3, 3), (1, 1), (1, 1), (1, 1), 2, 0.7),
    "by channel but for its large kernel": ((6, 3, 9, 9), (3, 8, 8), (1, 1), (4, 4), (1, 1), 3, 0.5),
    # Few images are cut into blocks, which become items of a larger batch.
    "blocks, one image": ((1, 20, 16, 16), (24, 3, 3), (1, 1), (1, 1), (1, 1), 1, 0.3),
    "blocks that stand over, three images": ((3, 16, 9, 13), (20, 5, 3), (1, 1), (2, 0), (1, 2), 1, 0.4),
    "blocks, padding beyond the reach": ((2, 12, 7, 5), (12, 2, 3), (1, 1), (3, 2), (1, 1), 1, 0.6),
    "blocks, eight images, groups": ((8, 24, 10, 6), (16, 3, 3), (1, 1), (1, 1), (2, 2), 2, 0.5),
    "blocks, a row of one image": ((1, 30, 1, 33), (20, 1, 5), (1, 1), (0, 1), (1, 1), 1, 0.4),
}
LAYOUTS = ("batch_last", "contiguous", "channels_last")


def worst(result: Tensor, reference: Tensor) -> float:
    """max|error| / max|reference|; inf where a NaN got out."""
    error = (result.double() - reference.double()).abs()
    assert result.shape == reference.shape
    if not error.numel():
        return 0.0
    return float(error.nan_to_num(nan=float("inf")).max() / reference.detach().double().abs().max().clamp_min(1e-30))


def make(name: str, dtype: torch.dtype = torch.float32):
    shape, (out, kh, kw), stride, padding, dilation, groups, density = CASES[name]
    mask = torch.rand(out, shape[1] // groups, kh, kw) < density
    mask[: out // 3] = False if density < 1 else mask[: out // 3]  # whole rows without a weight
    pattern = Pattern(mask)
    values, bias = torch.randn(pattern.nnz).to(dtype), torch.randn(out).to(dtype)
    geometry = (list(mask.shape), list(stride), list(padding), list(dilation), groups, "")
    return torch.randn(shape).to(dtype), values, bias, pattern, geometry


def dense_results(x, values, bias, pattern, geometry, dtype):
    """Output, input gradient and values gradient of torch's own convolution in `dtype`, for a fixed output gradient."""
    _, stride, padding, dilation, groups, _ = geometry
    x = x.detach().to(dtype).contiguous().requires_grad_()
    weight = pattern.scatter(values.to(dtype)).requires_grad_()
    y = F.conv2d(x, weight, bias.to(dtype), stride, padding, dilation, groups)
    grad = torch.randn(y.shape, generator=torch.Generator().manual_seed(1)).bfloat16()  # exact in every dtype
    grad_x, grad_weight = torch.autograd.grad(y, (x, weight), grad.to(dtype))
    return grad, [y.detach(), grad_x, pattern.gather(grad_weight)]


def kernel_results(x, values, bias, pattern, geometry, grad, plan=""):
    geometry = (*geometry[:-1], plan)
    return [
        OPS.masked_conv2d_cpu(x, values, bias, pattern.index, *geometry),
        OPS.masked_conv2d_input_grad_cpu(grad, values, pattern.index, list(x.shape), layout_of(x), *geometry),
        OPS.masked_conv2d_values_grad_cpu(grad, x, pattern.index, pattern.nnz, *geometry),
    ]


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("name", CASES)
def test_conv_equals_dense(name, layout):
    x, values, bias, pattern, geometry = make(name)
    grad, wanted = dense_results(x, values, bias, pattern, geometry, torch.float64)
    x = as_layout(x, layout)
    got = kernel_results(x, values, bias, pattern, geometry, as_layout(grad.float(), layout))
    assert max(worst(a, b) for a, b in zip(got, wanted, strict=True)) < 1e-5
    # The output takes the input's layout; the input gradient takes it whatever the output gradient's is.
    assert layout_of(got[0]) == layout_of(as_layout(wanted[0].float(), layout_of(x)))
    assert not x.numel() or got[1].stride() == x.stride()
    other = kernel_results(x, values, bias, pattern, geometry, as_layout(grad.float(), LAYOUTS[LAYOUTS.index(layout) - 1]))
    assert other[1].stride() == x.stride()
    assert max(worst(a, b) for a, b in zip(other, got, strict=True)) < 1e-6


@pytest.mark.parametrize("name", CASES)
def test_bfloat16_errs_at_most_twice_as_much_as_torch(name):
    x, values, bias, pattern, geometry = make(name, torch.bfloat16)
    grad, wanted = dense_results(x, values, bias, pattern, geometry, torch.float64)
    _, torch_own = dense_results(x, values, bias, pattern, geometry, torch.bfloat16)
    got = kernel_results(as_layout(x, "batch_last"), values, bias, pattern, geometry, grad)
    for mine, theirs, exact in zip(got, torch_own, wanted, strict=True):
        assert mine.dtype == torch.bfloat16
        assert worst(mine, exact) <= 2 * worst(theirs, exact) + 2**-9


def integers(*shape: int) -> Tensor:
    """Their products and sums are exact in float32, so bfloat16 results must be the exact ones, rounded once."""
    return torch.randint(-3, 4, shape).bfloat16()


@pytest.mark.parametrize("batch", [1, 17, 50, 64])
@pytest.mark.parametrize("size", [(8, 8), (9, 7), (4, 4), (2, 2)])
def test_bfloat16_is_exact_on_integers_with_every_tile(size, batch):
    """Rows with even and odd numbers of kept weights: some kernels take bfloat16 weights in twos."""
    pattern = Pattern(torch.rand(10, 12, 3, 3) < torch.linspace(0, 0.5, 10).view(-1, 1, 1, 1))
    x, grad = integers(batch, 12, *size), integers(batch, 10, *size)
    values, bias = integers(pattern.nnz), integers(10)
    wide = x.double().requires_grad_()
    weight = pattern.scatter(values.double()).requires_grad_()
    y = F.conv2d(wide, weight, bias.double(), padding=1)
    grad_x, grad_weight = torch.autograd.grad(y, (wide, weight), grad.double())
    wanted = [exact.bfloat16() for exact in (y, grad_x, pattern.gather(grad_weight))]
    geometry = ([10, 12, 3, 3], [1, 1], [1, 1], [1, 1], 1, "")
    tiles = [f"tile={tile}" for tile in OPS.cpu_tiles(*size, batch).split(",") if tile]
    for plan in ("", "block=4", *tiles, *(f"{tile},block=4" for tile in tiles)):
        got = kernel_results(as_layout(x, "batch_last"), values, bias, pattern, geometry, as_layout(grad, "batch_last"), plan)
        assert all(torch.equal(a, b) for a, b in zip(got, wanted, strict=True)), plan


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("kept", [1, 2, 3])
def test_infinite_pixels_reach_only_the_rows_that_read_them(kept, dtype):
    """A kept weight without a partner must not meet a zero: 0 * inf is NaN."""
    mask = torch.zeros(2, 6, 3, 3)
    mask[0, :kept, 1, 1] = 1
    mask[1, 3 : 3 + kept, 1, 1] = 1
    pattern = Pattern(mask)
    x = torch.randn(32, 6, 6, 6).abs().to(dtype)
    x[3, 0, 2, 2] = x[20, 4, 5, 5] = float("inf")
    geometry = ([2, 6, 3, 3], [1, 1], [1, 1], [1, 1], 1)
    values = torch.ones(pattern.nnz, dtype=dtype)
    wanted = torch.stack([x[:, :kept].double().sum(1), x[:, 3 : 3 + kept].double().sum(1)], dim=1)
    for tile in ("", *(f"tile={tile}" for tile in OPS.cpu_tiles(6, 6, 32).split(","))):
        got = OPS.masked_conv2d_cpu(as_layout(x, "batch_last"), values, None, pattern.index, *geometry, tile)
        torch.testing.assert_close(got, wanted.to(dtype), rtol=2**-7, atol=0)


@pytest.mark.parametrize(
    "name",
    [
        "rectangular, all numbers different",
        "many channels, several blocks",
        "pointwise, odd everything",
        "pointwise, odd batch, stride 2",
        "by channel, three outputs a channel, odd everything",
        "by channel, one image",
        "blocks that stand over, three images",
    ],
)
def test_strided_views(name):
    x, values, bias, pattern, geometry = make(name)
    grad, wanted = dense_results(x, values, bias, pattern, geometry, torch.float64)
    n, c, h, w = x.shape
    sliced = torch.full((2 * n, c, h + 2, w + 3), float("nan"))[::2, :, 1 : h + 1, 2 : w + 2]
    sliced.copy_(x)
    batch_last_slice = torch.full((c, h, w, n + 5), float("nan")).permute(3, 0, 1, 2)[2 : n + 2]  # batch stride 1, padded
    batch_last_slice.copy_(x)
    apart = torch.full((2 * pattern.nnz,), float("nan"))[::2]
    apart.copy_(values)
    for strided in (sliced, batch_last_slice):
        got = kernel_results(strided, apart, bias, pattern, geometry, grad.float())
        assert max(worst(a, b) for a, b in zip(got, wanted, strict=True)) < 1e-5


def test_expanded_tensors():
    x, values, bias, pattern, geometry = make("plain 3x3")
    x = x[:1].expand(64, -1, -1, -1)
    grad = torch.ones(()).expand(64, 16, 8, 8)  # what sum().backward() hands over
    got = kernel_results(x, values, bias, pattern, geometry, grad)
    again = kernel_results(x.contiguous(), values, bias, pattern, geometry, grad.contiguous())
    assert all(torch.equal(a, b) for a, b in zip(got, again, strict=True))


def test_by_hand():
    pattern = Pattern(torch.tensor([[[[1, 0], [0, 1]]], [[[0, 0], [0, 0]]]]))
    x = torch.arange(9.0).view(1, 1, 3, 3)
    geometry = ([2, 1, 2, 2], [1, 1], [0, 0], [1, 1], 1, "")
    values = torch.tensor([10.0, 1.0])
    y, grad_x, grad_values = kernel_results(x, values, torch.tensor([0.0, 5.0]), pattern, geometry, torch.ones(1, 2, 2, 2))
    assert y.tolist() == [[[[4.0, 15.0], [37.0, 48.0]], [[5.0, 5.0], [5.0, 5.0]]]]
    assert grad_x.tolist() == [[[[10.0, 10.0, 0.0], [10.0, 11.0, 1.0], [0.0, 1.0, 1.0]]]]
    assert grad_values.tolist() == [8.0, 24.0]


def test_pixels_that_no_window_reads_may_be_infinite():
    """Tiles are larger than the output here: what their missing pixels would read must not count, not even as 0 * inf."""
    mask = torch.zeros(1, 1, 3, 3)
    mask[0, 0, 0, 0] = 1
    pattern = Pattern(mask)
    x = as_layout(torch.randn(4, 1, 7, 7), "batch_last")
    x[:, :, 5, 5] = float("inf")
    grad = torch.randn(4, 1, 5, 5)
    dense = torch.nn.grad.conv2d_weight(x[:, :, :5, :5].contiguous(), (1, 1, 1, 1), grad)
    geometry = ([1, 1, 3, 3], [1, 1], [0, 0], [1, 1], 1)
    for plan in ("", "tile=2x4", "tile=1x1x4"):
        values_grad = OPS.masked_conv2d_values_grad_cpu(grad, x, pattern.index, 1, *geometry, plan)
        assert worst(values_grad, dense.flatten()) < 1e-5


@pytest.mark.parametrize("stride", [(100_000, 100_000), (2, 100_000), (5, 3), (4, 4)])
def test_strides_beyond_the_input(stride):
    """An input gradient has stride * stride phases, of which few have pixels."""
    pattern = Pattern(torch.ones(5, 3, 1, 1))
    values = torch.randn(15)
    x = torch.randn(8, 3, 4, 4, dtype=torch.double, requires_grad=True)  # in float32 torch's own kernel crashes
    y = F.conv2d(x, pattern.scatter(values).double(), stride=stride)
    grad = torch.randn(y.shape)
    (wanted,) = torch.autograd.grad(y, x, grad.double())
    geometry = ([5, 3, 1, 1], list(stride), [0, 0], [1, 1], 1, "")
    got = OPS.masked_conv2d_input_grad_cpu(grad, values, pattern.index, [8, 3, 4, 4], "contiguous", *geometry)
    assert worst(got, wanted) < 1e-5


def test_pswish_gradient_is_finite_where_its_exponent_overflows():
    x = torch.tensor([1e37, -1e37])
    dx, dbeta = OPS.pswish_backward_cpu(torch.ones(2), x, torch.tensor(100.0), "")
    assert dx.tolist() == [1.0, 0.0]
    assert dbeta.item() == 0.0
    # The same activation inside ghost_skip_add: (1, 2, 1, 1) without norms, so that u is what it sees.
    with tk.use_backend("cpu"):
        u = x.view(1, 2, 1, 1).clone().requires_grad_()
        tk.ghost_skip_add(u, act="pswish", beta=100.0).out.sum().backward()
    assert u.grad is not None
    assert u.grad.flatten().tolist() == [1.0, 0.0]


@pytest.mark.parametrize("plan", ["tile=2x4", "tile=1x1x4,block=1", "block=3", "tile=2x2x2,block=1000"])
def test_plans_change_no_result(plan):
    for name in ("rectangular, all numbers different", "2x2 images"):
        x, values, bias, pattern, geometry = make(name)
        grad, wanted = dense_results(x, values, bias, pattern, geometry, torch.float64)
        got = kernel_results(as_layout(x, "batch_last"), values, bias, pattern, geometry, grad.float(), plan)
        assert max(worst(a, b) for a, b in zip(got, wanted, strict=True)) < 1e-5


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(
    "name",
    [
        "many channels, several blocks",
        "pointwise, odd everything",
        "pointwise, several blocks in depth, both ways",
        "pointwise, many columns, several chunks",
        "by channel, three outputs a channel, odd everything",
        "by channel, a plane beyond the second cache",
        "by channel, past the caches",
        "blocks that stand over, three images",
    ],
)
def test_same_bits_with_any_number_of_threads(name, dtype):
    threads = torch.get_num_threads()
    x, values, bias, pattern, geometry = make(name, dtype)
    x = as_layout(x, "batch_last")
    grad, _ = dense_results(x, values, bias, pattern, geometry, torch.float32)
    results = []
    try:
        for count in (1, 2, 5):
            torch.set_num_threads(count)
            results.append(kernel_results(x, values, bias, pattern, geometry, grad.to(dtype)))
    finally:
        torch.set_num_threads(threads)
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))


def test_pointwise_pixels_that_a_stride_skips_are_not_read_and_get_no_gradient():
    x, values, bias, pattern, geometry = make("pointwise, a ghost across stride 2")
    grad, wanted = dense_results(x, values, bias, pattern, geometry, torch.float64)
    x[:, :, 1::2] = float("nan")
    x[:, :, :, 1::2] = float("nan")
    y, grad_x, grad_values = kernel_results(as_layout(x, "batch_last"), values, bias, pattern, geometry, grad.float())
    assert max(worst(y, wanted[0]), worst(grad_values, wanted[2])) < 1e-5
    assert not grad_x[:, :, 1::2].any()
    assert not grad_x[:, :, :, 1::2].any()


def test_pointwise_agrees_with_the_sparse_kernels():
    """A plan with options asks for those."""
    x, values, bias, pattern, geometry = make("pointwise, a stride for each axis")
    grad, _ = dense_results(x, values, bias, pattern, geometry, torch.float64)
    here = kernel_results(x, values, bias, pattern, geometry, grad.float())
    there = kernel_results(x, values, bias, pattern, geometry, grad.float(), plan="block=8")
    assert max(worst(a, b) for a, b in zip(here, there, strict=True)) < 1e-6


def test_pointwise_by_hand():
    """Two pixels of one image, two channels into three: a plain matrix product."""
    pattern = Pattern(torch.ones(3, 2, 1, 1))
    x = torch.tensor([[1.0, 2.0], [10.0, 20.0]]).view(1, 2, 1, 2)
    values = torch.tensor([1.0, 0.0, 0.0, 1.0, 2.0, 1.0])
    grad = torch.tensor([[1.0, 0.0], [0.0, 1.0], [1.0, 1.0]]).view(1, 3, 1, 2)
    geometry = ([3, 2, 1, 1], [1, 1], [0, 0], [1, 1], 1, "")
    y, grad_x, grad_values = kernel_results(x, values, torch.tensor([0.0, 0.5, 0.0]), pattern, geometry, grad)
    assert y.flatten().tolist() == [1.0, 2.0, 10.5, 20.5, 12.0, 24.0]
    assert grad_x.flatten().tolist() == [3.0, 2.0, 1.0, 2.0]
    assert grad_values.tolist() == [1.0, 10.0, 2.0, 20.0, 3.0, 30.0]


@pytest.mark.parametrize("batch", [2, 64])
def test_static_plan_takes_pointwise_kernels_on_batch_last_input_at_any_size(batch):
    x, full = torch.randn(batch, 300, 4, 4), torch.ones(300, 300, 1, 1)
    nearly = full.clone()
    nearly[0, 0] = 0
    assert static_plan("masked_conv2d", tk.to_batch_last(x), Pattern(full)).backend == "cpu"
    assert static_plan("masked_conv2d", tk.to_batch_last(x), Pattern(nearly)).backend == "dense"
    assert static_plan("masked_conv2d", x, Pattern(full)).backend == "dense"


@pytest.mark.parametrize("name", ["by channel, three outputs a channel, odd everything", "by channel, stride beyond the kernel"])
def test_depthwise_agrees_with_the_sparse_kernels(name):
    """A plan with options asks for those."""
    x, values, bias, pattern, geometry = make(name)
    grad, _ = dense_results(x, values, bias, pattern, geometry, torch.float64)
    here = kernel_results(x, values, bias, pattern, geometry, grad.float())
    there = kernel_results(x, values, bias, pattern, geometry, grad.float(), plan="block=8")
    assert max(worst(a, b) for a, b in zip(here, there, strict=True)) < 2e-6


def test_depthwise_by_hand():
    """A row of three pixels, two channels: one weighs its left neighbour, the other itself and its right one."""
    pattern = Pattern(torch.tensor([[1, 0, 0], [0, 1, 1]]).view(2, 1, 1, 3))
    x = torch.tensor([[1.0, 2.0, 3.0], [10.0, 20.0, 30.0]]).view(1, 2, 1, 3)
    grad = torch.tensor([[1.0, 10.0, 100.0], [1.0, 0.0, 2.0]]).view(1, 2, 1, 3)
    geometry = ([2, 1, 1, 3], [1, 1], [0, 1], [1, 1], 2, "")
    y, grad_x, grad_values = kernel_results(x, torch.tensor([2.0, 1.0, 3.0]), torch.tensor([0.5, 0.0]), pattern, geometry, grad)
    assert y.flatten().tolist() == [0.5, 2.5, 4.5, 70.0, 110.0, 30.0]
    assert grad_x.flatten().tolist() == [20.0, 200.0, 0.0, 1.0, 3.0, 2.0]
    assert grad_values.tolist() == [210.0, 70.0, 20.0]


def test_depthwise_infinite_pixels_stay_where_they_are():
    """No product with padding or with the lanes beyond the batch."""
    x, values, bias, pattern, geometry = make("by channel, eight images, stride 2")
    x[3, 2, 4, 4] = float("inf")
    grad, wanted = dense_results(x, values, bias, pattern, geometry, torch.float64)
    y, grad_x, _ = kernel_results(as_layout(x, "batch_last"), values, bias, pattern, geometry, grad.float())
    assert torch.equal(y.isfinite(), wanted[0].isfinite())
    assert grad_x.isfinite().all()


@pytest.mark.parametrize("damage", ["a tap", "a row"])
def test_depthwise_damaged_index_is_an_error(damage):
    x, values, bias, pattern, geometry = make("by channel, a MobileNet layer")
    index = pattern.index.clone()
    index[16 + 7 if damage == "a tap" else 16 + 3] = 10**6
    with pytest.raises(RuntimeError, match="masked_conv2d_cpu: index: damaged: a row or a column is out of range"):
        OPS.masked_conv2d_cpu(x, values, bias, index, *geometry)
    grad = torch.zeros_like(x)
    with pytest.raises(RuntimeError, match="masked_conv2d_values_grad_cpu: index: damaged"):
        OPS.masked_conv2d_values_grad_cpu(grad, x, index, pattern.nnz, *geometry)


@pytest.mark.parametrize("density", [1.0, 0.1])
def test_static_plan_takes_depthwise_kernels_on_batch_last_input_alone(density):
    pattern = Pattern(torch.rand(80, 1, 5, 5) < density)
    x = torch.randn(64, 80, 4, 4)
    assert static_plan("masked_conv2d", tk.to_batch_last(x), pattern).backend == "cpu"
    assert static_plan("masked_conv2d", tk.to_batch_last(x[:2]), pattern).backend == "cpu"
    assert static_plan("masked_conv2d", tk.to_batch_last(x[:1]), pattern).backend == "dense"
    assert static_plan("masked_conv2d", x, pattern).backend == "dense"
    assert static_plan("masked_conv2d", as_layout(x, "channels_last"), pattern).backend == "dense"


@pytest.mark.parametrize(("kernel", "groups"), [(3, 1), (1, 1), (3, 2)])
def test_empty_batch(kernel, groups):
    inputs = 3 if groups == 1 else 1
    pattern = Pattern(torch.ones(4, inputs, kernel, kernel))
    geometry = ([4, inputs, kernel, kernel], [1, 1], [kernel // 2, kernel // 2], [1, 1], groups, "")
    x, grad = torch.empty(0, inputs * groups, 8, 8), torch.empty(0, 4, 8, 8)
    y, grad_x, grad_values = kernel_results(x, torch.randn(pattern.nnz), torch.randn(4), pattern, geometry, grad)
    assert y.shape == (0, 4, 8, 8)
    assert grad_x.shape == x.shape
    assert torch.equal(grad_values, torch.zeros(pattern.nnz))


@pytest.mark.parametrize("plan", ["tile=4x4x", "tile=x4", "block=3,", ",", "tile=2x4,", "tile=3x3", "block=0"])
def test_wrong_plans_are_errors_even_where_there_is_nothing_to_do(plan):
    nothing = Pattern(torch.zeros(4, 3, 3, 3))
    geometry = ([4, 3, 3, 3], [1, 1], [1, 1], [1, 1], 1, plan)
    x, grad, values = torch.empty(0, 3, 8, 8), torch.empty(0, 4, 8, 8), torch.empty(0)
    calls = [
        lambda: OPS.masked_conv2d_cpu(x, values, None, nothing.index, *geometry),
        lambda: OPS.masked_conv2d_input_grad_cpu(grad, values, nothing.index, [0, 3, 8, 8], "contiguous", *geometry),
        lambda: OPS.masked_conv2d_values_grad_cpu(grad, x, nothing.index, 0, *geometry),
    ]
    for call in calls:
        with pytest.raises(RuntimeError, match="plan: expected"):
            call()


def test_too_large_a_result_is_named():
    pattern = Pattern(torch.ones(1, 1, 1, 1))
    geometry = ([1, 1, 1, 1], [1, 1], [2**23, 2**23], [1, 1], 1, "")
    with pytest.raises(RuntimeError, match=r"^could not allocate a tensor of shape \(1, 1, 16777217, 16777217\)$"):
        OPS.masked_conv2d_cpu(torch.ones(1, 1, 1, 1), torch.ones(1), None, pattern.index, *geometry)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("layout", ["batch_last", "contiguous"])
@pytest.mark.parametrize(
    ("batch", "inputs", "outputs", "density"),
    [(64, 784, 300, 0.02), (1, 7, 5, 0.5), (37, 20, 33, 1.0), (300, 9, 4, 0.0), (0, 6, 8, 0.5), (128, 1, 1, 1.0)],
)
def test_linear_equals_dense(batch, inputs, outputs, density, layout, dtype):
    pattern = Pattern(torch.rand(outputs, inputs) < density)
    values, bias = torch.randn(pattern.nnz).to(dtype), torch.randn(outputs).to(dtype)
    x, grad = torch.randn(batch, inputs).to(dtype), torch.randn(batch, outputs).to(dtype)
    weight = pattern.scatter(values.double())
    wanted = [
        F.linear(x.double(), weight, bias.double()), grad.double() @ weight, pattern.gather(grad.double().T @ x.double())
    ]  # fmt: skip
    x, grad = as_layout(x, layout), as_layout(grad, layout)
    shape = list(pattern.shape)
    got = [
        OPS.masked_linear_cpu(x, values, bias, pattern.index, shape, ""),
        OPS.masked_linear_input_grad_cpu(grad, values, pattern.index, list(x.shape), layout_of(x), shape, ""),
        OPS.masked_linear_values_grad_cpu(grad, x, pattern.index, pattern.nnz, shape, ""),
    ]
    assert max(worst(a, b) for a, b in zip(got, wanted, strict=True)) < (1e-5 if dtype == torch.float32 else 2**-8)
    assert not x.numel() or got[1].stride() == x.stride()


@pytest.mark.parametrize("dtype", [torch.uint8, torch.bfloat16, torch.float32, torch.int64, torch.complex128])
@pytest.mark.parametrize("shape", [(3, 5, 7, 9), (33, 2, 1, 17), (1, 4, 4, 4), (20, 37), (4, 0, 2, 2), (64, 3, 32, 32)])
def test_to_batch_last_copies_exactly(shape, dtype):
    x = torch.randint(0, 200, shape).to(dtype)
    variants = [x, x.transpose(-1, -2), x[::2], x.flip(-1), x[:1].expand(shape)]
    if x.dim() == 4:
        variants += [x.contiguous(memory_format=torch.channels_last), x[:, :, 1:]]
    for variant in variants:
        result = OPS.to_batch_last_cpu(variant)
        assert torch.equal(result, variant)
        if variant.numel():
            order = (*range(1, x.dim()), 0)
            assert result.permute(order).is_contiguous()


def test_messages_name_op_and_argument():
    x, values, bias, pattern, geometry = make("plain 3x3")
    shape, rest = geometry[0], geometry[1:]

    def call(x=x, values=values, bias=bias, index=pattern.index, shape=shape, rest=rest):
        return OPS.masked_conv2d_cpu(x, values, bias, index, shape, *rest)

    damaged = pattern.index.clone()
    damaged[16 + 16 + 1 + 3] = 10**6  # a column
    version = pattern.index.clone()
    version[0] = 2
    wide = pattern.index.clone()
    wide[3:5] = torch.tensor([65536, 32769])
    wrong = [
        ({"x": x.double()}, "input: expected float32 or bfloat16, got float64"),
        ({"values": values.bfloat16()}, r"values: expected the dtype of input \(float32\), got bfloat16"),
        ({"bias": bias.bfloat16()}, r"bias: expected the dtype of input \(float32\), got bfloat16"),
        ({"bias": bias[:3]}, r"bias: expected shape \(16\), got \(3\)"),
        ({"x": x[:, :3]}, r"input: expected 8 channels \(8 a group, groups 1\), got shape \(64, 3, 8, 8\)"),
        ({"x": x[0]}, r"input: expected 4 dimensions, got shape \(8, 8, 8\)"),
        ({"x": x[:, :, :0]}, "input: expected it to be large enough"),
        ({"values": values[1:]}, f"values: expected {pattern.nnz} numbers, one a kept weight, got {pattern.nnz - 1}"),
        ({"shape": [16, 8, 3, 2]}, r"index: expected the index of a weight of shape \(16, 8, 3, 2\)"),
        ({"shape": [16, 72]}, r"weight_shape: expected 4 numbers"),
        ({"index": wide, "shape": [16, 8, 65536, 32769]}, r"weight_shape: expected max\(O, I\) \* kh \* kw below 2\^31"),
        ({"index": pattern.index[:-1]}, "index: damaged header"),
        ({"index": pattern.index[:5]}, "index: expected a packed Pattern index, got 5 numbers"),
        ({"index": pattern.index.long()}, "index: expected int32, got int64"),
        ({"index": version}, "index: expected version 1, got 2"),
        ({"index": damaged}, "index: damaged: a row or a column is out of range"),
        ({"rest": ([0, 1], *rest[1:])}, r"stride: expected two numbers, each at least 1 and below 2\^31, got \(0, 1\)"),
        ({"rest": (*rest[:3], 3, "")}, "groups: expected a divisor of the 16 output channels, got 3"),
        ({"rest": (*rest[:4], "tile=5x5")}, "plan: expected a tile that is compiled"),
        ({"rest": (*rest[:4], "fast")}, 'plan: expected "", "tile=4x4"'),
    ]
    for arguments, message in wrong:
        with pytest.raises(RuntimeError, match=f"^masked_conv2d_cpu: {message}"):
            call(**arguments)
    grad = torch.zeros(64, 16, 8, 7)
    with pytest.raises(RuntimeError, match=r"grad_output: expected shape \(64, 16, 8, 8\), got \(64, 16, 8, 7\)"):
        OPS.masked_conv2d_values_grad_cpu(grad, x, pattern.index, pattern.nnz, *geometry)
    grad = torch.zeros(64, 16, 8, 8)
    with pytest.raises(RuntimeError, match='input_layout: expected batch_last, channels_last or contiguous, got "nchw"'):
        OPS.masked_conv2d_input_grad_cpu(grad, values, pattern.index, list(x.shape), "nchw", *geometry)


OTHER_ISA = """
import torch, test_cpu_kernels as t
torch.manual_seed(0)
for name in t.CASES:
    t.test_conv_equals_dense(name, "batch_last")
for name in ("plain 3x3", "pointwise, odd batch, stride 2", "pointwise, several blocks in depth, both ways",
             "by channel, stride 2, odd batch"):
    t.test_bfloat16_errs_at_most_twice_as_much_as_torch(name)
t.test_linear_equals_dense(37, 20, 33, 1.0, "batch_last", torch.float32)
"""


@pytest.mark.parametrize("isa", ["avx512", "avx2", "portable"])
def test_lower_instruction_sets(isa, run_on):
    run_on(isa, OTHER_ISA)


def test_unknown_instruction_set_is_an_error():
    code = "import tost_kernels, torch; torch.ops.tost.cpu_isa()"
    environment = {**os.environ, "TOST_CPU_ISA": "sse9"}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False)
    assert "TOST_CPU_ISA: expected avx512bf16, avx512, avx2 or portable, got sse9" in done.stderr


def test_calls_leave_no_memory_behind() -> None:
    """Every kind of argument: tensors, lists of numbers, strings. 48 bytes lost a call would be 1.5 MB here."""
    status = Path("/proc/self/statm")
    if not status.exists():
        pytest.skip("reads the resident memory from /proc")
    pattern = Pattern(torch.ones(1, 1, 1, 1))
    x, values = torch.zeros(1, 1, 1, 1), torch.zeros(1)
    arguments = (x, values, None, pattern.index, [1, 1, 1, 1], [1, 1], [0, 0], [1, 1], 1, "tile=2x4")

    def resident_after(calls: int) -> int:
        for _ in range(calls):
            torch.ops.tost.masked_conv2d_cpu(*arguments)
        return int(status.read_text().split()[1]) * resource.getpagesize()

    before = resident_after(2_000)
    assert resident_after(30_000) - before < 700_000


def test_what_is_kept_of_one_pattern_never_serves_another():
    torch.manual_seed(0)
    x = tk.to_batch_last(torch.randn(16, 4, 6, 6))
    for _ in range(20):  # each index is likely to lie where the last one was
        mask = (torch.rand(3 * 4 * 9).argsort() < 40).view(3, 4, 3, 3)
        pattern = Pattern(mask)
        for _ in range(2):  # other values, the same pattern
            values = torch.randn(40)
            out = OPS.masked_conv2d_cpu(x, values, None, pattern.index, [3, 4, 3, 3], [1, 1], [1, 1], [1, 1], 1, "")
            torch.testing.assert_close(out, F.conv2d(x, pattern.scatter(values), None, 1, 1))


def test_an_infinite_pixel_reaches_no_weight_that_does_not_meet_it():
    """One image of 5 rows is cut into blocks, the last of which stands over the edge."""
    x = torch.ones(1, 8, 5, 4)
    x[0, 0, 4, 1] = float("inf")
    pattern = Pattern(torch.ones(1, 8, 3, 3))
    for plan in ("", "tile=2x4"):
        geometry = ([1, 8, 3, 3], [1, 1], [1, 1], [1, 1], 1, plan)
        got = OPS.masked_conv2d_values_grad_cpu(torch.ones(1, 1, 5, 4), x, pattern.index, 72, *geometry)
        assert got[:3].tolist() == [12, 16, 12]
        assert not got[3:9].isfinite().any()
        assert got[9:].isfinite().all()
