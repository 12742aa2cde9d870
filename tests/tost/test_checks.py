"""Numbers are checked in one place: type, finiteness, range."""

import math
from typing import Any

import numpy as np
import pytest

from tost.checks import integer, number


@pytest.mark.parametrize(
    ("limits", "inside", "outside", "expected"),
    [
        ({"above": 0.0, "most": 1.0}, [1, 0.5], [0, 1.1], r"x: expected a number in \(0, 1\], got"),
        ({"least": 0.0, "below": 1.0}, [0, 0.5], [1, -0.1], r"x: expected a number in \[0, 1\), got"),
        ({"above": 0.0}, [1e-9], [0, -1], "x: expected a number > 0, got"),
        ({"least": 0.0}, [0], [-1e-9], "x: expected a number >= 0, got"),
        ({"most": 2.0}, [2, -9], [3], "x: expected a number <= 2, got"),
        ({"below": 2.0}, [-9], [2], "x: expected a number < 2, got"),
        ({}, [-9], [], "x: expected a number, finite, got"),
    ],
)
def test_numbers(limits: dict[str, float], inside: list[float], outside: list[float], expected: str) -> None:
    for value in inside:
        assert number("x", value, **limits) == value
        assert type(number("x", np.float64(value), **limits)) is float
    for value in [*outside, math.nan, math.inf, -math.inf, 10**400]:
        with pytest.raises(ValueError, match=expected):
            number("x", value, **limits)
    for wrong in ("1", None, True, 0.5j, [0.5]):
        with pytest.raises(TypeError, match=rf"{expected} {type(wrong).__name__}"):
            number("x", wrong, **limits)


def test_whole_numbers() -> None:
    assert [integer("n", value, least=1) for value in (1, np.int64(7))] == [1, 7]
    assert type(integer("n", np.int64(7), least=1)) is int
    wrong: Any
    for wrong in (0, -1):
        with pytest.raises(ValueError, match=f"n: expected a whole number of at least 1, got {wrong}"):
            integer("n", wrong, least=1)
    for wrong in (1.0, True, "1", None):
        with pytest.raises(TypeError, match=f"n: expected a whole number of at least 1, got {type(wrong).__name__}"):
            integer("n", wrong, least=1)
    assert integer("n", 3, least=0, below=4) == 3
    with pytest.raises(ValueError, match="of at least 0 and below 4, got 4"):
        integer("n", 4, least=0, below=4)
