"""What is said of many runs while they go on."""

import json
import os
import re
import time
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from tests.tost.finished_run import finished
from tost import watch
from tost.config import Config
from tost.runs import RunFolder
from tost.watch import Standing, Watch, standing_of_runs, watching


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """One number: what the time is."""
    now = [0.0]
    monkeypatch.setattr(watch.time, "monotonic", lambda: now[0])
    return now


def test_counts_and_the_time_that_is_left(clock: list[float]) -> None:
    standings = dict.fromkeys("abcd", Standing()) | {"a": Standing(0.5)}  # `a` was cut off earlier
    seen = Watch({name: f"run {name}" for name in "abcd"}, lambda name: standings[name])
    assert seen.look() == ("0 of 4 runs done, 0 running, 4 waiting", {})
    standings["a"] = Standing(0.75, begun=True, columns=("epoch 3",))
    clock[0] = 60.0  # a quarter of a run a minute
    line, going_on = seen.look()
    assert line == "0 of 4 runs done, 1 running, 3 waiting, about 13 min left"
    assert going_on == {"run a": standings["a"]}
    seen.ended("a")
    seen.ended("b", failed=True)
    clock[0] = 90.0
    assert seen.look() == ("2 of 4 runs done, 1 of them failed, 0 running, 2 waiting, about 2 min left", {})
    seen.ended("c")
    seen.ended("d")
    assert seen.look()[0] == "4 of 4 runs done, 1 of them failed, 0 running, 0 waiting"


@pytest.mark.parametrize(("seconds", "said"), [(3.4, "3 s"), (119.0, "2 min"), (3599.0, "1 h 0 min"), (9000.0, "2 h 30 min")])
def test_durations(seconds: float, said: str) -> None:
    assert watch._duration(seconds) == said


def test_how_a_run_stands_is_read_from_its_record(tmp_path: Path) -> None:
    fresh, cut_off = (Config(out=str(tmp_path), seed=seed, epochs=10, batch_size=50) for seed in (0, 1))
    lines = [{"epoch": n, "step": 20 * n, "images_per_second": 612.0, "test_accuracy": n / 8} for n in (1, 2, 3, 4)]

    def write(config: Config, *lines: dict[str, Any]) -> None:
        record = RunFolder.of(config).record
        record.parent.mkdir(exist_ok=True)
        record.write_text("".join(json.dumps(line) + "\n" for line in lines))
        os.utime(record, ns=(time.time_ns(), record.stat().st_mtime_ns + 10**9))  # the clock of the files may be coarse

    write(cut_off, *lines[:3])
    standing = standing_of_runs({config: [(RunFolder.of(config), config)] for config in (fresh, cut_off)})
    assert standing(fresh) == Standing(0.0)
    assert standing(cut_off) == Standing(0.3)
    RunFolder.of(fresh).path.mkdir()
    RunFolder.of(fresh).config.write_text("{}")  # written as the training begins, an epoch before the record
    assert standing(fresh) == Standing(0.0, True, ("in its first epoch",))
    write(fresh)
    assert standing(fresh) == Standing(0.0, True, ("in its first epoch",))
    write(fresh, {"epoch": 1, "step": 20, "images_per_second": 612.0})  # the accuracy is measured later
    assert standing(fresh) == Standing(0.1, True, ("epoch 1", "step 20 of 200", "12.2 steps/s", ""))
    write(cut_off, *lines)
    assert standing(cut_off) == Standing(0.4, True, ("epoch 4", "step 80 of 200", "12.2 steps/s", "50.00%"))
    RunFolder.of(fresh).record.write_text("{}\n")
    assert standing(fresh).fraction == 0.0


def test_how_a_lottery_stands_is_read_from_its_rounds(tmp_path: Path) -> None:
    config = Config(steps=40, batch_size=50)
    rounds = [(RunFolder(tmp_path / f"round-{number}"), config) for number in range(3)]
    standing = standing_of_runs({"lottery": rounds})
    assert standing("lottery") == Standing(0.0)
    for folder, _ in rounds[:2]:
        folder.path.mkdir()
        folder.record.write_text('{"epoch": 2, "step": 40, "images_per_second": 50.0}\n')
    rounds[1][0].record.write_text("")
    assert standing("lottery") == Standing(1 / 3, True, ("round 1 of 2", "in its first epoch"))


def test_a_run_that_is_repeated_begins_at_nothing(tmp_path: Path) -> None:
    result = finished(tmp_path)
    folder = RunFolder(result.run_dir)
    folder.record.write_text('{"epoch": 30, "step": 90, "images_per_second": 1.0}\n')
    runs = {"run": [(folder, result.config)]}
    assert standing_of_runs(runs)("run").fraction == 1.0
    folder.forget()
    assert standing_of_runs(runs)("run").fraction == 0.0


def test_a_line_now_and_then_where_stderr_is_no_terminal(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(watch, "LINE_SECONDS", 0.01)
    with watching({"a": "run a", "b": "run b"}, lambda name: Standing(begun=name == "b")) as seen:
        deadline = time.monotonic() + 60
        err = ""
        while not err and time.monotonic() < deadline:
            time.sleep(0.02)
            err = capsys.readouterr().err
        assert err == "0 of 2 runs done, 1 running, 1 waiting\n"
        time.sleep(0.1)
        assert capsys.readouterr().err == ""  # nothing new
        seen.ended("a")
        while not err.startswith("1 of 2") and time.monotonic() < deadline:
            time.sleep(0.02)
            err = capsys.readouterr().err
        assert err.startswith("1 of 2 runs done, 1 running, 0 waiting")
    with watching({"a": "run a"}, lambda name: Standing(), wanted=False):
        time.sleep(0.1)
    assert capsys.readouterr().err == ""


def test_a_terminal_shows_a_row_for_each_that_goes_on(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    terminal = Console(stderr=True, force_terminal=True, width=80)
    monkeypatch.setattr(watch, "Console", lambda stderr: terminal)
    titles = {"a": "run a", "b": "run b", "c": "a run of a name " + 9 * "longer than the line "}
    with watching(titles, lambda name: Standing(0.1, name != "b", ("epoch 1", "12.2 steps/s"))):
        pass
    err = capsys.readouterr().err
    assert "0 of 3 runs done, 2 running, 1 waiting" in err
    assert re.search(r"run a +epoch 1 +12\.2 steps/s", err)
    assert re.search(r"a run of a name longer.*…  epoch 1  12\.2 steps/s", err)
    assert "run b" not in err
