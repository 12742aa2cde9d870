"""PSwish: where beta lives, and that the module is the op."""

import copy

import pytest
import torch
from torch import nn

import tost_kernels as tk


def test_is_the_op_and_keeps_the_layout() -> None:
    x = tk.to_batch_last(torch.randn(4, 3, 2, 2))
    y = tk.PSwish(beta=1.7)(x)
    torch.testing.assert_close(y, x * torch.sigmoid(1.7 * x))
    assert tk.is_batch_last(y)


@pytest.mark.parametrize("trainable", [False, True])
@pytest.mark.parametrize("num_channels", [None, 3])
def test_beta_is_in_the_state_dict(trainable: bool, num_channels: int | None) -> None:
    module = tk.PSwish(2.0, trainable, num_channels)
    assert list(module.state_dict()) == ["beta"]
    assert [name for name, _ in module.named_parameters()] == (["beta"] if trainable else [])
    assert module.beta.dtype == torch.float32
    assert module.beta.shape == (() if num_channels is None else (3,))
    other = tk.PSwish(5.0, trainable, num_channels)
    other.load_state_dict(module.state_dict())
    assert torch.equal(other.beta, module.beta)
    twin = copy.deepcopy(module)
    twin.beta.detach().fill_(9.0)
    assert not torch.equal(twin.beta, module.beta)


def test_a_trainable_beta_learns() -> None:
    module = tk.PSwish(trainable=True, num_channels=3)
    optimizer = torch.optim.SGD(module.parameters(), lr=0.1)
    module(torch.randn(8, 3)).square().sum().backward()
    optimizer.step()
    assert (module.beta != 1.0).all()


def test_compiles_and_sees_beta_move() -> None:
    net = nn.Sequential(nn.Conv2d(2, 3, 1), tk.PSwish(num_channels=3))
    compiled = torch.compile(net, fullgraph=True, backend="aot_eager")
    x = torch.randn(2, 2, 3, 3)
    for beta in (1.0, 8.0):
        net[1].beta.fill_(beta)
        torch.testing.assert_close(compiled(x), net(x))


def test_says_what_it_is_and_rejects_no_channels() -> None:
    assert "trainable=True, num_channels=4" in repr(tk.PSwish(trainable=True, num_channels=4))
    with pytest.raises(ValueError, match="num_channels to be at least 1 or None, got 0"):
        tk.PSwish(num_channels=0)
