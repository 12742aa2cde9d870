"""Paired statistics against values from tables."""

import pytest

from tost.paired import mean_and_spread, paired, t975


def test_quantiles_of_student() -> None:
    assert [t975(n) for n in (1, 2, 4, 30)] == [12.7062, 4.3027, 2.7764, 2.0423]
    assert t975(40) == pytest.approx(2.0211, abs=2e-4)
    assert t975(120) == pytest.approx(1.9799, abs=1e-4)
    with pytest.raises(ValueError, match="degrees"):
        t975(0)


def test_interval_by_hand() -> None:
    result = paired([0.5, 0.5, 0.5], [0.6, 0.5, 0.4 + 0.3])
    # differences 0.1, 0, 0.2: mean 0.1, standard deviation 0.1, half width 4.3027 * 0.1 / sqrt(3)
    assert result.differences == pytest.approx((0.1, 0.0, 0.2))
    assert result.mean == pytest.approx(0.1)
    assert (result.low, result.high) == pytest.approx((0.1 - 0.248416, 0.1 + 0.248416), abs=1e-5)
    assert (result.wins, result.losses) == (2, 0)


def test_one_pair_says_nothing_about_spread() -> None:
    result = paired([0.5], [0.4])
    assert (result.low, result.high, result.wins, result.losses) == (None, None, 0, 1)
    assert mean_and_spread([0.25]) == (0.25, 0.0)


def test_pairs_must_match() -> None:
    with pytest.raises(ValueError, match="as many values as the baseline"):
        paired([1.0], [1.0, 2.0])
    with pytest.raises(ValueError, match="at least 1"):
        paired([], [])


def test_a_pair_without_a_value_is_left_out_and_counted() -> None:
    result = paired([0.5, None, 0.5], [0.6, 0.9, None])
    assert (result.differences, result.left_out, result.wins) == (pytest.approx((0.1,)), 2, 1)
    assert paired([None], [0.5]).mean is None


@pytest.mark.parametrize(
    ("values", "verdict"),
    [
        ((0.100, 0.101), "won"),
        ((-0.100, -0.101), "lost"),
        ((0.1, 0.1), "undecided"),
        ((-0.1, -0.1), "undecided"),
        ((0.0, 0.0), "undecided"),
        ((0.1, -0.1), "undecided"),
        ((0.1,), "undecided"),
        ((None, None), "undecided"),
    ],
)
def test_verdicts(values: tuple[float | None, ...], verdict: str) -> None:
    assert paired([0.0] * len(values), values).verdict == verdict
    assert paired([0.0] * len(values), values).as_dict()["verdict"] == verdict
