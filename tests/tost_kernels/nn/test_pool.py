"""Pools on batch-last tensors against torch's own."""

import pytest
import torch
from torch import nn

import tost_kernels as tk

CASES = [
    ("MaxPool2d", (2,), {}),
    ("MaxPool2d", (3,), {"stride": 2, "padding": 1}),
    ("MaxPool2d", ((2, 3),), {"stride": (1, 2), "dilation": (2, 1), "ceil_mode": True}),
    ("MaxPool2d", (3,), {"stride": 2, "padding": 1, "return_indices": True}),
    ("AvgPool2d", (2,), {}),
    ("AvgPool2d", (3,), {"stride": 2, "padding": 1, "count_include_pad": False, "ceil_mode": True}),
    ("AvgPool2d", (3,), {"divisor_override": 5}),
    ("AdaptiveAvgPool2d", (1,), {}),
    ("AdaptiveAvgPool2d", ((3, 2),), {}),
    ("AdaptiveAvgPool2d", ((None, 2),), {}),
    ("AdaptiveMaxPool2d", (1,), {}),
    ("AdaptiveMaxPool2d", ((2, 3),), {"return_indices": True}),
]


@pytest.mark.parametrize("shape", [(4, 3, 7, 8), (8, 1, 7, 8), (1, 3, 7, 8)])
@pytest.mark.parametrize(("name", "args", "options"), CASES)
def test_equals_torch_and_keeps_the_layout(name, args, options, shape):
    torch.manual_seed(0)
    ours, theirs = getattr(tk.nn, name)(*args, **options), getattr(nn, name)(*args, **options)
    plain = torch.randn(shape, dtype=torch.float64, requires_grad=True)
    x = tk.to_batch_last(plain.detach()).requires_grad_()
    got, expected = ours(x), theirs(plain)
    if options.get("return_indices"):
        assert torch.equal(got[1], expected[1])
        got, expected = got[0], expected[0]
    assert got.shape == expected.shape
    torch.testing.assert_close(got, expected, rtol=1e-12, atol=1e-12)
    assert tk.is_batch_last(got) == (shape[0] > 1 and (shape[1] > 1 or got.shape[2:].numel() > 1))
    grad = torch.randn_like(expected)
    got.backward(grad)
    expected.backward(grad)
    torch.testing.assert_close(x.grad, plain.grad, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(("name", "args", "options"), CASES)
def test_unbatched_and_other_layouts_are_torchs_own(name, args, options):
    ours, theirs = getattr(tk.nn, name)(*args, **options), getattr(nn, name)(*args, **options)
    x = torch.randn(4, 3, 7, 8)
    for tensor in (x, x[0], x.contiguous(memory_format=torch.channels_last)):
        got, expected = ours(tensor), theirs(tensor)
        if not isinstance(got, tuple):
            got, expected = (got,), (expected,)
        for one, other in zip(got, expected, strict=True):
            assert torch.equal(one, other)
            assert one.stride() == other.stride()
    assert ours.extra_repr() == theirs.extra_repr()


def test_one_pixel_images():
    """The view of batch-last 1 x 1 images is contiguous as well as channels_last: torch may choose either for the output."""
    x = tk.to_batch_last(torch.randn(4, 3, 1, 1))
    out = tk.nn.MaxPool2d(1, padding=0)(x)
    assert tk.is_batch_last(out)
    assert torch.equal(out, x)


def test_a_whole_graph_compiles():
    x = tk.to_batch_last(torch.randn(4, 3, 6, 6))
    ours = nn.Sequential(tk.nn.MaxPool2d(2), tk.nn.ZeroPad2d(1), tk.nn.AvgPool2d(2))
    compiled = torch.compile(ours, fullgraph=True, backend="aot_eager")
    got = compiled(x)
    assert torch.equal(got, ours(x))
    assert tk.is_batch_last(got)
