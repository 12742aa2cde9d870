"""Groups of a network's parameters, and masks and norms by the names of its layers."""

import pytest
import torch
from torch import nn

import tost_kernels as tk
from tests.tost.optim.small_net import small_lbi, small_net, train
from tost import Masks
from tost.optim import SplitLBI, split_lbi_groups


def test_convolutions_by_filters_linear_layers_by_weights_the_rest_plain() -> None:
    net = small_net()
    net.norm.weight.requires_grad_(False)
    conv, linear, rest = split_lbi_groups(net, conv={"lam": 0.1, "sqrt_d": True}, linear={"nu": 5.0})
    assert [id(p) for p in conv.pop("params")] == [id(net.stem.weight), id(net.depthwise.weight)]
    assert [id(p) for p in linear.pop("params")] == [id(net.head.weight)]
    assert [id(p) for p in rest.pop("params")] == [id(p) for p in (net.stem.bias, net.norm.bias, net.head.bias)]
    assert conv == {"prox": "group", "lam": 0.1, "sqrt_d": True}
    assert linear == {"prox": "lasso", "nu": 5.0}
    assert rest == {"prox": None}


def test_layers_can_be_left_out() -> None:
    net = nn.Sequential(small_net(), nn.ConvTranspose2d(3, 3, 1), nn.Linear(3, 3))
    conv, linear, rest = split_lbi_groups(net, exclude=["0.head", "0.stem"])
    assert [id(p) for p in conv["params"]] == [id(net[0].depthwise.weight)]
    assert [id(p) for p in linear["params"]] == [id(net[2].weight)]
    assert {id(net[0].stem.weight), id(net[1].weight)} <= {id(p) for p in rest["params"]}
    assert sum(len(group["params"]) for group in (conv, linear, rest)) == len(list(net.parameters()))


def test_packed_weights_are_refused() -> None:
    net = small_net()
    masks = Masks({name: torch.rand(net.get_submodule(name).weight.shape) < 0.5 for name in ("stem", "head")})
    sparse = tk.sparsify(net, masks)
    with pytest.raises(ValueError, match=r"layer 'stem' is a SparseConv2d already; use tost_kernels.densify"):
        split_lbi_groups(sparse)
    with pytest.raises(ValueError, match="layer 'stem' holds packed weights; use the dense network"):
        split_lbi_groups(sparse, include="depthwise")
    with pytest.raises(ValueError, match=r"stem\.values is the packed weight of a sparse layer"):
        SplitLBI(sparse.named_parameters(), lr=0.1)
    vectors = [p for p in sparse.parameters() if p.dim() == 1]
    with pytest.raises(ValueError, match="got none; the packed `values` of sparse layers are vectors"):
        SplitLBI(vectors, lr=0.1)
    SplitLBI(vectors, lr=0.1, prox=None)  # nobody asks for a Gamma
    optimizer = SplitLBI([p for p in sparse.parameters() if p.dim() > 1], lr=0.1)
    assert set(optimizer.supports(sparse)) == {"depthwise"}
    mixed = SplitLBI(sparse.parameters(), lr=0.1)  # bare tensors: `values` looks like a bias
    for read in (mixed.supports, mixed.path_point):
        with pytest.raises(ValueError, match="model: layer 'stem' holds packed weights, a vector without a Gamma"):
            read(sparse)
    values = [sparse.stem.values, sparse.head.values]
    others = [p for p in sparse.parameters() if all(p is not v for v in values)]
    assert set(SplitLBI([{"params": others}, {"params": values, "prox": None}], lr=0.1).supports(sparse)) == {"depthwise"}


def test_bad_arguments_of_groups() -> None:
    with pytest.raises(TypeError, match="conv: expected a mapping of options, got float"):
        split_lbi_groups(small_net(), conv=0.1)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="unknown option 'lambda'"):
        SplitLBI(split_lbi_groups(small_net(), linear={"lambda": 0.1}), lr=0.1)


def test_supports_are_masks_by_name() -> None:
    net = small_net()
    optimizer = small_lbi(net)
    assert Masks(optimizer.supports(net)).kept == 0
    train(net, optimizer, 10)
    masks = Masks(optimizer.supports(net))
    assert list(masks) == ["stem", "depthwise", "head"]
    for name in masks:
        assert torch.equal(masks[name], optimizer.gamma(net.get_submodule(name).weight) != 0)
    assert 0 < masks.density < 1


def test_a_point_of_the_path() -> None:
    net = small_net().to(memory_format=torch.channels_last)
    optimizer = small_lbi(net)
    train(net, optimizer, 10)
    point = optimizer.path_point(net)
    masks = Masks(optimizer.supports(net))
    assert point.density == masks.density
    assert point.densities == {layer.name: layer.density for layer in masks.per_layer()}
    for name, norms in point.norms.items():
        weight = net.get_submodule(name).weight.detach()
        torch.testing.assert_close(norms, weight.double().square().flatten(1).sum(1).sqrt().float())
        assert torch.equal(point.in_support(name), masks[name].flatten(1).any(1))
    assert 0 < int(point.in_support("stem").sum()) < 6


def test_models_without_a_gamma() -> None:
    net = small_net()
    optimizer = SplitLBI(net.parameters(), lr=0.1, prox=None)
    with pytest.raises(ValueError, match="model: expected a Conv2d or Linear whose weight has a Gamma in this optimizer"):
        optimizer.supports(net)
    with pytest.raises(ValueError, match="expected a Conv2d or Linear whose weight has a Gamma"):
        small_lbi(net).path_point(small_net())
    with pytest.raises(TypeError, match=r"model: expected an nn\.Module, got dict"):
        small_lbi(net).supports({})  # type: ignore[arg-type]


def test_tied_weights_are_refused() -> None:
    net = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3))
    net[1].weight = net[0].weight
    with pytest.raises(ValueError, match="tied weights cannot be pruned"):
        split_lbi_groups(net)
    with pytest.raises(ValueError, match="tied weights cannot be pruned"):
        SplitLBI(net.parameters(), lr=0.1).supports(net)


def test_any_torch_network_drops_in() -> None:
    net = small_net()
    optimizer = SplitLBI(net.named_parameters(), 0.1, nu=2.0, lam=0.2)
    train(net, optimizer, 10)
    assert list(optimizer.supports(net)) == ["stem", "depthwise", "head"]
    inside = optimizer.support(net.head.weight)
    assert (inside.all(1) == inside.any(1)).all()  # "group": the rows of the linear layer
