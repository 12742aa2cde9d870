import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import tost.masks.selection as selection
from tost.masks.selection import keep_largest, per_filter, per_layer


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(
    ("scores", "k", "kept"),
    [
        ([3.0, 1.0, 2.0], 1, [0]),
        ([3.0, 1.0, 2.0], 2, [0, 2]),
        ([3.0, 1.0, 2.0], 3, [0, 1, 2]),
        ([3.0, 1.0, 2.0], 0, []),
        ([1.0, 2.0, 1.0, 1.0], 2, [0, 1]),  # the first of the ties
        ([1.0, 1.0, 1.0, 1.0], 3, [0, 1, 2]),
        ([-1.0, -3.0, -2.0], 2, [0, 2]),
        ([0.0, -0.0, 0.0], 2, [0, 1]),  # -0.0 ties with 0.0
        ([1e-300, 2e-300], 1, [1]),
        ([float("-inf"), 1.0, float("inf")], 2, [1, 2]),
    ],
)
def test_by_hand(scores, k, kept, dtype):
    if dtype is torch.float32 and max(scores) == 2e-300:
        kept = [0]  # both are zero there
    mask = keep_largest(torch.tensor(scores, dtype=dtype), k)
    assert mask.dtype is torch.bool
    assert mask.nonzero().flatten().tolist() == kept


def stable_sort(values, k):
    """The k best by a stable sort, in order of their place."""
    return sorted(sorted(range(len(values)), key=lambda i: -values[i])[:k])


@given(st.lists(st.integers(-3, 3), min_size=1, max_size=60), st.data())
def test_exactly_the_k_first_of_a_stable_sort(values, data):
    k = data.draw(st.integers(0, len(values)))
    mask = keep_largest(torch.tensor(values, dtype=torch.float32), k)
    assert mask.nonzero().flatten().tolist() == stable_sort(values, k)


numbers = st.one_of(st.integers(-3, 3).map(float), st.floats(-10, 10), st.sampled_from([float("-inf"), float("inf")]))


@given(st.lists(numbers, min_size=33, max_size=80), st.data())
def test_the_bounds_of_a_sample_change_nothing(values, data):
    # With a sample of 2 the bounds are drawn, and missed, on small lists.
    k = data.draw(st.integers(1, len(values)))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(selection, "_SAMPLE", 2)
        mask = keep_largest(torch.tensor(values, dtype=torch.float64), k)
    assert mask.nonzero().flatten().tolist() == stable_sort(values, k)


@pytest.mark.parametrize("many", ["none", "zeros", "not competing", "all"])
def test_large_with_ties(many):
    # more than 16 * 2**16: by a sample
    scores = torch.rand(1_200_003, generator=torch.Generator().manual_seed(0))
    if many == "all":
        scores = (50 * scores).floor()
    elif many != "none":
        scores[torch.rand(len(scores), generator=torch.Generator().manual_seed(1)) < 0.6] = 0.0 if many == "zeros" else -torch.inf
    competing = int((scores > -torch.inf).count_nonzero())
    positive = int((scores > 0).count_nonzero())
    for k in (1, 7, 123_456, positive - 1, positive, min(positive + 1, competing), competing):
        mask = keep_largest(scores, k)
        assert int(mask.sum()) == k
        if k < len(scores):
            assert scores[mask].min() >= scores[~mask].max()
        inside = mask[(scores == scores[mask].min()).nonzero().flatten()]
        assert not (inside[1:] & ~inside[:-1]).any()  # a kept tie never follows a removed one


def test_25_million():
    n, k = 25_000_000, 1_234_567
    scores = torch.arange(n, dtype=torch.float32).remainder_(9_999_991)  # each value twice or three times
    mask = keep_largest(scores, k)
    # 9,999,990 downwards, twice each; of the last the first place
    kept = torch.zeros(n, dtype=torch.bool)
    whole = k // 2
    for start in (0, 9_999_991):
        kept[start + 9_999_991 - whole : start + 9_999_991] = True
    kept[9_999_991 - whole - 1] = True
    assert torch.equal(mask, kept)


def test_per_layer_by_hand():
    scores = torch.tensor([[1.0, 5.0], [4.0, 4.0], [0.0, 9.0]])
    assert per_layer(scores, 3).int().tolist() == [[0, 1], [1, 0], [0, 1]]


@pytest.mark.parametrize(
    ("k", "kept"),
    [
        (0, [[0, 0, 0], [0, 0, 0], [0, 0, 0]]),
        (1, [[0, 0, 0], [0, 0, 0], [1, 0, 0]]),  # 9 is the best of the best
        (2, [[0, 0, 1], [0, 0, 0], [1, 0, 0]]),  # 5 and 5 tie: the first filter
        (3, [[0, 0, 1], [1, 0, 0], [1, 0, 0]]),
        (4, [[0, 0, 1], [1, 1, 0], [1, 0, 0]]),  # seconds: 1, 5, 4
        (7, [[1, 0, 1], [1, 1, 1], [1, 0, 1]]),  # thirds: 0, 2, 0
        (9, [[1, 1, 1], [1, 1, 1], [1, 1, 1]]),
    ],
)
def test_per_filter_by_hand(k, kept):
    scores = torch.tensor([[1.0, 0.0, 5.0], [5.0, 5.0, 2.0], [9.0, 0.0, 4.0]])
    assert per_filter(scores, k).int().tolist() == kept
    assert per_filter(scores.reshape(3, 1, 3, 1), k).reshape(3, 3).int().tolist() == kept


@given(st.integers(1, 7), st.integers(1, 9), st.data())
def test_per_filter_has_a_constant_fan_in_and_nests(filters, fan_in, data):
    scores = torch.tensor(data.draw(st.lists(st.integers(0, 3), min_size=filters * fan_in, max_size=filters * fan_in))).float()
    counts = sorted(data.draw(st.lists(st.integers(0, filters * fan_in), min_size=1, max_size=4)), reverse=True)
    before = torch.ones(filters, fan_in, dtype=torch.bool)
    for count in counts:
        fresh = torch.where(before, scores.roll(count).reshape(filters, fan_in), -torch.inf)
        kept = per_filter(fresh, count)
        assert int(kept.sum()) == count
        assert int(kept.sum(1).max() - kept.sum(1).min()) <= 1
        assert not (kept & ~before).any()
        before = kept


def test_per_filter_where_few_compete():
    """Filters keep what competes, and the others share their places: as many each or one more."""
    none = -torch.inf
    scores = torch.tensor([[1.0, 0.0, 5.0, 3.0], [none, 5.0, none, none], [none] * 4, [9.0, 0.0, 4.0, none]])
    for k, kept in (
        (2, [[0, 0, 1, 0], [0] * 4, [0] * 4, [1, 0, 0, 0]]),
        (4, [[0, 0, 1, 0], [0, 1, 0, 0], [0] * 4, [1, 0, 1, 0]]),
        (5, [[0, 0, 1, 1], [0, 1, 0, 0], [0] * 4, [1, 0, 1, 0]]),
        (6, [[1, 0, 1, 1], [0, 1, 0, 0], [0] * 4, [1, 0, 1, 0]]),
        (8, [[1, 1, 1, 1], [0, 1, 0, 0], [0] * 4, [1, 1, 1, 0]]),
    ):
        assert per_filter(scores, k).int().tolist() == kept, k


def test_per_filter_keeps_the_first_of_many_equal_scores():
    # more than 16 numbers in a row: an unstable sort would mix them up
    scores = torch.ones(2, 500)
    scores[:, ::7] = 2.0
    kept = per_filter(scores, 2 * 100)
    assert kept[:, ::7].all()
    places = (kept[0] & (scores[0] == 1)).nonzero().flatten()
    assert len(places) == 100 - 72
    assert places.tolist() == (scores[0] == 1).nonzero().flatten()[:28].tolist()
    assert torch.equal(kept[0], kept[1])


@pytest.mark.parametrize("k", [-1, 4])
def test_refused(k):
    with pytest.raises(ValueError, match="k: expected 0 <= k <= 3"):
        keep_largest(torch.ones(3), k)
