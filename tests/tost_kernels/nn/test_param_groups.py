"""param_groups: sparse values decay though they are vectors."""

import pytest
import torch
from torch import nn

import tost_kernels as tk


def names_of(net, group):
    wanted = {id(p) for p in group["params"]}
    return [name for name, p in net.named_parameters() if id(p) in wanted]


def network():
    return nn.Sequential(
        nn.Conv2d(3, 4, 3, bias=True), nn.BatchNorm2d(4), nn.PReLU(4), nn.Flatten(), nn.Linear(16, 5), nn.LayerNorm((5, 1))
    )


def test_what_decays():
    net = network()
    expected = ["0.weight", "4.weight"], ["0.bias", "1.weight", "1.bias", "2.weight", "4.bias", "5.weight", "5.bias"]
    groups = tk.param_groups(net, 0.1)
    assert [g["weight_decay"] for g in groups] == [0.1, 0.0]
    assert tuple(names_of(net, g) for g in groups) == expected
    sparse = tk.sparsify(net, {"0": torch.rand(4, 3, 3, 3) < 0.5, "4": torch.rand(5, 16) < 0.5})
    groups = tk.param_groups(sparse, 0.1)
    assert [n.replace("values", "weight") for n in names_of(sparse, groups[0])] == expected[0]
    assert names_of(sparse, groups[1]) == expected[1]


def test_strengths_do_not_decay():
    net = nn.Sequential(
        tk.nn.PSwish(trainable=True, num_channels=3), tk.nn.GhostSkipAdd(trainable_alpha=True, trainable_beta=True)
    )
    groups = tk.param_groups(net, 0.1)
    assert groups[0]["params"] == []
    assert len(groups[1]["params"]) == 3


def test_each_parameter_once_and_no_frozen_one():
    net = network()
    net.append(net[4])  # a shared module
    tied = nn.Linear(16, 5)
    tied.weight = net[4].weight  # a tied weight
    net.append(tied)
    net[0].weight.requires_grad_(False)
    groups = tk.param_groups(net, 0.1)
    listed = [p for g in groups for p in g["params"]]
    assert len({id(p) for p in listed}) == len(listed)
    assert {id(p) for p in listed} == {id(p) for p in net.parameters() if p.requires_grad}
    torch.optim.SGD(groups, lr=0.1)  # refuses duplicates


def test_a_step_decays_values():
    layer = tk.SparseLinear(4, 3, mask=torch.ones(3, 4))
    before = layer.values.detach().clone(), layer.bias.detach().clone()
    optimizer = torch.optim.SGD(tk.param_groups(layer, 0.5), lr=0.1)
    for parameter in layer.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    torch.testing.assert_close(layer.values, before[0] * 0.95)
    assert torch.equal(layer.bias, before[1])


@pytest.mark.parametrize(("value", "error"), [(-1, ValueError), (float("nan"), ValueError), ("1", TypeError), (True, TypeError)])
def test_errors(value, error):
    with pytest.raises(error, match="weight_decay: expected a"):
        tk.param_groups(network(), value)
    with pytest.raises(TypeError, match="net: expected"):
        tk.param_groups(list(network().parameters()), 0.1)
