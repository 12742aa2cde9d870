"""Any score with any selection, any distribution and any schedule: exactly k, and nested where nothing recovers."""

import itertools
from dataclasses import replace

import pytest
import torch
from torch import nn

from tost.masks import methods, prune
from tost.masks.distributions import erk, globally, uniform
from tost.masks.schedules import exponential, linear, one_shot
from tost.masks.selection import per_filter, per_layer

# Small networks at low densities: layers may end empty; these tests are about something else.
pytestmark = pytest.mark.filterwarnings("ignore:.*leaves no weight:UserWarning")


def to_the_last(shapes, k):
    """A distribution of one's own, which moves weights between layers as k falls: first into the last layers, then the first."""
    sizes = [torch.Size(shape).numel() for shape in shapes]
    quotas = []
    for size in sizes[::-1] if k > sum(sizes) // 5 else sizes:
        quotas.append(min(size, k - sum(quotas)))
    return quotas[::-1] if k > sum(sizes) // 5 else quotas


def halves(density, progress):
    """A schedule of one's own: half of the way, then all of it."""
    return density if progress > 0.5 else (1 + density) / 2


@pytest.mark.parametrize("name", ["random", "magnitude", "iter_snip", "force", "synflow"])
@pytest.mark.parametrize("selection", [per_layer, per_filter])
@pytest.mark.parametrize("distribution", [globally, uniform, erk, to_the_last])
def test_every_combination(resnet, batches, name, selection, distribution):
    for schedule in (exponential, linear, one_shot, halves):
        method = replace(methods()[name], steps=4, selection=selection, distribution=distribution, schedule=schedule)
        seen = []
        masks = prune(resnet, method, 0.1, data=batches, on_step=lambda step, seen=seen: seen.append(step.masks))
        assert masks.kept == 511
        assert seen[-1] == masks
        assert [step.kept for step in seen] == [max(511, round(schedule(0.1, t / 4) * 5112)) for t in (1, 2, 3)] + [511]
        if distribution is not globally:
            shapes = [layer.shape for layer in masks.per_layer()]
            assert [layer.kept for layer in masks.per_layer()] == distribution(shapes, 511)
        if selection is per_filter:
            fans = [mask.flatten(1).sum(1) for mask in masks.values()]
            assert all(int(fan.max() - fan.min()) <= 1 for fan in fans)
        if not method.recover:
            for earlier, later in itertools.pairwise(seen):
                assert not any((later[layer] & ~earlier[layer]).any() for layer in masks)


def test_the_global_competition_decides_the_fan_in(convnet):
    free, constant = prune(convnet, "magnitude", 0.2), prune(convnet, replace(methods()["magnitude"], selection=per_filter), 0.2)
    assert free.per_layer() == constant.per_layer()
    assert free != constant


def test_per_filter_of_a_depthwise_convolution():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(4, 4, 3, groups=4), nn.ReLU(), nn.Conv2d(4, 8, 1, groups=2))
    masks = prune(net, replace(methods()["synflow"], steps=5, selection=per_filter), 0.5, input_shape=(4, 5, 5))
    assert [layer.shape for layer in masks.per_layer()] == [(4, 1, 3, 3), (8, 2, 1, 1)]
    assert masks.kept == 26
    for mask in masks.values():
        fan = mask.flatten(1).sum(1)
        assert fan.max() - fan.min() <= 1


def test_selections_of_ones_own(convnet):
    def first(scores, k):
        mask = torch.zeros(scores.numel(), dtype=torch.bool)
        mask[:k] = True
        return mask.reshape(scores.shape)

    magnitude = methods()["magnitude"]
    assert prune(convnet, replace(magnitude, selection=first, distribution=uniform), 0.5)["0"].flatten()[:81].all()
    with pytest.raises(ValueError, match=r"selection: expected a bool mask of shape \(6, 3, 3, 3\) with 81 True, got .* with 80"):
        prune(convnet, replace(magnitude, selection=lambda scores, k: first(scores, k - 1), distribution=uniform), 0.5)
    with pytest.raises(ValueError, match=r"selection: .* got torch\.float32"):
        prune(convnet, replace(magnitude, selection=lambda scores, k: first(scores, k).float()), 0.5)

    def turns(scores, k):
        """The first, but later the last: weights that were removed."""
        return first(scores, k) if scores.isfinite().all() else first(scores, k).flatten().flip(0).reshape(scores.shape)

    with pytest.raises(ValueError, match="selection: it kept a weight whose score is -inf"):
        prune(convnet, replace(magnitude, selection=turns, steps=2), 0.1)


@pytest.mark.parametrize(
    ("parts", "error", "text"),
    [
        ({"distribution": "erk"}, TypeError, r"distribution: expected a function, got str \('erk'\)"),
        ({"selection": None}, TypeError, "selection: expected a function, got NoneType"),
        ({"schedule": 0.5}, TypeError, "schedule: expected a function, got float"),
        ({"score": "snip"}, TypeError, "score: expected a function, got str"),
        ({"prepare": True}, TypeError, "prepare: expected a function, got bool"),
        ({"needs": "dta"}, ValueError, "needs: unknown name 'dta'; did you mean data"),
        ({"recover": "no"}, TypeError, "recover: expected True or False, got str"),
    ],
)
def test_the_parts_are_checked_when_they_are_put_together(parts, error, text):
    with pytest.raises(error, match=text):
        replace(methods()["snip"], **parts)
    assert replace(methods()["snip"], prepare=None, needs="nothing").prepare is None


def test_distributions_and_schedules_are_checked(convnet):
    magnitude = methods()["magnitude"]
    with pytest.raises(
        ValueError, match=r"distribution: expected numbers up to \[162, 54, 1440\] that sum to 828, got \[828, 0, 0\]"
    ):
        prune(convnet, replace(magnitude, distribution=lambda shapes, k: [k, 0, 0]), 0.5)
    with pytest.raises(ValueError, match="schedule: expected densities that never rise"):
        prune(convnet, replace(magnitude, steps=3, schedule=lambda density, progress: progress), 0.5)
