"""Recorded steps are the steps of an ordinary update. Without a GPU they are recorded on a tape (tape.py), which freezes what a
CUDA graph freezes."""

import importlib.util
import math
import random
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import tost
import tost_kernels as tk
from tost import Config, Recipe, training
from tost.callbacks import Callback, Run, Stopped
from tost.callbacks.learning_rate import set_learning_rate
from tost.data import Dataset
from tost.ghosts import add_ghosts, ghost_parameters, set_strength
from tost.graphed import CudaGraphs, GraphedUpdate, Recorder, update_of, why_not_graphed
from tost.models.resnet import ResNet
from tost.update import Update, load_optimizer, optimizer_of

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
            assert (update.not_recorded, update.recordings) == (None, 1)
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
    assert (update.not_recorded, update.recordings) == (None, recordings)
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


class Waits(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x * 0.5 if x.sum().item() > 0 else x


class DrawsOnTheHost(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x * random.random()


class Counts(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.steps = 0

    def forward(self, x: Tensor) -> Tensor:
        self.steps += 1
        return x / self.steps


def waiting_loss(outputs: Tensor, inputs: Tensor, targets: Tensor) -> Tensor:
    return loss_of(outputs, inputs, targets) * (2.0 if outputs.detach().max().item() > 0 else 1.0)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize(
    ("first", "loss", "reason"),
    [
        (Waits(), loss_of, "called a synchronizing CUDA operation|the host waits for the device"),
        (nn.Identity(), waiting_loss, "called a synchronizing CUDA operation|the host waits for the device"),
        (DrawsOnTheHost(), loss_of, "draws random numbers, or counts, on the host"),
        (Counts(), loss_of, "draws random numbers, or counts, on the host"),
    ],
    ids=["waits", "loss waits", "draws", "counts"],
)
def test_what_cannot_be_recorded_is_an_ordinary_update(first: nn.Module, loss: Any, reason: str, device: str) -> None:
    losses, states = [], []
    for graphed in (False, True):
        net = nn.Sequential(first, network())
        if isinstance(first, Counts):
            first.steps = 0
        random.seed(4)
        update = update_for(net, graphed, device, loss)
        with pytest.warns(UserWarning, match=f"^cuda_graph: off: .*({reason})") if graphed else nullcontext():
            losses.append(run(update, steps=1))
        with warnings.catch_warnings():  # said once
            losses[-1] += [update(*batch)[0] for batch in batches(3)]
        states.append(everything(update))
    assert losses[0] == losses[1]
    assert_equal(*states)
    assert isinstance(update, GraphedUpdate)
    assert update.recordings == 0


def test_recording_insisted_on_is_an_error_where_it_cannot_be() -> None:
    with pytest.raises(ValueError, match=r"^cuda_graph: expected false or none, got true: the step cannot be recorded: the host"):
        run(update_for(nn.Sequential(Waits(), network()), True, cuda_graph=True))


class FakeCuda:
    """What `CudaGraphs` asks of torch.cuda, written down in the order in which it is asked."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.log: list[str] = []
        self.mode = "default"
        own = "the graph's waits"
        self.stream = SimpleNamespace(name="stream", device_index=0, wait_stream=lambda other: self.log.append(own))
        main = SimpleNamespace(name="main", wait_stream=lambda other: self.log.append("the main one waits"))
        generator = SimpleNamespace(clone_state=lambda: "before", graphsafe_set_state=lambda state: self.log.append(state))
        for name, value in {
            "Stream": lambda device: self.stream,
            "current_stream": lambda device: main,
            "stream": lambda stream: self.amid(stream.name)(),
            "graph": self.amid("capture"),
            "graph_pool_handle": lambda: "pool",
            "CUDAGraph": lambda: SimpleNamespace(replay=lambda: self.log.append("replay")),
            "default_generators": [generator],
            "get_sync_debug_mode": lambda: self.mode,
            "set_sync_debug_mode": lambda mode: setattr(self, "mode", mode),
        }.items():
            monkeypatch.setattr(torch.cuda, name, value)
        end = "_cuda_endAllocateToPool"
        monkeypatch.setattr(torch._C, end, lambda device, pool: self.log.append(f"{pool} of {device} is done"))

    def amid(self, name: str) -> Callable[..., Any]:
        @contextmanager
        def inside(*args: Any, **options: Any) -> Iterator[None]:
            self.log.append(name)
            try:
                yield
            finally:
                self.log.append(f"/{name}")

        return inside


def test_cuda_graphs_are_rehearsed_and_captured_on_a_stream_of_their_own(monkeypatch: pytest.MonkeyPatch) -> None:
    cuda = FakeCuda(monkeypatch)
    recorder = CudaGraphs(torch.device("cuda", 0))

    def work() -> Tensor:
        cuda.log.append(f"work, waiting: {cuda.mode}")
        return torch.ones(())

    recorder.rehearse(work)
    rehearsal = ["stream", "work, waiting: default", "work, waiting: error", "/stream"]
    assert cuda.log == ["the graph's waits", *rehearsal, "the main one waits"]
    assert cuda.mode == "default"
    cuda.log.clear()
    result, replay = recorder.record(work)
    replay()
    assert result == 1
    assert cuda.log == ["main", "capture", "work, waiting: default", "/capture", "/main", "replay"]


def test_a_rehearsal_or_capture_that_fails_puts_cuda_back(monkeypatch: pytest.MonkeyPatch) -> None:
    cuda = FakeCuda(monkeypatch)
    recorder = CudaGraphs(torch.device("cuda", 0))

    def waiting() -> Tensor:
        if cuda.mode == "error" or "capture" in cuda.log:
            raise RuntimeError("called a synchronizing CUDA operation")
        return torch.ones(())

    with pytest.raises(RuntimeError, match="synchronizing"):
        recorder.rehearse(waiting)
    assert cuda.mode == "default"
    assert cuda.log[-2:] == ["/stream", "the main one waits"]
    cuda.log.clear()
    with pytest.raises(RuntimeError, match="synchronizing"):
        recorder.record(waiting)
    # the generator's state, the allocator, the current stream
    assert cuda.log == ["main", "capture", "/capture", "before", "pool of 0 is done", "/main"]


@pytest.mark.gpu
def test_a_capture_that_fails_leaves_torch_usable() -> None:
    def synchronizing(outputs: Tensor, inputs: Tensor, targets: Tensor) -> Tensor:
        torch.cuda.synchronize()  # not among what torch itself finds
        return loss_of(outputs, inputs, targets)

    losses, stream = [], torch.cuda.current_stream()
    for graphed in (False, True):
        update = update_for(network(), graphed, "cuda", synchronizing)
        with pytest.warns(UserWarning, match="cuda_graph: off") if graphed else nullcontext():
            losses.append(run(update))  # with a dropout
    assert str(losses[0]) == str(losses[1])
    assert torch.cuda.current_stream() == stream
    again = update_for(network(), True, "cuda")
    run(again)
    assert isinstance(again, GraphedUpdate)
    assert again.recordings == 1


@pytest.mark.parametrize("device", DEVICES)
def test_batches_of_another_shape_are_ordinary_updates(device: str) -> None:
    losses, states = [], []
    for graphed in (False, True):
        update = update_for(network(), graphed, device)
        sizes = (8, 8, 5, 8, 3)
        losses.append([update(*next(batches(1, size)))[0] for size in sizes])
        states.append(everything(update))
    assert losses[0] == losses[1]
    assert_equal(*states)
    assert isinstance(update, GraphedUpdate)
    assert update.recordings == 1


def test_what_callbacks_change_on_the_host_is_recorded_anew() -> None:
    losses, states = [], []
    for graphed in (False, True):
        update = update_for(network(), graphed)
        dropout = next(m for m in update.net.modules() if isinstance(m, nn.Dropout))
        losses.append([])
        for step, batch in enumerate(batches(6)):
            if step == 2:
                dropout.p = 0.1
            if step == 4:
                update.optimizer.param_groups[0]["weight_decay"] = 0.1
            for group in update.optimizer.param_groups:
                group["lr"] = 0.125 / 2**step  # a number, not the tensor
            losses[-1].append(update(*batch)[0])
        states.append(everything(update))
    assert losses[0] == losses[1]
    assert_equal(*states)
    assert isinstance(update, GraphedUpdate)
    assert (update.recordings, update.not_recorded) == (3, None)


def test_what_changes_at_every_step_is_not_recorded_for_ever() -> None:
    update = update_for(network(), True)
    dropout = next(m for m in update.net.modules() if isinstance(m, nn.Dropout))

    def steps() -> None:
        for step, batch in enumerate(batches(8)):
            dropout.p = 0.5 / (step + 1)
            update(*batch)

    with pytest.warns(UserWarning, match="cuda_graph: off: .* change from step to step$"):
        steps()
    assert isinstance(update, GraphedUpdate)
    assert update.recordings == 4


def test_a_first_batch_without_a_number_leaves_nothing_behind() -> None:
    states = []
    for graphed in (False, True):
        update = update_for(network(), graphed)
        inputs, targets = next(batches(1))
        assert not math.isfinite(update(inputs * math.inf, targets)[0])
        for batch in batches(2):
            update(*batch)
        states.append(everything(update))
    assert_equal(*states)


@pytest.mark.parametrize("device", DEVICES)
def test_a_gradient_without_a_number_is_skipped_on_the_device_where_it_is_looked_at(device: str) -> None:
    def steep(outputs: Tensor, inputs: Tensor, targets: Tensor) -> Tensor:
        return loss_of(outputs, inputs, targets) + (outputs.sum() * 0.0).sqrt()  # infinitely steep at 0

    losses, states = [], []
    for graphed in (False, True):
        update = update_for(network(), graphed, device, steep, clip_norm=1.0)
        states.append(everything(update))
        losses.append([update(*batch)[0] for batch in batches(2)])
        assert all(torch.equal(value, everything(update)[name]) for name, value in states[-1].items())
    assert str(losses) == str([[math.nan] * 2] * 2)
    assert_equal(*states)


def test_moments_that_are_loaded_are_those_of_the_next_step() -> None:
    states = []
    for graphed in (False, True):
        update = update_for(network(), graphed)
        run(update, steps=2)
        saved = {**update.optimizer.state_dict()}
        saved["state"] = {n: {"momentum_buffer": m["momentum_buffer"] * 2} for n, m in saved["state"].items()}
        load_optimizer(update.optimizer, saved)
        run(update, steps=2)
        states.append(everything(update))
    assert_equal(*states)


@pytest.mark.parametrize(
    ("changes", "device", "processes", "reason"),
    [
        ({}, "cpu", 1, "this run is on cpu, and only CUDA devices record steps"),
        ({}, "cuda", 2, "2 processes share the batches"),
        ({"amp": "fp16"}, "cuda", 1, "the gradient scaler of amp: fp16 decides on the host; bf16 needs none"),
    ],
    ids=["cpu", "processes", "fp16"],
)
def test_where_steps_are_not_recorded_the_reason_is_told(
    changes: dict[str, Any], device: str, processes: int, reason: str
) -> None:
    where = torch.device(device)
    assert why_not_graphed(Config(), torch.device("cuda")) is None

    def made(cuda_graph: bool | None) -> Update:
        net, config = nn.Linear(2, 2), Config(cuda_graph=cuda_graph, **changes)
        return update_of(config, net, optimizer_of(config, net), loss_of, lambda x: x, where, processes)

    if changes.get("amp") != "fp16":  # its scaler warns on a machine without CUDA
        assert type(made(False)) is Update
        with pytest.warns(UserWarning, match=f"^cuda_graph: off: {reason}") if device == "cuda" else nullcontext():
            update = made(None)
        assert type(update) is Update
        assert (update.not_recorded or "").startswith(reason)
    with pytest.raises(ValueError, match=f"^cuda_graph: expected false or none, got true: {reason}"):
        made(True)


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_a_loaded_optimizer_keeps_its_own_options(optimizer: str) -> None:
    update = update_for(network(), True, optimizer=optimizer)
    run(update, steps=2)
    rate = update.optimizer.param_groups[0]["lr"]
    state = update.optimizer.state_dict()
    state["param_groups"] = [{**group, "lr": 7.0, "weight_decay": 7.0} for group in state["param_groups"]]
    load_optimizer(update.optimizer, state)
    assert update.optimizer.param_groups[0]["lr"] is rate
    assert update.optimizer.param_groups[0]["weight_decay"] == 2e-4


class StopAt(Callback):
    def __init__(self, step: int) -> None:
        self.step = step

    def before_step(self, run: Run) -> None:
        run.stop_wanted = run.step == self.step


@pytest.fixture
def recorded(monkeypatch: pytest.MonkeyPatch, toy_images: Dataset) -> Callable[[bool], list[Any]]:
    """Makes `train` record its steps on tapes, or not, on a network of two blocks; returns the tapes that there will be."""
    monkeypatch.setattr(training, "load", lambda name, folder: toy_images)
    monkeypatch.setattr(tost.models, "build", lambda *args: Dropping(args[1], args[2]))
    monkeypatch.setattr(training, "optimizer_of", optimizer_with_tensors)

    def on_tape(graphed: bool) -> list[Any]:
        tapes: list[Any] = []

        def made(*args: Any) -> Update:
            if not graphed:
                return Update(*args[:-1])
            tapes.append(tape.Tape())
            return GraphedUpdate(*args[:-1], tapes[-1])

        monkeypatch.setattr(training, "update_of", made)
        return tapes

    return on_tape


@pytest.mark.parametrize("changes", [{}, {"optimizer": "adamw", "lr": 0.01, "ema": 0.8, "amp": "bf16", "warmup_steps": 2}])
def test_a_recorded_run_is_the_run_stopped_or_not(
    recorded: Callable[[bool], list[Any]], tmp_path: Path, changes: dict[str, Any]
) -> None:
    def config(folder: str) -> Config:
        recipe = Recipe(rescale_init=False)
        return Config(steps=8, batch_size=16, density=0.3, recipe=recipe, clip_norm=1.0, out=str(tmp_path / folder), **changes)

    def weights(result: training.Result) -> dict[str, bytes]:
        return {file.name: file.read_bytes() for file in result.run_dir.glob("*.safetensors")}

    recorded(False)
    wanted = training.train(config("eager"))
    tapes = recorded(True)
    whole = training.train(config("whole"))
    assert [each.replays for each in tapes] == [8]
    assert (wanted.not_recorded, whole.not_recorded) == ("nobody asked for it", None)
    for step in (1, 4, 7):  # the ghosts die at step 4
        with pytest.raises(Stopped):
            training.train(config("stopped"), callbacks=[StopAt(step)])
    stopped = training.train(config("stopped"))
    for result in (whole, stopped):
        assert weights(result) == weights(wanted)
        assert result.test_loss == wanted.test_loss
        losses = [[line["train_loss"] for line in each.history] for each in (result, wanted)]
        assert losses[0] == losses[1]


@pytest.mark.gpu
@pytest.mark.parametrize(
    "changes",
    [{}, {"tune": True}, {"amp": "bf16"}, {"backend": "masked-dense", "optimizer": "adamw", "lr": 0.01}],
    ids=["ghosts", "tuned", "bf16", "masked-dense"],
)
def test_a_run_on_a_gpu_is_the_same_recorded_or_not(
    monkeypatch: pytest.MonkeyPatch, toy_images: Dataset, tmp_path: Path, changes: dict[str, Any]
) -> None:
    monkeypatch.setattr(training, "load", lambda name, folder: toy_images)
    made: list[Update] = []

    def keeping(*args: Any) -> Update:
        made.append(update_of(*args))
        return made[-1]

    monkeypatch.setattr(training, "update_of", keeping)

    def trained(cuda_graph: bool, *stops: int) -> training.Result:
        config = Config(
            model="resnet20", steps=8, batch_size=16, cuda_graph=cuda_graph, recipe=Recipe(rescale_init=False),
            out=str(tmp_path / f"{cuda_graph} {len(stops)}"), **changes,
        )  # fmt: skip
        for stop in stops:
            with pytest.raises(Stopped):
                training.train(config, device="cuda", callbacks=[StopAt(stop)])
        return training.train(config, device="cuda")

    results = [trained(False), trained(True), trained(True, 1, 5)]
    assert [type(update) for update in made[:2]] == [Update, GraphedUpdate]
    assert isinstance(made[1], GraphedUpdate)
    assert made[1].recordings == 2  # the ghosts die amid the run
    weights = [(result.run_dir / "model.safetensors").read_bytes() for result in results]
    assert weights[0] == weights[1] == weights[2]
    assert len({result.test_loss for result in results}) == 1


@pytest.mark.gpu
def test_a_replay_does_not_wait_before_its_loss_is_read() -> None:
    update = update_for(network(Recipe(rescale_init=False)), True, "cuda")
    (first, second) = ([tensor.cuda() for tensor in batch] for batch in batches(2))
    update(*first)
    assert isinstance(update, GraphedUpdate)
    recording = update._recording_for(*second)
    assert recording is not None
    torch.cuda.set_sync_debug_mode("error")
    try:
        set_learning_rate(update.optimizer, 0.05)
        set_strength(update.net, 0.5, 2.0)
        with pytest.raises(RuntimeError, match="synchronizing"):  # the loss, at the end
            recording.replay_with(*second)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert recording.replays == 2
