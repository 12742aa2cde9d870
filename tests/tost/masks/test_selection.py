import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tost.masks.selection import keep_largest


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


@given(st.lists(st.integers(-3, 3), min_size=1, max_size=60), st.data())
def test_exactly_the_k_first_of_a_stable_sort(values, data):
    k = data.draw(st.integers(0, len(values)))
    best = sorted(range(len(values)), key=lambda i: -values[i])[:k]
    mask = keep_largest(torch.tensor(values, dtype=torch.float32), k)
    assert mask.nonzero().flatten().tolist() == sorted(best)


def test_large_with_many_ties():
    scores = torch.randint(0, 50, (1_000_003,), generator=torch.Generator().manual_seed(0)).float()
    for k in (1, 7, 123_456, 1_000_002):
        mask = keep_largest(scores, k)
        assert int(mask.sum()) == k
        assert scores[mask].min() >= scores[~mask].max()
        tied = (scores == scores[mask].min()).nonzero().flatten()
        inside = mask[tied]
        assert not (inside[1:] & ~inside[:-1]).any()  # a kept tie never follows a removed one


@pytest.mark.parametrize("k", [-1, 4])
def test_refused(k):
    with pytest.raises(ValueError, match="k: expected 0 <= k <= 3"):
        keep_largest(torch.ones(3), k)
