"""SparseConv2d against torch.nn.Conv2d with a masked weight."""

import pytest
import torch
from torch import nn

import tost_kernels as tk

# torch warns that it copies the input for padding="same" with an even kernel; once a process.
pytestmark = pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel")

ODD = {
    "plain": {"args": (3, 8, 3), "size": (4, 3, 7, 6)},
    "padded": {"args": (3, 8, 3), "padding": 1, "size": (4, 3, 7, 6)},
    "strided": {"args": (4, 6, 3), "stride": 2, "padding": 1, "size": (3, 4, 9, 8)},
    "rectangular": {"args": (2, 5, (3, 2)), "stride": (2, 1), "padding": (2, 0), "dilation": (1, 2), "size": (2, 2, 9, 8)},
    "grouped": {"args": (6, 9, 3), "groups": 3, "padding": 1, "bias": False, "size": (2, 6, 5, 5)},
    "depthwise": {"args": (5, 5, 3), "groups": 5, "padding": 1, "size": (3, 5, 6, 4)},
    "pointwise": {"args": (5, 7, 1), "size": (2, 5, 3, 3)},
    "valid": {"args": (3, 4, 3), "padding": "valid", "size": (2, 3, 5, 6)},
    "same": {"args": (3, 4, 3), "padding": "same", "dilation": 2, "size": (2, 3, 7, 6)},
    "same_even": {"args": (3, 4, (2, 4)), "padding": "same", "size": (2, 3, 5, 6)},
    "same_even_dilated": {"args": (3, 4, (4, 2)), "padding": "same", "dilation": (1, 3), "size": (2, 3, 7, 8)},
    "reflect": {"args": (3, 4, 3), "padding": (1, 2), "padding_mode": "reflect", "size": (2, 3, 5, 6)},
    "replicate": {"args": (3, 4, 3), "padding": 1, "padding_mode": "replicate", "stride": 2, "size": (2, 3, 5, 6)},
    "circular": {"args": (3, 4, 3), "padding": 1, "padding_mode": "circular", "size": (2, 3, 5, 6)},
    "circular_same_even": {"args": (3, 4, 4), "padding": "same", "padding_mode": "circular", "size": (2, 3, 5, 6)},
    "one_pixel": {"args": (3, 4, 3), "padding": 1, "size": (5, 3, 1, 1)},
}


def pair(case, dtype=torch.float64):
    options = dict(case)
    args, size = options.pop("args"), options.pop("size")
    torch.manual_seed(0)
    dense = nn.Conv2d(*args, dtype=dtype, **options)
    mask = torch.rand(dense.weight.shape) < 0.4
    sparse = tk.SparseConv2d.from_dense(dense, mask)
    with torch.no_grad():
        dense.weight *= mask
    return dense, sparse, mask, torch.randn(size, dtype=dtype)


@pytest.mark.parametrize("layout", ["contiguous", "channels_last", "batch_last"])
@pytest.mark.parametrize("name", ODD)
def test_computes_what_torch_computes(name, layout):
    dense, sparse, mask, x = pair(ODD[name])
    if layout == "channels_last":
        x = x.contiguous(memory_format=torch.channels_last)
    elif layout == "batch_last":
        x = tk.to_batch_last(x)
    ours, theirs = x.clone().requires_grad_(), x.clone().requires_grad_()
    got, expected = sparse(ours), dense(theirs)
    torch.testing.assert_close(got, expected, rtol=1e-12, atol=1e-12)
    if tk.is_batch_last(x):
        assert tk.is_batch_last(got)
    if layout == "contiguous":
        assert got.is_contiguous()
    grad = torch.randn_like(expected)
    got.backward(grad)
    expected.backward(grad)
    torch.testing.assert_close(ours.grad, theirs.grad, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(sparse.values.grad, dense.weight.grad[mask], rtol=1e-12, atol=1e-12)
    if dense.bias is not None:
        torch.testing.assert_close(sparse.bias.grad, dense.bias.grad, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("name", ["padded", "same_even", "grouped", "reflect"])
def test_float32(name):
    dense, sparse, _, x = pair(ODD[name], torch.float32)
    torch.testing.assert_close(sparse(x), dense(x), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(sparse(tk.to_batch_last(x)), dense(x), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", ODD)
def test_geometry_survives_the_round_trip(name):
    dense, sparse, mask, x = pair(ODD[name])
    back = sparse.to_dense()
    assert type(back) is nn.Conv2d
    assert repr(back) == repr(dense)
    assert torch.equal(back(x), dense(x))
    assert torch.equal(tk.SparseConv2d.from_dense(back, mask).values, sparse.values)


def test_tiny_table():
    mask = torch.tensor([[[[1, 0], [0, 1]]], [[[0, 0], [1, 0]]]])
    conv = tk.SparseConv2d(1, 2, 2, bias=False, mask=mask)
    with torch.no_grad():
        conv.values.copy_(torch.tensor([2.0, 3.0, 5.0]))
    assert conv.weight.tolist() == [[[[2.0, 0.0], [0.0, 3.0]]], [[[0.0, 0.0], [5.0, 0.0]]]]
    assert conv.density == 3 / 8
    x = torch.tensor([[[[1.0, 2.0, 3.0], [4.0, 5.0, 6.0]]]])
    assert conv(x).tolist() == [[[[2 * 1 + 3 * 5.0, 2 * 2 + 3 * 6.0]], [[5 * 4.0, 5 * 5.0]]]]


@pytest.mark.parametrize("name", ODD)
def test_constructor_draws_what_torch_draws(name):
    options = dict(ODD[name])
    args = options.pop("args")
    options.pop("size")
    torch.manual_seed(3)
    dense = nn.Conv2d(*args, **options)
    after = torch.get_rng_state()
    mask = torch.rand(dense.weight.shape) < 0.5
    torch.manual_seed(3)
    sparse = tk.SparseConv2d(*args, **options, mask=mask)
    assert torch.equal(torch.get_rng_state(), after)
    assert torch.equal(sparse.values, dense.weight[mask])
    if dense.bias is not None:
        assert torch.equal(sparse.bias, dense.bias)


def test_constructor_options():
    mask = torch.ones(4, 3, 1, 1)
    conv = tk.SparseConv2d(3, 4, 1, dtype=torch.float64, device="cpu", mask=mask)
    assert conv.values.dtype == conv.bias.dtype == torch.float64
    assert conv.weight.shape == (4, 3, 1, 1)
    assert "density=1" in repr(conv)
    with pytest.raises(ValueError, match=r"mask: expected shape \(4, 3, 1, 1\), that of the weight, got \(4, 3, 3, 3\)"):
        tk.SparseConv2d(3, 4, 1, mask=torch.ones(4, 3, 3, 3))
    with pytest.raises(ValueError, match="groups"):
        tk.SparseConv2d(3, 4, 1, groups=2, mask=mask)
    with pytest.raises(TypeError, match="mask"):
        tk.SparseConv2d(3, 4, 1)
    with pytest.raises(ValueError, match="only 0 and 1"):
        tk.SparseConv2d(3, 4, 1, mask=mask * 0.5)


def test_unbatched_input():
    dense, sparse, _, x = pair(ODD["same_even"])
    assert sparse(x[0]).shape == dense(x[0]).shape
    torch.testing.assert_close(sparse(x[0]), dense(x[0]), rtol=1e-12, atol=1e-12)


def test_geometry_may_be_changed_afterwards():
    """Networks are dilated by setting attributes of their convolutions."""
    dense, sparse, _, x = pair(ODD["padded"])
    for layer in (dense, sparse):
        layer.dilation, layer.padding = (2, 2), (2, 2)
    torch.testing.assert_close(sparse(x), dense(x), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("density", [0, 1])
def test_nothing_and_everything_kept(density):
    dense = nn.Conv2d(2, 3, 3, dtype=torch.float64)
    sparse = tk.SparseConv2d.from_dense(dense, torch.full_like(dense.weight, density))
    assert sparse.values.shape == (density * 54,)
    x = torch.randn(2, 2, 4, 4, dtype=torch.float64)
    expected = dense(x) if density else dense.bias.view(1, 3, 1, 1).expand(2, 3, 2, 2)
    torch.testing.assert_close(sparse(x), expected)
    sparse(x).sum().backward()
    assert sparse.values.grad.shape == sparse.values.shape


@pytest.mark.parametrize("name", ["padded", "same_even", "reflect"])
def test_bad_inputs_are_named(name):
    sparse = pair(ODD[name])[1]
    with pytest.raises(ValueError, match=r"input: expected shape \(N, C, H, W\) or \(C, H, W\), got \(5, 3\)"):
        sparse(torch.randn(5, 3, dtype=torch.float64))
    with pytest.raises(ValueError, match="x"):
        sparse(torch.randn(2, 4, 5, 5, dtype=torch.float64))
    with pytest.raises(TypeError, match="x"):
        sparse(torch.ones(2, 3, 5, 5, dtype=torch.int64))
