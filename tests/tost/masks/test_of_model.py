import copy
import pickle

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrize
from torch.nn.utils import prune as torch_prune

import tost_kernels as tk
from tost.masks import Masks


@pytest.fixture
def masks(convnet) -> Masks:
    torch.manual_seed(5)
    return Masks({name: torch.rand_like(convnet.get_submodule(name).weight) < 0.4 for name in ("0", "2", "5")})


def test_masked_dense_computes_with_the_masked_weights(convnet, masks, batches):
    before = copy.deepcopy(convnet.state_dict())
    by_hand = copy.deepcopy(convnet)
    for name in masks:
        by_hand.get_submodule(name).weight.data *= masks[name]
    x = batches[0][0]
    masked = masks.apply_to(convnet)
    assert torch.equal(masked(x), by_hand(x))
    masked(x).sum().backward()
    assert (masked[0].weight_orig.grad[~masks["0"]] == 0).all()
    assert masked[0].weight_orig.grad.abs().sum() > 0
    assert masked is not convnet
    assert all(torch.equal(value, before[name]) for name, value in convnet.state_dict().items())
    assert convnet.state_dict().keys() == before.keys()
    masked[0].weight_mask.zero_()  # the network's mask is its own
    assert masks["0"].any()


def test_apply_in_place(convnet, masks):
    assert masks.apply_to(convnet, inplace=True) is convnet
    assert hasattr(convnet[0], "weight_mask")


def test_a_network_that_is_pruned_already_and_has_run(convnet, masks, batches):
    x = batches[0][0]
    half = Masks({"0": masks["0"]}).apply_to(convnet)
    half(x).sum().backward()
    rest = Masks({name: masks[name] for name in ("2", "5")})
    assert torch.equal(rest.apply_to(half)(x), masks.apply_to(convnet)(x))
    assert not hasattr(half[2], "weight_mask")


def test_every_form_is_read_back(convnet, masks, batches):
    masked = masks.apply_to(convnet)
    masked(batches[0][0])
    assert Masks.from_model(masked) == masks
    for name in masks:
        torch_prune.remove(masked.get_submodule(name), "weight")
    assert Masks.from_model(masked) == masks  # zeros of the dense weights
    sparse = tk.sparsify(convnet, masks)
    assert Masks.from_model(sparse) == masks
    assert Masks.from_model(tk.densify(sparse)) == masks
    assert list(Masks.from_model(sparse)) == list(masks)


def test_a_masks_of_its_own_beats_zeros_of_the_values(convnet, masks):
    with torch.no_grad():
        for parameter in convnet.parameters():
            parameter.zero_()
    assert Masks.from_model(convnet).kept == 0
    assert Masks.from_model(masks.apply_to(convnet)) == masks
    assert Masks.from_model(tk.sparsify(convnet, masks)) == masks


class Multiply(nn.Module):
    def __init__(self, mask: torch.Tensor) -> None:
        super().__init__()
        self.register_buffer("mask", mask)

    def forward(self, weight: torch.Tensor) -> torch.Tensor:
        return weight * self.mask


class Threshold(nn.Module):
    def forward(self, weight: torch.Tensor) -> torch.Tensor:
        return torch.where(weight > 0, weight, 0.0)


def test_parametrizations():
    net = nn.Sequential(nn.Linear(3, 2), nn.Linear(2, 2))
    with torch.no_grad():
        net[0].weight.copy_(torch.tensor([[0.0, 1.0, 2.0], [3.0, 4.0, 5.0]]))
        net[1].weight.copy_(torch.tensor([[1.0, -1.0], [-2.0, 2.0]]))
    first, second = torch.tensor([[1, 1, 0], [1, 1, 1]]), torch.tensor([[1, 0, 1], [1, 1, 1]])
    parametrize.register_parametrization(net[0], "weight", Multiply(first))
    parametrize.register_parametrization(net[0], "weight", Multiply(second))
    parametrize.register_parametrization(net[1], "weight", Threshold())
    masks = Masks.from_model(net)
    assert masks["0"].tolist() == [[True, False, False], [True, True, True]]
    assert masks["1"].tolist() == [[True, False], [False, True]]


def test_dense_network_is_all_ones_and_patterns_choose(convnet):
    assert Masks.from_model(convnet).density == 1
    assert list(Masks.from_model(convnet, include=["0", "5"], exclude="0")) == ["5"]


def test_refused(convnet, masks):
    x = dict(masks)
    with pytest.raises(ValueError, match="no module '7'"):
        Masks({"7": x["0"]}).apply_to(convnet)
    with pytest.raises(TypeError, match="'1', got ReLU"):
        Masks({"0": x["0"], "1": x["0"]}).apply_to(convnet, inplace=True)
    with pytest.raises(ValueError, match=r"'5' has shape \(6, 3, 3, 3\), its weight \(10, 144\)"):
        Masks({"0": x["0"], "5": x["0"]}).apply_to(convnet, inplace=True)
    assert not hasattr(convnet[0], "weight_mask")  # unchanged after all these
    with pytest.raises(TypeError, match="SparseConv2d"):
        masks.apply_to(tk.sparsify(convnet, masks))
    with pytest.raises(ValueError, match="already"):
        masks.apply_to(masks.apply_to(convnet))
    with pytest.raises(TypeError, match=r"model: expected an nn\.Module, got dict"):
        masks.apply_to({})
    with pytest.raises(TypeError, match=r"model: expected an nn\.Module, got dict"):
        Masks.from_model({})
    with pytest.raises(ValueError, match="at least one Conv2d or Linear"):
        Masks.from_model(nn.Sequential(nn.ReLU()))
    twice = nn.Sequential(shared := nn.Linear(2, 2), shared)
    with pytest.raises(ValueError, match="'1' and '0' are one module"):
        Masks({"0": torch.ones(2, 2), "1": torch.ones(2, 2)}).apply_to(twice)


@pytest.mark.parametrize("form", ["prune", "parametrization", "zeros"])
def test_every_form_computes_and_is_read_back(convnet, masks, batches, form):
    x = batches[0][0]
    expected = masks.apply_to(convnet)(x)
    net = masks.apply_to(convnet, form=form)
    assert torch.equal(net(x), expected)
    assert Masks.from_model(net) == masks
    assert Masks.from_state_dict(net.state_dict()) == masks
    assert Masks.from_model(convnet).density == 1  # a copy
    assert torch.equal(tk.sparsify(convnet, Masks.from_model(net))[0].mask, masks["0"])
    assert torch.equal(pickle.loads(pickle.dumps(net.state_dict()))["0.bias"], convnet[0].bias)
    net(x).square().sum().backward()
    for parameter in net.parameters():
        parameter.data -= 0.1 * parameter.grad
    survives = form != "zeros"  # plain zeros are trained like any number
    assert (net[0].weight[~masks["0"]] == 0).all() == survives
    assert masks.apply_to(convnet, inplace=True, form=form) is convnet


def test_parametrized_layers_are_plain_again(convnet, masks, batches):
    net = masks.apply_to(convnet, form="parametrization")
    copy.deepcopy(net)
    for name in masks:
        parametrize.remove_parametrizations(net.get_submodule(name), "weight")
    assert Masks.from_model(net) == masks
    assert net.state_dict().keys() == convnet.state_dict().keys()
    broken = copy.deepcopy(convnet)
    broken[0].weight.data[~masks["0"]] = torch.nan
    assert masks.apply_to(broken, form="zeros")[0].weight.isfinite().all()


def test_several_prunings_of_torch(convnet):
    layers = [(convnet[i], "weight") for i in (0, 2, 5)]
    torch_prune.global_unstructured(layers, pruning_method=torch_prune.L1Unstructured, amount=0.5)
    half = Masks.from_model(convnet)
    assert half.kept == round(0.5 * half.total)
    torch_prune.random_unstructured(convnet[0], "weight", amount=0.5)
    torch_prune.ln_structured(convnet[2], "weight", amount=0.5, n=2, dim=0)
    torch_prune.l1_unstructured(convnet[5], "bias", amount=3)  # masks of biases are not ours
    again = Masks.from_model(convnet)
    assert torch.equal(again["0"], convnet[0].weight_mask.bool())
    assert torch.equal(again["2"], convnet[2].weight_mask.bool())
    assert torch.equal(again["5"], half["5"])
    assert again.kept < half.kept
    assert (again["0"] <= half["0"]).all()
    assert Masks.from_state_dict(convnet.state_dict()) == again


def test_a_parametrized_convolution_without_a_mask(convnet, masks):
    with torch.no_grad():
        convnet[0].weight.masked_fill_(~masks["0"], 0)
    parametrize.register_parametrization(convnet[0], "weight", nn.Identity())
    assert torch.equal(Masks.from_model(convnet)["0"], masks["0"])
    normed = nn.Sequential(nn.utils.parametrizations.weight_norm(nn.Linear(3, 2)))
    assert Masks.from_model(normed).density == 1


def test_another_kind_of_layer_with_a_mask_is_not_passed_over():
    net = nn.Sequential(nn.Linear(2, 2), nn.Conv1d(1, 1, 3))
    assert list(Masks.from_model(net)) == ["0"]
    torch_prune.random_unstructured(net[1], "weight", amount=1)
    with pytest.raises(ValueError, match="model: '1' is a Conv1d with a mask; masks are for Conv2d and Linear alone"):
        Masks.from_model(net)
    assert list(Masks.from_model(net, include="0")) == ["0"]
    with pytest.raises(TypeError, match="expected a Conv2d or Linear at '1', got Conv1d"):
        Masks({"1": torch.ones(1, 3)}).apply_to(net)


def test_state_dicts():
    eye = torch.eye(2)
    state = {
        "a.weight": eye * 2, "a.bias": torch.ones(2), "bn.weight": torch.ones(2), "conv1d.weight": torch.ones(1, 1, 3),
        "b.weight_orig": torch.ones(2, 2), "b.weight_mask": eye, "words.weight": torch.ones(4, 2), "extra": {"x": 1},
        "c.parametrizations.weight.original": torch.ones(2, 2), "c.parametrizations.weight.0.mask": eye,
        "c.parametrizations.weight.1.mask": torch.tensor([[1, 1], [0, 0]]),
    }  # fmt: skip
    masks = Masks.from_state_dict(state, exclude="words")
    assert masks == Masks({"a": eye, "b": eye, "c": torch.tensor([[1, 0], [0, 0]])})
    assert list(masks) == ["a", "b", "c"]
    assert list(Masks.from_state_dict(state, include=["b", "words"])) == ["b", "words"]
    with pytest.raises(
        ValueError, match=r"expected masks of two or four dimensions, got shape \(1, 1, 3\) for 'conv1d.weight_mask'"
    ):
        Masks.from_state_dict({**state, "conv1d.weight_mask": torch.ones(1, 1, 3)})
    assert list(Masks.from_state_dict({**state, "conv1d.weight_mask": torch.ones(1, 1, 3)}, include="b")) == ["b"]
    with pytest.raises(TypeError, match="state: expected a mapping of names to tensors, got list"):
        Masks.from_state_dict([])
    with pytest.raises(ValueError, match=r"state: expected weights of two or four dimensions.*found none among 1 names"):
        Masks.from_state_dict({"a.bias": torch.ones(2)})
    with pytest.raises(ValueError, match="pattern 'd' matches no layer; the layers are a, b, words, c"):
        Masks.from_state_dict(state, include="d")


def test_unknown_form(convnet, masks):
    with pytest.raises(ValueError, match="form: unknown name 'zero'; did you mean zeros"):
        masks.apply_to(convnet, form="zero")
