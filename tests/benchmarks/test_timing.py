"""Interleaving and its quantiles, with a clock that the variants themselves move. Nothing is timed."""

import itertools

import pytest

from benchmarks.timing import Summary, Times, clock_for, interleave


class Machine:
    """A clock, and calls that take as long as they are told."""

    def __init__(self) -> None:
        self.now = 0.0
        self.calls: list[str] = []

    def variant(self, name: str, *seconds: float):  # type: ignore[no-untyped-def]
        durations = itertools.chain(seconds, itertools.repeat(seconds[-1]))

        def call() -> None:
            self.calls.append(name)
            self.now += next(durations)

        return call

    def clock(self) -> float:
        return self.now


def test_every_variant_runs_once_a_round_in_changing_order() -> None:
    machine = Machine()
    variants = {name: machine.variant(name, 1.0) for name in "abcd"}
    interleave(variants, 20, machine.clock, shortest_ms=0)
    assert machine.calls[:4] == list("abcd")  # one call each to warm up
    rounds = [machine.calls[i : i + 4] for i in range(4, len(machine.calls), 4)]
    assert len(rounds) == 20
    assert all(sorted(r) == list("abcd") for r in rounds)
    assert len({tuple(r) for r in rounds}) > 5


def test_the_same_seed_gives_the_same_orders() -> None:
    orders = []
    for seed in (0, 0, 1):
        machine = Machine()
        interleave({name: machine.variant(name, 1.0) for name in "abcde"}, 6, machine.clock, seed=seed, shortest_ms=0)
        orders.append(machine.calls)
    assert orders[0] == orders[1] != orders[2]


def test_warm_up_does_not_count() -> None:
    machine = Machine()
    times = interleave({"a": machine.variant("a", 9.0, 0.002, 0.003, 0.004)}, 3, machine.clock, shortest_ms=0)
    assert times.ms["a"] == pytest.approx((2.0, 3.0, 4.0))


def test_short_calls_are_repeated_and_averaged() -> None:
    machine = Machine()
    variants = {"short": machine.variant("short", 0.0005), "long": machine.variant("long", 0.004), "none": lambda: None}
    times = interleave(variants, 2, machine.clock, shortest_ms=2.0)
    assert times.ms["short"] == pytest.approx((0.5, 0.5))
    assert times.ms["long"] == pytest.approx((4.0, 4.0))
    assert times.ms["none"] == (0.0, 0.0)  # 50 calls at most: a clock that stands still ends nothing
    assert machine.calls.count("short") == 2 + 2 * 4
    assert machine.calls.count("long") == 2 + 2


def test_ratios_are_taken_round_by_round() -> None:
    # a machine that slows down by 1, 10, 100: the ratio is 3 in every round, that of the medians would be 3 as well, but the
    # quartiles of the milliseconds are wide while those of the ratio are not
    times = Times({"slow": (3.0, 30.0, 300.0), "a": (0.5, 5.0, 50.0), "b": (0.5, 5.0, 50.0)})
    assert times.ratio(["slow"], ["a", "b"]) == Summary(3.0, 3.0, 3.0)
    assert times.summary("a", "b") == Summary(10.0, 5.5, 55.0)
    # and where the order of the rounds' times differs, the ratio of the medians (1) is not the median of the ratios
    crossed = Times({"x": (1.0, 2.0, 6.0), "y": (2.0, 1.0, 2.0)})
    assert crossed.ratio(["x"], ["y"]).median == 2.0


def test_fastest_is_by_median() -> None:
    times = Times({"a": (1.0, 5.0, 5.0), "b": (4.0, 4.0, 90.0), "c": (0.5, 0.5, 0.5)})
    assert times.fastest([("a",), ("b",)]) == ("b",)
    assert times.fastest([("a", "c"), ("b", "c")]) == ("b", "c")


def test_quartiles() -> None:
    assert Summary.of([4.0, 1.0, 3.0, 2.0, 5.0]) == Summary(3.0, 2.0, 4.0)
    assert Summary.of([7.0]) == Summary(7.0, 7.0, 7.0)
    with pytest.raises(ValueError, match="samples: expected at least one, got none"):
        Summary.of([])


def test_bad_input_is_named() -> None:
    with pytest.raises(ValueError, match="rounds: expected at least 1, got 0"):
        interleave({"a": lambda: None}, 0, lambda: 0.0)
    with pytest.raises(ValueError, match="variants: expected at least one"):
        interleave({}, 1, lambda: 0.0)


def test_one_thread_is_timed_by_its_own_clock() -> None:
    assert clock_for(1) is not clock_for(2)
