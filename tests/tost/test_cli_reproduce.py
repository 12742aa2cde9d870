"""`tost reproduce`: every preset is understood by the commands that it names, and a tiny one is run."""

import json
from pathlib import Path

import pytest

from tests.tost.loaded_presets import NAMES, loaded
from tost.cli import main, reproduce
from tost.presets import BUDGETS, Stage
from tost.runs import find_runs

TINY = """
title: two recipes
paper: Nobody, Nowhere
item: Table 9
shows: What there is to see.
cost: {small: a second, paper: not measured}
settings: settings.yaml
stages:
  - name: masks
    command: compare
    options: {methods: [random, erk], variants: {vanilla: vanilla, swish: {recipe: vanilla, ghost_swish: true}}}
    small: {model: lenet5}
    paper: {model: resnet32}
  - {name: shape, command: analyze pswish, small: {}, paper: {}}
  - {name: dense, command: train, small: false, paper: {backend: dense}}
paper_numbers:
  - {stage: masks, method: erk, variant: vanilla, densities: [0.1], accuracy: [91.5]}
  - {stage: masks, method: erk, variant: swish, against: vanilla, densities: [0.1], gain: [1]}
"""
SETTINGS = """
small: {dataset: mnist5k, steps: 2, batch_size: 16, density: 0.1, seeds: 1}
paper: {dataset: cifar10, epochs: 182, density: 0.1}
"""


@pytest.fixture
def tiny(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    (tmp_path / "tiny.yaml").write_text(TINY)
    (tmp_path / "settings.yaml").write_text(SETTINGS)
    monkeypatch.chdir(tmp_path)
    return "tiny.yaml"


@pytest.fixture(scope="module")
def read() -> reproduce.Reader:
    return reproduce.Reader()


@pytest.mark.parametrize("budget", BUDGETS)
@pytest.mark.parametrize("name", NAMES)
def test_commands_understand_every_preset(name: str, budget: str, read: reproduce.Reader, tmp_path: Path) -> None:
    """Its options, and what is behind them: networks, data sets, methods, variants, cells of the paper's numbers."""
    preset = loaded(name)
    stages = [read(stage, tmp_path, tmp_path, {"seeds": 1}) for stage in preset.stages[budget]]
    if budget == "paper":
        reproduce.check_numbers(preset.numbers, stages)


def test_a_tiny_preset_runs_and_is_read_back(
    tiny: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("matplotlib.figure.Figure.savefig", lambda figure, file, **options: Path(file).touch())  # drawn elsewhere
    assert main(["reproduce", tiny, "--threads", "1"]) == 0
    folder = tmp_path / "runs" / "tiny" / "small"
    told = capsys.readouterr()
    assert "stage 1 of 2, masks: tost compare --dataset mnist5k --steps 2" in told.err
    assert "Table 9: two recipes; small budget" in told.out
    assert "not comparable" in told.out
    record = json.loads((folder / "report.json").read_text())
    assert [
        (row["variant"], row["method"], row["paper"], len(row["ours"])) for row in record["rows"] if row["against"] is None
    ] == [
        ("vanilla", "random", None, 1),
        ("swish", "random", None, 1),
        ("vanilla", "erk", 91.5, 1),
        ("swish", "erk", None, 1),
    ]
    assert [row["paper"] for row in record["rows"] if row["against"] is not None] == [None, 1.0]
    assert (folder / "shape" / "pswish.png").is_file()

    # runs are shared by all presets, and each comparison knows its own
    other = TINY.replace("[random, erk]", "[erk]").replace(
        "  - {name: shape, command: analyze pswish, small: {}, paper: {}}\n", ""
    )
    (tmp_path / "other.yaml").write_text(other)
    assert main(["reproduce", "other.yaml", "--threads", "1", "--json"]) == 0
    told = capsys.readouterr()
    assert told.err.count("finished earlier") == 2
    assert json.loads(told.out)["rows"] == [row for row in record["rows"] if row["method"] == "erk"]
    everything = find_runs(tmp_path / "runs" / "shared")
    assert len(everything) == 4
    assert find_runs(folder / "masks") == everything
    assert find_runs(folder.parent.parent / "other" / "small" / "masks") == [r for r in everything if r.config.method == "erk"]


def test_a_dry_run_runs_nothing(tiny: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["reproduce", tiny, "--dry-run", "--seed", "9", "--seeds", "4", "--jobs", "2", "--out", "else"]) == 0
    told = capsys.readouterr().out
    assert "Table 9: two recipes; small budget, cost: a second" in told
    assert "masks, 16 trainings:" in told
    assert "--seeds 4 " in told
    assert told.count("--seed 9") == 1  # nothing of the other stage is drawn by chance
    assert "--jobs 2" in told
    assert "shape, no trainings:\n  tost analyze pswish --threads" not in told  # --threads was not given
    assert "--out else/tiny/small/shape" in told
    assert sorted(path.name for path in tmp_path.iterdir()) == ["settings.yaml", "tiny.yaml"]

    assert main(["reproduce", tiny, "--dry-run", "--budget", "paper", "--json"]) == 0
    values = json.loads(capsys.readouterr().out)
    assert (values["budget"], values["cost"]) == ("paper", "not measured")
    assert [(stage["stage"], stage["trainings"]) for stage in values["stages"]] == [("masks", 12), ("shape", 0), ("dense", 1)]


def test_rounds_of_lotteries_are_counted(tmp_path: Path, read: reproduce.Reader) -> None:
    options = {"methods": ["lth"], "densities": [0.512, 0.5], "variants": {"a": "vanilla", "b": "tost"}, "seeds": 2}
    planned = read(Stage("s", "compare", options), tmp_path, tmp_path, {})
    # of each seed: the dense round, 0.8, 0.64, 0.512, and 0.5, which is no power of 0.8; then two variants at two densities
    assert planned.runs == 2 * (5 + 4)


def test_teachers_are_counted_once(tmp_path: Path, read: reproduce.Reader) -> None:
    taught = {"recipe": "vanilla", "distillation": 0.9, "teacher": "dense"}
    options = {"method": "random", "density": 0.1, "seeds": 2, "variants": {"plain": "vanilla", "taught": taught}}
    assert read(Stage("s", "compare", options), tmp_path, tmp_path, {}).runs == 2 * 3
    options["variants"] = {"dense": {"backend": "dense"}, "taught": taught}
    assert read(Stage("s", "compare", options), tmp_path, tmp_path, {}).runs == 2 * 2  # the teacher is a variant


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("methods: [random, erk]", "methods: [random, erq]", "unknown name 'erq'; did you mean erk"),
        ("model: lenet5}", "model: lenet6}", "unknown name 'lenet6'; did you mean lenet5"),
        ("steps: 2", "stepz: 2", "tost compare: error: "),
    ],
)
def test_mistakes_are_told_before_anything_runs(
    tiny: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], old: str, new: str, message: str
) -> None:
    for name in ("tiny.yaml", "settings.yaml"):
        file = tmp_path / name
        file.write_text(file.read_text().replace(old, new))
    assert main(["reproduce", tiny]) == 2
    told = capsys.readouterr().err
    assert message in told
    assert "stage 1" not in told
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize(
    ("old", "new"),
    [("swish, against", "swich, against"), ("against: vanilla", "against: swish"), ("method: erk", "method: snip")],
)
def test_numbers_that_nothing_measures_are_told(
    tiny: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], old: str, new: str
) -> None:
    (tmp_path / tiny).write_text(TINY.replace(old, new))
    assert main(["reproduce", tiny, "--budget", "paper", "--dry-run"]) == 2
    assert (
        "paper_numbers: expected what stage 'masks' measures on the paper's budget, got PaperNumber(" in capsys.readouterr().err
    )


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["none.yaml"], "preset: no such file: none.yaml"),
        (["tiny.yaml", "--budget", "smal"], "budget: unknown name 'smal'; did you mean small"),
        (["tiny.yaml", "--seeds", "0"], "stages.masks: seeds: expected at least 1, got 0"),
        (["tiny.yaml", "--jobs", "0"], "jobs: expected a whole number of at least 1, got 0"),
        (["tiny.yaml", "--launcher", "slurmm"], "launcher: unknown name 'slurmm'; did you mean slurm"),
    ],
)
def test_wrong_options_are_told_by_a_dry_run(
    tiny: str, capsys: pytest.CaptureFixture[str], words: list[str], message: str
) -> None:
    assert main(["reproduce", *words, "--dry-run"]) == 2
    assert message in capsys.readouterr().err


def test_presets_are_listed(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["reproduce", "--list", "--json"]) == 0
    listed = json.loads(capsys.readouterr().out)
    assert {"name": "tost-table-4", "item": "ToST, Table 4"}.items() <= next(
        one for one in listed if "table-4" in one["name"]
    ).items()
    assert main(["reproduce", "--list"]) == 0
    assert "slth-figure-10" in capsys.readouterr().out
    assert main(["reproduce"]) == 2
    assert "preset: expected a file or a name" in capsys.readouterr().err
