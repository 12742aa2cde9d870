"""Tables of made-up analyses."""

from pathlib import Path

from tost import Config
from tost.analysis import Iterations, IterationsPoint, Layers, Recovery, Saliencies, Saliency, SaliencyPoint, Setting
from tost.analysis.recovery import RecoveryStep
from tost.masks import LayerCount
from tost.report import (
    iterations_sheet,
    layers_sheet,
    recovery_sheet,
    saliency_sheet,
    save_iterations_figure,
)
from tost.report.analyses import setting_title

SETTING = Setting(Config(density=0.02), (0, 1))


def png(path: Path) -> bool:
    return path.read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"


def test_title() -> None:
    assert setting_title(SETTING) == "resnet20 on mnist5k, 98% sparse, 2 seeds"
    assert setting_title(Setting(Config(density=0.005), (7,))) == "resnet20 on mnist5k, 99.5% sparse, seed 7"


def test_iterations_are_means_over_the_seeds(tmp_path: Path) -> None:
    points = tuple(
        IterationsPoint("force", steps, seed, saliency, 0.5 * steps, accuracy)
        for steps, seed, saliency, accuracy in ((1, 0, 2.0, 0.5), (1, 1, 0.0, 0.7), (5, 0, 4.0, 0.9), (5, 1, 6.0, 0.9))
    )
    found = Iterations(SETTING, 3, {"processor": "abacus", "threads": 2, "torch": "2.13"}, points)
    sheet = iterations_sheet(found)
    assert sheet.cells == (
        ("force", "1", "1 ± 1.4", "60.00 ± 14.14", "0.50"),
        ("force", "5", "5 ± 1.4", "90.00 ± 0.00", "2.50"),
    )
    assert "2 threads of abacus, torch 2.13" in sheet.note
    save_iterations_figure(found, tmp_path / "i.png")  # a saliency of 0 has no ratio, and is left out
    assert png(tmp_path / "i.png")


def test_saliencies_are_those_of_the_last_point() -> None:
    points = tuple(
        SaliencyPoint("snip", seed, density, Saliency(10.0 * density, pruning))
        for seed in (0, 1)
        for density, pruning in ((0.5, 4.0), (0.1, 0.25 + 0.5 * seed))
    )
    found = Saliencies(SETTING, 3, points)
    assert saliency_sheet(found).cells == (("snip", "0.5 ± 0.35", "1 ± 0", "0.500"),)


def test_recovery_sums_over_the_steps() -> None:
    steps = [RecoveryStep("force", seed, n, 10 - n, 2 + 2 * seed, n - 1) for seed in (0, 1) for n in (1, 2, 3)]
    steps += [RecoveryStep("iter_snip", seed, n, 10 - n, 1, 0) for seed in (0, 1) for n in (1, 2, 3)]
    found = Recovery(SETTING, tuple(steps))
    assert recovery_sheet(found).cells == (("force", "3", "9", "3", "2 at step 3"), ("iter_snip", "3", "3", "0", "none"))


def test_layers_are_means_over_the_seeds() -> None:
    seeds = tuple((LayerCount("fc", (2, 3), kept, 6),) for kept in (1, 4))
    sheet = layers_sheet(Layers(SETTING, {"snip": seeds}))
    assert sheet.header == ("layer", "shape", "weights", "snip")
    assert sheet.cells == (("fc", "2x3", "6", "2"), ("all", "", "6", "2"))
