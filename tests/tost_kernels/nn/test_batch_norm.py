"""BatchNorm2d on batch-last tensors against torch's own."""

import pytest
import torch
from torch import nn

import tost_kernels as tk


@pytest.mark.parametrize("shape", [(4, 3, 5, 6), (8, 1, 3, 3), (5, 4, 1, 1), (2, 3, 1, 4), (1, 3, 4, 4)])
@pytest.mark.parametrize(
    "options", [{}, {"momentum": None}, {"affine": False}, {"track_running_stats": False}, {"eps": 0.1, "momentum": 0.5}]
)
def test_equals_torch_and_keeps_the_layout(shape, options):
    torch.manual_seed(0)
    theirs = nn.BatchNorm2d(shape[1], **options, dtype=torch.float64)
    if theirs.affine:
        nn.init.uniform_(theirs.weight)
        nn.init.uniform_(theirs.bias)
    ours = tk.nn.BatchNorm2d(shape[1], **options, dtype=torch.float64)
    ours.load_state_dict(theirs.state_dict())
    for training in (True, True, False):
        ours.train(training)
        theirs.train(training)
        plain = torch.randn(shape, dtype=torch.float64, requires_grad=True)
        x = tk.to_batch_last(plain.detach()).requires_grad_()
        got, expected = ours(x), theirs(plain)
        torch.testing.assert_close(got, expected, rtol=1e-12, atol=1e-12)
        assert tk.is_batch_last(got) == tk.is_batch_last(x)
        assert got.shape == x.shape
        grad = torch.randn(shape, dtype=torch.float64)
        got.backward(tk.to_batch_last(grad))
        expected.backward(grad)
        torch.testing.assert_close(x.grad, plain.grad, rtol=1e-11, atol=1e-11)
    assert list(ours.state_dict()) == list(theirs.state_dict())
    for got, expected in zip(ours.state_dict().values(), theirs.state_dict().values(), strict=True):
        torch.testing.assert_close(got, expected, rtol=1e-12, atol=1e-12)


def test_other_layouts_are_torchs_own():
    torch.manual_seed(0)
    theirs, ours = nn.BatchNorm2d(3), tk.nn.BatchNorm2d(3)
    x = torch.randn(4, 3, 5, 5)
    assert torch.equal(ours(x), theirs(x))
    x = x.contiguous(memory_format=torch.channels_last)
    assert ours(x).is_contiguous(memory_format=torch.channels_last)
    with pytest.raises(ValueError, match="4D"):
        ours(torch.randn(3, 5, 5))
    with pytest.raises(ValueError, match="4D"):
        ours(tk.to_batch_last(torch.randn(5, 3)))


def test_one_value_per_channel_cannot_be_normalised():
    with pytest.raises(ValueError, match="more than 1 value per channel"):
        tk.nn.BatchNorm2d(3)(torch.randn(1, 3, 1, 1))


def test_a_whole_graph_compiles():
    ours = tk.nn.BatchNorm2d(3)
    x = tk.to_batch_last(torch.randn(4, 3, 5, 5))
    compiled = torch.compile(ours.eval(), fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(x), ours(x))
