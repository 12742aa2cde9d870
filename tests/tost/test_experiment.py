"""A comparison: who runs, what is shared, what is found first, what a run that fails or diverges does to the others."""

import dataclasses
import json
import pickle
from pathlib import Path
from typing import Any

import pytest

import tost
from tost import Config, Masks, Recipe, experiment, parallel, searches, step_times, tickets, training
from tost.ablations import ABLATIONS
from tost.data import Dataset
from tost.experiment import compare
from tost.grid import Cell, Diverged, Grid
from tost.models.resnet import ResNet
from tost.runs import Result, RunFolder

GHOSTS = {"vanilla": "vanilla", "ghosts": {"recipe": "vanilla", "ghost_skip": True, "ghost_swish": True}}


@pytest.fixture
def base(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, toy_images: Dataset) -> Config:
    def build(model: str, classes: int, channels: int, size: tuple[int, int]) -> ResNet:
        return ResNet((1, 1), (4, 8) if model == "resnet20" else (4, 12), classes, channels)

    for module in (training, tickets, experiment, searches):
        monkeypatch.setattr(module, "load", lambda name, folder: toy_images)
    monkeypatch.setattr(tost.models, "build", build)
    return Config(recipe=Recipe.vanilla(), steps=3, batch_size=16, density=0.3, out=str(tmp_path / "runs"))


@pytest.fixture
def began(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """Folders of the runs that began anew."""
    folders: list[Path] = []
    start = RunFolder.start

    def spy(folder: RunFolder, config: Config, masks: Masks | None) -> None:
        folders.append(folder.path)
        start(folder, config, masks)

    monkeypatch.setattr(RunFolder, "start", spy)
    return folders


def test_every_cell_is_compared_in_pairs(base: Config, began: list[Path]) -> None:
    lines: list[str] = []
    axes: dict[str, Any] = {"models": ("resnet20", "resnet32"), "methods": ("random", "snip"), "densities": (0.5, 0.3)}
    variants = {**GHOSTS, "dense": {"backend": "dense"}}
    grid = compare(base, variants, (4,), **axes, report=lines.append)
    assert grid.cells[:3] == (
        Cell("resnet20", "mnist5k", "random", 0.5),
        Cell("resnet20", "mnist5k", "random", 0.3),
        Cell("resnet20", "mnist5k", "snip", 0.5),
    )
    assert len(grid.cells) == 8
    for cell in grid.cells:
        vanilla, ghosts, dense = (grid.runs(cell, name) for name in grid.variants)
        assert [run.config.seed for run in ghosts] == [4]
        for one, other in zip(vanilla, ghosts, strict=True):
            assert one.masks_fingerprint == other.masks_fingerprint
            assert one.weights_fingerprint == other.weights_fingerprint
            assert (one.config.method, one.config.density, one.config.model) == (cell.method, cell.density, cell.model)
        assert vanilla[0].config.recipe == Recipe.vanilla()
        assert dense[0].accounting.density == 1.0
    # of each model one dense network, whatever the method and the density
    assert len(began) == len(lines) == 2 * (2 * 2 * 2 + 1)
    assert lines[0].startswith("seed 4  vanilla, resnet20 on mnist5k, random mask, 50% sparse: ")

    again = compare(base, variants, (4,), **axes, report=lines.append)
    assert again.as_dict() == grid.as_dict()
    assert sum("finished earlier" in line for line in lines) == len(began) == len(lines) / 2


def test_the_default_is_vanilla_against_tost(base: Config) -> None:
    quick = dataclasses.replace(base, steps=1)
    grid = compare(quick, {"vanilla": None, "tost": {"rescale_iterations": 1}}, (0,))
    assert (grid.baselines, grid.cells) == (("vanilla",), (Cell("resnet20", "mnist5k", "erk", 0.3),))
    assert grid.runs(grid.cells[0], "tost")[0].config.recipe == Recipe(rescale_iterations=1)
    assert experiment.plan(base, None, (0,)).variants == {"vanilla": {"recipe": "vanilla"}, "tost": {"recipe": "tost"}}


def test_variants_may_bring_their_own_masks(base: Config) -> None:
    grid = compare(base, {"random": "random", "force, T = 2": {"method": "force", "method_steps": 2}}, (0,), densities=(0.5, 0.3))
    assert [cell.method for cell in grid.cells] == ["", ""]
    assert grid.runs(grid.cells[1], "force, T = 2")[0].config.method_steps == 2
    assert grid.runs(grid.cells[1], "random")[0].config.density == 0.3


def test_a_lottery_is_found_once_and_shared(base: Config, began: list[Path]) -> None:
    lines: list[str] = []
    options: dict[str, Any] = {"methods": ("random", "lth"), "densities": (0.8, 0.7), "report": lines.append}
    grid = compare(base, GHOSTS, (3,), **options)
    rounds = sorted(Path(base.out).glob("lottery-*/*"))
    # one round for 80%, shared by the lottery to 70%, and one more
    assert [path.name[:8] for path in rounds] == ["round-00", "round-01", "round-02"]
    for cell, found in zip(grid.cells[2:], rounds[1:], strict=True):
        assert cell.method == "lth"
        runs = [grid.runs(cell, name)[0] for name in GHOSTS]
        assert {run.masks_fingerprint for run in runs} == {RunFolder(found).load().masks_fingerprint}
        # the last round is what the vanilla run repeats: same masks, initial weights and batches
        assert runs[0].test_loss == RunFolder(found).load().test_loss
        assert runs[0].weights_fingerprint == grid.runs(grid.cells[0], "vanilla")[0].weights_fingerprint
    assert len(began) == 3 + 8
    record = json.dumps(grid.as_dict())
    assert base.out not in record
    assert compare(base, GHOSTS, (3,), **options).as_dict() == grid.as_dict()
    assert len(began) == 3 + 8


def test_a_lottery_may_be_a_variant(base: Config, began: list[Path]) -> None:
    variants = {"random": "random", "LTH": {"rewind": 1}}
    first = compare(base, variants, (3,), densities=(0.8, 0.6))
    assert [cell.method for cell in first.cells] == ["", ""]
    rounds = {path.parent for path in Path(base.out).glob("lottery-*/*/result.json")}
    assert len(rounds) == 4
    assert {first.runs(cell, "LTH")[0].run_dir for cell in first.cells} < rounds
    began.clear()
    again = compare(base, variants, (3,), densities=(0.8, 0.6), overwrite=True)
    assert sorted(began) == sorted([*rounds, *(first.runs(cell, "random")[0].run_dir for cell in first.cells)])
    for cell in first.cells:
        assert again.accuracies(cell, "LTH") == first.accuracies(cell, "LTH")


def test_a_dense_teacher_is_trained_first(base: Config, began: list[Path]) -> None:
    variants = {
        "vanilla": "vanilla",
        "taught": {"recipe": "vanilla", "distillation": 0.9, "teacher": "dense"},
        "dense": {"backend": "dense"},
    }
    lines: list[str] = []
    grid = compare(base, variants, (0, 1), densities=(0.5, 0.3), report=lines.append)
    teachers = [run.run_dir for run in grid.runs(grid.cells[0], "dense")]
    assert began[:2] == teachers
    assert len(began) == 2 + 2 * 2 * 2
    assert lines[0].startswith("seed 0  teacher: ")
    for cell in grid.cells:
        for run, teacher in zip(grid.runs(cell, "taught"), teachers, strict=True):
            assert Path(str(run.config.teacher)) == teacher
            assert run.config.recipe.distillation == 0.9
    assert base.out not in json.dumps(grid.as_dict())


@pytest.mark.parametrize("name", ABLATIONS)
def test_ablations_can_be_trained(base: Config, name: str) -> None:
    chosen = ABLATIONS[name]
    planned = experiment.plan(base, chosen.variants, (0,), baselines=chosen.baselines)
    assert planned.baselines == chosen.baselines
    runs = {run for run in planned.runs.values() if isinstance(run, experiment.Run)}
    assert len(runs) == len(chosen.variants)
    assert name == "structures" or {run.config.method for run in runs} == {"erk"}  # the same masks for all
    experiment.check_searches(planned)


@pytest.mark.parametrize("what", ["batches_fingerprint", "weights_fingerprint", "masks_fingerprint"])
def test_runs_that_are_no_pair_are_an_error(base: Config, monkeypatch: pytest.MonkeyPatch, what: str) -> None:
    real = training.train

    def other(config: Config, **options: Any) -> Result:
        return dataclasses.replace(real(config, **options), **{what: str(config.recipe.ghost_skip)})  # type: ignore[arg-type]

    monkeypatch.setattr(parallel, "train", other)
    with pytest.raises(RuntimeError, match=f"runs of seed 0 are no pair: {what} differs"):
        compare(base, GHOSTS, (0,))


def test_seeds_and_masks_of_their_own_are_no_mistake(base: Config, monkeypatch: pytest.MonkeyPatch) -> None:
    variants = {
        "vanilla": "vanilla",
        "snip": "snip",
        "other weights": {"mask_check": "reinitialised"},
        "other places": {"mask_check": "shuffled"},
    }
    grid = compare(base, variants, (0, 1))
    (cell,) = grid.cells
    assert len({run.masks_fingerprint for name in variants for run in grid.runs(cell, name)}) > 2
    first, second = grid.runs(cell, "vanilla")
    assert first.test_loss != second.test_loss
    assert first.weights_fingerprint != second.weights_fingerprint
    assert first.batches_fingerprint != second.batches_fingerprint


def test_the_same_seed_gives_the_same_bits(base: Config, tmp_path: Path) -> None:
    first = compare(base, GHOSTS, (0, 1))
    again = compare(dataclasses.replace(base, out=str(tmp_path / "again")), GHOSTS, (0, 1))
    for one, other in zip(
        Path(base.out).glob("*/model.safetensors"), (tmp_path / "again").glob("*/model.safetensors"), strict=True
    ):
        assert (one.parent.name, one.read_bytes()) == (other.parent.name, other.read_bytes())
    (cell,) = first.cells
    for name in GHOSTS:
        zero, one_ = first.runs(cell, name)
        assert zero.run_dir.name == again.runs(cell, name)[0].run_dir.name
        assert RunFolder(zero.run_dir).model.read_bytes() != RunFolder(one_.run_dir).model.read_bytes()


def test_a_diverged_run_is_counted_and_not_repeated(base: Config, began: list[Path], tmp_path: Path) -> None:
    variants = {"vanilla": "vanilla", "wild": {"lr": 1e30, "max_skipped": 0}}
    lines: list[str] = []
    grid = compare(base, variants, (0, 1), report=lines.append)
    (cell,) = grid.cells
    assert [type(run) for run in grid.results[cell]["wild"]] == [Diverged, Diverged]
    assert grid.diverged(cell, "wild") == 2
    assert len(grid.accuracies(cell, "vanilla")) == 2
    against = grid.against(cell, "wild", "vanilla")
    assert (against.mean, against.left_out, against.verdict) == (None, 2, "undecided")
    assert len(lines) == 4
    assert lines[0].startswith("seed 0  vanilla, 70% sparse: ")
    assert lines[1].startswith("seed 0  wild, 70% sparse: diverged: the loss became ")
    grid.save(tmp_path / "c.json")
    assert Grid.load(tmp_path / "c.json").diverged(cell, "wild") == 2

    assert len(began) == 4
    again = compare(base, variants, (0, 1), report=lines.append)
    assert again.as_dict() == grid.as_dict()
    assert len(began) == 4
    assert "wild, 70% sparse: diverged earlier: the loss became " in lines[4]
    compare(base, variants, (0, 1), overwrite=True)
    assert len(began) == 8


def test_a_run_that_fails_stops_no_other_and_the_next_call_goes_on(
    base: Config, began: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    real = training.train

    def full(config: Config, **options: Any) -> Result:
        if config.seed == 0 and config.recipe.has_ghosts:
            raise OSError(28, "No space left on device")
        return real(config, **options)

    monkeypatch.setattr(parallel, "train", full)
    lines: list[str] = []
    with pytest.raises(parallel.RunsFailed, match=r"1 of 4 runs failed.*seed 0, ghosts, 70% sparse \(\w+\): OSError: .*space"):
        compare(base, GHOSTS, (0, 1), report=lines.append)
    assert len(began) == 3
    assert sum("failed: " in line for line in lines) == 1
    monkeypatch.setattr(parallel, "train", real)
    grid = compare(base, GHOSTS, (0, 1))
    assert len(began) == 4
    assert len(grid.runs(grid.cells[0], "ghosts")) == 2


def test_a_teacher_that_diverged_teaches_nobody(base: Config) -> None:
    wild = dataclasses.replace(base, lr=1e30, max_skipped=0)
    variants = {"vanilla": {"lr": 0.1}, "taught": {"recipe": "vanilla", "distillation": 0.9, "teacher": "dense", "lr": 0.1}}
    grid = compare(wild, variants, (0,), methods=("random", "lth"))
    for cell in grid.cells:
        (taught,) = grid.results[cell]["taught"]
        assert isinstance(taught, Diverged)
    (plain,) = grid.results[grid.cells[1]]["vanilla"]
    assert isinstance(plain, Diverged)
    assert plain.reason.startswith("its lottery diverged: round 0 of ")
    assert len(grid.runs(grid.cells[0], "vanilla")) == 1


def test_step_times_cover_every_backend(base: Config) -> None:
    times = compare(base, GHOSTS, (0,), methods=("lth",), timing_rounds=2).step_times
    assert [(t.backend, t.ghosts) for t in times] == [
        (backend, ghosts) for ghosts in (False, True) for backend in ("dense", "masked-dense", "sparse")
    ]
    assert all(t.ms_low <= t.ms <= t.ms_high and t.ms > 0 and t.steps == 4 for t in times)
    assert {t.layout for t in times if t.backend != "sparse"} <= {"contiguous", "channels_last"}
    plain = step_times.measure_step_times(base, training.load("toy", None), Recipe.vanilla(), rounds=2)
    assert [t.ghosts for t in plain] == [False] * 3
    with pytest.raises(ValueError, match="rounds: expected at least 2"):
        step_times.measure_step_times(base, training.load("toy", None), Recipe.vanilla(), rounds=1)


def test_what_is_launched_can_be_sent_and_end_in_any_order(base: Config) -> None:
    """Two lotteries, then what needs their masks; `tests/tost/test_parallel.py` has the processes."""

    class Elsewhere:
        def outcomes(self, work: Any, items: Any) -> Any:
            work, sent = pickle.loads(pickle.dumps((work, list(items))))
            for item in reversed(sent):
                yield item, pickle.loads(pickle.dumps(work(item)))

    variants = {"vanilla": "vanilla", "swish": {"recipe": "vanilla", "ghost_swish": True}}
    grid = compare(base, variants, (0, 1), methods=["lth"], launcher=Elsewhere())
    for seed, run in enumerate(grid.runs(grid.cells[0], "vanilla")):
        last_round = RunFolder(Path(str(run.config.masks))).load()
        assert (run.test_loss, run.masks_fingerprint) == (last_round.test_loss, last_round.masks_fingerprint)
        assert run.config.seed == seed
    with pytest.raises(ValueError, match="jobs: expected 1 with a launcher"):
        compare(base, variants, (0, 1), launcher=Elsewhere(), jobs=2)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"variants": {}}, "variants: expected at least one"),
        ({"seeds": ()}, "seeds: expected at least one"),
        ({"seeds": (1, 1)}, r"seeds: expected .* each once, got \[1, 1\]"),
        ({"densities": (0.5, 0.5)}, "densities: .* each once"),
        ({"densities": (0.5, 1.5)}, "density: expected a number"),
        ({"models": ("resnet21",)}, "variants: vanilla: model: unknown name 'resnet21'"),
        ({"datasets": ("mnst",)}, "variants: vanilla: dataset: unknown name 'mnst'"),
        ({"methods": ("snap",)}, "variants: vanilla: method: unknown name 'snap'"),
        ({"methods": "snip"}, "methods: expected a list, got 'snip'"),
        ({"snapshots": (-1,)}, "snapshots: expected a whole number of at least 0, got -1"),
        ({"models": ("a/net.py:net", "b/net.py:net")}, "cells that titles tell apart, got .*net.py:net on mnist5k"),
        ({"baselines": ("tots",)}, "baselines: unknown name 'tots'; did you mean tost"),
        ({"jobs": 0}, "jobs: expected a whole number of at least 1, got 0"),
        ({"timing_rounds": 1}, "timing_rounds: expected 0 or at least 2, got 1"),
        (
            {"timing_rounds": 2, "variants": {"a": {"backend": "dense"}}},
            "timing_rounds: expected 0, as no variant trains a sparse",
        ),
        (
            {"variants": {"a": "vanilla", "b": Recipe.vanilla()}},
            "variants: expected different ones, got the same under .* 'a' and 'b'",
        ),
        ({"variants": {"a": {"method": "snap"}}}, "variants: a: method: unknown name 'snap'"),
        ({"variants": {"a": {"batch_size": 8}}}, "variants: a: batch_size: expected the same for all variants, got 8"),
        ({"variants": {"a": {"lr": -1}}}, "variants: a: lr: expected"),
        ({"variants": {"a": {"teacher": "dense"}}}, "variants: a: teacher: expected recipe.distillation above 0"),
        ({"variants": {"a": {"rewind": "5000it"}}}, "variants: a: rewind: expected"),
        ({"variants": {"a": {"rewind": "soon"}}}, "variants: a: rewind: expected"),
        ({"variants": {"a": {"rewind": "init", "backend": "dense"}}}, "variants: a: backend: expected"),
        ({"methods": ("lth",), "densities": (1.0,)}, "variants: vanilla: density: expected less than 1"),
        (
            {"methods": ("snip", "erk"), "variants": {"a": "random", "b": None}},
            "methods: expected none, as the variant 'a' has masks",
        ),
        ({"methods": ("snip",), "variants": {"a": "random"}}, "methods: expected none, as the variant 'a' has masks of its own"),
        (
            {"densities": (0.5, 0.3), "variants": {"a": {"density": 0.1}}},
            "densities: expected one, as the variant 'a' has its own",
        ),
    ],
)
def test_wrong_arguments(base: Config, options: dict[str, Any], message: str) -> None:
    with pytest.raises((ValueError, TypeError), match=message):
        compare(base, **options)
    assert not Path(base.out).exists()


def test_data_that_are_missing_are_told_before_the_runs_on_others(
    base: Config, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("TOST_DATA_DIR", str(tmp_path))
    monkeypatch.setattr(experiment, "load", tost.data.load)
    with pytest.raises(FileNotFoundError, match="data_dir: no cifar10 in"):
        compare(base, GHOSTS, (0,), datasets=("mnist5k", "cifar10"))
    assert not Path(base.out).exists()


def test_no_snapshot_after_the_last_epoch(base: Config) -> None:
    with pytest.raises(ValueError, match="snapshots: expected epochs up to the last, 2, got 3"):
        compare(dataclasses.replace(base, steps=None, epochs=2), GHOSTS, (0,), methods=("lth",), snapshots=(0, 3))
    assert not Path(base.out).exists()
