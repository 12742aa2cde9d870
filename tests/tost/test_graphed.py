"""Recorded steps are the steps of an ordinary update. Without a GPU they are recorded on a tape (tape.py), which freezes what a
CUDA graph freezes."""

import importlib.util
import math
import random
import warnings
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import tost
import tost_kernels as tk
from tost import Config, Recipe, training
from tost.callbacks import Callback, Run, Stopped
from tost.data import Dataset
from tost.ghosts import add_ghosts, ghost_parameters, set_strength
from tost.graphed import CudaGraphs, GraphedUpdate, Recorder, update_of, why_not_graphed
from tost.models.resnet import ResNet
from tost.update import Update, load_optimizer, optimizer_of, set_learning_rate

_spec = importlib.util.spec_from_file_location("tape", Path(__file__).parent / "tape.py")
assert _spec is not None
assert _spec.loader is not None
tape = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(tape)

CPU = torch.device("cpu")
# the tape is the stand-in on the CPU; on a GPU the same tests record CUDA graphs
DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)]


def loss_of(outputs: Tensor, inputs: Tensor, targets: Tensor) -> Tensor:
    return F.cross_entropy(outputs, targets, label_smoothing=0.1)


class Dropping(ResNet):
    """Draws random numbers on its device in each step."""

    def __init__(self, classes: int, channels: int) -> None:
        super().__init__((1, 1), (4, 8), classes, channels)
        self.flatten = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Dropout(0.5))


def network(recipe: Recipe | None = None, sparse: bool = True) -> nn.Module:
    torch.manual_seed(1)
    net: nn.Module = Dropping(3, 1)
    if sparse:
        convolutions = [name for name, m in net.named_modules() if isinstance(m, nn.Conv2d) and m.in_channels > 1]
        net = tk.sparsify(net, {name: torch.rand_like(net.get_submodule(name).weight) < 0.4 for name in convolutions})
    return net if recipe is None else add_ghosts(net, recipe, inplace=True)


def batches(count: int, size: int = 8) -> Iterator[tuple[Tensor, Tensor]]:
    numbers = torch.Generator().manual_seed(2)
    for _ in range(count):
        yield torch.randn(size, 1, 8, 8, generator=numbers), torch.randint(0, 3, (size,), generator=numbers)


def recorder_of(device: torch.device) -> Recorder:
    recorder: Recorder = CudaGraphs(device) if device.type == "cuda" else tape.Tape()
    return recorder


def optimizer_with_tensors(config: Config, net: nn.Module) -> torch.optim.Optimizer:
    """As on a CUDA device."""
    optimizer = optimizer_of(config, net)
    for group in optimizer.param_groups:
        group["lr"] = torch.as_tensor(group["lr"])
    return optimizer


def update_for(net: nn.Module, graphed: bool, device: str = "cpu", loss: Any = loss_of, **changes: Any) -> Update:
    config = Config(**{"batch_size": 8, "lr": 0.1, "recipe": "vanilla", **changes})
    here = torch.device(device, 0) if device == "cuda" else CPU
    net.to(here).train()
    torch.manual_seed(3)
    args = (config, net, optimizer_with_tensors(config, net), loss, tk.to_batch_last, here)
    return GraphedUpdate(*args, recorder_of(here)) if graphed else Update(*args)


def everything(update: Update) -> dict[str, Tensor]:
    state = {name: value.detach().clone() for name, value in update.net.state_dict().items()}
    names = {p: name for name, p in update.net.named_parameters()}
    for parameter, moments in update.optimizer.state.items():
        state |= {f"{names[parameter]}: {key}": value.clone() for key, value in moments.items() if isinstance(value, Tensor)}
    return state


def assert_equal(one: dict[str, Tensor], other: dict[str, Tensor]) -> None:
    assert one.keys() == other.keys()
    assert [name for name in one if not torch.equal(one[name], other[name])] == []


def run(update: Update, steps: int = 8, fade: bool = False) -> list[float]:
    """Steps with a moving learning rate, a batch without a number amid them and, with `fade`, ghosts that die."""
    losses = []
    for step, (inputs, targets) in enumerate(batches(steps)):
        set_learning_rate(update.optimizer, 0.1 / (step + 1))
        if fade and step < 5:
            set_strength(update.net, 1.0 - step / 5, 1.0 + step)
        elif fade and step == 5:
            set_strength(update.net, 0.0, math.inf)
            dead = set(ghost_parameters(update.net))
            for group in update.optimizer.param_groups:
                group["params"] = [p for p in group["params"] if p not in dead]
            for parameter in dead:
                update.optimizer.state.pop(parameter, None)
                parameter.grad = None
                parameter.requires_grad_(False)
            update.rewrap()
        if step == 3:
            inputs[5] = math.nan
        loss, stop = update(inputs, targets)
        losses.append(loss)
        assert not stop
    return losses


SETTINGS: dict[str, dict[str, Any]] = {
    "sgd": {},
    "nesterov": {"nesterov": True},
    "without momentum": {"momentum": 0.0},
    "clipped": {"clip_norm": 0.5},
    "parts": {"accumulate": 2},
    "adam": {"optimizer": "adam", "lr": 0.01},
    "adamw, bf16": {"optimizer": "adamw", "lr": 0.01, "amp": "bf16", "clip_norm": 1.0, "accumulate": 2},
}


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("name", SETTINGS)
def test_recorded_steps_are_the_steps_of_an_update(name: str, device: str) -> None:
    losses, states = [], []
    for graphed in (False, True):
        update = update_for(network(), graphed, device, **SETTINGS[name])
        losses.append(run(update))
        states.append(everything(update))
        if graphed:
            assert isinstance(update, GraphedUpdate)
            assert (update.why_not, update.recordings) == (None, 1)
    assert [str(loss) for loss in losses[0]] == [str(loss) for loss in losses[1]]
    assert [math.isfinite(loss) for loss in losses[0]] == [step != 3 for step in range(8)]
    assert_equal(*states)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize(("recipe", "recordings"), [(Recipe(rescale_init=False), 2), (Recipe(permanent=True), 1)])
def test_ghosts_move_while_they_live_and_their_end_is_recorded_anew(recipe: Recipe, recordings: int, device: str) -> None:
    losses, states = [], []
    for graphed in (False, True):
        update = update_for(network(recipe), graphed, device, recipe=recipe, clip_norm=2.0)
        losses.append(run(update, fade=not recipe.permanent))
        states.append(everything(update))
    assert isinstance(update, GraphedUpdate)
    assert (update.why_not, update.recordings) == (None, recordings)
    assert [str(loss) for loss in losses[0]] == [str(loss) for loss in losses[1]]
    assert_equal(*states)


def test_the_stand_in_freezes_numbers_of_the_host_and_refuses_to_wait() -> None:
    recorder, rate, tensor = tape.Tape(), [1.0], torch.ones(2)
    result, replay = recorder.record(lambda: (tensor * rate[0]).sum())
    rate[0] = 5.0
    tensor.fill_(2.0)
    replay()
    assert result == 4.0
    with pytest.raises(RuntimeError, match="the host waits for the device"):
        recorder.rehearse(lambda: tensor * tensor.sum().item())


def test_a_frozen_rate_or_strength_would_be_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = Recipe(rescale_init=False)
    wanted = run(update_for(network(recipe), False, recipe=recipe), steps=5, fade=True)
    frozen = update_for(network(recipe), True, recipe=recipe)
    monkeypatch.setattr("test_graphed.set_learning_rate" if False else set_strength, "__doc__", "")
    with monkeypatch.context() as inside:
        inside.setattr(torch.Tensor, "fill_", lambda self, value: self)  # neither reaches the tensors that are read
        got = run(frozen, steps=5, fade=True)
    assert got[0] == wanted[0]
    assert got[4] != wanted[4]
