"""Masks of whole filters, on networks small enough to count by hand."""

from collections import OrderedDict

import pytest
import torch
from torch import nn

from tost.masks.filters import best_filters, strongest_filters


def network() -> nn.Sequential:
    """Filters of 2, 2, 2, 2 weights (norms 1, 4, 2, 3), of 4, 4 (norms 5, 6), and a classifier of 4: 20 weights."""
    net = nn.Sequential(
        OrderedDict(first=nn.Conv2d(2, 4, 1), second=nn.Conv2d(4, 2, 1), flatten=nn.Flatten(), classifier=nn.Linear(2, 2))
    )
    with torch.no_grad():
        for layer, norms in ((net.first, (1.0, 4.0, 2.0, 3.0)), (net.second, (5.0, 6.0))):
            layer.weight.zero_()
            layer.weight[:, 0, 0, 0] = torch.tensor(norms)
    return net


def kept(masks: object, layer: str) -> list[bool]:
    mask: torch.Tensor = masks[layer]  # type: ignore[index]
    rows = mask.flatten(1)
    assert (rows.all(1) | ~rows.any(1)).all()  # whole filters
    return rows.all(1).tolist()


def test_the_strongest_of_every_convolution() -> None:
    masks = strongest_filters(network(), 0.6)  # 12 weights, 4 of them the classifier's: half of the filters
    assert kept(masks, "first") == [False, True, False, True]
    assert kept(masks, "second") == [False, True]
    assert masks.kept == 12
    assert kept(strongest_filters(network(), 0.25), "second") == [False, True]  # never none
    assert strongest_filters(network(), 1.0).density == 1.0
    assert strongest_filters(network(), 0.25, exclude="classifier").kept == 2 + 4  # one filter of each


def test_the_best_of_all_layers() -> None:
    scores = {"first": torch.tensor([0.1, 0.9, 0.4, 0.4]), "second": torch.tensor([0.5, 0.3])}
    masks = best_filters(network(), scores, 0.6)
    assert kept(masks, "first") == [False, True, True, False]  # of equals the first
    assert kept(masks, "second") == [True, False]
    assert masks.kept == 12
    assert best_filters(network(), scores, 0.65).kept == 12  # there is no half a filter
    assert best_filters(network(), scores, 0.7, exclude="second").kept == 4 + 4  # of 12 weights 8.4


def test_no_room_for_a_filter() -> None:
    for density in (0.1, 0.2):
        with pytest.raises(ValueError, match=f"density: expected more than 0.2, the weights of classifier, .* got {density}"):
            strongest_filters(network(), density)
    with pytest.raises(ValueError, match="model: expected a Conv2d"):
        strongest_filters(nn.Sequential(nn.Linear(2, 2)), 0.5)
    with pytest.raises(ValueError, match="scores: expected those of a layer to prune, got first"):
        best_filters(network(), {"first": torch.ones(4)}, 0.5, exclude="first")
