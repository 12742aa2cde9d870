"""`prune(..., within=masks)`: only weights that earlier masks keep."""

from dataclasses import replace

import pytest
import torch
from torch import nn

from tost.masks import Masks, methods, prune
from tost.masks.distributions import erk, globally, uniform
from tost.masks.selection import per_filter

EARLIER = Masks({"0": torch.tensor([[0, 1, 0], [1, 1, 1]]), "1": torch.ones(2, 2)})


@pytest.fixture
def net() -> nn.Sequential:
    net = nn.Sequential(nn.Linear(3, 2, bias=False), nn.Linear(2, 2, bias=False))
    with torch.no_grad():
        net[0].weight.copy_(torch.tensor([[5.0, 0.0, -3.0], [0.0, 1.0, 0.0]]))
        net[1].weight.copy_(torch.tensor([[-4.0, 1.0], [2.0, 0.0]]))
    return net


def test_the_largest_of_those_that_are_left(net):
    four = prune(net, "magnitude", 0.4)
    assert four["0"].tolist() == [[True, False, True], [False, False, False]]
    six = prune(net, "magnitude", 0.6, within=EARLIER)  # kept zeros stay before removed weights return
    assert six["0"].tolist() == [[False, True, False], [True, True, False]]
    assert six["1"].tolist() == [[True, True], [True, False]]
    assert prune(net, "magnitude", 0.8, within=EARLIER) == EARLIER
    assert prune(net, "magnitude", 0.6, within=dict(EARLIER.items())) == six


@pytest.mark.parametrize("name", sorted(methods()))
@pytest.mark.parametrize("distribution", [None, uniform, erk])
def test_every_method(resnet, batches, name, distribution):
    method = methods()[name]
    method = replace(method, steps=min(method.steps, 3), distribution=distribution or method.distribution)
    earlier = prune(resnet, "random", 0.5, seed=3)
    masks = prune(resnet, method, 0.2, data=batches, within=earlier)
    assert masks.kept == round(0.2 * masks.total)
    for layer, mask in masks.items():
        assert not (mask & ~earlier[layer]).any(), layer


@pytest.mark.parametrize("distribution", [globally, uniform, erk])
@pytest.mark.parametrize("name", ["magnitude", "iter_snip", "force"])
def test_a_constant_fan_in_among_uneven_filters(resnet, batches, name, distribution):
    earlier = {layer: mask.clone() for layer, mask in prune(resnet, "random", 0.3, seed=3).items()}
    earlier["fc"][:4] = earlier["layer1.0.conv1"][:, :, 1:] = False
    method = replace(methods()[name], steps=3, selection=per_filter, distribution=distribution)
    masks = prune(resnet, method, 0.15, data=batches, within=earlier)
    assert masks.kept == round(0.15 * masks.total)
    for layer, mask in masks.items():
        assert not (mask & ~earlier[layer]).any()
        kept, room = mask.flatten(1).sum(1), earlier[layer].flatten(1).sum(1)
        if (kept < room).any():  # filters with room left hold as many as the fullest, or one less
            assert kept[kept < room].min() >= kept.max() - 1


def test_the_first_scores_are_those_of_the_masked_network(resnet, batches):
    earlier = prune(resnet, "random", 0.5, seed=3)
    masks = prune(resnet, "snip", 0.1, data=batches, within=earlier)
    with torch.no_grad():  # what is multiplied by 0 has the score 0
        for name, mask in earlier.items():
            resnet.get_submodule(name).weight.mul_(mask)
    assert prune(resnet, "snip", 0.1, data=batches) == masks


def test_masks_under_the_second_name_of_a_shared_module(net):
    net.append(net[1])
    masks = {"0": EARLIER["0"], "2": EARLIER["1"]}
    assert prune(net, "magnitude", 0.6, within=masks) == prune(net, "magnitude", 0.6, within=EARLIER)
    with pytest.raises(ValueError, match="within: '1' and '2' are one module, but have a mask each"):
        prune(net, "magnitude", 0.6, within={**EARLIER, "2": EARLIER["1"]})


def test_the_warning_about_empty_layers_does_not_advise_what_is_refused(net):
    with pytest.warns(UserWarning, match="leaves no weight in 0; more weights would stay at a higher density$"):
        prune(net, "magnitude", 0.2, within=EARLIER)


def test_what_is_wrong_is_said(net):
    with pytest.raises(ValueError, match="within: expected masks that keep 9 weights or more, got 8"):
        prune(net, "magnitude", 0.9, within=EARLIER)
    with pytest.raises(ValueError, match="within: expected one mask of the weight's shape for each layer, got no such for 1"):
        prune(net, "magnitude", 0.4, within={"0": EARLIER["0"]})
    with pytest.raises(ValueError, match=r"^within: masks\['0'\]: expected only 0 and 1"):
        prune(net, "magnitude", 0.4, within={"0": torch.full((2, 3), 2)})
    with pytest.raises(ValueError, match="keep_alive: expected False with `within`"):
        prune(net, "magnitude", 0.4, within=EARLIER, keep_alive=True, input_shape=(3,))
