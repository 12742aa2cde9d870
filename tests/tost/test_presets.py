"""Presets are read from YAML; what is wrong in one is told with its key."""

from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.tost.loaded_presets import NAMES, loaded
from tost.presets import BUDGETS, PaperNumber, Preset, Stage, find_preset, preset_files

ROOT = Path(__file__).parent.parent.parent


def preset(**changes: Any) -> dict[str, Any]:
    values: dict[str, Any] = {
        "title": "two recipes",
        "paper": "Nobody, Nowhere",
        "item": "Table 9",
        "shows": "what\n  there is",
        "cost": {"small": "a second", "paper": "not measured"},
        "stages": [
            {
                "name": "runs",
                "command": "compare",
                "options": {"model": "mlp"},
                "small": {"steps": 2},
                "paper": {"epochs": 9},
            },
            {"name": "look", "command": "analyze curvature", "runs": ["runs"], "small": {}, "paper": {"batches": 10}},
        ],
    }
    return {**values, **changes}


def read(folder: Path, **changes: Any) -> Preset:
    file = folder / "mine.yaml"
    file.write_text(yaml.safe_dump(preset(**changes), sort_keys=False))
    return Preset.load(file)


def test_stages_are_command_lines(tmp_path: Path) -> None:
    one = read(tmp_path)
    assert (one.name, one.item, one.shows, one.inferred) == ("mine", "Table 9", "what there is", "")
    runs, look = one.stages["small"]
    assert runs == Stage("runs", "compare", {"model": "mlp", "steps": 2})
    assert runs.words(Path("o"), Path("all")) == ["compare", "--model", "mlp", "--steps", "2", "--out", "o/runs", "--runs", "all"]
    assert look.words(Path("o"), Path("all")) == ["analyze", "curvature", "o/runs", "--out", "o/look"]
    assert one.stages["paper"][1].words(Path("o"), Path("all")) == [
        "analyze",
        "curvature",
        "o/runs",
        "--batches",
        "10",
        "--out",
        "o/look",
    ]


def test_values_are_written_as_yaml_reads_them() -> None:
    stage = Stage("s", "compare", {"tune": True, "exclude": None, "densities": [0.1], "variants": {"a b": {"lr": 1e-3}}})
    assert stage.words(Path("o"), Path("all"))[1:] == [
        *("--tune", "true", "--exclude", "null", "--densities", "[0.1]", "--variants", '{"a b": {"lr": 0.001}}', "--out", "o/s"),
        *("--runs", "all"),
    ]


def test_switches_have_no_value() -> None:
    stage = Stage("s", "analyze curvature", {"line": True, "overwrite": False}, ("runs",))
    assert stage.words(Path("o"), Path("all")) == ["analyze", "curvature", "o/runs", "--line", "--out", "o/s"]


def test_runs_with_snapshots_are_not_shared() -> None:
    stage = Stage("s", "compare", {"snapshots": [5]})
    assert stage.words(Path("o"), Path("all")) == ["compare", "--snapshots", "[5]", "--out", "o/s"]


def test_settings_are_those_of_every_stage_that_trains(tmp_path: Path) -> None:
    (tmp_path / "settings.yaml").write_text("small: {steps: 7, lr: 0.5}\npaper: {epochs: 99}\n")
    one = read(tmp_path, settings="settings.yaml")
    assert one.stages["small"][0].options == {"steps": 2, "lr": 0.5, "model": "mlp"}  # its own override them
    assert one.stages["small"][1].options == {}
    assert one.stages["paper"][0].options == {"epochs": 9, "model": "mlp"}


def test_a_stage_can_be_left_out_of_the_small_budget(tmp_path: Path) -> None:
    stages = preset()["stages"]
    stages[1] |= {"small": False}
    one = read(tmp_path, stages=stages)
    assert [stage.name for stage in one.stages["small"]] == ["runs"]
    assert [stage.name for stage in one.stages["paper"]] == ["runs", "look"]


def test_paper_numbers(tmp_path: Path) -> None:
    numbers = [
        {"stage": "runs", "variant": "dense", "accuracy": 94.8},
        {"stage": "runs", "method": "snip", "variant": "tost", "against": "vanilla", "densities": [0.1, 0.05], "gain": [1, -2.5]},
    ]
    assert read(tmp_path, paper_numbers=numbers).numbers == (
        PaperNumber("runs", "dense", 94.8),
        PaperNumber("runs", "tost", 1.0, "vanilla", "snip", 0.1),
        PaperNumber("runs", "tost", -2.5, "vanilla", "snip", 0.05),
    )


def of_first(**changes: Any) -> dict[str, Any]:
    first, second = preset()["stages"]
    return {"stages": [{**first, **changes}, second]}


def without(key: str) -> dict[str, Any]:
    first, second = preset()["stages"]
    del first[key]
    return {"stages": [first, second]}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"titel": "x"}, "preset: unknown name 'titel'; did you mean title"),
        ({"title": 3}, "title: expected text, got 3"),
        ({"cost": {"small": "1 s"}}, "cost: expected small, paper; missing: paper"),
        ({"stages": []}, "stages: expected a list of at least one"),
        ({"stages": ["compare"]}, r"stages\[0\]: expected a mapping, got 'compare'"),
        (without("paper"), r"stages\[0\]: expected name, command, small, paper; missing: paper"),
        (of_first(smal={}), r"stages\[0\]: unknown name 'smal'; did you mean small"),
        (of_first(command="comprae"), "stages.runs.command: unknown name 'comprae'; did you mean compare"),
        (of_first(paper=False), "stages.runs.paper: expected options, got false"),
        (of_first(small=3), "stages.runs.small: expected a mapping, got 3"),
        (of_first(name="look"), "stages: expected each name once, got 'look' twice"),
        (of_first(runs=["look"]), "stages.runs.runs: expected none, which only `analyze` reads"),
        (of_first(options={"out": "x"}), "stages.runs: expected no out, which `tost reproduce` decides, got 'x'"),
        (of_first(small=False), r"stages.look.runs: expected stages before it on budget small \(\[\]\), got 'runs'"),
        ({"paper_numbers": {}}, "paper_numbers: expected a list"),
        ({"paper_numbers": [{"stage": "run", "variant": "a", "accuracy": 1}]}, r"paper_numbers\[0\].stage: unknown name 'run'"),
        ({"paper_numbers": [{"stage": "runs", "variant": "a", "gain": 1}]}, "expected accuracy, or gain with against"),
        (
            {"paper_numbers": [{"stage": "runs", "variant": "a", "densities": [0.1], "accuracy": [1, 2]}]},
            r"paper_numbers\[0\].accuracy: expected one for each of densities \[0.1\], got \[1, 2\]",
        ),
        ({"paper_numbers": [{"stage": "runs", "variant": "a", "accuracy": "high"}]}, "accuracy: expected a number"),
    ],
)
def test_what_is_wrong_is_told_with_its_key(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message) as error:
        read(tmp_path, **changes)
    assert str(error.value).startswith(f"{tmp_path / 'mine.yaml'}: ")


def test_presets_are_found_by_name(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)  # no experiments here: those of the source tree
    assert find_preset("tost-table-2") == ROOT / "experiments" / "tost-table-2.yaml"
    with pytest.raises(FileNotFoundError, match=r"preset: no such file: my/own\.yaml"):
        find_preset("my/own.yaml")
    with pytest.raises(ValueError, match="preset: unknown name 'tost-tabel-2'; did you mean tost-table-2"):
        find_preset("tost-tabel-2")
    (tmp_path / "experiments").mkdir()
    own = tmp_path / "experiments" / "mine.yaml"
    own.write_text("")
    assert list(preset_files()) == ["mine"]
    assert find_preset(str(own)) == own


def test_every_item_that_is_promised_has_a_preset() -> None:
    items = {loaded(name).item for name in NAMES}
    promised = [f"ToST, Table {n}" for n in (1, 2, 3, 4, 5)] + [f"ToST, Fig. {n}" for n in (2, 4, 6, 7)]
    promised += [f"SLTH, Fig. {n}" for n in (1, 4, 5, 6, 7, 8, 9, 10)] + [f"FORCE, Fig. {n}" for n in (1, 2, 3, 5, 10, 11, 12)]
    assert items >= set(promised)


@pytest.mark.parametrize("name", NAMES)
def test_the_readme_lists_every_preset_with_its_cost(name: str) -> None:
    one = loaded(name)
    row = next(
        line for line in (ROOT / "experiments" / "README.md").read_text().splitlines() if f"`tost reproduce {name}`" in line
    )
    cells = [cell.strip() for cell in row.strip("|").split("|")]
    assert cells[0] == one.item
    assert cells[-1] == one.cost["small"]
    assert one.cost.keys() == set(BUDGETS)
