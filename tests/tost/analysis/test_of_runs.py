"""Which networks an analysis of runs looks at, and what they are called."""

import dataclasses
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.tost.analysis.short_runs import short_run, small_world
from tost import Config, Recipe
from tost.analysis.of_runs import kept_epochs, labels, networks
from tost.data import Dataset


@pytest.fixture(autouse=True)
def small(toy_images: Dataset) -> Iterator[None]:
    with small_world(toy_images):
        yield


VANILLA, TOST = Config(recipe=Recipe.vanilla()), Config()


@pytest.mark.parametrize(
    ("configs", "title", "variants"),
    [
        ((VANILLA, TOST), "resnet20 on mnist5k, erk mask, 95% sparse", ("vanilla", "tost")),
        (
            (TOST, dataclasses.replace(TOST, density=0.02)),
            "resnet20 on mnist5k",
            ("tost, erk mask, 95% sparse", "tost, erk mask, 98% sparse"),
        ),
        (
            (VANILLA, dataclasses.replace(VANILLA, backend="dense")),
            "resnet20 on mnist5k",
            ("vanilla, erk mask, 95% sparse", "vanilla, dense"),
        ),
        ((TOST, dataclasses.replace(TOST, model="vgg19")), "mnist5k, erk mask, 95% sparse", ("tost, resnet20", "tost, vgg19")),
        ((TOST, dataclasses.replace(TOST, seed=1)), "resnet20 on mnist5k, erk mask, 95% sparse", ("tost", "tost")),
        (
            (TOST, dataclasses.replace(TOST, lr=0.3)),
            "resnet20 on mnist5k, erk mask, 95% sparse",
            (f"tost ({TOST.hash})", f"tost ({dataclasses.replace(TOST, lr=0.3).hash})"),
        ),
    ],
)
def test_labels_say_what_differs(configs: tuple[Config, ...], title: str, variants: tuple[str, ...]) -> None:
    assert labels(configs) == (title, variants)


def test_both_forms_where_ghosts_live(tmp_path: Path) -> None:
    runs = [short_run(tmp_path, "vanilla"), short_run(tmp_path, "tost")]
    assert kept_epochs(runs) == (0, 1, 4)
    done: list[int] = []
    found = [origin for origin, _ in networks(runs, (0, 4), progress=done.append)]
    assert [(origin.variant.split()[0], origin.epoch, origin.form) for origin in found] == [
        ("vanilla", 0, "finalized"),
        ("vanilla", 4, "finalized"),
        ("tost", 0, "training"),
        ("tost", 0, "finalized"),
        ("tost", 4, "finalized"),
    ]
    assert done == [1, 2, 3, 4]
    assert [origin.form for origin, _ in networks(runs, (0,), ("training",))] == ["finalized", "training"]
    assert [origin.epoch for origin, _ in networks(runs)] == [4, 4]
    assert {origin.run for origin in found} == {run.config.hash for run in runs}


def test_permanent_ghosts_are_in_the_only_form(tmp_path: Path) -> None:
    run = short_run(tmp_path, "mish")
    found = list(networks([run], (1, 4)))
    assert [(origin.epoch, origin.form) for origin, _ in found] == [(1, "finalized"), (4, "finalized")]
    assert all(snapshot.has_live_ghosts for _, snapshot in found)


def test_what_is_missing_is_said_before_anything_is_loaded(tmp_path: Path) -> None:
    run = short_run(tmp_path, "vanilla")
    with pytest.raises(FileNotFoundError, match=r"epochs: no network after epoch 2 in .*, which has those after 0, 1, 4; repeat"):
        networks([run], (0, 2))
    for epoch in (-1, 5):
        with pytest.raises(ValueError, match=rf"epochs: expected 0 to 4 \(the training of .*\), got {epoch}"):
            networks([run], (0, epoch))
    for epochs in ((), (1, 1)):
        with pytest.raises(ValueError, match="epochs: expected at least one and each once"):
            networks([run], epochs)
    other = dataclasses.replace(run, config=dataclasses.replace(run.config, dataset="cifar10"))
    with pytest.raises(ValueError, match=r"runs: expected runs on one data set, .* got cifar10, mnist5k"):
        networks([run, other])
    with pytest.raises(ValueError, match="runs: expected at least one"):
        networks([], None)
