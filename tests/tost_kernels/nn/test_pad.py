"""Pads on batch-last tensors against torch's own."""

import pytest
import torch
from torch import nn

import tost_kernels as tk

CASES = [
    ("ZeroPad2d", (1,)),
    ("ZeroPad2d", ((1, 2, 0, 3),)),
    ("ZeroPad2d", ((-1, 2, 1, -2),)),
    ("ConstantPad2d", (2, 0.5)),
    ("ReflectionPad2d", ((1, 2, 3, 0),)),
    ("ReplicationPad2d", ((1, 2, 3, 0),)),
    ("CircularPad2d", ((1, 2, 3, 0),)),
]


@pytest.mark.parametrize("shape", [(4, 3, 5, 6), (4, 1, 5, 6), (1, 3, 5, 6)])
@pytest.mark.parametrize(("name", "args"), CASES)
def test_equals_torch_and_keeps_the_layout(name, args, shape):
    ours, theirs = getattr(tk.nn, name)(*args), getattr(nn, name)(*args)
    plain = torch.randn(shape, dtype=torch.float64, requires_grad=True)
    x = tk.to_batch_last(plain.detach()).requires_grad_()
    got, expected = ours(x), theirs(plain)
    assert torch.equal(got, expected)
    assert tk.is_batch_last(got) == (shape[0] > 1)
    grad = torch.randn_like(expected)
    got.backward(grad)
    expected.backward(grad)
    torch.testing.assert_close(x.grad, plain.grad, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(("name", "args"), CASES)
def test_unbatched_and_other_layouts_are_torchs_own(name, args):
    ours, theirs = getattr(tk.nn, name)(*args), getattr(nn, name)(*args)
    x = torch.randn(4, 3, 5, 6)
    for tensor in (x, x[0], x.contiguous(memory_format=torch.channels_last)):
        assert torch.equal(ours(tensor), theirs(tensor))
        assert ours(tensor).stride() == theirs(tensor).stride()


def test_one_pixel_images():
    x = tk.to_batch_last(torch.randn(4, 3, 1, 1))
    out = tk.nn.ZeroPad2d(1)(x)
    assert tk.is_batch_last(out)
    assert torch.equal(out, nn.ZeroPad2d(1)(x))


def test_two_dimensional_tensors():
    """A batch-last (N, F) tensor is no image batch: torch pads its last two dimensions."""
    x = tk.to_batch_last(torch.randn(4, 3))
    assert torch.equal(tk.nn.ZeroPad2d((1, 2, 3, 4))(x), nn.ZeroPad2d((1, 2, 3, 4))(x))
