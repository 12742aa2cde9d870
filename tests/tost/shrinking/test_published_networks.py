"""Exact on the networks of the papers, with random filter masks and BatchNorm away from its start."""

import pytest
import torch
from torch import nn

import tost
from tests.tost.shrinking.dead_filters import assert_same, filter_masks, outputs_left, randomised, shrunk
from tost import models
from tost.masks import Masks

X = torch.randn(2, 3, 9, 8, generator=torch.Generator().manual_seed(7))


def _pruned(name: str, density: float) -> nn.Module:
    net = randomised(models.build(name))
    return Masks(filter_masks(net, 1 - density)).apply_to(net, inplace=True, form="zeros")


@pytest.mark.parametrize(
    ("name", "density", "left"),  # fraction of the parameters, at most
    [
        ("resnet20", 0.5, 0.8),
        ("resnet20", 0.2, 0.6),
        ("resnet50", 0.5, 0.55),
        ("resnet50", 0.2, 0.25),
        ("vgg16", 0.5, 0.55),
        ("vgg16", 0.2, 0.35),
        ("mobilenet", 0.5, 0.2),
        ("mobilenet", 0.2, 0.05),
    ],
)
def test_outputs_stay_and_parameters_go(name: str, density: float, left: float) -> None:
    net = _pruned(name, density)
    before = {key: value.clone() for key, value in net.state_dict().items()} if name != "resnet50" else {}
    result = tost.shrink(net, input_shape=(3, 8, 8))
    assert_same(net, result.model, X, 1e-5)
    all_of_them, rest = result.report.parameters
    assert rest == sum(parameter.numel() for parameter in result.model.parameters()) <= left * all_of_them
    assert type(result.model) is type(net)
    assert all(torch.equal(value, before[key]) for key, value in net.state_dict().items() if before)
    if name in ("resnet20", "mobilenet"):
        counts = [tost.count_macs(each, (3, 8, 8)) for each in (net, result.model)]
        assert result.report.macs == (counts[0].dense, counts[1].dense)
        assert result.report.macs_kept == (counts[0].kept, counts[1].kept)
    assert result.report.kept  # random constants leak


def test_without_constants_more_goes() -> None:
    result = shrunk(_pruned("resnet20", 0.2), X, zero_constants=True)
    assert result.report.parameters[1] <= 0.15 * result.report.parameters[0]
    assert result.report.zeroed


def test_what_is_left_of_vgg_is_what_is_alive() -> None:
    net = _pruned("vgg16", 0.5)
    result = tost.shrink(net, input_shape=(3, 8, 8), zero_constants=True)
    left = outputs_left(result)
    for layer in result.report.layers:
        if isinstance(net.get_submodule(layer.name), nn.Conv2d):
            assert left[layer.name] == layer.outputs - layer.dead == layer.outputs // 2
    assert result.model.fc.in_features == 256


def test_a_dense_network_stays_as_it_is() -> None:
    net = randomised(models.build("resnet20"))
    result = tost.shrink(net, input_shape=(3, 8, 8), inplace=True)
    assert result.model is net
    assert result.cuts == {}
    assert result.report.parameters[0] == result.report.parameters[1]
