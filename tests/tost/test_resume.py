"""A run that was cut off goes on with the bits of one that was not."""

import json
import os
import signal
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

import tost
from tost import Config, Masks, Recipe, checkpoint, training
from tost.callbacks import Callback, Run, Stopped
from tost.data import Dataset
from tost.files import DamagedFile
from tost.models.resnet import ResNet
from tost.runs import RunFolder
from tost.training import NonFiniteLoss, train

GHOSTS = Recipe(rescale_init=False)


class Dropping(ResNet):
    """Draws random numbers in each step."""

    def __init__(self, classes: int, channels: int) -> None:
        super().__init__((1, 1), (4, 8), classes, channels)
        self.flatten = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Dropout(0.5))


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch, toy_images: Dataset) -> None:
    """Every run of this file is on the toy images and a network of two blocks: 3 steps an epoch."""
    monkeypatch.setattr(training, "load", lambda name, folder: toy_images)
    monkeypatch.setattr(tost.models, "build", lambda *args: Dropping(args[1], args[2]))


@pytest.fixture
def config(tmp_path: Path) -> Callable[..., Config]:
    def make(**changes: Any) -> Config:
        values = {"steps": 8, "batch_size": 16, "density": 0.3, "recipe": GHOSTS, "out": str(tmp_path / "runs"), **changes}
        return Config(**values)

    return make


class StopAt(Callback):
    """Wants to stop after the coming step number `step`."""

    def __init__(self, step: int) -> None:
        self.step = step

    def before_step(self, run: Run) -> None:
        run.stop_wanted = run.step == self.step


class Crash(Callback):
    def __init__(self, step: int) -> None:
        self.step = step

    def after_step(self, run: Run) -> None:
        if run.step == self.step:
            raise OSError("the machine is on fire")


def outcome(result: training.Result) -> Any:
    files = {path.name: load_file(path) for path in result.run_dir.glob("*.safetensors")}
    weights = {name: {key: value.numpy().tobytes() for key, value in file.items()} for name, file in files.items()}
    lines = [{k: v for k, v in line.items() if k not in ("ms_per_step", "images_per_second")} for line in result.history]
    return weights, lines, result.test_loss, result.batches_fingerprint, result.best, result.accounting


SETTINGS: dict[str, dict[str, Any]] = {
    "ghosts": {},
    "vanilla": {"recipe": Recipe.vanilla()},
    "permanent": {"recipe": Recipe(permanent=True, rescale_init=False)},
    "rescaled": {"recipe": Recipe(rescale_iterations=2)},
    "masked-dense": {"backend": "masked-dense"},
    "reference": {"backend": "reference"},
    "dense": {"backend": "dense"},
    "everything": {
        "optimizer": "adamw",
        "schedule": "cosine",
        "warmup_steps": 2,
        "ema": 0.8,
        "validation": 0.25,
        "batch_size": 12,
        "clip_norm": 1.0,
        "accumulate": 2,
        "amp": "bf16",
        "cutout": 3,
    },
    "fp16": {"amp": "fp16", "optimizer": "adam", "schedule": "step"},
    "fp16 and more": {"amp": "fp16", "ema": 0.9, "accumulate": 3, "validation": 0.25, "batch_size": 12, "clip_norm": 1.0},
}


@pytest.mark.parametrize("name", SETTINGS)
def test_a_run_that_is_stopped_again_and_again_ends_with_the_same_bits(
    config: Callable[..., Config], name: str, tmp_path: Path
) -> None:
    wanted = outcome(train(config(**SETTINGS[name])))
    again = config(**SETTINGS[name], out=str(tmp_path / "again"))
    for step in range(8):  # amid an epoch, at its end, while ghosts live, as they die and after, behind the last step
        with pytest.raises(Stopped, match=f"stopped after step {step + 1} of 8"):
            train(again, callbacks=[StopAt(step)])
        folder = RunFolder.of(again)
        assert folder.can_go_on
        assert len(folder.record.read_text().splitlines()) == step // 3
    result = train(again)
    assert outcome(result) == wanted
    assert not folder.checkpoint.exists()
    assert len(result.history) == 3


def test_a_crash_goes_on_from_the_last_epoch_or_the_last_moment(config: Callable[..., Config], tmp_path: Path) -> None:
    wanted = outcome(train(config()))
    for seconds, step in ((600.0, 3), (0.0, 5)):
        again = config(out=str(tmp_path / f"again{step}"))
        with pytest.raises(OSError, match="on fire"):
            train(again, callbacks=[Crash(5)], checkpoint_seconds=seconds)
        position = RunFolder.of(again).load_checkpoint()["position"]
        assert position["step"] == (3 if seconds else 4)  # user callbacks come before the checkpoint
        assert outcome(train(again)) == wanted


def test_overwrite_begins_anew(config: Callable[..., Config]) -> None:
    with pytest.raises(Stopped):
        train(config(), callbacks=[StopAt(4)])
    seen: list[int] = []

    class See(Callback):
        def on_start(self, run: Run) -> None:
            seen.append(run.step)

    train(config(), overwrite=True, callbacks=[See()])
    assert seen == [0]


@pytest.mark.usefixtures("ctrl_c")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_ends_the_run_after_the_step(config: Callable[..., Config], number: int) -> None:
    class Raise(Callback):
        def before_step(self, run: Run) -> None:
            if run.step == 4:
                signal.raise_signal(number)

    before = signal.getsignal(number)
    with pytest.raises(Stopped, match="stopped after step 5 of 8, which is saved: the same command goes on") as stopped:
        train(config(), callbacks=[Raise()])
    assert stopped.value.signal == number
    assert isinstance(stopped.value, KeyboardInterrupt)
    assert signal.getsignal(number) is before
    assert RunFolder.of(config()).load_checkpoint()["position"]["step"] == 5


class Twice(Callback):
    def __init__(self, *numbers: int) -> None:
        self.numbers = numbers

    def before_step(self, run: Run) -> None:
        if run.step == 4:
            for number in self.numbers:
                signal.raise_signal(number)


@pytest.mark.usefixtures("ctrl_c")
@pytest.mark.parametrize("first", [signal.SIGINT, signal.SIGTERM])
def test_ctrl_c_after_a_signal_ends_it_at_once(config: Callable[..., Config], first: int) -> None:
    with pytest.raises(KeyboardInterrupt) as stopped:
        train(config(), callbacks=[Twice(first, signal.SIGINT, signal.SIGINT)])
    assert not isinstance(stopped.value, Stopped)
    train(config())


def test_the_second_sigterm_does_not_disturb_the_save(config: Callable[..., Config]) -> None:
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(Stopped, match="stopped after step 5 of 8, which is saved"):
        train(config(), callbacks=[Twice(signal.SIGTERM, signal.SIGTERM)])
    assert signal.getsignal(signal.SIGTERM) is before


def test_an_end_that_fails_keeps_no_other_from_ending(config: Callable[..., Config]) -> None:
    class Failing(Callback):
        def on_end(self, run: Run) -> None:
            raise OSError("no space for the last curve")

    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(OSError, match="no space for the last curve"):
        train(config(), callbacks=[Failing()])
    assert signal.getsignal(signal.SIGTERM) is before


def test_runs_in_other_threads_leave_signals_alone(config: Callable[..., Config]) -> None:
    results: list[training.Result] = []
    thread = threading.Thread(target=lambda: results.append(train(config())))
    thread.start()
    thread.join()
    assert len(results) == 1


def test_a_damaged_checkpoint_is_told(config: Callable[..., Config]) -> None:
    with pytest.raises(Stopped):
        train(config(), callbacks=[StopAt(4)])
    path = RunFolder.of(config()).checkpoint
    content = bytearray(path.read_bytes())
    content[-5] ^= 1
    path.write_bytes(content)
    with pytest.raises(DamagedFile, match=r"checkpoint\.safetensors"):
        train(config())
    train(config(), overwrite=True)


def test_masks_that_are_gone_or_others_are_told(config: Callable[..., Config]) -> None:
    with pytest.raises(Stopped):
        train(config(), callbacks=[StopAt(4)])
    folder = RunFolder.of(config())
    masks = Masks.load(folder.masks)
    folder.masks.unlink()
    with pytest.raises(
        FileNotFoundError, match=r"masks\.safetensors.*goes on from a run without its masks; to repeat this run alone remove"
    ):
        train(config())
    Masks({name: ~mask for name, mask in masks.items()}).save(folder.masks)
    with pytest.raises(ValueError, match=r"with the masks .* as in masks\.safetensors; to begin anew remove the run's folder"):
        train(config())
    masks.save(folder.masks)
    train(config())


def test_a_finished_run_is_read_back_from_a_place_that_is_read_only(
    config: Callable[..., Config], monkeypatch: pytest.MonkeyPatch
) -> None:
    result = train(config())

    def read_only(path: Path, missing_ok: bool = False) -> None:
        raise OSError(30, "Read-only file system")

    monkeypatch.setattr(Path, "unlink", read_only)
    assert train(config()) == result


def test_a_stop_amid_weights_that_are_not_finite_does_not_say_that_they_are_saved(config: Callable[..., Config]) -> None:
    class Spoil(Callback):
        def after_step(self, run: Run) -> None:
            if run.step == 5:
                next(run.net.parameters()).data.fill_(float("nan"))

    with pytest.raises(Stopped, match=r"step 5 of 8, whose weights are not finite: .* from the last good checkpoint"):
        train(config(), callbacks=[StopAt(4), Spoil()])
    assert RunFolder.of(config()).load_checkpoint()["position"]["step"] == 3


def test_a_checkpoint_of_another_run_is_told(config: Callable[..., Config]) -> None:
    for seed, ema in ((0, None), (1, 0.9)):
        with pytest.raises(Stopped):
            train(config(seed=seed, ema=ema), callbacks=[StopAt(4)])
    one, other = (RunFolder.of(config(seed=seed, ema=ema)) for seed, ema in ((0, None), (1, 0.9)))
    one.checkpoint.write_bytes(other.checkpoint.read_bytes())
    with pytest.raises(ValueError, match=f"checkpoint: expected the state of run {config().hash}"):
        train(config())
    checkpoint.save(one.checkpoint, {"config": config().hash})
    with pytest.raises(ValueError, match=f"checkpoint: expected the state of run {config().hash}"):
        train(config())


def test_two_processes_cannot_train_one_run(config: Callable[..., Config]) -> None:
    class Again(Callback):
        def on_start(self, run: Run) -> None:
            train(run.config)

    with pytest.raises(BlockingIOError, match="another process is training this run"):
        train(config(), callbacks=[Again()])


def test_a_full_disk_keeps_the_last_checkpoint(config: Callable[..., Config], monkeypatch: pytest.MonkeyPatch) -> None:
    real = os.fsync
    folder = RunFolder.of(config())

    def full(descriptor: int) -> None:
        if os.readlink(f"/proc/self/fd/{descriptor}").count("checkpoint") and folder.checkpoint.exists():
            raise OSError(28, "No space left on device")
        real(descriptor)

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(OSError, match=r"checkpoint\.safetensors: no space left on the device: free some space and run"):
            train(config())
    assert folder.load_checkpoint()["position"]["step"] == 3
    left = {"config.json", "masks.safetensors", "record.jsonl", "checkpoint.safetensors"}
    assert {path.name for path in folder.path.iterdir()} == left
    train(config())


def test_skipped_steps_are_counted_and_survived(config: Callable[..., Config]) -> None:
    class Poison(Callback):
        """A loss without a number at two steps, then more of them than are borne."""

        def __init__(self, steps: set[int]) -> None:
            self.bad = steps

        def on_start(self, run: Run) -> None:
            run.net.register_forward_hook(lambda module, args, out: out * float("nan") if self.now(run) else None)

        def now(self, run: Run) -> bool:
            return run.net.training and run.step in self.bad

    result = train(config(), callbacks=[Poison({3, 4})])
    assert [line.get("skipped_steps") for line in result.history] == [None, 2, None]
    assert all(isinstance(line["train_loss"], float) for line in result.history)
    with pytest.raises(NonFiniteLoss, match="the loss became nan at step 6 of 8, as at the 1 steps before"):
        train(config(max_skipped=1), callbacks=[Poison({4, 5})])
    state = RunFolder.of(config(max_skipped=1)).load_checkpoint()
    assert state["position"]["step"] == 3  # the last good one
    with pytest.raises(NonFiniteLoss):
        train(config(max_skipped=1), callbacks=[Poison({4, 5})])


def test_the_best_epoch_is_kept(config: Callable[..., Config], toy_images: Dataset) -> None:
    result = train(config(validation=0.25, batch_size=12, steps=12, lr=0.5))
    assert result.best is not None
    lines = {line["epoch"]: line for line in result.history}
    accuracies = [line["validation_accuracy"] for line in result.history]
    assert result.best["validation_accuracy"] == max(accuracies)
    assert result.best["epoch"] == 1 + accuracies.index(max(accuracies))
    assert result.best["test_accuracy"] == lines[result.best["epoch"]]["test_accuracy"]
    net = Dropping(3, 1)
    net.load_state_dict(load_file(result.run_dir / "best.safetensors"))
    assert training.evaluate(net, toy_images, 16)[0] == result.best["test_accuracy"]
    assert json.loads((result.run_dir / "result.json").read_text())["best"] == result.best


def kept(folder: RunFolder) -> dict[int, bytes]:
    return {epoch: path.read_bytes() for epoch, path in folder.snapshots.items()}


def test_snapshots_survive_whatever_cuts_the_run_off(config: Callable[..., Config], tmp_path: Path) -> None:
    epochs = (0, 1, 3)  # before the first step; while the ghosts live; behind the last step, amid an epoch
    whole, again = (RunFolder.of(config(out=str(tmp_path / name))) for name in ("whole", "again"))
    seen: dict[int, dict[str, torch.Tensor]] = {}

    class See(Callback):
        def on_start(self, run: Run) -> None:
            self.on_epoch_end(run)

        def on_epoch_end(self, run: Run) -> None:
            seen[run.epoch] = {name: value.clone() for name, value in run.net.state_dict().items()}

    train(config(out=str(tmp_path / "whole")), snapshots=epochs, callbacks=[See()])
    assert tuple(whole.snapshots) == epochs
    for epoch in epochs:
        state = whole.load_snapshot(epoch)
        assert state.keys() == seen[epoch].keys()
        assert all(torch.equal(state[name], value) for name, value in seen[epoch].items())
    assert any("ghost" in name for name in state)
    for step in range(8):
        with pytest.raises(Stopped):
            train(config(out=str(tmp_path / "again")), snapshots=epochs, callbacks=[StopAt(step)])
    assert tuple(again.snapshots) == epochs
    train(config(out=str(tmp_path / "again")), snapshots=epochs)
    assert kept(again) == kept(whole)
    crashed = config(out=str(tmp_path / "crashed"))
    with pytest.raises(OSError, match="on fire"):
        train(crashed, snapshots=epochs, callbacks=[Crash(3)])  # the snapshot is there, the checkpoint of the epoch is not
    train(crashed, snapshots=epochs)
    assert kept(RunFolder.of(crashed)) == kept(whole)


def test_snapshots_that_a_run_did_not_keep_are_told(config: Callable[..., Config]) -> None:
    folder = RunFolder.of(config())
    with pytest.raises(Stopped):
        train(config(), callbacks=[StopAt(4)], snapshots=[1])
    with pytest.raises(ValueError, match=r"snapshots: expected those of epochs 0, 1 in .*, got none of 0: .*\(--overwrite\)"):
        train(config(), snapshots=[0, 1, 2])
    train(config(), snapshots=[1, 2])
    with pytest.raises(ValueError, match=r"snapshots: .* which has done 3, got none of 3: .* repeat it \(--overwrite\)"):
        train(config(), snapshots=[1, 3])
    with pytest.raises(FileNotFoundError, match=r"epoch-0003\.safetensors.*--snapshots 3 --overwrite"):
        folder.load_snapshot(3)
    assert train(config(), snapshots=[2]) == folder.load()
    train(config(), overwrite=True, snapshots=[0])
    assert list(folder.snapshots) == [0]  # those of the run before are forgotten


@pytest.mark.parametrize(
    ("epochs", "error", "message"),
    [
        ([4], ValueError, "snapshots: expected epochs up to the last, 3, got 4"),
        ([-1], ValueError, "snapshots: expected a whole number of at least 0, got -1"),
        (["2"], TypeError, "snapshots: expected a whole number of at least 0, got str"),
    ],
)
def test_wrong_snapshots_leave_no_folder(
    config: Callable[..., Config], epochs: list[Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        train(config(), snapshots=epochs)
    assert not RunFolder.of(config()).path.exists()
