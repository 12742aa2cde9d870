"""pswish by Triton, interpreted: odd shapes in every layout against float64, and the op's contract."""

import pytest
import torch
from torch import Tensor

import tost_kernels as tk
from tests.tost_kernels.ops.tails import SHAPES, SHAPES_IN_LAYOUTS
from tost_kernels import backend
from tost_kernels.layout import as_layout, layout_of
from tost_kernels.register import op

needs_triton = pytest.mark.skipif(backend.why_not("pswish", "triton") is not None, reason="Triton is not installed")
# The interpreter is numpy, which warns of arithmetic with NaN and infinities that a GPU just does.
pytestmark = [needs_triton, pytest.mark.filterwarnings("ignore:.*encountered in:RuntimeWarning")]


def gradients(x: Tensor, beta: Tensor, dy: Tensor, name: str) -> list[Tensor]:
    x, beta = x.detach().requires_grad_(), beta.detach().requires_grad_()
    with tk.use_backend(name):
        y = tk.pswish(x, beta)
    return [y.detach(), *torch.autograd.grad(y, (x, beta), dy.to(y.dtype))]


def check(x: Tensor, beta: Tensor, dy: Tensor) -> list[Tensor]:
    got, want = gradients(x, beta, dy, "triton"), gradients(x.double(), beta.double(), dy.double(), "reference")
    assert layout_of(got[0]) == layout_of(got[1]) == layout_of(x)
    for mine, exact in zip(got, want, strict=True):
        assert mine.shape == exact.shape
        if exact.numel():
            assert (mine.double() - exact).abs().max() <= 1e-5 * exact.abs().max()
    return got


@pytest.mark.parametrize(("shape", "layout"), [p for p in SHAPES_IN_LAYOUTS if p.values[0] != SHAPES["several blocks"]])
@pytest.mark.parametrize("per_channel", [False, True], ids=["shared", "per channel"])
def test_kernel_is_accurate(shape: tuple[int, ...], per_channel: bool, layout: str) -> None:
    beta = torch.linspace(0.3, 4.0, shape[1]) if per_channel else torch.tensor(1.3)
    # dy of one sign: the terms of dbeta do not cancel, so a relative error means something
    check(as_layout(torch.randn(shape), layout), beta, torch.rand(shape))


@pytest.mark.parametrize("shape", [(), (5,)])
def test_without_channels(shape: tuple[int, ...]) -> None:
    check(torch.rand(shape) + 0.5, torch.tensor(1.3), torch.rand(shape))


@pytest.mark.parametrize("per_channel", [False, True], ids=["shared", "per channel"])
def test_several_tiles_a_program_and_the_same_bits(per_channel: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    from tost_kernels.triton import channels

    monkeypatch.setattr(channels, "THREADS", 32)
    monkeypatch.setattr(channels, "PROGRAMS_PER_SM", 1)
    monkeypatch.setattr(channels.View, "steps", lambda self, device: 4)
    shape = (5, 2, 9, 7)
    x, dy = torch.randn(shape), torch.rand(shape)
    beta = torch.tensor([0.4, 1.5]) if per_channel else torch.tensor(1.3)
    view = channels.view_of(x, not per_channel)
    assert 1 < view.splits(x.device) < view.tiles
    first = check(x, beta, dy)
    assert all(torch.equal(a, b) for a, b in zip(first, gradients(x, beta, dy, "triton"), strict=True))


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
    got = gradients(x, beta, dy, "triton")
    assert got[0].dtype == got[1].dtype == torch.bfloat16
    for mine, other, want in zip(got, torch_own, exact, strict=True):
        cut_off = 2**-8 * want.abs().max()  # the interpreter does not round to bfloat16 but cuts off
        assert (mine.double() - want).abs().max() <= 2 * (other.double() - want).abs().max() + cut_off


def test_extremes() -> None:
    x = torch.tensor([3e38, -3e38, 1e30, -1e30, -200.0, 0.0, float("nan"), float("inf")])
    with tk.use_backend("triton"):
        y = tk.pswish(x, 10.0)
    assert y[:6].tolist() == pytest.approx([x[0].item(), 0.0, x[2].item(), 0.0, 0.0, 0.0], abs=1e-30)
    assert y[6].isnan()
    assert y[7] == float("inf")
    _, dx, dbeta = gradients(x[:6], torch.tensor(10.0), torch.ones(6), "triton")
    assert dx.tolist() == [1.0, 0.0, 1.0, 0.0, 0.0, 0.5]
    assert dbeta == 0


def test_any_strides_of_input_and_gradient() -> None:
    x = as_layout(torch.randn(4, 3, 5, 2), "batch_last")
    dy = torch.rand(8, 3, 5, 4)[::2, :, :, ::2]
    check(x, torch.tensor(1.1), dy)
    check(x.flip(3)[:, :, ::2].expand(4, 3, 3, 2), torch.tensor(1.1), torch.ones(()).expand(4, 3, 3, 2))


@pytest.mark.parametrize("per_channel", [False, True], ids=["shared", "per channel"])
def test_opcheck(per_channel: bool) -> None:
    x = as_layout(torch.randn(3, 4, 2, 5), "batch_last").requires_grad_()
    beta = (torch.rand(8)[::2] if per_channel else torch.tensor(0.9)).requires_grad_()
    torch.library.opcheck(op("pswish", "triton"), (x, beta, ""))
    torch.library.opcheck(op("pswish_backward", "triton"), (torch.randn(x.shape), x.detach(), beta.detach(), ""))


def test_the_raw_op_names_what_is_wrong() -> None:
    with pytest.raises(RuntimeError, match="pswish_triton: input: expected float32 or bfloat16, got float64"):
        op("pswish", "triton")(torch.ones(2, 3).double(), torch.tensor(1.0), "")
    with pytest.raises(RuntimeError, match=r"pswish_triton: beta: expected shape \(3\), got \(2\)"):
        op("pswish", "triton")(torch.ones(2, 3), torch.ones(2), "")
    with pytest.raises(RuntimeError, match=r"pswish_backward_triton: grad_output: expected shape \(2, 3\), got \(3\)"):
        op("pswish_backward", "triton")(torch.ones(3), torch.ones(2, 3), torch.tensor(1.0), "")
