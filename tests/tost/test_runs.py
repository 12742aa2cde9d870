"""Reading runs back: what is damaged or missing is named."""

import dataclasses
import json
from pathlib import Path

import pytest

from tests.tost.finished_run import finished
from tost.config import Config
from tost.files import FolderInUse
from tost.runs import RunFolder, find_runs, list_runs


def test_round_trip(tmp_path: Path) -> None:
    result = finished(tmp_path)
    assert RunFolder.of(result.config).load() == result
    assert json.loads((result.run_dir / "result.json").read_text()) == result.as_dict()


def test_every_finished_run_is_found(tmp_path: Path) -> None:
    results = [finished(tmp_path / "deep", seed=seed) for seed in (2, 1, 0)]
    unfinished = RunFolder.of(Config(out=str(tmp_path), seed=9))
    unfinished.path.mkdir()
    unfinished.start(Config(out=str(tmp_path), seed=9), None)
    assert find_runs(tmp_path) == results[::-1]
    assert find_runs(results[0].run_dir) == [results[0]]


def test_listed_runs_are_those_of_a_folder(tmp_path: Path) -> None:
    results = [finished(tmp_path / "a" / "shared", seed=seed) for seed in (0, 1, 2)]
    list_runs(tmp_path / "a" / "deep" / "mine", [results[2].run_dir, results[0].run_dir, results[2].run_dir])
    assert find_runs(tmp_path / "a" / "deep") == [results[0], results[2]]
    assert find_runs(tmp_path / "a") == results  # each once
    (tmp_path / "a").rename(tmp_path / "b")
    assert [run.config.seed for run in find_runs(tmp_path / "b" / "deep" / "mine")] == [0, 2]
    (tmp_path / "b" / "shared").rename(tmp_path / "gone")
    with pytest.raises(FileNotFoundError, match=r"no finished run in .*shared"):
        find_runs(tmp_path / "b" / "deep")


def test_a_moved_folder_knows_its_new_place(tmp_path: Path) -> None:
    result = finished(tmp_path / "old")
    (tmp_path / "old").rename(tmp_path / "new")
    assert find_runs(tmp_path) == [dataclasses.replace(result, run_dir=tmp_path / "new" / result.config.hash)]


def test_a_damaged_run_does_not_hide_the_others(tmp_path: Path) -> None:
    good, bad = (finished(tmp_path, seed=seed) for seed in (0, 1))
    (bad.run_dir / "result.json").write_text("{")
    with pytest.warns(UserWarning, match=r"runs: left out: .*result\.json: .*; to repeat this run alone remove its folder"):
        assert find_runs(tmp_path) == [good]


def test_what_is_missing_or_damaged_is_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="runs: no such folder"):
        find_runs(tmp_path / "none")
    with pytest.raises(FileNotFoundError, match="runs: no finished run in"):
        find_runs(tmp_path)
    with pytest.raises(FileNotFoundError, match="no finished run in"):
        RunFolder(tmp_path).load()
    result = finished(tmp_path)
    (result.run_dir / "result.json").write_text('{"config": {}}')
    with pytest.raises(ValueError, match=r"result\.json: not a run's result"):
        find_runs(tmp_path)
    (result.run_dir / "result.json").write_text("{")
    with pytest.raises(ValueError, match=r"result\.json: not the JSON that was written"):
        find_runs(tmp_path)


@pytest.mark.parametrize(
    ("field", "wrong"),
    [("seconds", "1"), ("history", [3]), ("threads", True), ("best", []), ("torch", None), ("test_accuracy", 1.5)],
)
def test_a_value_of_another_type_is_named(tmp_path: Path, field: str, wrong: object) -> None:
    result = finished(tmp_path)
    (result.run_dir / "result.json").write_text(json.dumps({**result.as_dict(), field: wrong}))
    with pytest.raises(ValueError, match=rf"result\.json: not a run's result: {field}: expected .*, got "):
        find_runs(tmp_path)


@pytest.mark.parametrize(
    ("history", "message"),
    [
        ([], "history: expected an epoch or more, got none"),
        ([{"epoch": 1}], "'step'"),
        ([{"epoch": 1, "step": "3"}], "history: expected numbers for epoch and step, got "),
        ([{"epoch": 1, "step": 3, "test_accuracy": "0.5"}], "history: test_accuracy: expected a number .*, got str"),
        ([{"epoch": 1, "step": 3, "test_accuracy": 50}], "history: test_accuracy: expected a number in .*, got 50"),
    ],
)
def test_a_history_that_cannot_be_drawn_is_named(tmp_path: Path, history: list[object], message: str) -> None:
    result = finished(tmp_path)
    (result.run_dir / "result.json").write_text(json.dumps({**result.as_dict(), "history": history}))
    with pytest.raises(ValueError, match=rf"result\.json: not a run's result: {message}"):
        find_runs(tmp_path)


def test_a_count_of_another_type_is_named(tmp_path: Path) -> None:
    values = finished(tmp_path).as_dict()
    values["accounting"]["parameters"] = 1.5
    (Path(values["run_dir"]) / "result.json").write_text(json.dumps(values))
    with pytest.raises(ValueError, match=r"result\.json: not a run's result: parameters: expected .*int.*, got 1\.5"):
        find_runs(tmp_path)


def test_who_is_refused_leaves_the_folder_to_its_owner(tmp_path: Path) -> None:
    folder = RunFolder.of(Config(out=str(tmp_path)))
    with folder.held():  # choosing the masks takes minutes, and nothing is written before
        with pytest.raises(FolderInUse, match="another process is training this run"), folder.held():
            pass
        folder.start(Config(), None)
    assert folder.config.is_file()


def test_a_run_that_began_nothing_leaves_no_folder(tmp_path: Path) -> None:
    folder = RunFolder.of(Config(out=str(tmp_path)))
    with pytest.raises(ValueError, match="wrong"), folder.held():
        raise ValueError("wrong")
    assert list(tmp_path.iterdir()) == []
