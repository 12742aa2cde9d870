import torch
from torch import nn
from torch.nn.utils import prune

from tost_kernels.nn.surgery import duplicate


def test_copies_a_pruned_network_after_a_forward_pass() -> None:
    net = nn.Sequential(nn.Linear(3, 2))
    prune.custom_from_mask(net[0], "weight", torch.tensor([[1, 0, 1], [0, 1, 0]]))
    x = torch.randn(4, 3)
    net(x).sum().backward()
    weight = net[0].weight
    new = duplicate(net)
    assert net[0].weight is weight  # the original keeps its graph
    assert torch.equal(new(x), net(x))
    assert new[0].weight_orig is not net[0].weight_orig
    assert new[0].weight_orig.grad is None
    assert net[0].weight_orig.grad is not None
    with torch.no_grad():
        new[0].weight_orig.zero_()
    assert net[0].weight_orig.count_nonzero() == 6
