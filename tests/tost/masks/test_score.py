"""`tost.score`: what a step of `prune` compares."""

from dataclasses import replace

import pytest
import torch

import tost
from tost.masks import Masks, methods, prune
from tost.masks.selection import keep_largest

# Small networks at low densities: layers may end empty; these tests are about something else.
pytestmark = pytest.mark.filterwarnings("ignore:.*leaves no weight:UserWarning")

METHODS = sorted(methods())


def quick(name):
    return replace(methods()[name], batches=min(methods()[name].batches, 2))


@pytest.mark.parametrize("name", METHODS)
def test_the_first_step_keeps_the_largest(resnet, batches, name):
    method = replace(quick(name), steps=1)
    scores = tost.score(resnet, method, data=batches, seed=3)
    assert {layer: score.shape for layer, score in scores.items()} == {
        layer: resnet.get_submodule(layer).weight.shape for layer in scores
    }
    assert all(not score.requires_grad and score.isfinite().all() for score in scores.values())
    masks = prune(resnet, method, 0.5, data=batches, seed=3)
    assert list(masks) == list(scores)
    if name not in ("random", "erk"):  # these two share the weights out among the layers
        flat = keep_largest(torch.cat([score.flatten() for score in scores.values()]), masks.kept)
        assert torch.equal(flat, torch.cat([mask.flatten() for mask in masks.values()]))


def test_of_a_masked_network(two_layers):
    # W1 = [[1, -2], [3, 0.5]], W2 = [[2, -1]]; without W1[1, 0]: x = (1, 2) gives hidden (0, 1), dL/dW1 = [[0, 0], [-1, -2]]
    data = [(torch.tensor([[1.0, 2.0]]), torch.zeros(1))]
    masks = {"0": torch.tensor([[1, 1], [0, 1]]), "2": torch.ones(1, 2)}
    scores = tost.score(two_layers, "snip", data=data, loss=lambda outputs, targets: outputs.sum(), masks=masks)
    assert scores["0"].tolist() == [[0, 0], [3, 1]]  # a removed weight scores what it would have if it came back
    assert scores["2"].tolist() == [[0, 1]]
    assert tost.score(two_layers, "magnitude", masks=masks)["0"].tolist() == [[1, 2], [3, 0.5]]
    # |W|: the hidden units get (3, 0.5)
    flow = tost.score(two_layers, "synflow", input_shape=(2,), masks=Masks(masks))
    assert flow["0"].tolist() == [[2, 4], [3, 0.5]]
    assert flow["2"].tolist() == [[6, 0.5]]


def test_masks_under_the_second_name_of_a_shared_module():
    net = torch.nn.Sequential(shared := torch.nn.Linear(2, 2), torch.nn.Linear(2, 2), shared)
    masks = {"2": torch.eye(2), "1": torch.ones(2, 2)}
    scores = tost.score(net, "synflow", input_shape=(2,), masks=masks)
    assert list(scores) == ["0", "1"]
    expected = tost.score(net, "synflow", input_shape=(2,), masks={"0": torch.eye(2), "1": torch.ones(2, 2)})
    assert all(torch.equal(score, expected[layer]) for layer, score in scores.items())


def test_the_masks_have_to_fit(two_layers):
    with pytest.raises(ValueError, match="masks: expected one mask of the weight's shape for each layer, got no such for 2"):
        tost.score(two_layers, "magnitude", masks={"0": torch.ones(2, 2)})
    with pytest.raises(ValueError, match=r"masks: .* for 2, 3"):
        tost.score(two_layers, "magnitude", masks={"0": torch.ones(2, 2), "2": torch.ones(2, 2), "3": torch.ones(2, 2)})
    with pytest.raises(ValueError, match=r"masks: .* for 0"):
        tost.score(two_layers, "magnitude", include="2", masks={"0": torch.ones(2, 2), "2": torch.ones(1, 2)})
    with pytest.raises(ValueError, match="data: method 'snip' needs"):
        tost.score(two_layers, "snip")


@pytest.mark.parametrize("name", ["random", "erk", "magnitude", "synflow"])
def test_without_data_the_number_of_threads_is_all_the_same(name):
    # Torch's convolutions in double precision give other last bits on MobileNet with two threads.
    torch.manual_seed(0)
    model = tost.models.build("mobilenet", 10, 3, (32, 32))
    method = replace(methods()[name], steps=min(methods()[name].steps, 2))
    threads = torch.get_num_threads()
    results = []
    try:
        for number in (1, 2, 4):
            torch.set_num_threads(number)
            results.append(
                (tost.score(model, method, input_shape=(3, 32, 32)), prune(model, method, 0.1, input_shape=(3, 32, 32)))
            )
            assert torch.get_num_threads() == number
    finally:
        torch.set_num_threads(threads)
    for scores, masks in results[1:]:
        assert masks == results[0][1]
        assert all(torch.equal(score, results[0][0][layer]) for layer, score in scores.items())
