"""Overlap of masks: counts by hand, and what chance gives."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tost.masks import Masks, compare


def test_counts_by_hand():
    a = Masks({"x": torch.tensor([[1, 1, 0, 0]]), "y": torch.tensor([[1, 0], [0, 0]]), "gone": torch.ones(1, 1)})
    b = Masks({"new": torch.ones(1, 1), "y": torch.tensor([[0, 1], [1, 1]]), "x": torch.tensor([[1, 0, 0, 1]])})
    compared = compare(a, b)
    x, y = compared.layers
    assert (x.name, x.shape, x.total, x.kept_a, x.kept_b, x.kept_both, x.expected_both) == ("x", (1, 4), 4, 2, 2, 1, 1.0)
    assert (x.jaccard, x.expected_jaccard, x.agreement) == (1 / 3, 1 / 3, 0.5)
    assert (y.kept_a, y.kept_b, y.kept_both, y.expected_both, y.jaccard, y.agreement) == (1, 3, 0, 0.75, 0.0, 0.0)
    every = compared.all
    assert (every.total, every.kept_a, every.kept_b, every.kept_both, every.expected_both) == (8, 3, 5, 1, 1.75)
    assert (every.jaccard, every.agreement) == (1 / 7, 0.25)
    assert (compared.only_a, compared.only_b) == (("gone",), ("new",))
    assert compared.as_dict()["layers"][1]["shape"] == [2, 2]
    assert compared.as_dict()["all"]["expected_jaccard"] == 1.75 / 6.25


@settings(max_examples=50, deadline=None)
@given(kept=st.tuples(st.floats(0, 1), st.floats(0, 1)), seed=st.integers(0, 1000))
def test_any_two(kept, seed):
    random = torch.Generator().manual_seed(seed)
    a, b = (Masks({"x": torch.rand(6, 5, generator=random) < k, "y": torch.rand(2, 3, generator=random) < k}) for k in kept)
    compared, back = compare(a, b), compare(b, a)
    assert compared.all.kept_both == back.all.kept_both
    assert (compared.all.kept_a, compared.all.kept_b, compared.all.total) == (a.kept, b.kept, 36)
    for layer in (*compared.layers, compared.all):
        assert 0 <= layer.jaccard <= 1
        assert 0 <= layer.agreement <= 1
    same = compare(a, a).all
    assert (same.jaccard, same.agreement) == (1, 1)


def test_random_masks_share_what_is_expected():
    masks = Masks({"x": torch.rand(100, 100) < 0.2, "y": torch.rand(50, 50) < 0.6})
    shared = [compare(masks, masks.shuffled(seed)).all for seed in range(30)]
    mean = sum(s.kept_both for s in shared) / 30
    assert abs(mean - shared[0].expected_both) < 15  # about five standard deviations of the mean


def test_refused():
    a = Masks({"x": torch.ones(2, 2)})
    with pytest.raises(ValueError, match="b: expected a layer in common with a, which has x; got y, z"):
        compare(a, {"y": torch.ones(1, 1), "z": torch.ones(1, 1)})
    with pytest.raises(ValueError, match=r"b: expected the shape of a's mask of 'x', \(2, 2\), got \(1, 2\)"):
        compare(a, {"x": torch.ones(1, 2)})
    with pytest.raises(TypeError, match=r"^b: masks: expected a mapping"):
        compare(a, 3)
    with pytest.raises(ValueError, match=r"^a: masks\['x'\]: expected only 0 and 1"):
        compare({"x": torch.full((2, 2), 0.5)}, a)
