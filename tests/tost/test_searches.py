"""Comparisons whose masks a training finds: which training, which masks, what starts from where, what is a pair."""

import dataclasses
import json
import statistics
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import tost
from tost import Config, Masks, Recipe, experiment, parallel, searches, tickets, training
from tost.callbacks import Callback, Run, Stopped
from tost.data import Dataset
from tost.experiment import compare
from tost.grid import Diverged, Grid
from tost.grid_plan import plan, trainings
from tost.macs import count_macs
from tost.models.resnet import ResNet
from tost.optim import SolutionPath
from tost.preparation import initial_model, weights_fingerprint
from tost.report.from_runs import grids_of
from tost.runs import Result, RunFolder, find_runs

# 3 steps an epoch; the first filters enter during the first one
SEARCH = {"steps": 6, "schedule": "constant", "split_lbi": {"nu": 1.0, "lam": 0.05, "lam_linear": 0.02, "sqrt_d": True}}


@pytest.fixture
def base(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, toy_images: Dataset) -> Config:
    for module in (training, tickets, experiment, searches):
        monkeypatch.setattr(module, "load", lambda name, folder: toy_images)
    monkeypatch.setattr(tost.models, "build", lambda name, classes, channels, size: ResNet((1, 1), (4, 8), classes, channels))
    return Config(recipe=Recipe.vanilla(), steps=2, batch_size=16, density=0.3, out=str(tmp_path / "runs"))


@pytest.fixture
def began(monkeypatch: pytest.MonkeyPatch) -> list[Config]:
    """Configurations of the runs that began anew."""
    configs: list[Config] = []
    start = RunFolder.start

    def spy(folder: RunFolder, config: Config, masks: Masks | None) -> None:
        configs.append(config)
        start(folder, config, masks)

    monkeypatch.setattr(RunFolder, "start", spy)
    return configs


def only(grid: Grid, variant: str) -> Result:
    (run,) = grid.runs(grid.cells[0], variant)
    return run


def masks(run: Result) -> Masks:
    return RunFolder(run.run_dir).load_masks()


def counts(of: Masks) -> list[int]:
    return [layer.kept for layer in of.per_layer()]


def test_what_starts_from_the_masks_of_an_epoch(base: Config, began: list[Config], toy_images: Dataset) -> None:
    at = {"method": "splitlbi", "at": 1}
    variants = {
        "lottery": at,
        "found": {**at, "start": "found"},
        "shuffled": {**at, "mask_check": "shuffled"},
        "trained": {"method": "trained-magnitude", "rates": "splitlbi", "at": 1},
        "random": {"method": "random", "density": "splitlbi", "at": 1},
        "slimming": {"method": "slimming", "density": "splitlbi", "at": 1},
        "scratch": {**at, "mask_check": "reinitialised", "budget": "flops"},
    }
    grid = compare(base, variants, (0,), search=SEARCH)
    assert len(began) == trainings(plan(base, variants, (0,), search=SEARCH)) == 3 + 7
    dense, search = (
        next(c for c in began if (c.backend, c.optimizer, c.bn_l1) == ("dense", name, 0)) for name in ("sgd", "splitlbi")
    )
    assert (search.steps, search.schedule, search.seed) == (6, "constant", 0)
    lottery, found, shuffled, trained, random, slimming, scratch = (only(grid, name) for name in variants)

    expected = SolutionPath.load(RunFolder.of(search).path_points).masks(epoch=1)
    assert 0.05 < expected.density < 0.8
    assert len({layer.density for layer in expected.per_layer()}) > 2
    assert masks(lottery) == masks(found) == masks(scratch) == expected
    for run in (shuffled, trained):
        assert counts(masks(run)) == counts(expected)
        assert masks(run) != expected
    assert masks(random).kept == expected.kept
    assert counts(masks(random)) != counts(expected)
    assert expected.kept - 9 * 8 < masks(slimming).kept <= expected.kept  # whole filters
    weights = RunFolder.of(dense).load_model()
    for name, kept in masks(trained).items():
        size = weights[f"{name}.weight"].abs()
        assert kept.all() or size[kept].min() >= size[~kept].max()
    densities = [only(grid, name).accounting.density for name in variants]
    assert grid.cells[0].density == float(f"{statistics.fmean(densities):.4g}") != base.density

    first = weights_fingerprint(initial_model(base, toy_images))
    assert {run.weights_fingerprint for run in (lottery, shuffled, trained, random)} == {first}
    assert len({first, found.weights_fingerprint, scratch.weights_fingerprint}) == 3
    assert Path(str(found.config.weights)) == RunFolder.of(search).snapshot(1)
    assert len({run.batches_fingerprint for run in (lottery, found, shuffled, trained, random)}) == 1

    macs = count_macs(expected.apply_to(initial_model(base, toy_images)), toy_images.input_shape)
    assert scratch.history[-1]["step"] == round(2 * min(2.0, macs.dense / macs.kept)) > 2

    names = {cell.method for other in grids_of(find_runs(base.out)) for cell in other.cells}  # as `tost report` finds them
    assert names == {
        "",  # the dense ones
        "splitlbi epoch 1",
        "splitlbi epoch 1, shuffled",
        "splitlbi epoch 1, reinitialised",
        "slimming density of splitlbi epoch 1",
        "random density of splitlbi epoch 1",
        "trained magnitude layers of splitlbi epoch 1",
    }
    record = json.dumps(grid.as_dict())
    assert base.out not in record
    assert Grid.from_dict(json.loads(record)).variants["found"] == {**at, "start": "found", "search": SEARCH}
    assert compare(base, variants, (0,), search=SEARCH).as_dict() == grid.as_dict()
    assert len(began) == 10


def test_searches_at_the_density_of_the_cell(base: Config, began: list[Config]) -> None:
    methods = ("splitlbi", "slimming", "soft-filter")
    grid = compare(base, {"a": "vanilla"}, (0,), methods=methods, densities=(0.8, 0.6), search=SEARCH)
    assert len(began) == (1 + 1 + 2) + 6  # to zero filters softly is to know how many
    for cell in grid.cells:
        found = masks(grid.runs(cell, "a")[0])
        if cell.method == "splitlbi":
            assert found.kept == round(cell.density * found.total)
            continue
        assert cell.density - 0.15 < found.density <= cell.density
        rows = {name: mask.flatten(1).any(1) for name, mask in found.items()}
        assert all((mask.flatten(1).all(1) == rows[name]).all() for name, mask in found.items())
        if cell.method == "slimming":
            state = RunFolder.of(next(c for c in began if c.bn_l1)).load_model()
            scales = torch.cat([state[norm].abs() for norm in NORMS])
            chosen = torch.cat([rows[conv] for conv in NORMS.values()])
            assert scales[chosen].min() >= scales[~chosen].max()
            assert rows["fc"].all()
        else:
            config = next(c for c in began if c.soft_filter and c.density == cell.density)
            state = RunFolder.of(config).load_model()
            for name, mask in found.items():
                assert name == "fc" or torch.equal(state[f"{name}.weight"] != 0, mask)  # the network has them already


NORMS = {
    "bn1.weight": "conv1",
    "layer1.0.bn1.weight": "layer1.0.conv1",
    "layer1.0.bn2.weight": "layer1.0.conv2",
    "layer2.0.bn1.weight": "layer2.0.conv1",
    "layer2.0.bn2.weight": "layer2.0.conv2",
    "layer2.0.shortcut.1.weight": "layer2.0.shortcut.0",
}


class StopAt(Callback):
    def __init__(self, step: int) -> None:
        self.step = step

    def before_step(self, run: Run) -> None:
        run.stop_wanted = run.step == self.step


def test_a_search_that_was_cut_off_goes_on(
    base: Config, began: list[Config], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, variants = training.train, {"a": {"method": "splitlbi", "at": 2, "start": "found"}}
    whole = compare(dataclasses.replace(base, out=str(tmp_path / "whole")), variants, (0,), search=SEARCH)
    monkeypatch.setattr(parallel, "train", lambda config, **options: real(config, callbacks=[StopAt(4)], **options))
    with pytest.raises(Stopped):
        compare(base, variants, (0,), search=SEARCH)
    monkeypatch.setattr(parallel, "train", real)
    grid = compare(base, variants, (0,), search=SEARCH)
    assert len(began) == 2 + 2
    assert only(grid, "a").masks_fingerprint == only(whole, "a").masks_fingerprint
    assert only(grid, "a").test_loss == only(whole, "a").test_loss


def test_a_search_that_kept_no_network_of_an_epoch_is_repeated(base: Config, began: list[Config], toy_images: Dataset) -> None:
    at = {"method": "splitlbi", "start": "found"}
    told: list[str] = []

    def at_epoch(epoch: int) -> Grid:
        return compare(base, {"a": {**at, "at": epoch}}, (0,), search=SEARCH, report=told.append)

    first = at_epoch(1)
    search = RunFolder.of(began[0])
    path = [file.read_bytes() for file in sorted(search.path_points.iterdir())]
    weights = search.snapshot(1).read_bytes()
    last = at_epoch(2)
    assert [line.partition(":")[0] for line in told if "again" in line] == [
        "seed 0  search, splitlbi, again for the network after epoch 2"
    ]
    assert [config.optimizer for config in began] == ["splitlbi", "sgd"] * 2
    assert [file.read_bytes() for file in sorted(search.path_points.iterdir())] == path
    assert search.snapshot(1).read_bytes() == weights  # other comparisons start from it
    assert Path(str(only(last, "a").config.weights)) == search.snapshot(2)
    assert at_epoch(1).as_dict() == first.as_dict()
    assert len(began) == 4


def test_a_search_that_finds_nothing(base: Config, began: list[Config]) -> None:
    wild = {"lr": 1e30, "max_skipped": 0}
    (run,) = compare(base, {"a": "trained-magnitude"}, (0,), search=wild).results.popitem()[1]["a"]  # type: ignore[attr-defined]
    assert isinstance(run, Diverged)
    assert run.reason.startswith("its search diverged: ")
    closed = {**SEARCH, "steps": 3, "split_lbi": {"lam": 1e3}}
    with pytest.raises(ValueError, match=r"density: expected at most 0, .* got 0.3: lower split_lbi.lam"):
        compare(base, {"a": "splitlbi"}, (0,), search=closed)
    with pytest.raises(ValueError, match="at: expected an epoch with weights in the support, got 1, which has none"):
        compare(base, {"a": {"method": "splitlbi", "at": 1}}, (0,), search=closed)
    assert len(began) == 2  # the two that found too little are one


def test_layers_that_are_left_empty_are_told(base: Config, monkeypatch: pytest.MonkeyPatch) -> None:
    found = Masks({"fc": torch.ones(2, 2), "conv": torch.zeros(2, 2)})
    monkeypatch.setattr(searches, "masks_of", lambda search: found)
    with pytest.warns(UserWarning, match=r"the masks of slimming \(seed 0, density 0.5\) leave no weight in conv"):
        place = searches.find_masks(searches.Search("slimming", base, base)).masks
    assert Masks.load(place) == found


LOTTERY = {"method": "splitlbi", "at": 1}


@pytest.mark.parametrize(
    ("variant", "options", "message"),
    [
        ({**LOTTERY, "at": 3}, {}, "a: at: expected an epoch of the search, 1 to 2, got 3"),
        ({**LOTTERY, "at": 0.5}, {}, "a: at: expected a whole number"),
        (
            {"method": "slimming", "at": 1},
            {},
            "a: at: expected it with splitlbi, .* got it with 'slimming'",
        ),
        (
            {"method": "slimming", "density": 0.01},
            {"search": None},
            r"a: density: expected more than 0.01929, the weights of fc, .* got 0.01",
        ),
        ({"method": "snip", "at": 1}, {"search": None}, "a: at: expected it .* masks of splitlbi or .* got .* method 'snip'"),
        ({"method": "splitlbi", "backend": "dense"}, {"search": None}, ""),
        ({**LOTTERY, "backend": "dense"}, {}, "a: at, search: expected it with a sparse network .* got backend 'dense'"),
        ({"method": "force", "rates": "splitlbi"}, {}, "a: method: expected one of trained-magnitude, .* got 'force'"),
        ({"method": "slimming", "rates": "splitlbi"}, {}, "a: method: expected one of trained-magnitude, .* got 'slimming'"),
        ({"method": "splitlbi", "rates": "slimming"}, {}, "a: method: expected one of trained-magnitude, .* got 'splitlbi'"),
        ({"method": "random", "rates": "splitlbi", "start": "found"}, {}, "a: start: expected it with a method that trains"),
        (
            {"method": "random", "rates": "splitlbi", "density": "splitlbi"},
            {},
            "a: rates, density: expected one to",
        ),
        ({"method": "random", "rates": "lth"}, {}, "a: rates: unknown name 'lth'"),
        ({**LOTTERY, "start": "init"}, {}, "a: start: unknown name 'init'; .*expected one of found"),
        (
            {**LOTTERY, "start": "found", "mask_check": "reinitialised"},
            {},
            "a: mask_check: expected no weights drawn",
        ),
        ({**LOTTERY, "start": "found", "recipe": "tost"}, {}, "a: recipe: expected no rescale_init with weights"),
        ({**LOTTERY, "budget": "epochs"}, {}, "a: budget: unknown name 'epochs'"),
        ({**LOTTERY, "split_lbi": {"nu": 3}}, {}, "a: split_lbi: expected it in `search`"),
        ({**LOTTERY, "search": {"seed": 3}}, {}, "a: search: unknown name 'seed'"),
        ({**LOTTERY, "search": {"split_lbi": {"mu": 3}}}, {}, "a: split_lbi: unknown name 'mu'; expected one of kappa"),
        ({**LOTTERY, "search": 3}, {}, "a: search: expected a mapping of fields of the configuration, got 3"),
        ({**LOTTERY, "exclude": ("fc",)}, {}, "a: include, exclude: expected none with splitlbi"),
        ({**LOTTERY, "keep_alive": True}, {}, "a: keep_alive: expected false"),
        ({"method": "slimming", "search": {"optimizer": "splitlbi"}}, {}, "a: optimizer: expected another than splitlbi"),
        (LOTTERY, {"densities": (0.5, 0.3)}, "densities: expected one, as the variant 'a' has its own"),
        ({"rewind": "init", "search": {"lr": 1}}, {"search": None}, "a: search: expected it without rewind"),
        ({**LOTTERY, "rewind": "init"}, {}, "a: at, search: expected it without rewind"),
        ({**LOTTERY, "start": "found", "weights": __file__}, {}, "a: weights: expected none with start"),
        ({**LOTTERY, "search": {"optimizer": "adam"}}, {}, "a: optimizer: expected none in the search of splitlbi"),
        ("trained-magnitude", {}, "search: split_lbi: expected it with masks of splitlbi, which no variant has"),
        ({**LOTTERY, "search": {"bn_l1": 0.1}}, {}, "search: bn_l1: expected it with masks of slimming, which no variant has"),
        ("snip", {}, "search: expected none, as no variant has the masks of splitlbi or slimming"),
    ],
)
def test_wrong_arguments(base: Config, variant: Any, options: dict[str, Any], message: str) -> None:
    if not message:  # a dense run has no masks, whatever its method
        assert plan(base, {"a": variant}, (0,)).runs
        return
    with pytest.raises((ValueError, TypeError), match=message):
        compare(base, {"a": variant}, (0,), **{"search": SEARCH, **options})
    assert not Path(base.out).exists()


def test_weights_that_are_not_there(base: Config) -> None:
    with pytest.raises(FileNotFoundError, match="weights: no such file: absent"):
        compare(base, {"a": {**LOTTERY, "weights": "absent"}}, (0,), search=SEARCH)
    assert not Path(base.out).exists()


def test_the_method_of_the_base_may_be_a_search(base: Config) -> None:
    one = plan(dataclasses.replace(base, method="splitlbi"), {"a": None}, (0,), search=SEARCH)
    assert list(one.runs.values()) == list(plan(base, {"a": None}, (0,), methods=["splitlbi"], search=SEARCH).runs.values())


def test_slimming_needs_batch_norm(base: Config, monkeypatch: pytest.MonkeyPatch) -> None:
    def build(*_: object) -> nn.Module:
        return nn.Sequential(nn.Conv2d(1, 2, 3), nn.Flatten(), nn.Linear(72, 3))

    monkeypatch.setattr(tost.models, "build", build)
    with pytest.raises(ValueError, match="variants: a: bn_l1: expected a network with BatchNorm"):
        compare(base, {"a": "slimming"}, (0,))
    assert not Path(base.out).exists()


def test_what_searches_share_is_for_cells_with_a_search(base: Config) -> None:
    methods = ("splitlbi", "random", "lth")
    planned = plan(base, {"a": None, "b": {"lr": 0.05}}, (0,), methods=methods, search=SEARCH)
    (found,) = {run.search for run in planned.runs.values() if isinstance(run, experiment.Run)} - {None}
    assert found is not None
    assert found.training is not None
    assert found.training.steps == SEARCH["steps"]
    with pytest.raises(ValueError, match="a: search: expected it with a sparse network and masks of"):
        plan(base, {"a": {"search": {"lr": 1}}}, (0,), methods=methods, search=SEARCH)


def test_variants_share_a_search_whatever_their_own_schedule(base: Config) -> None:
    variants = {"a": LOTTERY, "b": {**LOTTERY, "lr": 0.05, "schedule": "cosine"}, "c": {**LOTTERY, "search": {"lr": 0.2}}}
    runs = [run for run in plan(base, variants, (0,), search=SEARCH).runs.values() if isinstance(run, experiment.Run)]
    assert runs[0].search == runs[1].search != runs[2].search
    assert [run.search and run.search.training and run.search.training.lr for run in runs] == [0.1, 0.1, 0.2]
