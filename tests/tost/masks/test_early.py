"""Early pruning: trains a private copy, stops when its largest weights stay the same."""

import copy
from dataclasses import replace

import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy

import tost
from tost.masks import early, methods, prune

# Small networks at low densities: layers may end empty; these tests are about something else.
pytestmark = pytest.mark.filterwarnings("ignore:.*leaves no weight:UserWarning")


def trained_by_hand(net, batches, updates):
    net = copy.deepcopy(net).train()
    optimizer = torch.optim.SGD(net.parameters(), 0.1, 0.9, weight_decay=1e-4)
    for update in range(updates):
        inputs, targets = batches[update % len(batches)]
        optimizer.zero_grad()
        cross_entropy(net(inputs), targets).backward()
        optimizer.step()
    return net


def test_the_magnitudes_of_a_trained_network(convnet, batches):
    trained = trained_by_hand(convnet, batches, 7)
    scores = tost.score(convnet, replace(methods()["early"], batches=7), data=batches)
    for layer, score in scores.items():
        torch.testing.assert_close(score, trained.get_submodule(layer).weight.detach().abs())
    assert (scores["0"] - convnet[0].weight.abs()).abs().max() > 1e-3


class Counted:
    """Batches that remember how many were taken."""

    def __init__(self, batches):
        self.batches, self.taken = batches, 0

    def __iter__(self):
        for batch in self.batches:
            self.taken += 1
            yield batch


def test_it_ends_when_the_mask_stays(convnet, batches, monkeypatch):
    monkeypatch.setattr(early, "UPDATES_A_CHECK", 2)
    quiet = Counted([(inputs, targets) for inputs, targets in batches])
    # a loss that moves nothing: 6 masks, 5 distances of 0
    masks = prune(convnet, "early", 0.05, data=quiet, loss=lambda outputs, targets: 0 * outputs.sum())
    assert quiet.taken == 12
    assert masks == prune(convnet, "magnitude", 0.05)
    # weights that never settle: every batch is used
    loud = Counted(batches)
    monkeypatch.setattr(early, "DISTANCE", 0.0)
    prune(convnet, replace(methods()["early"], batches=30), 0.05, data=loud)
    assert loud.taken == 30


def test_the_distance_is_that_of_the_kept_weights(monkeypatch):
    # 2 of 40 weights are kept and one of them changes at every check: half of the kept, but only a twentieth of all weights.
    monkeypatch.setattr(early, "UPDATES_A_CHECK", 1)
    net = nn.Sequential(nn.Linear(40, 1, bias=False))
    with torch.no_grad():
        net[0].weight.copy_(torch.linspace(0, 0.1, 40).reshape(1, 40))
        net[0].weight[0, -1] = 100.0
    pushes = Counted([(torch.eye(40)[i : i + 1] * 10 * (i + 1), torch.zeros(1)) for i in range(20)])
    prune(net, replace(methods()["early"], batches=20), 0.05, data=pushes, loss=lambda outputs, targets: -outputs.sum())
    assert pushes.taken == 20


def test_steps_after_the_first_train_the_masked_network(convnet, batches):
    kept = {layer: torch.rand_like(mask.float()) < 0.5 for layer, mask in prune(convnet, "random", 0.5).items()}
    scores = tost.score(convnet, replace(methods()["early"], batches=5), data=batches, masks=kept)
    for layer, score in scores.items():
        assert (score[~kept[layer]] == 0).all()
        assert (score[kept[layer]] > 0).all()
    records = []
    prune(convnet, replace(methods()["early"], batches=5, steps=3), 0.1, data=batches, on_step=records.append)
    assert [record.recovered for record in records] == [0, 0, 0]
    assert records[-1].kept == 166


def test_each_step_starts_from_the_same_network(resnet, batches):
    # BatchNorm and biases too: with one batch and nothing removed, two steps score alike.
    method = replace(methods()["early"], batches=3, steps=2, recover=True, schedule=lambda density, progress: 1.0)
    records = []
    masks = prune(resnet, method, 1.0, data=batches, on_step=records.append)
    assert [record.kept for record in records] == [5112, 5112]
    assert masks.density == 1


def test_what_the_user_froze_is_not_trained(convnet, batches):
    method = replace(methods()["early"], batches=5)
    convnet[0].requires_grad_(False)
    trained = copy.deepcopy(convnet)
    optimizer = torch.optim.SGD([p for p in trained.parameters() if p.requires_grad], 0.1, 0.9, weight_decay=1e-4)
    for update in range(5):
        optimizer.zero_grad()
        cross_entropy(trained(batches[update % 3][0]), batches[update % 3][1]).backward()
        optimizer.step()
    for layer, score in tost.score(convnet, method, data=batches).items():
        torch.testing.assert_close(score, trained.get_submodule(layer).weight.detach().abs())
    with pytest.raises(ValueError, match="model: expected a parameter to train, but all are frozen"):
        prune(convnet.requires_grad_(False), method, 0.5, data=batches)


def test_a_training_that_diverges_is_an_error(convnet, batches):
    with pytest.raises(ValueError, match="early: not finite: the scores of"):
        prune(convnet, replace(methods()["early"], batches=9), 0.1, data=batches, loss=lambda o, t: 1e30 * o.square().sum())
