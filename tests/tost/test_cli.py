"""The command line: every mistake is one line and exit code 2; results on stdout, the rest on stderr."""

import json
import os
import signal
import subprocess
import sys
import time
import warnings
from concurrent.futures.process import BrokenProcessPool
from dataclasses import replace
from pathlib import Path
from typing import NoReturn

import pytest
import torch

from tost import Config, Masks, Recipe, experiment, tickets, training
from tost.cli import analyze, compare, main
from tost.data import Dataset

LENET = ["--model", "lenet300100", "--recipe", "vanilla", "--steps", "2", "--batch-size", "16"]


def start(*arguments: str, cwd: Path) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "tost", *arguments],
        cwd=cwd,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def run(*arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    process = start(*arguments, cwd=cwd)
    out, error = process.communicate(timeout=120)
    return subprocess.CompletedProcess(process.args, process.returncode, out, error)


@pytest.fixture
def small_images(monkeypatch: pytest.MonkeyPatch, toy_images: Dataset) -> None:
    for module in (training, tickets):
        monkeypatch.setattr(module, "load", lambda name, folder: toy_images)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["train", "--density", "lots"], "tost train: error: density: expected a number, got 'lots'"),
        (["train", "--method", "snap"], "tost: error: method: unknown name 'snap'; did you mean snip?"),
        (["train", "--config", "nowhere.yaml"], "tost train: error: config: File does not exist:"),
    ],
)
def test_typos_in_a_process_of_their_own(tmp_path: Path, arguments: list[str], message: str) -> None:
    done = run(*arguments, cwd=tmp_path)
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr.startswith(message)
    assert done.stderr.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            [],
            "tost: error: expected a command: train, prune, shrink, lottery, compare, compare-masks, analyze, report, reproduce, "
            "data, info",
        ),
        (["trian"], "tost: error: command: unknown name 'trian'; did you mean train?"),
        (["train", "--densty", "1"], "tost train: error: unrecognized arguments: --densty 1; did you mean --density?"),
        (["train", "stray"], "tost train: error: unrecognized arguments: stray"),
        (["train", "--steps", "1.5"], "tost train: error: steps: expected a whole number or null, got '1.5'"),
        (["train", "--steps"], "tost train: error: argument --steps: expected one argument"),
        (["train", "--steps", "0"], "tost: error: steps: expected a whole number of at least 1, got 0"),
        (["train", "--density", "5"], "tost: error: density: expected a number in (0, 1], got 5.0"),
        (["train", "--nesterov", "maybe"], "tost train: error: nesterov: expected true or false, got 'maybe'"),
        (["train", "--milestones", "[0.9,0.1]"], "tost: error: milestones: expected rising fractions"),
        (["train", "--model", "resnet19"], "tost: error: model: unknown name 'resnet19'; did you mean"),
        (["train", "--dataset", "mnist6k"], "tost: error: dataset: unknown name 'mnist6k'; did you mean mnist5k or mnist?"),
        (["train", "--dataset", "cifar10"], "tost: error: data_dir: no cifar10 in here: run `tost data fetch cifar10`, or put"),
        (["train", "--dataset", "cifar10", "--data-dir", "nowhere"], "tost: error: data_dir: no such folder: nowhere"),
        (["train", "--recipe", "tots"], "tost: error: recipe: unknown name 'tots'; did you mean tost?"),
        (["train", "--recipe.label_smoothing", "2"], "tost: error: Recipe.label_smoothing: expected"),
        (["train", "--recipe.ghost_skp", "true"], "tost: error: Option 'ghost_skp' is not accepted; did you mean"),
        (["train", "--device", "mps"], "tost: error: device: expected 'cpu' or 'cuda', got 'mps'"),
        (["train", "--device", "nonsense"], "tost: error: device: expected 'cpu' or 'cuda', got 'nonsense'"),
        (["train", "--device", "cuda:99"], "tost: error: device: expected 'cpu' or one of the"),
        (["train", "--validation", "0.9999"], "tost: error: validation: fraction: expected at least one image of each"),
        (["train", "--recipe", "vanilla", "--recipe.permanent", "true"], "tost: error: Recipe.permanent: expected ghost_skip or"),
        (["train", "--snapshots", "0,x"], "tost: error: snapshots: expected epochs as in 0,5,30, got '0,x'"),
        (["train", "--threads", "0"], "tost: error: threads: expected 1 to 1024, got 0"),
        (["train", "--threads", "100000"], "tost: error: threads: expected 1 to 1024, got 100000"),
        (["prune", "--out", "nowhere/m.safetensors"], "tost: error: out: no such folder: nowhere"),
        (["prune", "--out", "m.pt"], "tost: error: m.pt: expected a mask file, .safetensors or .npz, got .pt"),
        (["prune", "--out", "m.safetensor"], "tost: error: m.safetensor: expected a mask file, .safetensors or .npz, got .saf"),
        (["prune", "--threads", "0"], "tost: error: threads: expected 1 to 1024, got 0"),
        (["prune", "--list", "--method", "foo"], "tost: error: method: unknown name 'foo'"),
        (["prune", "--figure", "m.docx"], "tost: error: figure: expected a picture (."),
        (["lottery", "--figure", "."], "tost: error: figure: expected a file to write, got a folder: ."),
        (
            ["compare-masks", "m.npz", "n.npz", "--figure", "/dev/null/f.png"],
            "tost: error: figure: expected a folder, got a file: /d",
        ),
        (["analyze", "layers", "--out", "/dev/null"], "tost: error: out: expected a folder, got a file: /dev/null"),
        (["compare-masks", "m.npz", "n.npz", "--seed", "1"], "tost compare-masks: error: unrecognized arguments: --seed 1"),
        (["compare", "--densities", "0.5,x"], "tost: error: densities: expected numbers as in 0.05,0.02, got '0.5,x'"),
        (["compare", "--seeds", "0"], "tost: error: seeds: expected at least 1, got 0"),
        (["compare", "--variants", "{a: tots}"], "tost: error: variants: a: recipe or method: unknown name 'tots'"),
        (["compare-masks", "m.npz"], "tost: error: masks: expected at least two files or run folders, got 1"),
        (["compare-masks", "m.npz", "n.npz"], "tost: error: m.npz: no such mask file"),
        (
            ["compare-masks", ".", "."],
            "tost: error: masks: expected a run folder with a mask (masks.safetensors), found none in .",
        ),
        (["compare-maks"], "tost: error: command: unknown name 'compare-maks'; did you mean compare-masks"),
        (["report", ".", "--figure", "f.foo"], "tost: error: figure: expected a picture (."),
        (["report", "nowhere"], "tost: error: runs: no such folder: nowhere"),
        (["report", "none.json"], "tost: error: source: no such file: none.json"),
        (["report", "/dev/null"], "tost: error: runs: no such folder: /dev/null"),
        (["report", ".", "--csv", "--json"], "tost: error: json: expected one way to print, got --csv and --json"),
        (["report"], "tost: error: the following arguments are required: report.source"),
        (["info", "--jsn"], "tost info: error: unrecognized arguments: --jsn; did you mean --json?"),
    ],
)
def test_every_mistake_is_one_line(
    arguments: list[str],
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("TOST_DATA_DIR", "here")
    assert main(arguments) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith(message)
    assert captured.err.count("\n") == 1


@pytest.mark.parametrize("text", ["modl: resnet20\n", "density: lots\n", "steps: [1\n", "just text\n"])
def test_mistakes_in_yaml_are_one_line(text: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "c.yaml"
    path.write_text(text)
    assert main(["train", "--config", str(path)]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("tost")
    assert captured.err.count("\n") == 1


def test_every_command_has_help_json_and_seed(capsys: pytest.CaptureFixture[str]) -> None:
    for command in ("train", "prune", "lottery", "compare", "compare-masks", "report", "reproduce", "info"):
        assert main([command, "--help"]) == 0
        text = capsys.readouterr().out
        assert "--json" in text
        assert ("--seed" in text) == (command != "compare-masks")  # nothing random, and no runs


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["--recipe", "vanilla", "--recipe.label_smoothing", "0.2"], replace(Recipe.vanilla(), label_smoothing=0.2)),
        (["--recipe.label_smoothing", "0.2", "--recipe=vanilla"], replace(Recipe.vanilla(), label_smoothing=0.2)),
        (["--recipe", "tost", "--recipe.fade_end", "0.2"], replace(Recipe.tost(), fade_end=0.2)),
        (["--recipe.fade-end", "0.2"], replace(Recipe.tost(), fade_end=0.2)),
        (["--config", "c.yaml", "--recipe.label_smoothing", "0.3"], replace(Recipe.vanilla(), label_smoothing=0.3)),
        (["--config", "c.yaml", "--recipe", "tost", "--recipe.swish=swish"], Recipe.tost()),
        (["--config", "c.yaml"], Recipe.vanilla()),
    ],
)
def test_single_settings_change_the_recipe_that_is_named(
    words: list[str], expected: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "c.yaml").write_text("recipe: vanilla\nmodel: lenet300100\n")
    seen: list[Config] = []

    def no_training(config: Config, **options: object) -> NoReturn:
        seen.append(config)
        raise ValueError("enough")

    monkeypatch.setattr(training, "train", no_training)
    assert main(["train", *words]) == 2
    assert [config.recipe for config in seen] == [expected]


def test_train_in_a_process_of_its_own(tmp_path: Path) -> None:
    done = run("train", *LENET, "--json", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    assert result["config"]["model"] == "lenet300100"
    assert (tmp_path / result["run_dir"] / "result.json").is_file()


@pytest.mark.usefixtures("small_images")
def test_train_then_report(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "c.yaml").write_text("model: lenet300100\nrecipe: vanilla\nsteps: 9\nbatch_size: 16\nlr: 2e-2\n")
    assert main(["train", "--config", "c.yaml", "--steps", "2", "--seed", "5", "--snapshots", "0,1"]) == 0
    text = capsys.readouterr().out
    assert "test accuracy" in text
    assert "ghost weights    0 while training, 0 left" in text
    (folder,) = (tmp_path / "runs").iterdir()
    config = json.loads((folder / "config.json").read_text())
    assert (config["lr"], config["steps"], config["seed"]) == (0.02, 2, 5)
    assert sorted(path.name for path in folder.glob("epoch-*")) == ["epoch-0000.safetensors", "epoch-0001.safetensors"]

    assert main(["report", "runs"]) == 0
    assert "lenet300100 on mnist5k" in capsys.readouterr().out
    assert main(["report", "runs", "--markdown", "--seed", "5", "--figure", "f.png"]) == 0
    assert "| vanilla |" in capsys.readouterr().out
    assert (tmp_path / "f.png").is_file()
    assert main(["report", "runs", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)[0]["seeds"] == [5]
    assert main(["report", "runs", "--seed", "6"]) == 2
    assert "seed: no run in runs has seed 6" in capsys.readouterr().err

    assert main(["report", "runs", "--csv", "--out", "o"]) == 0
    table = capsys.readouterr().out
    assert table == (tmp_path / "o" / "comparison.csv").read_text()
    assert main(["report", "o/comparison.json", "--latex"]) == 0
    assert capsys.readouterr().out == (tmp_path / "o" / "comparison.tex").read_text()
    assert main(["report", "o/comparison.json", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == [json.loads((tmp_path / "o" / "comparison.json").read_text())]


@pytest.mark.usefixtures("small_images")
def test_compare_saves_tables_picture_and_record(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["compare", "--model", "lenet300100", "--steps", "2", "--batch-size", "16", "--out", str(tmp_path / "o")]
    variants = "{plain: vanilla, smooth: {ghost_skip: false, ghost_swish: false, rescale_init: false}}"
    command += ["--variants", variants, "--densities", "0.5,0.2", "--seeds", "2", "--seed", "3", "--snapshots", "0"]
    assert main(command) == 0
    captured = capsys.readouterr()
    assert "paired difference to plain" in captured.out
    assert captured.err.count("seed 3  ") == captured.err.count("seed 4  ") == 4
    files = {p.name for p in (tmp_path / "o").iterdir() if p.is_file()}
    assert {f"comparison.{suffix}" for suffix in ("json", "md", "csv", "tex", "png")} <= files
    assert len(list((tmp_path / "o").glob("*/epoch-0000.safetensors"))) == 8
    assert main([*command, "--json"]) == 0
    values = json.loads(capsys.readouterr().out)
    assert values == json.loads((tmp_path / "o" / "comparison.json").read_text())
    assert values["seeds"] == [3, 4]
    assert [(cell["method"], cell["density"]) for cell in values["cells"]] == [("erk", 0.5), ("erk", 0.2)]


def test_what_ghosts_do_not_go_with_may_be_compared() -> None:
    words = ["--optimizer", "splitlbi", "--backend", "dense", "--variants", "{a: {split_lbi: {nu: 2}}, b: {split_lbi: {nu: 3}}}"]
    planned = compare.plan_of(compare.parser().parse_args(words))
    assert {run.config.split_lbi.nu for run in planned.runs.values()} == {2, 3}  # type: ignore[union-attr]
    assert compare.plan_of(compare.parser().parse_args(["--weights", __file__, "--variants", "{a: {lr: 1}}"])).runs


@pytest.mark.usefixtures("small_images")
def test_an_ablation_is_one_flag(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["compare", "--model", "lenet300100", "--steps", "2", "--batch-size", "16", "--seeds", "1", "--out", str(tmp_path)]
    assert main([*command, "--ablation", "smoothing", "--methods", "lth", "--density", "0.7", "--json"]) == 0
    values = json.loads(capsys.readouterr().out)
    assert list(values["variants"]) == ["vanilla", "label smoothing", "distillation"]
    assert values["baselines"] == ["vanilla", "label smoothing"]
    assert [cell["method"] for cell in values["cells"]] == ["lth"]
    assert str(tmp_path) not in json.dumps(values)
    assert main([*command, "--ablation", "smoothing", "--variants", "{a: vanilla}"]) == 2
    assert capsys.readouterr().err == "tost: error: variants: expected none beside the ablation 'smoothing', got ['a']\n"
    assert main([*command, "--ablation", "twaeks"]) == 2
    assert "ablation: unknown name 'twaeks'; did you mean tweaks?" in capsys.readouterr().err


@pytest.mark.usefixtures("small_images")
def test_ghosts_without_a_place(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["train", "--model", "lenet300100", "--steps", "2", "--batch-size", "16", "--out", str(tmp_path)]
    assert main([*command, "--recipe.rescale_init", "false", "--recipe.ghost_swish", "false"]) == 2
    error = capsys.readouterr().err
    assert "LeNet300100 has no place for ghost skips" in error
    assert error.count("\n") == 1
    assert list(tmp_path.iterdir()) == []
    with warnings.catch_warnings():
        warnings.simplefilter("default")
        assert main([*command, "--recipe.rescale_init", "false"]) == 0  # the ghost swish has one
    assert "tost: note: add_ghosts: net: LeNet300100 has no place for ghost skips" in capsys.readouterr().err


@pytest.mark.usefixtures("small_images")
def test_divergence_is_exit_code_1(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", *LENET, "--steps", "20", "--lr", "1e30", "--out", str(tmp_path)]) == 1
    error = capsys.readouterr().err
    assert error.startswith("tost: error: the loss became")
    assert error.count("\n") == 1


@pytest.mark.usefixtures("small_images")
@pytest.mark.parametrize("error", [RuntimeError("the runs of seed 0 are no pair"), BrokenProcessPool("a process died")])
def test_a_run_that_breaks_is_one_line(
    error: RuntimeError, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def broken(*args: object, **options: object) -> None:
        raise error

    monkeypatch.setattr(experiment, "compare", broken)
    assert main(["compare", *LENET[:2], "--out", str(tmp_path)]) == 1
    assert capsys.readouterr().err == f"tost: error: {error}\n"


@pytest.mark.usefixtures("ctrl_c")
@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_ending_the_parent_ends_the_workers(tmp_path: Path, number: signal.Signals, code: int) -> None:
    command = [*LENET[:2], "--variants", "{vanilla: vanilla}", "--seeds", "2", "--jobs", "2", "--epochs", "100000"]
    process = start("compare", *command, cwd=tmp_path)
    try:
        deadline = time.monotonic() + 100
        while len(list(tmp_path.glob("runs/*/record.jsonl"))) < 2:
            assert process.poll() is None, process.communicate()
            assert time.monotonic() < deadline
            time.sleep(0.05)
        process.send_signal(number)
        # the pipes end when the last process that holds them does: an orphan would train on and keep them open
        out, error = process.communicate(timeout=60)
    except BaseException:
        os.killpg(process.pid, signal.SIGKILL)
        raise
    assert process.returncode == code
    assert out == ""
    assert "Traceback" not in error
    assert list(tmp_path.glob("runs/*/result.json")) == []


def test_prune_saves_loadable_masks(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "m.safetensors"
    assert main(["prune", "--model", "lenet300100", "--method", "random", "--out", str(out), "--json"]) == 0
    values = json.loads(capsys.readouterr().out)
    masks = Masks.load(out)
    assert values["fingerprint"] == masks.fingerprint
    assert values["kept"] == masks.kept == round(0.05 * masks.total)
    assert main(["prune", "--model", "lenet300100", "--method", "random", "--out", str(out), "--seed", "1"]) == 0
    assert "fc1" in capsys.readouterr().out
    assert Masks.load(out) != masks


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["prune", "--include", "foo*"], "include: pattern 'foo*' matches no layer"),
        (["train", "--milestones", "0.5"], "milestones: expected a list like [0.5, 0.75]"),
        (["analyze", "iterations", "--iterations", "5"], "iterations: expected a list like [1, 10]"),
        (["prune", "--keep-alive", "--density", "0.3"], "argument --keep_alive: expected true or false behind it"),
        (["compare", "--variants", "foo"], "variants: expected a mapping like"),
        (["prune", "--out", "."], "out: expected a file to write, got a folder"),
    ],
)
def test_says_what_a_value_should_look_like(words: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(words) == 2
    assert said in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (
            ["lottery", "--method", "snip"],
            "tost lottery: error: unrecognized arguments: --method snip; tost lottery has no --method",
        ),
        (["prune", "--masks", "x"], "tost prune: error: unrecognized arguments: --masks x; tost prune has no --masks"),
        (["info", "--foo", "1"], "tost info: error: unrecognized arguments: --foo 1"),
        (["report", "a", "b"], "tost report: error: unrecognized arguments: b"),
        (["report", "a", "b", "--jsn"], "tost report: error: unrecognized arguments: b --jsn; did you mean --json?"),
        (["train", "--recipe.densty", "1"], "tost: error: Option 'densty' is not accepted"),
        (
            ["train", "--recipe.ghost_skp", "1"],
            "tost: error: Option 'ghost_skp' is not accepted; did you mean --recipe.ghost_skip?",
        ),
        (
            ["prune", "--config", "c.yaml"],
            "tost prune: error: Subcommand 'prune' does not accept option 'masks'; tost prune has no --masks",
        ),
        (
            ["analyze"],
            f"tost analyze: error: expected a command: {', '.join(analyze.parser().commands)} (tost analyze --help)",
        ),
    ],
)
def test_only_options_that_the_command_has_are_suggested(
    words: list[str], said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "c.yaml").write_text("masks: x\n")
    assert main(words) == 2
    assert capsys.readouterr().err == said + "\n"


def test_prune_shows_what_is_on_a_path(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    command = ["prune", "--model", "lenet5", "--method", "random", "--density", "0.01", "--out", "m.npz"]
    assert main([*command, "--figure", "pictures/m.png"]) == 0
    text = capsys.readouterr().out
    assert "effective %" in text
    assert "Effective density 0." in text
    assert (tmp_path / "pictures" / "m.png").read_bytes()[1:4] == b"PNG"
    assert main([*command, "--json"]) == 0
    values = json.loads(capsys.readouterr().out)
    assert 0 < values["effective_density"] < values["density"]
    assert sum(layer["effective"] for layer in values["layers"]) == round(values["effective_density"] * values["total"])
    assert Masks.load("m.npz").fingerprint == values["fingerprint"]

    def lost(*args: object) -> NoReturn:
        raise ValueError("model: it runs something odd")

    monkeypatch.setattr(Masks, "effective", lost)
    assert main([*command, "--json"]) == 0
    captured = capsys.readouterr()
    assert json.loads(captured.out)["effective_density"] is None
    assert captured.err == "tost: note: no effective density: model: it runs something odd\n"


def test_prune_keeps_layers_alive(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = [
        "prune",
        "--model",
        "lenet5",
        "--method",
        "magnitude",
        "--density",
        "0.0005",
        "--out",
        str(tmp_path / "m.npz"),
        "--json",
    ]
    with warnings.catch_warnings():
        warnings.simplefilter("default")
        assert main(command) == 0
    captured = capsys.readouterr()
    assert "leaves no weight in features.3, classifier.0" in captured.err
    assert "--keep-alive true" in captured.err
    assert json.loads(captured.out)["effective_density"] == 0
    assert main([*command, "--keep-alive", "true"]) == 0
    alive = json.loads(capsys.readouterr().out)
    assert all(layer["effective"] for layer in alive["layers"])
    assert alive["kept"] == json.loads(captured.out)["kept"]


def test_compare_masks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.chdir(tmp_path)
    a, b = Masks({"one": torch.eye(4), "two": torch.ones(2, 2)}), Masks({"one": torch.ones(4, 4), "three": torch.ones(1, 1)})
    a.save("a.npz")
    (tmp_path / "run").mkdir()
    b.save("run/masks.safetensors")
    assert main(["compare-masks", "a.npz", "run", "--json"]) == 0
    (pair,) = json.loads(capsys.readouterr().out)
    assert (pair["a"], pair["b"], pair["only_a"], pair["only_b"]) == ("a.npz", "run", ["two"], ["three"])
    assert pair["layers"][0]["kept_both"] == pair["all"]["kept_both"] == 4
    assert main(["compare-masks", "a.npz", "run", "a.npz", "--figure", "f.png"]) == 0
    text = capsys.readouterr().out
    assert "a.npz (1) | a.npz (2)" in text
    assert "Only in a: two. Only in b: three." in text
    assert (tmp_path / "f.png").is_file()
    assert main(["compare-masks", "a.npz", "run", "--markdown"]) == 0
    assert "| one | 16 | 4 | 16 | 4 | 4.0 | 0.250 | 0.250 | 25.00 |" in capsys.readouterr().out
    Masks({"one": torch.ones(2, 2)}).save("c.npz")
    assert main(["compare-masks", "a.npz", "c.npz"]) == 2
    assert capsys.readouterr().err == (
        "tost: error: masks: a = a.npz, b = c.npz: b: expected the shape of a's mask of 'one', (4, 4), got (2, 2)\n"
    )
