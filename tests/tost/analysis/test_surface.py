"""The loss surface: directions, the loss at every point against weights set by hand, and going on where it was cut off."""

import copy
import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.tost.analysis.short_runs import short_run, small_world
from tost import Masks, Recipe, Result
from tost.analysis import Surfaces, analyze_surface
from tost.analysis import surface as surface_module
from tost.analysis.networks import active, network_of
from tost.analysis.of_runs import Origin
from tost.analysis.surface import Plane, Surface, directions
from tost.data import Dataset
from tost.ghosts import add_ghosts, set_strength
from tost.models.resnet import ResNet
from tost.preparation import plain_form
from tost_kernels.nn.surgery import duplicate


def network(seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    net = ResNet((1, 1), (4, 8), in_channels=1)
    net(torch.randn(8, 1, 8, 8))  # statistics to normalise with
    return net.eval()


def masks_of(net: nn.Module) -> Masks:
    random = torch.Generator().manual_seed(1)
    layers = {name: m for name, m in net.named_modules() if isinstance(m, nn.Conv2d | nn.Linear)}
    masks = {name: torch.rand(layer.weight.shape, generator=random) < 0.3 for name, layer in layers.items()}
    masks["conv1"][2] = False
    return Masks(masks)


def test_directions_are_masked_and_as_long_as_the_filters() -> None:
    net = network()
    masks = masks_of(net)
    masked = masks.apply_to(net)
    first, second = (directions(masked, masks, 7, number) for number in (0, 1))
    assert list(first) == [f"{name}.weight" for name in masks]
    for name, (parameter, mask) in active(masked, masks).items():
        assert not first[name][~mask].any()
        torch.testing.assert_close(first[name].flatten(1).norm(dim=1), (parameter.detach() * mask).flatten(1).norm(dim=1))
        assert first[name].equal(directions(masked, masks, 7, 0)[name])
        assert not first[name].equal(second[name])
        assert not first[name].equal(directions(masked, masks, 8, 0)[name])
    assert not first["conv1.weight"][2].any()

    # another network with the same masks goes the same way, filter by filter
    other = directions(masks.apply_to(network(1)), masks, 7, 0)
    for name in first:
        cosines = F.cosine_similarity(first[name].flatten(1), other[name].flatten(1))
        torch.testing.assert_close(
            cosines[first[name].flatten(1).any(1)], torch.ones(()).expand(int(first[name].flatten(1).any(1).sum()))
        )


def form_of(kind: str) -> tuple[nn.Module, Masks | None]:
    net = network()
    masks = masks_of(net)
    if kind == "dense":
        return net, None
    if kind == "masked":
        return masks.apply_to(masks.apply_to(net, form="zeros")), masks
    net = add_ghosts(masks.apply_to(masks.apply_to(net, form="zeros")), Recipe())
    set_strength(net, 0.5, 2.0)
    return net, masks


@pytest.mark.parametrize("kind", ["dense", "masked", "ghosts alive"])
def test_losses_are_those_of_weights_set_by_hand(kind: str) -> None:
    net, masks = form_of(kind)
    before = copy.deepcopy(net.state_dict())
    images, targets = torch.randn(6, 1, 8, 8), torch.arange(6) % 10
    plane = Plane(net, masks, seed=3)
    places = [(0.0, 0.0), (0.25, -0.5), (-0.125, 0.0), (0.0, 0.0)]
    found = list(plane.losses(places, [(images[:4], targets[:4]), (images[4:], targets[4:])]))
    first, second = (directions(net, masks, 3, number) for number in (0, 1))
    for (x, y), loss in zip(places, found, strict=True):
        by_hand = plain_form(duplicate(net), masks)
        with torch.no_grad():
            for name, way in first.items():
                by_hand.get_parameter(name).add_(x * way + y * second[name])
            assert loss == pytest.approx(float(F.cross_entropy(by_hand(images), targets)), rel=1e-4)
    assert found[0] == found[3]
    assert all(value.equal(before[name]) for name, value in net.state_dict().items())
    assert len(set(found)) == 3


def test_a_loss_that_overflows_is_infinite() -> None:
    net = nn.Sequential(nn.Flatten(), nn.Linear(4, 2))
    nn.init.constant_(net[1].weight, 1e38)  # type: ignore[arg-type]
    found = list(Plane(net, None, 0).losses([(0.0, 0.0), (3e38, 1.0)], [(torch.full((1, 1, 2, 2), 8.0), torch.tensor([0]))]))
    assert found == [math.inf, math.inf]


ORIGIN = Origin("tost", 0, "abc", 5, "training")


def test_numbers_of_a_bowl() -> None:
    steps = tuple(i / 4 for i in range(-4, 5))
    bowl = Surface(ORIGIN, tuple(tuple(1 + x * x + y * y for x in steps) for y in steps))
    assert bowl.centre == 1.0
    assert bowl.rise(steps, 0.25) == pytest.approx((4 * 0.0625 + 4 * 0.125) / 8)
    assert bowl.rise(steps, 0.2) is None  # it would be that of the centre
    # within 0.125 of 0.5: (0.5, 0) and (0.25, 0.5) in all their mirror images, 4 and 8 points
    assert bowl.rise(steps, 0.5) == pytest.approx((4 * 0.25 + 8 * 0.3125) / 12)
    assert bowl.share_below(1.0) == 1 / 81
    assert bowl.share_below(1.25) == 13 / 81


def test_records_hold_what_is_not_finite() -> None:
    found = Surfaces("title", "test", 3, 10, 0, (-1.0, 0.0, 1.0), (Surface(ORIGIN, ((1.0, math.inf, 2.0),) * 3),))
    text = json.dumps(found.as_dict(), allow_nan=False)
    assert Surfaces.from_dict(json.loads(text)) == found


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory, toy_images: Dataset) -> Iterator[Result]:
    with small_world(toy_images):
        yield short_run(tmp_path_factory.mktemp("runs"), "tost")


def test_what_was_cut_off_goes_on(run: Result, toy_images: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows: list[int] = []
    measured = Plane.losses

    def counted(self: Plane, places: Any, batches: Any) -> Iterator[float]:
        rows.append(len(places))
        return measured(self, places, batches)

    monkeypatch.setattr(Plane, "losses", counted)
    options: dict[str, Any] = {"points": 3, "images": 10, "part": "test"}
    whole = analyze_surface([run], (1, 4), folder=tmp_path / "whole", **options)
    assert rows == [3] * 6
    assert [(one.origin.epoch, one.origin.form) for one in whole.surfaces] == [(1, "training"), (4, "finalized")]
    assert whole.steps == (-1.0, 0.0, 1.0)

    def stop(done: int) -> None:
        if done == 4:
            raise KeyboardInterrupt

    rows.clear()
    with pytest.raises(KeyboardInterrupt):
        analyze_surface([run], (1, 4), folder=tmp_path / "rows", progress=stop, **options)
    assert len(rows) == 4
    assert analyze_surface([run], (1, 4), folder=tmp_path / "rows", **options) == whole
    assert len(rows) == 6
    done: list[int] = []
    assert analyze_surface([run], (1, 4), folder=tmp_path / "rows", progress=done.append, **options) == whole
    assert (len(rows), done[-1]) == (6, 6)

    for file in (tmp_path / "rows").iterdir():
        file.write_text(file.read_text()[:20])
    assert analyze_surface([run], (1,), folder=tmp_path / "rows", **options).surfaces == whole.surfaces[:1]
    assert len(rows) == 9
    assert analyze_surface([run], (1,), folder=tmp_path / "rows", overwrite=True, **options).surfaces == whole.surfaces[:1]
    assert len(rows) == 12
    # other directions, other form: other rows
    analyze_surface([run], (1,), folder=tmp_path / "rows", seed=1, **options)
    analyze_surface([run], (1,), folder=tmp_path / "rows", form="finalized", **options)
    assert len(rows) == 18


def test_the_centre_is_the_network(run: Result, toy_images: Dataset, tmp_path: Path) -> None:
    found = analyze_surface([run], folder=tmp_path / "s", points=3, images=20, part="test")
    assert found.surfaces[0].centre == pytest.approx(run.test_loss, rel=1e-4)
    trained = analyze_surface([run], folder=tmp_path / "s", points=3, images=48)
    inputs, targets = toy_images.normalised(toy_images.train.pixels), toy_images.train.targets  # type: ignore[attr-defined]
    with torch.no_grad():
        logits: Tensor = network_of(run.run_dir).net(inputs)
    assert trained.surfaces[0].centre == pytest.approx(float(F.cross_entropy(logits, targets)), rel=1e-4)
    assert (trained.part, trained.images, trained.classes) == ("train", 48, 3)


ERRORS: list[tuple[dict[str, Any], str]] = [
    ({"points": 4}, "points: expected an odd number"),
    ({"points": 1}, "points: expected a whole number of at least 3"),
    ({"images": 0}, "images: expected a whole number of at least 1"),
    ({"images": 49}, r"images: expected at most 48 \(the train images of toy\), got 49"),
    ({"part": "tset"}, "part: unknown name 'tset'; did you mean test"),
    ({"form": "both"}, "form: unknown name 'both'"),
    ({"seed": -1}, "seed: expected a whole number of at least 0"),
]


def test_errors(run: Result, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(surface_module, "Plane", None)  # before any measurement
    for options, message in ERRORS:
        with pytest.raises(ValueError, match=message):
            analyze_surface([run], folder=tmp_path / "s", **options)
