"""Batch-last: recognised, made, kept and never guessed."""

import pytest
import torch
from torch import Tensor

from tost_kernels.layout import as_layout, cat, is_batch_last, layout_of, pad, strides_of, to_batch_last

DTYPES = [torch.float32, torch.bfloat16, torch.float64, torch.float16]


def test_strides_by_hand() -> None:
    assert strides_of((2, 3, 4, 5), "batch_last") == (1, 40, 10, 2)
    assert strides_of((2, 3, 4, 5), "channels_last") == (60, 1, 15, 3)
    assert strides_of((2, 3, 4, 5), "contiguous") == (60, 20, 5, 1)
    assert strides_of((2, 3), "batch_last") == (1, 2)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(2, 3, 4, 5), (17, 5, 3, 7), (64, 3, 8, 8), (33, 19), (16, 16), (1, 3, 2, 2), (0, 3, 2, 2)])
def test_to_batch_last_keeps_values(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    x = torch.randn(shape).to(dtype)
    y = to_batch_last(x)
    assert torch.equal(x, y)
    assert y.stride() == strides_of(shape, "batch_last") or x.shape[0] <= 1
    assert to_batch_last(y) is y or not x.numel()


@pytest.mark.parametrize("make", ["channels_last", "expanded", "sliced", "transposed"])
def test_to_batch_last_from_any_strides(make: str) -> None:
    x = torch.randn(6, 4, 8, 10)
    x = {
        "channels_last": lambda: x.contiguous(memory_format=torch.channels_last),
        "expanded": lambda: x[:1].expand(6, 4, 8, 10),
        "sliced": lambda: x[::2, 1:, ::3],
        "transposed": lambda: x.transpose(2, 3),
    }[make]()
    y = to_batch_last(x)
    assert torch.equal(x, y)
    assert is_batch_last(y)


def test_size_one_dimensions_and_ties() -> None:
    assert layout_of(torch.randn(1, 3, 4, 4)) == "contiguous"  # one sample: both; contiguous wins
    assert layout_of(torch.randn(5, 1, 1, 1)) == "contiguous"
    assert layout_of(to_batch_last(torch.randn(5, 3, 1, 1))) == "batch_last"
    assert layout_of(torch.randn(2, 3, 4, 4).contiguous(memory_format=torch.channels_last)) == "channels_last"
    assert layout_of(torch.randn(4, 3, 4, 4)[::2]) == "contiguous"  # strided: nothing in particular
    assert not is_batch_last(torch.randn(3, 4, 5))


@pytest.mark.parametrize("layout", ["batch_last", "channels_last", "contiguous"])
def test_as_layout(layout: str) -> None:
    x = torch.randn(3, 4, 5, 6)
    for start in (x, to_batch_last(x), x.contiguous(memory_format=torch.channels_last)):
        y = as_layout(start, layout)
        assert torch.equal(x, y)
        assert layout_of(y) == layout


@pytest.mark.parametrize("mode", ["constant", "reflect", "replicate", "circular"])
@pytest.mark.parametrize("layout", ["batch_last", "contiguous"])
def test_pad_keeps_the_layout(mode: str, layout: str) -> None:
    x = as_layout(torch.randn(3, 4, 5, 6), layout)
    y = pad(x, (1, 2, 0, 3), mode)
    assert torch.equal(y, torch.nn.functional.pad(x.contiguous(), (1, 2, 0, 3), mode))
    assert layout_of(y) == layout


def test_gradient_passes() -> None:
    x = torch.randn(3, 4, 5, 6, dtype=torch.double, requires_grad=True)
    assert torch.autograd.gradcheck(to_batch_last, x)
    assert torch.autograd.gradgradcheck(lambda t: to_batch_last(t**2), x)


def test_in_a_graph() -> None:
    def double(x: Tensor) -> Tensor:
        return to_batch_last(x) * 2

    x = torch.randn(4, 3, 2, 2, requires_grad=True)
    y = torch.compile(double, fullgraph=True, backend="aot_eager")(x)
    assert is_batch_last(y)
    y.sum().backward()
    assert torch.equal(x.grad, torch.full_like(x, 2))


def test_wrong_dimensions() -> None:
    with pytest.raises(ValueError, match=r"expected x of shape \(N, C, H, W\) or \(N, F\), got \(2, 3, 4\)"):
        to_batch_last(torch.zeros(2, 3, 4))


@pytest.mark.parametrize("shapes", [((4, 3, 5, 6), (4, 2, 5, 6)), ((4, 1, 5, 6), (4, 2, 5, 6))])
def test_cat_keeps_the_layout(shapes: tuple[tuple[int, ...], ...]) -> None:
    plain = [torch.randn(shape, dtype=torch.float64, requires_grad=True) for shape in shapes]
    tensors = [to_batch_last(x.detach()).requires_grad_() for x in plain]
    got, expected = cat(tensors), torch.cat(plain, 1)
    assert torch.equal(got, expected)
    assert is_batch_last(got)
    grad = torch.randn_like(expected)
    ours, theirs = torch.autograd.grad(got, tensors, grad), torch.autograd.grad(expected, plain, grad)
    for one, other in zip(ours, theirs, strict=True):
        assert torch.equal(one, other)


def test_cat_of_other_layouts_is_torchs_own() -> None:
    one, other = torch.randn(4, 3, 5, 6), to_batch_last(torch.randn(4, 2, 5, 6))
    got = cat([one, other])
    assert torch.equal(got, torch.cat([one, other], 1))
    assert got.is_contiguous()
