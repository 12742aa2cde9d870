"""SparseLinear against torch.nn.Linear with a masked weight."""

import pytest
import torch
from torch import nn

import tost_kernels as tk


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("shape", [(5, 7), (7,), (2, 3, 7), (1, 7), (0, 7)])
def test_computes_what_torch_computes(shape, bias):
    torch.manual_seed(0)
    dense = nn.Linear(7, 4, bias=bias, dtype=torch.float64)
    mask = torch.rand(4, 7) < 0.4
    sparse = tk.SparseLinear.from_dense(dense, mask)
    with torch.no_grad():
        dense.weight *= mask
    ours = torch.randn(shape, dtype=torch.float64, requires_grad=True)
    theirs = ours.detach().clone().requires_grad_()
    got, expected = sparse(ours), dense(theirs)
    torch.testing.assert_close(got, expected, rtol=1e-12, atol=1e-12)
    grad = torch.randn_like(expected)
    got.backward(grad)
    expected.backward(grad)
    torch.testing.assert_close(ours.grad, theirs.grad, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(sparse.values.grad, dense.weight.grad[mask], rtol=1e-12, atol=1e-12)


def test_batch_last_stays():
    sparse = tk.SparseLinear(6, 5, mask=torch.rand(5, 6) < 0.5)
    assert tk.is_batch_last(sparse(tk.to_batch_last(torch.randn(4, 6))))
    assert sparse(torch.randn(4, 6)).is_contiguous()


def test_tiny_table():
    layer = tk.SparseLinear(3, 2, mask=torch.tensor([[0.0, 1.0, 1.0], [1.0, 0.0, 0.0]]))
    with torch.no_grad():
        layer.values.copy_(torch.tensor([2.0, 3.0, 5.0]))
        layer.bias.copy_(torch.tensor([10.0, 20.0]))
    assert layer.weight.tolist() == [[0.0, 2.0, 3.0], [5.0, 0.0, 0.0]]
    assert layer.mask.tolist() == [[False, True, True], [True, False, False]]
    assert layer(torch.tensor([[1.0, 10.0, 100.0]])).tolist() == [[330.0, 25.0]]
    assert "in_features=3, out_features=2, bias=True, density=0.5" in repr(layer)


def test_constructor_draws_what_torch_draws():
    torch.manual_seed(3)
    dense = nn.Linear(9, 4)
    mask = torch.rand(4, 9) < 0.5
    torch.manual_seed(3)
    sparse = tk.SparseLinear(9, 4, mask=mask)
    assert torch.equal(sparse.values, dense.weight[mask])
    assert torch.equal(sparse.bias, dense.bias)
    back = sparse.to_dense()
    assert type(back) is nn.Linear
    assert torch.equal(back.weight, dense.weight * mask)


def test_errors_name_the_argument():
    with pytest.raises(ValueError, match=r"mask: expected shape \(4, 9\), that of the weight, got \(9, 4\)"):
        tk.SparseLinear(9, 4, mask=torch.ones(9, 4))
    with pytest.raises(TypeError, match=r"dense: expected a torch\.nn\.Linear, got Conv2d"):
        tk.SparseLinear.from_dense(nn.Conv2d(1, 1, 1), torch.ones(1, 1))


def test_works_inside_attention():
    """nn.MultiheadAttention reads out_proj.weight instead of calling it."""
    torch.manual_seed(0)
    dense = nn.MultiheadAttention(8, 2, batch_first=True)
    mask = torch.rand(8, 8) < 0.5
    sparse = tk.sparsify(dense, {"out_proj": mask})
    with torch.no_grad():
        dense.out_proj.weight *= mask
    x = torch.randn(2, 5, 8)
    got, expected = sparse(x, x, x)[0], dense(x, x, x)[0]
    torch.testing.assert_close(got, expected)
    got.sum().backward()
    assert sparse.out_proj.values.grad.abs().sum() > 0
