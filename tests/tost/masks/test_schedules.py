import pytest
from hypothesis import given
from hypothesis import strategies as st

from tost.masks.schedules import exponential, linear, one_shot, targets


def test_by_hand():
    assert [exponential(0.01, t) for t in (0.5, 1.0)] == pytest.approx([0.1, 0.01])
    assert [linear(0.1, t) for t in (0.5, 1.0)] == pytest.approx([0.55, 0.1])
    assert targets(exponential, 3, 0.001, 1000, 1) == [100, 10, 1]
    assert targets(linear, 4, 0.2, 100, 20) == [80, 60, 40, 20]
    assert targets(linear, 1, 0.2, 100, 20) == [20]


@given(st.sampled_from([exponential, linear, one_shot]), st.integers(1, 120), st.floats(1e-6, 1.0), st.integers(1, 10**8))
def test_falls_to_exactly_k(schedule, steps, density, total):
    k = max(1, round(density * total))
    counts = targets(schedule, steps, density, total, k)
    assert len(counts) == steps
    assert counts[-1] == k
    assert counts == sorted(counts, reverse=True)
    assert counts[0] <= total


def test_one_shot_is_there_at_once():
    assert targets(one_shot, 3, 0.1, 50, 5) == [5, 5, 5]


def test_a_schedule_of_ones_own():
    assert targets(lambda density, progress: 0.5 if progress < 0.7 else 0.2, 4, 0.1, 100, 10) == [50, 50, 20, 10]
    with pytest.raises(ValueError, match=r"schedule: expected a number in \(0, 1\], got 1.5"):
        targets(lambda density, progress: 1.5, 2, 0.1, 100, 10)
    with pytest.raises(TypeError, match="schedule: expected a number"):
        targets(lambda density, progress: None, 2, 0.1, 100, 10)
    with pytest.raises(ValueError, match=r"schedule: expected densities that never rise, got 0\.25, 0\.5, 0\.75"):
        targets(lambda density, progress: progress, 4, 0.1, 100, 10)
