"""state_dict of sparse layers: what it holds, and every form it is loaded from."""

import io

import pytest
import safetensors.torch
import torch
from torch import nn
from torch.nn.utils import parametrize, prune

import tost_kernels as tk


class Masked(nn.Module):
    """The parametrization that users write: weight = original * mask."""

    def __init__(self, mask):
        super().__init__()
        self.register_buffer("mask", mask)

    def forward(self, weight):
        return weight * self.mask


def network():
    torch.manual_seed(0)
    return nn.Sequential(nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU()), nn.Flatten(), nn.Linear(16, 5))


def masks(seed=1):
    generator = torch.Generator().manual_seed(seed)
    return {
        "0.0": torch.rand(4, 3, 3, 3, generator=generator) < 0.4,
        "2": torch.rand(5, 16, generator=generator) < 0.4,
    }


def sparse_network(seed=1):
    return tk.sparsify(network(), masks(seed))


X = torch.randn(2, 3, 4, 4)


def test_speaks_the_dense_networks_language():
    net = sparse_network()
    state = net.state_dict()
    expected = ["0.0.weight", "0.0.bias", "0.0.weight_mask", "2.weight", "2.bias", "2.weight_mask"]
    assert list(state) == expected
    assert state["2.weight_mask"].dtype == torch.bool
    for name, mask in masks().items():
        assert torch.equal(state[name + ".weight_mask"], mask)
        assert torch.equal(state[name + ".weight"], network().state_dict()[name + ".weight"] * mask)
    dense = network()
    assert dense.load_state_dict(state, strict=False).unexpected_keys == ["0.0.weight_mask", "2.weight_mask"]
    torch.testing.assert_close(dense(X), net(X))
    assert not state["2.weight"].requires_grad
    assert net.state_dict(keep_vars=True)["2.weight"].requires_grad
    assert net.state_dict(prefix="a.")["a.2.weight"].shape == (5, 16)


def test_writes_into_a_state_dict_do_not_reach_the_layer():
    net = sparse_network()
    before = net[2].values.detach().clone()
    net.state_dict()["2.weight"].fill_(7)
    net.state_dict()["2.weight_mask"].fill_(False)
    assert torch.equal(net[2].values, before)
    assert torch.equal(net[2].mask, masks()["2"])


def stored_forms():
    """The same masked weights, 2 * network() * masks(), in every form."""
    plain = network()
    with torch.no_grad():
        for parameter in plain.parameters():
            parameter.mul_(2)
    own = tk.sparsify(plain, masks())
    pruned, parametrized = tk.densify(own), tk.densify(own)
    for name, mask in masks().items():
        prune.custom_from_mask(pruned.get_submodule(name), "weight", mask)
        parametrize.register_parametrization(parametrized.get_submodule(name), "weight", Masked(mask))
    with torch.no_grad():  # both keep what is under the mask
        pruned[2].weight_orig[~masks()["2"]] = 9.0
        parametrized[2].parametrizations.weight.original[~masks()["2"]] = float("nan")
    return {
        "own": own.state_dict(),
        "pruned": pruned.state_dict(),
        "parametrized": parametrized.state_dict(),
        "dense": tk.densify(own).state_dict(),
        "float mask": {k: v.float() for k, v in own.state_dict().items()},
        "float64": {k: v.double() for k, v in own.state_dict().items()},
    }


@pytest.mark.parametrize("form", ["own", "pruned", "parametrized", "dense", "float mask", "float64"])
@pytest.mark.parametrize("assign", [False, True])
def test_loads_every_form(form, assign):
    state = stored_forms()[form]
    net = sparse_network()
    expected = [2 * p.detach() for p in net.parameters()]
    parameters = list(net.parameters())
    patterns = net[0][0].pattern, net[2].pattern
    result = net.load_state_dict(state, assign=assign)
    assert not result.missing_keys
    assert not result.unexpected_keys
    for got, want in zip(net.parameters(), expected, strict=True):
        torch.testing.assert_close(got.to(want.dtype), want)
        assert got.requires_grad
        assert got.is_leaf
    assert (net[0][0].pattern, net[2].pattern) == patterns
    if not assign:
        assert all(a is b for a, b in zip(net.parameters(), parameters, strict=True))
        assert net[2].values.dtype == torch.float32
    elif form == "float64":
        assert net[2].values.dtype == torch.float64


def test_pruned_and_parametrized_biases():
    dense = nn.Linear(4, 3)
    bias = dense.bias.detach().clone()
    prune.custom_from_mask(dense, "bias", torch.tensor([1, 0, 1]))
    layer = tk.SparseLinear(4, 3, mask=torch.ones(3, 4))
    layer.load_state_dict(dense.state_dict())
    assert torch.equal(layer.bias, bias * torch.tensor([1.0, 0.0, 1.0]))
    dense = nn.Linear(4, 3)
    parametrize.register_parametrization(dense, "bias", Masked(torch.tensor([0, 1, 1])))
    layer.load_state_dict(dense.state_dict())
    assert torch.equal(layer.bias, dense.bias)


def test_another_mask_is_refused():
    net = sparse_network()
    before = [p.detach().clone() for p in net.parameters()]
    other = sparse_network(seed=2).state_dict()
    differ = int((masks(1)["0.0"] != masks(2)["0.0"]).sum())
    message = rf"layer '0\.0': the loaded mask differs from this layer's at {differ} of 108 positions"
    with pytest.raises(ValueError, match=message):
        net.load_state_dict(other)
    with pytest.raises(ValueError, match="differs"):
        net.load_state_dict(other, strict=False)
    assert all(torch.equal(a, b) for a, b in zip(net.parameters(), before, strict=True))


@pytest.mark.parametrize("value", [1.0, float("nan"), float("inf")])
def test_dense_weights_off_the_mask_are_refused(value):
    net = sparse_network()
    state = tk.densify(net).state_dict()
    where = (~masks()["2"]).nonzero()[:3]
    state["2.weight"][tuple(where.T)] = value
    pruned = int((~masks()["2"]).sum())
    with pytest.raises(ValueError, match=rf"layer '2': the loaded '2\.weight' is not zero at 3 of the {pruned} positions"):
        net.load_state_dict(state)
    state["2.weight_mask"] = masks()["2"]
    for assign in (False, True):
        with pytest.raises(ValueError, match=r"layer '2': .* is not zero at 3 positions that its own mask prunes"):
            net.load_state_dict(state, assign=assign)


@pytest.mark.parametrize("form", ["own", "dense", "pruned"])
def test_assign_adopts_another_mask(form):
    net, other = sparse_network(), sparse_network(seed=2)
    state = other.state_dict()
    if form == "dense":
        state = tk.densify(other).state_dict()
    if form == "pruned":
        state = {k.replace(".weight", ".weight_orig") if k.endswith(".weight") else k: v for k, v in state.items()}
    net[2].values.requires_grad_(False)
    net.load_state_dict(state, assign=True)
    assert net[2].pattern == other[2].pattern
    assert net[2].values.shape == other[2].values.shape
    assert not net[2].values.requires_grad
    assert net[0][0].values.requires_grad
    assert torch.equal(net(X), other(X))


def test_a_zero_weight_stays_kept():
    net = sparse_network()
    with torch.no_grad():
        net[2].values[:3] = 0
    pattern = net[2].pattern
    for assign in (False, True):
        net.load_state_dict(tk.densify(net).state_dict(), assign=assign)
        assert net[2].pattern == pattern


def test_strictness():
    net = sparse_network()
    state = net.state_dict()
    del state["2.weight"]
    state["2.extra"] = torch.zeros(1)
    state["2.values"] = net[2].values
    with pytest.raises(RuntimeError, match="Error") as error:
        net.load_state_dict(state)
    assert 'Missing key(s) in state_dict: "2.weight"' in str(error.value)
    assert 'Unexpected key(s) in state_dict: "2.values", "2.extra"' in str(error.value)
    result = net.load_state_dict(state, strict=False)
    assert result.missing_keys == ["2.weight"]
    assert sorted(result.unexpected_keys) == ["2.extra", "2.values"]
    state = net.state_dict()
    del state["2.bias"]
    assert net.load_state_dict(state, strict=False).missing_keys == ["2.bias"]
    del state["0.0.weight_mask"]
    assert net.load_state_dict(state, strict=False).missing_keys == ["2.bias"]


def test_broken_entries():
    net = sparse_network()
    state = net.state_dict()
    state["2.weight"] = torch.zeros(4, 4)
    with pytest.raises(RuntimeError, match=r"size mismatch for 2\.weight: .*\[4, 4\].*\[5, 16\]"):
        net.load_state_dict(state)
    state["2.weight"] = 3
    with pytest.raises(RuntimeError, match=r"2\.weight: expected a torch\.Tensor, got int"):
        net.load_state_dict(state)
    state["2.weight"] = torch.zeros(5, 16, device="meta")
    with pytest.raises(RuntimeError, match=r"2\.weight: expected a tensor with data"):
        net.load_state_dict(state)
    state = net.state_dict()
    state["2.weight_mask"] = torch.full((5, 16), 0.5)
    with pytest.raises(ValueError, match="layer '2': the loaded mask: mask: expected only 0 and 1"):
        net.load_state_dict(state)
    state["2.weight_mask"] = torch.ones(16, 5)
    with pytest.raises(ValueError, match=r"layer '2': the loaded mask: expected shape \(5, 16\), got \(16, 5\)"):
        net.load_state_dict(state)


def test_a_layer_alone_and_a_layer_without_bias():
    layer = tk.SparseLinear(3, 2, bias=False, mask=torch.tensor([[1, 0, 1], [0, 1, 0]]))
    assert list(layer.state_dict()) == ["weight", "weight_mask"]
    with pytest.raises(ValueError, match="layer 'SparseLinear'"):
        layer.load_state_dict({"weight": torch.ones(2, 3)})
    layer.load_state_dict({"weight": torch.tensor([[1.0, 0, 2], [0, 3, 0]])})
    assert layer.values.tolist() == [1, 2, 3]


def test_files():
    net = sparse_network()
    file = io.BytesIO()
    torch.save(net.state_dict(), file)
    file.seek(0)
    other = tk.sparsify(network(), masks())
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.zero_()
    other.load_state_dict(torch.load(file))
    assert torch.equal(other(X), net(X))
    packed = safetensors.torch.save(net.state_dict())
    other.load_state_dict(safetensors.torch.load(packed))
    assert torch.equal(other(X), net(X))


def test_masks_serve_torchs_pruning():
    net = sparse_network()
    state = net.state_dict()
    dense = network()
    dense.load_state_dict({k: v for k, v in state.items() if not k.endswith("_mask")})
    for name in masks():
        prune.custom_from_mask(dense.get_submodule(name), "weight", state[name + ".weight_mask"])
    torch.testing.assert_close(dense(X), net(X))
    dense[2].weight_mask.copy_(state["2.weight_mask"])


def test_loading_into_meta_needs_assign():
    net = sparse_network()
    state = net.state_dict()
    net.to("meta")
    with pytest.warns(UserWarning, match="no-op"):
        net.load_state_dict(state)
    assert net[2].values.is_meta
    net.load_state_dict(state, assign=True)
    assert torch.equal(net(X), sparse_network()(X))
