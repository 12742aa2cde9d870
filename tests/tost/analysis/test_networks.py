"""The network of a run at an epoch computes what the network in training computed then, whatever trained it."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import tost
import tost_kernels as tk
from tost import Config, Recipe, lottery, train, training
from tost.analysis import networks
from tost.analysis.networks import active, network_of
from tost.callbacks import Callback, Run
from tost.data import Dataset
from tost.ghosts import as_finalized, ghosts_of
from tost.models.resnet import ResNet
from tost.runs import RunFolder

GHOSTS = Recipe(rescale_init=False)
EPOCHS = (0, 1, 3)  # before the first step; while the ghosts live; behind the last step


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch, toy_images: Dataset) -> None:
    """Every run of this file is on the toy images and a network of two blocks: 3 steps an epoch."""
    for module in (training, networks, tost.tickets):
        monkeypatch.setattr(module, "load", lambda name, folder: toy_images)
    monkeypatch.setattr(tost.models, "build", lambda *args: ResNet((1, 1), (4, 8), args[1], args[2]))


@pytest.fixture
def config(tmp_path: Path) -> Callable[..., Config]:
    def make(**changes: Any) -> Config:
        values = {"steps": 8, "batch_size": 16, "density": 0.3, "recipe": GHOSTS, "out": str(tmp_path / "runs"), **changes}
        return Config(**values)

    return make


def logits(net: nn.Module, images: Dataset) -> Tensor:
    was_training = net.training
    with torch.no_grad():
        found: Tensor = net.eval()(images.normalised(images.test.pixels))
    net.train(was_training)
    return found


class Watch(Callback):
    """What the network in training computes after each epoch, in both forms, and how strong its ghosts are."""

    def __init__(self, images: Dataset) -> None:
        self.images = images
        self.seen: dict[tuple[int, str], Tensor] = {}
        self.strengths: dict[int, list[tuple[float, float]]] = {}

    def on_start(self, run: Run) -> None:
        self.on_epoch_end(run)

    def on_epoch_end(self, run: Run) -> None:
        self.seen[run.epoch, "training"] = logits(run.net, self.images)
        self.strengths[run.epoch] = [ghost.strength() for ghost in ghosts_of(run.net).values()]
        with as_finalized(run.net):
            self.seen[run.epoch, "finalized"] = logits(run.net, self.images)


SETTINGS: dict[str, dict[str, Any]] = {
    "ghosts": {},
    "vanilla": {"recipe": Recipe.vanilla()},
    "permanent": {"recipe": Recipe(permanent=True, rescale_init=False)},
    "mish": {"recipe": Recipe(permanent=True, ghost_skip=False, swish="mish", rescale_init=False)},
    "masked-dense, one layer without a mask": {"backend": "masked-dense", "exclude": ("fc",)},
    "dense": {"backend": "dense"},
    "average": {"ema": 0.5},
}


@pytest.mark.parametrize("name", SETTINGS)
def test_it_computes_what_training_computed(
    name: str, config: Callable[..., Config], toy_images: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings, watch = config(**SETTINGS[name]), Watch(toy_images)
    result = train(settings, snapshots=EPOCHS, callbacks=[watch])
    recipe, faded = settings.recipe, settings.recipe.has_ghosts and not settings.recipe.permanent
    for epoch in EPOCHS:
        for form in ("training", "finalized"):
            found = network_of(result.run_dir, epoch, form)
            torch.testing.assert_close(logits(found.net, toy_images), watch.seen[epoch, form], rtol=1e-4, atol=1e-5)
            assert (found.epoch, found.step, found.form) == (epoch, min(3 * epoch, 8), form)
            assert not found.net.training
            assert not any(isinstance(module, tk.nn.SparseConv2d | tk.nn.SparseLinear) for module in found.net.modules())
            assert (found.masks is None) == (settings.backend == "dense")
            if recipe.has_ghosts and (recipe.permanent or form == "training"):
                assert [ghost.strength() for ghost in ghosts_of(found.net).values()] == watch.strengths[epoch]
            assert found.has_live_ghosts == (recipe.has_ghosts and (recipe.permanent or (form == "training" and epoch < 3)))
    early = [watch.seen[1, form] for form in ("training", "finalized")]
    assert torch.equal(*early) == (not faded)  # the two forms are two networks while the ghosts live
    last = network_of(RunFolder(result.run_dir))
    assert (last.epoch, last.step) == (3, 8)
    assert training.evaluate(last.net, toy_images, 128)[1] == pytest.approx(result.test_loss, rel=1e-5)
    assert last.has_live_ghosts == recipe.permanent


def test_rounds_of_a_lottery(config: Callable[..., Config], toy_images: Dataset) -> None:
    watches = {number: Watch(toy_images) for number in range(3)}
    found = lottery(config(density=0.5), rate=0.3, rewind="1ep", callbacks=lambda number: [watches[number]])
    for one in found.rounds:
        last = network_of(one.result.run_dir)
        assert (last.masks is None) == (one.number == 0)
        torch.testing.assert_close(logits(last.net, toy_images), watches[one.number].seen[3, "finalized"], rtol=1e-4, atol=1e-5)


def test_the_ghosts_of_a_snapshot_are_as_strong_as_the_schedule_says(config: Callable[..., Config]) -> None:
    settings = config()
    result = train(settings, snapshots=[1])
    net = network_of(result.run_dir, 1, "training").net
    # the last step done was number 2, and the fade of 8 steps ends at the first drop of the learning rate, step 4
    expected = tost.ghosts.strength_at(settings.recipe, 2, 0, 4)
    assert max(ghost.strength() for ghost in ghosts_of(net).values()) == pytest.approx(expected)


@pytest.mark.parametrize("name", ["ghosts", "permanent", "dense"])
def test_it_can_be_differentiated_twice(name: str, config: Callable[..., Config], toy_images: Dataset) -> None:
    result = train(config(**SETTINGS[name]), snapshots=[1])
    found = network_of(result.run_dir, 1, "training")
    weights = [parameter for parameter, _ in active(found.net, found.masks).values()]
    images, targets = toy_images.normalised(toy_images.test.pixels), toy_images.test.targets
    with tk.use_backend("reference"):
        loss = nn.functional.cross_entropy(found.net(images), targets)
        slopes = torch.autograd.grad(loss, weights, create_graph=True)
        curved = torch.autograd.grad(sum(slope.square().sum() for slope in slopes), weights)
    assert all(bool(value.isfinite().all()) and bool(value.any()) for value in curved)


def test_a_data_set_that_has_moved(config: Callable[..., Config], toy_images: Dataset, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []
    result = train(config(data_dir="old"))
    monkeypatch.setattr(networks, "load", lambda name, folder: asked.append(folder) or toy_images)
    network_of(result.run_dir)
    network_of(result.run_dir, data_dir="new")
    assert asked == ["old", "new"]


def test_active_weights(config: Callable[..., Config]) -> None:
    result = train(config(exclude=["fc"]), snapshots=[1])
    for form in ("training", "finalized"):
        found = network_of(result.run_dir, 1, form)
        assert found.masks is not None
        weights = active(found.net, found.masks)
        plain = ResNet((1, 1), (4, 8), 3, 1).state_dict()
        assert list(weights) == [name for name, value in plain.items() if value.dim() > 1]
        for name, (parameter, mask) in weights.items():
            layer = name.removesuffix(".weight")
            assert mask.equal(found.masks[layer]) if layer in found.masks else bool(mask.all())
            assert parameter.is_leaf
            assert parameter.requires_grad
            assert not parameter[~mask].any()
            assert parameter.any()


def test_errors(config: Callable[..., Config], tmp_path: Path, toy_images: Dataset, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(FileNotFoundError, match=r"run: expected the folder of a run, got .* without config\.json"):
        network_of(tmp_path)
    result = train(config(), snapshots=[1])
    with pytest.raises(FileNotFoundError, match="repeat the run with --snapshots 2"):
        network_of(result.run_dir, 2)
    with pytest.raises(ValueError, match="form: unknown name 'plain'"):
        network_of(result.run_dir, form="plain")
    monkeypatch.setattr(tost.models, "build", lambda *args: ResNet((1, 1), (4, 4), args[1], args[2]))
    with pytest.raises(ValueError, match=r"run: the network in .* does not fit resnet20 for toy: .*size mismatch"):
        network_of(result.run_dir)
    (result.run_dir / "config.json").write_text("{}x")
    with pytest.raises(ValueError, match=r"config\.json"):
        network_of(result.run_dir)
