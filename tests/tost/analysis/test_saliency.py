"""Saliency of sparsified and of pruned networks, by hand and on the way of a method."""

import pytest
import torch
from torch import nn

from tost import Config
from tost.analysis import Setting, analyze_saliency, saliency
from tost.analysis.saliency import POINTS


def test_two_weights_by_hand() -> None:
    net = nn.Linear(2, 1, bias=False)
    with torch.no_grad():
        net.weight.copy_(torch.tensor([[2.0, 3.0]]))
    before = net.weight.detach().clone()
    data = [(torch.ones(1, 2), torch.zeros(1, 1)), (-torch.ones(1, 2), torch.ones(1, 1))]
    found = saliency(
        nn.Sequential(net),
        {"0": torch.tensor([[True, False]])},
        data,
        batches=2,
        loss=lambda out, target: ((out - target) ** 2).sum(),
    )
    # with the second weight 0 the outputs are 2 and -2, dL/dw of either weight 2 * 2 * 1 and 2 * -3 * -1, 5 on average
    assert (found.sparsification, found.pruning) == (2 * 5.0 + 3 * 5.0, 2 * 5.0)
    assert net.weight.equal(before)


def test_masks_that_keep_everything_make_no_difference() -> None:
    net = nn.Linear(3, 2)
    data = [(torch.randn(4, 3), torch.tensor([0, 1, 1, 0]))]
    found = saliency(nn.Sequential(net), {"0": torch.ones(2, 3, dtype=torch.bool)}, data, batches=1)
    assert found.sparsification == found.pruning > 0


def test_points_of_methods_of_one_and_of_many_steps(setting: Setting) -> None:
    done: list[int] = []
    found = analyze_saliency(setting, ("snip", "force"), batches=2, progress=done.append)
    assert done == [1, 2, 3, 4]
    for seed in setting.seeds:
        snip = [point for point in found.points if (point.method, point.seed) == ("snip", seed)]
        force = [point for point in found.points if (point.method, point.seed) == ("force", seed)]
        assert len(snip) == POINTS
        assert len(force) == 3
        for points in (snip, force):
            densities = [point.density for point in points]
            assert densities == sorted(densities, reverse=True)
            assert densities[-1] == pytest.approx(setting.config.density, abs=1e-3)
            assert all(point.saliency.sparsification >= point.saliency.pruning >= 0 for point in points)
    assert len(found.as_dict()["points"]) == len(found.points)


def test_the_same_images_measure_every_method(setting: Setting) -> None:
    """One step of force is snip: same masks, same number."""
    one = Setting(Config(**{**setting.config.as_dict(), "method_steps": 1}), (0,))
    snip = analyze_saliency(one, ("snip",), batches=1).points
    force = analyze_saliency(one, ("force",), batches=1).points
    assert [point.saliency for point in snip] == [point.saliency for point in force]


@pytest.mark.parametrize(
    ("names", "message"),
    [((), "methods: expected at least one"), (("snip", "snip"), "each once"), (("snap",), "method: unknown name 'snap'")],
)
def test_wrong_methods(setting: Setting, names: tuple[str, ...], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        analyze_saliency(setting, names)


def test_seeds_are_different() -> None:
    with pytest.raises(ValueError, match=r"seeds: expected at least one and each once, got \[1, 1\]"):
        Setting(Config(), (1, 1))
