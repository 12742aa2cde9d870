"""Work in processes of its own: an error, or a death, is that of one item."""

import pytest

from tests.tost.launched_work import work
from tost.launch import Processes


def test_an_error_or_a_death_is_that_of_one_item() -> None:
    found = dict(Processes(2).outcomes(work, ["dies", "bad"]))
    assert isinstance(found["bad"], ArithmeticError)
    assert isinstance(found["dies"], RuntimeError)
    assert "its process died, killed or out of memory" in str(found["dies"])


def test_one_after_the_other_they_are_done_here() -> None:
    ends = Processes().outcomes(work, ["bad", "good", "dies"])
    item, error = next(ends)
    assert item == "bad"
    assert isinstance(error, ArithmeticError)
    assert next(ends) == ("good", "good, done")
    ends.close()  # or this process ends


def test_at_least_one_job() -> None:
    with pytest.raises(ValueError, match="jobs: expected a whole number of at least 1, got 0"):
        Processes(0)
