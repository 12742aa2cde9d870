"""Tables and pictures of made-up surfaces, activations, gradients and PSwish curves."""

import dataclasses
import math
from pathlib import Path

import pytest

from tost import Config, Recipe
from tost.analysis import Activations, GradientFlow, Surfaces, analyze_pswish
from tost.analysis.activations import LayerActivations, NetworkActivations
from tost.analysis.gradient_flow import GradientNorms, NetworkGradients
from tost.analysis.of_runs import Origin
from tost.analysis.surface import Surface
from tost.report import KINDS, Record, pictures_of, sheets_of
from tost.report.networks import epoch_name

STEPS = tuple(i / 4 for i in range(-4, 5))


def origin(variant: str, seed: int, epoch: int, form: str = "finalized") -> Origin:
    return Origin(variant, seed, "abc", epoch, form)


def bowl(start: float, slope: float) -> tuple[tuple[float, ...], ...]:
    return tuple(tuple(start + slope * (x * x + y * y) if x < 0.9 else math.inf for x in STEPS) for y in STEPS)


def surfaces() -> Surfaces:
    found = tuple(
        Surface(origin(variant, seed, epoch, "training" if (variant, epoch) == ("tost", 5) else "finalized"), bowl(level, 2.0))
        for variant in ("vanilla", "tost")
        for seed in (0, 1)
        for epoch, level in ((5, 1.0 + seed), (30, 0.5))
    )
    return Surfaces("a network", "test", 100, 10, 0, STEPS, found)


def activations() -> Activations:
    def layers(near_zero: int, function: str) -> tuple[LayerActivations, ...]:
        return LayerActivations("conv", function, near_zero, 100), LayerActivations("fc", function, 1, 10)

    networks = (
        NetworkActivations(origin("vanilla", 0, 30), layers(50, "relu")),
        NetworkActivations(origin("vanilla", 1, 30), layers(70, "relu")),
        NetworkActivations(origin("tost", 0, 5, "training"), layers(2, "pswish")),
    )
    return Activations("a network", 0.01, 1000, networks)


def gradients() -> GradientFlow:
    def norms(total: float) -> GradientNorms:
        return GradientNorms(total, {"conv.weight": 0.0, "fc.weight": total})

    networks = (
        *(NetworkGradients(origin("vanilla", seed, epoch), norms(1.0 + seed)) for seed in (0, 1) for epoch in (0, 5)),
        NetworkGradients(origin("tost", 0, 0, "training"), norms(4.0)),
        NetworkGradients(origin("tost", 0, 5), norms(math.inf)),
    )
    return GradientFlow("a network", 10, 0, networks)


RECORDS: list[Record] = [
    surfaces(),
    activations(),
    gradients(),
    analyze_pswish(Config(), (1, math.inf)),
    analyze_pswish(Config(recipe=Recipe.vanilla()), (2,)),
    analyze_pswish(Config(recipe=Recipe(permanent=True, ghost_skip=False))),
]


@pytest.mark.parametrize("record", RECORDS, ids=lambda record: record.kind)
def test_every_record_is_drawn_from_what_is_read_back(record: Record, tmp_path: Path) -> None:
    again = KINDS[record.kind].read(record.as_dict())
    assert again == record
    (draw,) = pictures_of(again).values()
    draw(tmp_path / "p.png")
    assert (tmp_path / "p.png").read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"
    for sheet in sheets_of(again):
        assert sheet.markdown()
        assert sheet.latex()
        assert sheet.csv()


def test_the_name_of_an_epoch() -> None:
    assert epoch_name(origin("tost", 0, 0)) == "initialisation"
    assert epoch_name(origin("tost", 0, 5, "training")) == "epoch 5, ghosts alive"


def test_a_row_of_the_surfaces_is_all_seeds() -> None:
    (sheet,) = sheets_of(surfaces())
    assert [row[:3] for row in sheet.cells] == [
        ("vanilla", "epoch 5", "1.500 ± 0.707"),
        ("vanilla", "epoch 30", "0.500 ± 0.000"),
        ("tost", "epoch 5, ghosts alive", "1.500 ± 0.707"),
        ("tost", "epoch 30", "0.500 ± 0.000"),
    ]
    # rings around 0.25 and 0.5: (1/4, 0) and (1/4, 1/4); (1/2, 0) and (1/4, 1/2)
    rises = [cell.partition(" ± ")[0] for cell in sheet.cells[0][3:6]]
    assert rises == ["", f"{2 * (4 / 16 + 4 / 8) / 8:.3g}", f"{2 * (4 * 0.25 + 8 * 0.3125) / 12:.3g}"]
    # a rise of at most 1 is x^2 + y^2 <= 1/2: a 5 x 5 square but for nothing, and (3/4, 0)
    within = sum(x * x + y * y <= 0.5 for x in STEPS for y in STEPS)
    assert sheet.cells[0][6] == f"{100 * within / 81:.1f} ± 0.0"
    assert "ln 10 = 2.303" in sheet.note


def test_a_network_that_overflows_is_infinite() -> None:
    lost = tuple(Surface(origin("vanilla", seed, 5), ((math.inf,) * 9,) * 9) for seed in (0, 1))
    (sheet,) = sheets_of(dataclasses.replace(surfaces(), surfaces=lost))
    assert sheet.cells == (("vanilla", "epoch 5", "inf", "", "inf", "inf", "0.0 ± 0.0", "0.0 ± 0.0"),)


def test_activations_by_network_and_by_layer() -> None:
    networks, layers = sheets_of(activations())
    assert networks.cells == (
        ("vanilla", "epoch 30", "relu", "35.00 ± 7.07", "55.45 ± 12.86"),
        ("tost", "epoch 5, ghosts alive", "pswish", "6.00", "2.73"),
    )
    assert layers.header == ("layer", "vanilla, epoch 30, %", "tost, epoch 5, ghosts alive, %")
    assert layers.cells == (("conv", "60.00 ± 14.14", "2.00"), ("fc", "10.00 ± 0.00", "10.00"))


def test_gradients_name_the_weakest_layer() -> None:
    (sheet,) = sheets_of(gradients())
    assert sheet.cells[0] == ("vanilla", "initialisation", "1.5 ± 0.71", "1.5 ± 0.71", "conv", "0")
    assert sheet.cells[3][2] == "inf"


def test_pswish_is_as_far_from_relu_as_the_formula_says() -> None:
    (sheet,) = sheets_of(analyze_pswish(Config(), (1, 4, math.inf)))
    assert sheet.cells[0] == ("1", "0.2785", "-0.2785", "-1.28", "1.100")
    assert sheet.cells[1][:3] == ("4", f"{0.27846 / 4:.4f}", f"{-0.27846 / 4:.4f}")
    assert sheet.cells[2] == ("inf (ReLU)", "0.0000", "0.0000", "", "1.000")
