"""A few thousand damaged files in each run of the tests; `make fuzz` loads a hundred thousand."""

import random
import sys
from pathlib import Path

import pytest

from tests.fuzz import mutations
from tests.fuzz.bad_targets import SINS
from tests.fuzz.harness import fuzz
from tests.fuzz.targets import TARGETS, valid_files

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="the harness reads the memory of a process from /proc")


def test_damaged_files_end_in_a_typed_error() -> None:
    for name, summary in fuzz(TARGETS, first=0, count=200).items():
        assert summary.wrong == [], name
        assert summary.counts.total() == 200
        assert summary.counts["rejected"] > 40, f"{name}: {summary}"


def test_the_harness_sees_what_goes_wrong() -> None:
    summary = fuzz(["bad"], first=0, count=15, seconds=1.0, module="tests.fuzz.bad_targets")["bad"]
    assert [seed for seed, _, _ in summary.wrong] == list(SINS)
    for (_, _, seen), (expected, _) in zip(summary.wrong, SINS.values(), strict=True):
        assert seen.startswith(expected)
    assert "bad_targets.py" in summary.wrong[1][2]  # where it hung
    # what a child had counted before it died is lost with it
    assert summary.counts == {"wrong": len(SINS), "rejected": 4, "not counted": 3}


@pytest.mark.parametrize("name", TARGETS)
def test_the_same_seed_does_the_same_damage(name: str, tmp_path: Path) -> None:
    target, folders = TARGETS[name], [tmp_path / "a", tmp_path / "b"]
    sets = []
    for folder in folders:
        folder.mkdir()
        sets.append([(str(path.relative_to(folder)), content) for path, content in valid_files(target, folder)])
    assert sets[0] == sets[1]
    content = sets[0][0][1]
    damaged = [[target.mutate(content, str(seed)) for seed in range(200)] for _ in range(2)]
    assert damaged[0] == damaged[1]
    assert sum(mutation.data != content for mutation in damaged[0]) > 180
    assert len({mutation.data for mutation in damaged[0]}) > 150


@pytest.mark.parametrize("content", [b"", b"x", b"{}", bytes(20)])
@pytest.mark.parametrize("mutator", mutations._OF_BYTES, ids=lambda mutator: mutator.__name__)
def test_tiny_files_can_be_damaged_too(mutator: mutations.Mutator, content: bytes) -> None:
    for seed in range(50):
        mutator(content, random.Random(seed))
