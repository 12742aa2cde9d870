"""What `prune` tells of its steps: records, and a bar."""

import io
import itertools
from dataclasses import FrozenInstanceError, replace

import pytest
import torch
from rich.console import Console

import tost
from tost.masks import Masks, methods, prune


@pytest.mark.parametrize("name", ["iter_snip", "grasp_it", "synflow", "force"])
def test_records(resnet, batches, name):
    method = replace(methods()[name], steps=5)
    records = []
    masks = prune(resnet, method, 0.05, data=batches, on_step=records.append)
    assert masks == prune(resnet, method, 0.05, data=batches)
    assert [(r.number, r.steps) for r in records] == [(n, 5) for n in range(1, 6)]
    assert records[-1].masks == masks
    assert records[-1].masks is records[-1].masks
    assert all(r.seconds > 0 and r.kept == r.masks.kept for r in records)
    everything = Masks({layer: torch.ones_like(mask) for layer, mask in masks.items()})
    for before, record in itertools.pairwise([everything, *records]):
        old = before if isinstance(before, Masks) else before.masks
        assert record.pruned == sum(int((old[layer] & ~record.masks[layer]).sum()) for layer in old)
        assert record.recovered == sum(int((record.masks[layer] & ~old[layer]).sum()) for layer in old)
        assert record.kept == old.kept - record.pruned + record.recovered
    assert records[0].recovered == 0
    if name == "force":
        assert all(record.recovered > 0 for record in records[1:])
    else:
        assert all(record.recovered == 0 for record in records)
    with pytest.raises(FrozenInstanceError):
        records[0].kept = 3
    assert "_make" not in repr(records[0])


def test_steps_without_anything_to_remove(two_layers):
    records = []
    prune(two_layers, replace(methods()["magnitude"], steps=4), 1, on_step=records.append)
    assert [(r.kept, r.pruned, r.recovered) for r in records] == [(6, 0, 0)] * 4


@pytest.mark.parametrize("name", ["random", "iter_snip"])
def test_an_observer_changes_nothing(resnet, batches, name):
    method = replace(methods()[name], steps=4)
    sums = []

    def observe(step):
        torch.rand(100)
        torch.manual_seed(step.number)
        scores = tost.score(resnet, "snip", data=batches, masks=step.masks)
        sums.append(sum(float(score[step.masks[layer]].sum()) for layer, score in scores.items()))

    state = torch.get_rng_state()
    assert prune(resnet, method, 0.1, data=batches, on_step=observe) == prune(resnet, method, 0.1, data=batches)
    assert torch.equal(torch.get_rng_state(), state)
    assert len(sums) == 4


def test_an_observer_that_writes_into_the_scores(two_layers):
    def spoil(step):
        step.scores.neg_()
        step.masks["0"].zero_()

    with torch.no_grad():  # magnitude leaves nothing of the second layer: there the score says which comes back
        two_layers[2].weight.copy_(torch.tensor([[0.4, -0.45]]))
    for method in (methods()["magnitude"], replace(methods()["magnitude"], steps=2)):
        keywords = {"input_shape": (2,), "keep_alive": True}
        assert prune(two_layers, method, 0.5, on_step=spoil, **keywords) == prune(two_layers, method, 0.5, **keywords)


def test_an_error_of_the_observer_comes_through(two_layers):
    def fail(step):
        raise KeyError(step.number)

    with pytest.raises(KeyError, match="1"):
        prune(two_layers, "magnitude", 0.5, on_step=fail)
    with pytest.raises(TypeError, match="on_step: expected a function of a PruneStep, got int"):
        prune(two_layers, "magnitude", 0.5, on_step=3)


def test_the_bar(two_layers, monkeypatch, capfd):
    method = replace(methods()["synflow"], steps=7)
    prune(two_layers, method, 0.5, input_shape=(2,), progress=True)
    assert capfd.readouterr() == ("", "")  # no terminal

    screen = io.StringIO()
    monkeypatch.setattr("tost.progress.Console", lambda stderr: Console(file=screen, force_terminal=True, width=100))
    prune(two_layers, "magnitude", 0.5, progress=True)
    prune(two_layers, method, 0.5, input_shape=(2,))
    assert screen.getvalue() == ""  # one step; no bar wanted
    prune(two_layers, method, 0.5, input_shape=(2,), progress=True)
    assert "synflow" in screen.getvalue()
    assert "7/7" in screen.getvalue()
