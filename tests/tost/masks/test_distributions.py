from fractions import Fraction
from math import prod

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tost.masks.distributions import apportion, checked, erk, globally, uniform, within

CONV, LINEAR = (2, 1, 3, 3), (10, 10)  # sums 9 and 20, sizes 18 and 100

shapes = st.lists(
    st.one_of(st.tuples(*[st.integers(1, 30)] * 2), st.tuples(*[st.integers(1, 12)] * 2, *[st.integers(1, 5)] * 2)),
    min_size=1,
    max_size=12,
)


@pytest.mark.parametrize(
    ("k", "kept"),
    [
        (29, [9, 20]),  # exactly the sums
        (58, [18, 40]),  # exactly the capacity of the convolution
        (60, [18, 42]),  # 18.6 do not fit: dense, and the rest goes to the other
        (1, [0, 1]),  # 0.31 and 0.69
        (2, [1, 1]),  # 0.62 and 1.38
        (118, [18, 100]),
    ],
)
def test_erk_by_hand(k, kept):
    assert erk([CONV, LINEAR], k) == kept


def test_erk_in_two_rounds():
    # Round 1: 112 * 4/64 = 7 > 3 and 112 * 20/64 = 35 < 36; round 2: 109 * 20/60 = 36.3 > 36; 73 are left for the third.
    layers = [(1, 3), (2, 18), (20, 20)]
    assert erk(layers, 112) == [3, 36, 73]


@pytest.mark.parametrize(("k", "kept"), [(4, [2, 1, 1]), (5, [2, 2, 1]), (9, [3, 3, 3]), (1, [1, 0, 0]), (0, [0, 0, 0])])
def test_uniform_gives_ties_to_the_first(k, kept):
    assert uniform([(1, 3), (3, 1), (1, 3)], k) == kept


def test_globally_leaves_it_open():
    assert globally([CONV, LINEAR], 3) is None


@given(shapes, st.data())
def test_uniform_is_exact_and_within_one(layers, data):
    sizes = [prod(shape) for shape in layers]
    k = data.draw(st.integers(0, sum(sizes)))
    kept = uniform(layers, k)
    assert sum(kept) == k
    assert all(abs(n - Fraction(k * size, sum(sizes))) < 1 for n, size in zip(kept, sizes, strict=True))


@given(shapes, st.data())
def test_erk_is_exact_and_proportional(layers, data):
    sizes = [prod(shape) for shape in layers]
    k = data.draw(st.integers(0, sum(sizes)))
    kept = erk(layers, k)
    assert sum(kept) == k
    assert all(0 <= n <= size for n, size in zip(kept, sizes, strict=True))
    # One factor explains all layers: n = min(size, factor * sum(shape)), up to rounding by less than one.
    factors = [Fraction(n, sum(shape)) for n, shape, size in zip(kept, layers, sizes, strict=True) if n < size]
    for n, shape, size in zip(kept, layers, sizes, strict=True):
        for factor in factors:
            slack = 1 + Fraction(sum(shape), min(sum(other) for other in layers))
            assert n >= min(size, factor * sum(shape)) - slack


@pytest.mark.parametrize("k", [-1, 119])
def test_refused(k):
    with pytest.raises(ValueError, match="k: expected 0 <= k <= 118"):
        apportion(k, [9, 20], [18, 100])


def test_weights_of_zero():
    assert apportion(2, [0, 1], [10, 2]) == [0, 2]
    assert apportion(0, [0, 0], [3, 4]) == [0, 0]
    with pytest.raises(ValueError, match=r"weights: expected them positive where the capacities hold 5, got \[0, 1\]"):
        apportion(5, [0, 1], [10, 2])


def test_within_by_hand():
    assert within([5, 5, 5], [0, 0, 0], [9, 9, 9]) == [5, 5, 5]
    assert within([5, 5, 5], [0, 0, 0], [3, 9, 7]) == [3, 6, 6]  # two to share: room for 4 and 2, 1.33 and 0.67
    assert within([5, 5, 5], [7, 0, 4], [9, 9, 9]) == [7, 3, 5]  # two to give: room for 5 and 1, 1.67 and 0.33
    assert within([5, 5], [5, 5], [5, 5]) == [5, 5]


@given(st.lists(st.tuples(st.integers(0, 9), st.integers(0, 9), st.integers(0, 9)), min_size=1, max_size=8), st.data())
def test_within_keeps_sum_and_bounds(layers, data):
    least = [min(layer) for layer in layers]
    most = [max(layer) for layer in layers]
    # the given quotas may be anywhere, as long as their sum is possible
    k = data.draw(st.integers(sum(least), sum(most)))
    quotas = apportion(k, [1] * len(layers), [k + 1] * len(layers)) if k else [0] * len(layers)
    moved = within(quotas, least, most)
    assert sum(moved) == k
    assert all(low <= quota <= high for low, quota, high in zip(least, moved, most, strict=True))


@pytest.mark.parametrize("given_", [[3, 1, 1], [5], [-1, 6], [2.0, 3.0], [0, 101]])
def test_what_no_distribution_gives(given_):
    with pytest.raises((TypeError, ValueError), match="distribution: expected"):
        checked(given_, [CONV, LINEAR], sum(map(int, given_)) if len(given_) == 2 else 5)
    assert checked([2, 3], [CONV, LINEAR], 5) == [2, 3]
