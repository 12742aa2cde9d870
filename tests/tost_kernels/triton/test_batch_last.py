"""The transposes to and from batch-last memory by Triton, interpreted: bits move, nothing else."""

import pytest
import torch
from torch import Tensor

from tost_kernels import backend, layout
from tost_kernels.layout import as_layout, layout_of, strides_of
from tost_kernels.register import op

pytestmark = pytest.mark.skipif(backend.why_not("ghost_skip_add", "triton") is not None, reason="Triton is not installed")
SHAPES = [(2, 3, 4, 5), (17, 5, 3, 7), (70, 3, 2, 9), (33, 19), (16, 1, 2, 2), (5, 70, 1, 1), (1, 3, 2, 2), (0, 3, 2, 2)]


def of(dtype: torch.dtype, shape: tuple[int, ...]) -> Tensor:
    return torch.randint(0, 2 if dtype == torch.bool else 100, shape).to(dtype)


@pytest.mark.parametrize("shape", SHAPES)
def test_there_and_back(shape: tuple[int, ...]) -> None:
    x = torch.randn(shape)
    for other in ("contiguous", "channels_last")[: len(shape) // 2]:
        source = as_layout(x, other)
        there = op("to_batch_last", "triton")(source)
        assert torch.equal(there, x)
        assert there.stride() == strides_of(shape, "batch_last")
        back = op("from_batch_last", "triton")(there, other)
        assert torch.equal(back, x)
        assert back.stride() == strides_of(shape, other)


@pytest.mark.parametrize(
    "dtype",
    [torch.float64, torch.bfloat16, torch.float16, torch.uint8, torch.bool, torch.int64, torch.complex64, torch.complex128],
)
def test_any_dtype(dtype: torch.dtype) -> None:
    x = of(dtype, (3, 4, 2, 5))
    y = op("to_batch_last", "triton")(x)
    assert torch.equal(y, x)
    assert layout_of(y) == "batch_last"


def test_nan_keeps_its_payload() -> None:
    bits = torch.tensor([[0x7FC12345, 1], [-1, 2**31 - 1]], dtype=torch.int32)
    assert torch.equal(op("to_batch_last", "triton")(bits.view(torch.float32)).contiguous().view(torch.int32), bits)


@pytest.mark.parametrize("make", ["expanded", "sliced", "transposed", "batch_last"])
def test_from_any_strides(make: str) -> None:
    x = torch.randn(6, 4, 4, 10)
    x = {
        "expanded": lambda: x[:1].expand(6, 4, 4, 10),
        "sliced": lambda: x[::2, 1:, ::3],
        "transposed": lambda: x.transpose(2, 3),
        "batch_last": lambda: as_layout(x, "batch_last"),
    }[make]()
    y = op("to_batch_last", "triton")(x)
    assert torch.equal(x, y)
    assert layout_of(y) == "batch_last"
    assert y.data_ptr() != x.data_ptr()


def test_offsets_in_64_bits(monkeypatch: pytest.MonkeyPatch) -> None:
    from tost_kernels.triton import batch_last

    monkeypatch.setattr(batch_last, "SPARE", 2**31)
    x = torch.randn(5, 3, 2, 4)
    assert torch.equal(op("to_batch_last", "triton")(x), x)


def test_the_layout_module_uses_them(monkeypatch: pytest.MonkeyPatch) -> None:
    """As on CUDA: values, layouts and gradients through the public functions."""
    monkeypatch.setattr(layout, "_transposer", lambda x: "triton")
    x = torch.randn(3, 4, 2, 5, requires_grad=True)
    for other in ("contiguous", "channels_last"):
        y = as_layout(as_layout(x, "batch_last"), other)
        assert type(y.grad_fn).__name__ == "_FromBatchLastBackward"
        assert layout_of(y) == other
        assert torch.equal(torch.autograd.grad(y.square().sum(), x)[0], 2 * x)


def test_opcheck_and_errors() -> None:
    x = torch.randn(3, 4, 2, 5, requires_grad=True)
    torch.library.opcheck(op("to_batch_last", "triton"), (x,))
    there = as_layout(x.detach(), "batch_last").requires_grad_()
    torch.library.opcheck(op("from_batch_last", "triton"), (there, "channels_last"))
    with pytest.raises(RuntimeError, match=r"input: expected \(N, C, H, W\) or \(N, F\), got shape \(2, 3, 4\)"):
        op("to_batch_last", "triton")(torch.zeros(2, 3, 4))
    with pytest.raises(RuntimeError, match="layout: expected contiguous or, of 4 dimensions, channels_last, got 'batch_last'"):
        op("from_batch_last", "triton")(there, "batch_last")
