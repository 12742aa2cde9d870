"""Records of every kind: read back, drawn again, and told when they are damaged."""

import csv
import dataclasses
import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.tost.report.made_runs import pair, result
from tost import Config, Recipe
from tost.analysis import Iterations, IterationsPoint, Layers, Recovery, Saliencies, Saliency, SaliencyPoint, Setting
from tost.analysis.recovery import RecoveryStep
from tost.files import DamagedFile, write_json
from tost.grid import Grid
from tost.masks import LayerCount
from tost.report import KINDS, Record, read_record, sheets_of, write_report
from tost.runs import RunFolder
from tost.tickets import Lottery, Round

SETTING = Setting(Config(density=0.02), (0, 1))
RESULTS = Path(__file__).parents[3] / "docs" / "results"


def iterations() -> Iterations:
    setting = dataclasses.replace(SETTING, config=Config(density=0.02, steps=7))
    points = tuple(IterationsPoint("force", steps, seed, 2.0, 0.5, 0.75) for steps in (1, 5) for seed in (0, 1))
    return Iterations(setting, 3, {"processor": "abacus", "threads": 2, "torch": "2.13"}, points)


def saliencies() -> Saliencies:
    points = tuple(SaliencyPoint("snip", seed, d, Saliency(2.0 * d, d)) for seed in (0, 1) for d in (0.5, 0.02))
    return Saliencies(SETTING, 3, points)


def recovery() -> Recovery:
    return Recovery(SETTING, tuple(RecoveryStep("force", seed, n, 10 - n, 2, n - 1) for seed in (0, 1) for n in (1, 2)))


def layers() -> Layers:
    return Layers(SETTING, {"snip": tuple((LayerCount("fc", (2, 3), kept, 6),) for kept in (1, 4))})


MADE: list[Callable[[], Record]] = [pair, iterations, saliencies, recovery, layers]


@pytest.mark.parametrize("make", MADE)
def test_a_record_has_all_that_tables_and_pictures_need(make: Callable[[], Record], tmp_path: Path) -> None:
    found = make()
    pictures = write_report(found, tmp_path / "new" / "r")
    assert pictures[0] == tmp_path / "new" / "r.png"
    again = read_record(tmp_path / "new" / "r.json")
    assert again.as_dict() == found.as_dict()
    write_report(again, tmp_path / "again" / "r")
    names = sorted(path.name for path in (tmp_path / "new").iterdir())
    assert {"r.csv", "r.json", "r.md", "r.png", "r.tex"} <= set(names)
    for name in names:
        one, other = ((tmp_path / folder / name).read_bytes() for folder in ("new", "again"))
        assert one == other, name
    (first, *_) = sheets_of(found)
    rows = list(csv.DictReader(io.StringIO((tmp_path / "new" / "r.csv").read_text())))
    assert [row[first.header[0]] for row in rows] == [str(row[0]) for row in first.rows]


def lottery(out: Path) -> Lottery:
    """Two rounds, in their folders."""
    rounds = []
    for i, kept in enumerate((100, 50)):
        folder = RunFolder(out / "lottery-x" / f"round-0{i}-{kept}")
        folder.path.mkdir(parents=True)
        folder.finish(dataclasses.replace(result(0.9, Recipe.vanilla()), run_dir=folder.path))
        rounds.append(Round(i, kept, 100, folder.load()))
    return Lottery(Config(), 0.5, 0, tuple(rounds))


def test_a_lottery_is_read_from_its_folder_also_an_older_one(tmp_path: Path) -> None:
    found = lottery(tmp_path)
    write_json(found.path, found.as_dict())
    assert read_record(found.path) == found
    write_json(found.path, {name: value for name, value in found.as_dict().items() if name != "kind"})
    assert read_record(found.path) == found
    write_report(found, tmp_path / "o" / "lottery")
    assert (tmp_path / "o" / "lottery.png").is_file()
    with pytest.raises(FileNotFoundError, match="no finished run in"):
        read_record(tmp_path / "o" / "lottery.json")  # away from its rounds


def test_every_kind_names_its_record() -> None:
    assert {make().kind for make in MADE} | {"lottery"} <= set(KINDS)
    for make in MADE:
        assert make().as_dict()["kind"] == make().kind


@pytest.mark.parametrize("path", sorted(RESULTS.rglob("*.json")), ids=lambda path: path.name)
def test_committed_records_can_be_read(path: Path) -> None:
    found = read_record(path)
    assert sheets_of(found)
    json.dumps(found.as_dict(), allow_nan=False)


def test_an_older_comparison_of_methods_says_what_it_said() -> None:
    found = read_record(RESULTS / "pruners" / "methods.json")
    assert isinstance(found, Grid)
    assert found.baselines == ("random", "snip")
    assert [cell.density for cell in found.cells] == [0.02, 0.01, 0.005, 0.002]
    sheet = sheets_of(found)[0]
    assert sheet.title.startswith("lenet5_caffe on mnist5k, 98% sparse, 620 steps, 5 seeds")
    assert sheet.cells[1][:4] == (
        "erk",
        "92.52 ± 0.99",
        "+82.52 [+81.29, +83.75], 5/5, won",
        "-3.68 [-5.25, -2.11], 0/5, lost",
    )


def _without(name: str) -> Callable[[dict[str, Any]], Any]:
    return lambda values: {key: value for key, value in values.items() if key != name}


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda values: [values], "no record: expected an object with a kind, one of comparison"),
        (lambda values: {**values, "kind": "iteration"}, "kind: unknown name 'iteration'; did you mean iterations?"),
        (_without("kind"), "kind: expected one of comparison"),
        (_without("points"), "'points' is missing"),
        (_without("seeds"), "'seeds' is missing"),
        (lambda values: {**values, "points": []}, "points: expected at least one"),
        (lambda values: {**values, "points": [{**values["points"][0], "steps": "five"}]}, "steps: expected .*int.*, got 'five'"),
        (lambda values: {**values, "points": [{**values["points"][0], "more": 1}]}, "unexpected keyword argument 'more'"),
        (lambda values: {**values, "batches": None}, "batches: expected .*int.*, got None"),
        (lambda values: {**values, "density": 2}, "density: expected a number in"),
    ],
)
def test_a_damaged_record_is_told(damage: Callable[[dict[str, Any]], Any], message: str, tmp_path: Path) -> None:
    write_json(tmp_path / "r.json", damage(json.loads(json.dumps(iterations().as_dict()))))
    with pytest.raises(DamagedFile, match=message) as error:
        read_record(tmp_path / "r.json")
    assert str(tmp_path / "r.json") in str(error.value)


def test_what_is_no_record_at_all(tmp_path: Path) -> None:
    (tmp_path / "half.json").write_text('{"kind": "layers", "seeds": [0')
    with pytest.raises(DamagedFile, match="not the JSON that was written"):
        read_record(tmp_path / "half.json")
    with pytest.raises(FileNotFoundError, match="record: no such file"):
        read_record(tmp_path / "none.json")
    write_json(tmp_path / "result.json", result(0.9, Recipe.vanilla()).as_dict())
    with pytest.raises(DamagedFile, match="kind: expected one of"):
        read_record(tmp_path / "result.json")
