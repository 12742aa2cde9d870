"""pswish in CUDA C++, run by the shim on the CPU: odd shapes in every layout against float64, and the op's contract."""

import pytest
import torch
from torch import Tensor

import tost_kernels as tk
from tests.tost_kernels.ops.tails import SHAPES_IN_LAYOUTS
from tost_kernels.layout import as_layout, layout_of
from tost_kernels.register import op

pytestmark = pytest.mark.usefixtures("emulated_cuda")


def gradients(x: Tensor, beta: Tensor, dy: Tensor, name: str) -> list[Tensor]:
    x, beta = x.detach().requires_grad_(), beta.detach().requires_grad_()
    with tk.use_backend(name):
        y = tk.pswish(x, beta)
    return [y.detach(), *torch.autograd.grad(y, (x, beta), dy.to(y.dtype))]


def check(x: Tensor, beta: Tensor, dy: Tensor) -> list[Tensor]:
    got, want = gradients(x, beta, dy, "cuda"), gradients(x.double(), beta.double(), dy.double(), "reference")
    assert layout_of(got[0]) == layout_of(got[1]) == layout_of(x)
    for mine, exact in zip(got, want, strict=True):
        assert mine.shape == exact.shape
        if exact.numel():
            assert (mine.double() - exact).abs().max() <= 1e-5 * exact.abs().max()
    return got


@pytest.mark.parametrize(("shape", "layout"), SHAPES_IN_LAYOUTS)
@pytest.mark.parametrize("per_channel", [False, True], ids=["shared", "per channel"])
def test_kernel_is_accurate(shape: tuple[int, ...], per_channel: bool, layout: str) -> None:
    beta = torch.linspace(0.3, 4.0, shape[1]) if per_channel else torch.tensor(1.3)
    # dy of one sign: the terms of dbeta do not cancel, so a relative error means something
    check(as_layout(torch.randn(shape), layout), beta, torch.rand(shape))


@pytest.mark.parametrize("layout", ["contiguous", "channels_last", "batch_last"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_moves_of_16_bytes_several_blocks_a_channel_and_the_same_bits(layout: str, dtype: torch.dtype) -> None:
    x, dy = as_layout(torch.randn(8, 40, 16, 16), layout).to(dtype), torch.rand(8, 40, 16, 16).to(dtype)
    beta = torch.linspace(0.3, 2.0, 40)
    got = gradients(x, beta, dy, "cuda")
    exact = gradients(x.double(), beta.double(), dy.double(), "reference")
    close = 1e-5 if dtype == torch.float32 else 2**-8
    for mine, want in zip(got, exact, strict=True):
        assert (mine.double() - want).abs().max() <= close * want.abs().max()
    assert all(torch.equal(a, b) for a, b in zip(got, gradients(x, beta, dy, "cuda"), strict=True))


def test_unaligned_memory_is_moved_element_by_element() -> None:
    x = torch.randn(4 * 3 * 8 + 1)[1:].reshape(4, 3, 8)
    check(x, torch.tensor([0.5, 1.0, 2.0]), torch.rand(4, 3, 8))


@pytest.mark.parametrize("per_channel", [False, True], ids=["shared", "per channel"])
def test_bfloat16_is_as_good_as_torch(per_channel: bool) -> None:
    x = as_layout(torch.randn(6, 3, 5, 6), "batch_last").bfloat16()
    beta = torch.tensor([0.5, 1.0, 2.0]) if per_channel else torch.tensor(1.5)
    dy = torch.randn_like(x)
    exact = gradients(x.double(), beta.double(), dy, "reference")
    leaves = x.clone().requires_grad_(), beta.bfloat16().requires_grad_()
    shaped = leaves[1].reshape(-1, 1, 1) if per_channel else leaves[1]
    composite = leaves[0] * torch.sigmoid(shaped * leaves[0])
    torch_own = [composite.detach(), *torch.autograd.grad(composite, leaves, dy)]
    got = gradients(x, beta, dy, "cuda")
    assert got[0].dtype == got[1].dtype == torch.bfloat16
    for mine, other, want in zip(got, torch_own, exact, strict=True):
        assert (mine.double() - want).abs().max() <= 2 * (other.double() - want).abs().max() + 1e-3 * want.abs().max()


def test_opcheck() -> None:
    x, beta = torch.randn(3, 4, 5, requires_grad=True), torch.rand(4, requires_grad=True)
    torch.library.opcheck(op("pswish", "cuda"), (x, beta, ""))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((torch.ones(2, 3).double(), torch.ones(3), ""), "pswish_cuda: input: expected float32 or bfloat16, got float64"),
        ((torch.ones(2, 3), torch.ones(2), ""), r"pswish_cuda: beta: expected shape \(3\), got \(2\)"),
        ((torch.ones(2, 3), torch.ones(3).double(), ""), "pswish_cuda: beta: expected float32, got float64"),
    ],
)
def test_bad_arguments(arguments: tuple[Tensor, Tensor, str], message: str, emulated_cuda: str) -> None:
    x, beta, layout = arguments
    with pytest.raises(RuntimeError, match=message):
        op("pswish", "cuda")(x.to(emulated_cuda), beta.to(emulated_cuda), layout)
