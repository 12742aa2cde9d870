"""Training: files, determinism, equality of the backends, dead ghosts, divergence."""

import json
import random
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode

import tost
import tost_kernels as tk
import tost_kernels.plan
from tost import Config, Masks, Recipe, distributed, preparation, training
from tost.callbacks import Callback, Run
from tost.data import Dataset, TrainBatches, eval_batches, validation_split
from tost.models.resnet import ResNet
from tost.seeds import derive_seed
from tost.training import NonFiniteLoss, evaluate, train

QUICK = Recipe(rescale_iterations=2)


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch, toy_images: Dataset) -> None:
    """Every run of this file is on the toy images and a network of two blocks."""
    monkeypatch.setattr(training, "load", lambda name, folder: toy_images)
    monkeypatch.setattr(tost.models, "build", lambda *args: ResNet((1, 1), (4, 8), args[1], args[2]))


@pytest.fixture
def config(tmp_path: Path) -> Callable[..., Config]:
    def make(**changes: Any) -> Config:
        values = {"steps": 6, "batch_size": 16, "density": 0.3, "recipe": QUICK, "out": str(tmp_path), **changes}
        return Config(**values)

    return make


def test_run_folder_holds_everything(config: Callable[..., Config]) -> None:
    result = train(config(milestones=(0.5,)))
    folder = result.run_dir
    assert folder.name == result.config.hash
    assert {p.name for p in folder.iterdir()} == {
        "config.json",
        "record.jsonl",
        "result.json",
        "masks.safetensors",
        "model.safetensors",
    }
    assert Config.from_dict(json.loads((folder / "config.json").read_text())) == result.config
    lines = [json.loads(line) for line in (folder / "record.jsonl").read_text().splitlines()]
    assert lines == list(result.history)
    assert [(line["epoch"], line["step"]) for line in lines] == [(1, 3), (2, 6)]
    assert lines[0]["alpha"] == pytest.approx(1 / 3)  # steps 0, 1, 2 of a fade over 3
    assert lines[0]["beta"] == pytest.approx(10 ** (2 / 3))
    assert "test_accuracy_with_ghosts" in lines[0]
    assert (lines[1]["alpha"], lines[1]["beta"]) == (0.0, None)
    assert "test_accuracy_with_ghosts" not in lines[1]
    assert lines[1]["lr"] == pytest.approx(0.01)
    assert lines[1]["test_accuracy"] == result.test_accuracy


def test_masks_of_another_network_leave_no_folder(config: Callable[..., Config], tmp_path: Path) -> None:
    other = tost.prune(ResNet((1, 1), (4, 16), 3, 1), "erk", 0.3)
    other.save(tmp_path / "other.npz")
    with pytest.raises(ValueError, match="layer"):
        train(config(recipe="vanilla", masks=str(tmp_path / "other.npz"), out=str(tmp_path / "runs")))
    assert not list((tmp_path / "runs").glob("*"))


def test_masks_of_a_run_folder(config: Callable[..., Config]) -> None:
    first = train(config())
    again = train(config(masks=str(first.run_dir), density=0.9))
    assert again.masks_fingerprint == first.masks_fingerprint
    assert again.test_loss == first.test_loss


def test_saved_network_is_the_plain_one_and_scores_what_the_result_says(
    config: Callable[..., Config], toy_images: Dataset
) -> None:
    result = train(config())
    net = ResNet((1, 1), (4, 8), 3, 1)
    net.load_state_dict(load_file(result.run_dir / "model.safetensors"))
    accuracy, loss = evaluate(net, toy_images, 16)
    assert accuracy == result.test_accuracy
    assert loss == pytest.approx(result.test_loss, rel=1e-5)
    masks = Masks.load(result.run_dir / "masks.safetensors")
    assert result.masks_fingerprint == masks.fingerprint[:16]
    for name, mask in masks.items():
        weight = net.get_submodule(name).weight
        assert torch.equal(weight != 0, mask), name
    assert result.accounting.weights_kept == masks.kept
    assert (result.accounting.ghost_weights, result.ghost_weights_at_start > 0) == (0, True)


def test_equal_configurations_give_equal_bits(config: Callable[..., Config], tmp_path: Path) -> None:
    torch.manual_seed(1)
    first = train(config(out=str(tmp_path / "a")))
    torch.manual_seed(2)
    torch.rand(3)
    second = train(config(out=str(tmp_path / "b")))
    a, b = (load_file(r.run_dir / "model.safetensors") for r in (first, second))
    assert a.keys() == b.keys()
    assert all(torch.equal(a[k], b[k]) for k in a)
    other = train(config(seed=1))
    assert not torch.equal(a["fc.weight"], load_file(other.run_dir / "model.safetensors")["fc.weight"])


def test_global_random_state_is_left_alone(config: Callable[..., Config]) -> None:
    before = torch.get_rng_state()
    train(config(method="snip"))
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("recipe", [Recipe.vanilla(), QUICK], ids=["vanilla", "tost"])
def test_all_backends_train_the_same_network(config: Callable[..., Config], recipe: Recipe) -> None:
    results = {b: train(config(recipe=recipe, backend=b)) for b in ("sparse", "reference", "masked-dense")}
    losses = {b: [line["train_loss"] for line in r.history] for b, r in results.items()}
    assert losses["sparse"] == pytest.approx(losses["masked-dense"], rel=1e-3)
    assert losses["reference"] == pytest.approx(losses["masked-dense"], rel=1e-3)
    assert len({r.masks_fingerprint for r in results.values()}) == 1
    assert len({r.accounting.weights_kept for r in results.values()}) == 1
    compiled = tk.backend.why_not("masked_conv2d", "cpu") is None
    assert results["sparse"].kernels == ("cpu" if compiled else "dense")
    assert (results["reference"].kernels, results["masked-dense"].kernels) == ("reference", "dense")


def test_masks_of_a_file(config: Callable[..., Config], tmp_path: Path) -> None:
    chosen = train(config(method="snip"))
    masks = Masks.load(chosen.run_dir / "masks.safetensors")
    for name in ("mine.safetensors", "mine.npz"):
        masks.save(tmp_path / name)
        given = train(config(masks=str(tmp_path / name), method="erk", density=0.9))
        assert given.masks_fingerprint == chosen.masks_fingerprint
        assert given.run_dir != chosen.run_dir
        assert given.history[-1]["train_loss"] == chosen.history[-1]["train_loss"]
    other = Masks({"fc": torch.ones(3, 3)})
    other.save(tmp_path / "other.npz")
    with pytest.raises(ValueError, match="fc"):
        train(config(masks=str(tmp_path / "other.npz")))
    with pytest.raises(FileNotFoundError, match="masks: no such file"):
        train(config(masks=str(tmp_path / "none.npz")))


def test_a_file_that_is_gone_or_changed_amid_a_run_does_not_stop_it(config: Callable[..., Config], tmp_path: Path) -> None:
    masks = Masks.load(train(config()).run_dir / "masks.safetensors")

    class Replace(Callback):
        def after_step(self, run: Run) -> None:
            if run.step == 2:
                masks.shuffled(1).save(tmp_path / "m.npz")
            if run.step == 3:
                raise KeyboardInterrupt

    def given() -> Config:
        masks.save(tmp_path / "m.npz")
        return config(masks=str(tmp_path / "m.npz"))

    with pytest.raises(KeyboardInterrupt):
        train(given(), callbacks=[Replace()], checkpoint_seconds=0)
    assert train(given()).masks_fingerprint == masks.fingerprint[:16]


def test_a_file_that_changed_before_the_run_began_is_told(config: Callable[..., Config], tmp_path: Path) -> None:
    masks = Masks.load(train(config()).run_dir / "masks.safetensors")
    masks.save(tmp_path / "m.npz")
    named = config(masks=str(tmp_path / "m.npz"))
    assert not (tmp_path / named.hash).exists()
    masks.shuffled(1).save(tmp_path / "m.npz")
    with pytest.raises(
        ValueError, match="masks, weights, model: expected the files that this run was named after, but one has changed"
    ):
        train(named)
    assert not (tmp_path / named.hash).exists()
    with pytest.raises(ValueError, match="masks: expected a path or none, got ''"):
        config(masks="")


def test_control_experiments(config: Callable[..., Config], toy_images: Dataset) -> None:
    runs = {check: train(config(mask_check=check, method="snip")) for check in ("none", "shuffled", "reinitialised")}
    masks = {check: Masks.load(run.run_dir / "masks.safetensors") for check, run in runs.items()}
    assert masks["none"] == masks["reinitialised"]
    assert masks["none"] != masks["shuffled"]
    assert masks["none"].per_layer() == masks["shuffled"].per_layer()
    weights = {check: run.weights_fingerprint for check, run in runs.items()}
    assert weights["none"] == weights["shuffled"] != weights["reinitialised"]
    reinitialised = config(mask_check="reinitialised")
    assert weights["reinitialised"] == preparation.weights_fingerprint(preparation.initial_model(reinitialised, toy_images))


def test_dense_run_has_no_masks(config: Callable[..., Config]) -> None:
    result = train(config(backend="dense", density=0.1))
    assert result.masks_fingerprint is None
    assert result.accounting.density == 1.0
    assert not (result.run_dir / "masks.safetensors").exists()


def test_finished_run_is_read_back(config: Callable[..., Config], monkeypatch: pytest.MonkeyPatch) -> None:
    first = train(config())
    with monkeypatch.context() as patch:
        patch.setattr(training, "steps", None)  # would fail if called
        assert train(config()) == first
    other_way = config(out=f"{config().out}/../{Path(config().out).name}")
    assert train(other_way).config == other_way
    again = train(config(), overwrite=True)
    assert again.test_loss == first.test_loss
    assert again.seconds != first.seconds


def test_pairs_share_mask_weights_and_batches(config: Callable[..., Config]) -> None:
    vanilla, ghosts = train(config(recipe=Recipe.vanilla())), train(config())
    for what in ("masks_fingerprint", "weights_fingerprint", "batches_fingerprint"):
        assert getattr(vanilla, what) == getattr(ghosts, what)
    other = train(config(seed=1))
    for what in ("masks_fingerprint", "weights_fingerprint", "batches_fingerprint"):
        assert getattr(other, what) != getattr(ghosts, what)


class Spy(Callback):
    """What the optimizer holds after each step."""

    def __init__(self) -> None:
        self.parameters: list[int] = []
        self.states: list[int] = []
        self.nets: list[torch.nn.Module] = []
        self.seen: list[torch.Tensor] = []

    def on_start(self, run: Run) -> None:
        run.net.register_forward_pre_hook(lambda module, args: self.seen.append(args[0]))

    def after_step(self, run: Run) -> None:
        self.parameters.append(sum(len(g["params"]) for g in run.optimizer.param_groups))
        self.states.append(len(run.optimizer.state))


def test_dead_ghosts_leave_the_optimizer(config: Callable[..., Config]) -> None:
    spy = Spy()
    train(config(milestones=(0.5,)), callbacks=[spy])
    plain = len(list(ResNet((1, 1), (4, 8), 3, 1).parameters()))
    ghosts = 2 * 2 * 3  # blocks x convolutions x (weight, BatchNorm weight, BatchNorm bias)
    assert spy.parameters == [plain + ghosts] * 3 + [plain] * 3
    assert spy.states == spy.parameters


def test_sparse_kernels_get_batch_last_images(config: Callable[..., Config]) -> None:
    for backend in ("sparse", "masked-dense"):
        spy = Spy()
        train(config(backend=backend), callbacks=[spy])
        wanted = backend == "sparse" and tk.backend.why_not("masked_conv2d", "cpu") is None
        assert {tk.is_batch_last(x) for x in spy.seen} == {wanted}


def test_a_fade_over_the_whole_training_ends_before_finalizing(config: Callable[..., Config]) -> None:
    # finalize warns of an unfinished fade, and warnings are errors here
    result = train(config(recipe=Recipe(fade_end=1.0, rescale_init=False)))
    assert result.history[-1]["alpha"] == 0.0
    assert result.ms_per_step_with_ghosts == pytest.approx(result.ms_per_step)


def test_permanent_ghosts_stay(config: Callable[..., Config]) -> None:
    result = train(config(recipe=Recipe(permanent=True, rescale_init=False)))
    assert result.accounting.ghost_weights == result.ghost_weights_at_start > 0
    assert result.history[-1]["alpha"] == 1.0
    assert "test_accuracy" in result.history[-1]
    assert "test_accuracy_with_ghosts" not in result.history[-1]  # there is one form, measured once


class Note(Callback):
    """Counts epochs in the record."""

    def on_epoch_end(self, run: Run) -> None:
        assert "test_accuracy" in run.line
        run.line["note"] = run.epoch


def test_what_callbacks_say_is_in_the_record_of_the_epoch(config: Callable[..., Config]) -> None:
    result = train(config(), callbacks=[Note()])
    assert [(line["epoch"], line["note"]) for line in result.history] == [(1, 1), (2, 2)]


def test_ghosts_without_a_place_are_told_before_any_work(
    config: Callable[..., Config], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(tost.models, "build", lambda *args: torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 3)))
    monkeypatch.setattr(preparation, "prune", None)  # would fail if called
    for backend in ("sparse", "masked-dense", "dense"):
        with pytest.raises(ValueError, match=r"no place for ghost skips .* and ghost swish"):
            train(config(backend=backend))
    assert list(tmp_path.iterdir()) == []


def test_a_wrong_place_is_told_before_any_work(
    config: Callable[..., Config], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(training, "prepare", None)  # would fail if called
    (tmp_path / "file").write_text("")
    with pytest.raises(NotADirectoryError, match="out: cannot make the run folder"):
        train(config(out=str(tmp_path / "file")))


def test_initial_weights_leave_every_generator_alone(config: Callable[..., Config], toy_images: Dataset) -> None:
    state = random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist()  # noqa: NPY002
    preparation.initial_model(config(), toy_images)
    assert state == (random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist())  # noqa: NPY002
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(derive_seed("weights", 0))
        expected = ResNet((1, 1), (4, 8), 3, 1).state_dict()
    found = preparation.initial_model(config(), toy_images).state_dict()
    assert all(torch.equal(found[name], value) for name, value in expected.items())
    with torch.inference_mode():
        assert not any(p.is_inference() for p in preparation.initial_model(config(), toy_images).parameters())


def test_kernels_are_named_truly_where_none_is_compiled(config: Callable[..., Config], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tk.backend, "why_not", lambda op, backend: "no compiler")
    cpu = torch.device("cpu")
    wanted = {"sparse": "dense", "reference": "reference", "masked-dense": "dense", "dense": "dense"}
    assert {backend: preparation.kernels_of(config(backend=backend), cpu) for backend in wanted} == wanted
    assert {preparation.layout_of(config(backend=backend), cpu) for backend in wanted} == {"channels_last"}


def test_held_out_images_choose_neither_masks_nor_scales(
    config: Callable[..., Config], toy_images: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: dict[str, list[int]] = {}

    class Seen(TrainBatches):
        def __init__(self, *args: Any, subset: torch.Tensor, **kwargs: Any) -> None:
            super().__init__(*args, subset=subset, **kwargs)
            seen[self.stream] = subset.tolist()

    monkeypatch.setattr(preparation, "TrainBatches", Seen)
    preparation.prepare(config(method="snip", validation=0.25, recipe=Recipe(rescale_iterations=1)), toy_images)
    training, _ = validation_split(toy_images, 0.25)
    assert seen == {"prune": training.tolist(), "rescale": training.tolist()}


def test_kernels_are_those_of_the_device(config: Callable[..., Config], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tk.backend, "why_not", lambda op, backend: None if backend == "cpu" else "none yet")
    where = {"cpu": ("cpu", "batch_last"), "cuda": ("dense", "channels_last"), "mps": ("dense", "channels_last")}
    for name, wanted in where.items():
        device = torch.device(name)
        assert (preparation.kernels_of(config(), device), preparation.layout_of(config(), device)) == wanted


@pytest.mark.parametrize("best", ["batch_last", "channels_last"])
@pytest.mark.parametrize("main", ["batch_last", "channels_last"])
def test_on_cuda_tuning_chooses_the_layout(
    config: Callable[..., Config], monkeypatch: pytest.MonkeyPatch, best: str, main: str
) -> None:
    """On tensors without memory, as there may be no such device. Another process's choice is tuned for here, too."""
    cuda, net, tuned = torch.device("cuda"), nn.Identity(), []
    monkeypatch.setattr(tk, "best_layout", lambda net, images: best)
    monkeypatch.setattr(tk, "tune", lambda net, images: tuned.append(images))
    monkeypatch.setattr(preparation, "LAYOUTS", {name: lambda _, name=name: name for name in preparation.LAYOUTS})
    monkeypatch.setattr(preparation.distributed, "from_main", lambda mine: main == "batch_last")
    with FakeTensorMode():
        assert preparation.tune_layers(config(tune=True), net, (4, 3, 8, 8), cuda) == main
        assert tuned == ([] if main == best else [main])
        tuned.clear()
        for other in (config(), config(tune=True, backend="masked-dense")):
            assert preparation.tune_layers(other, net, (4, 3, 8, 8), cuda) == "channels_last"
    assert not tuned


def test_cudnn_searches_for_a_tuned_network_on_cuda_alone(config: Callable[..., Config]) -> None:
    def searches(device: str, **settings: Any) -> bool:
        with preparation.cudnn_search(config(**settings), torch.device(device)):
            return torch.backends.cudnn.benchmark

    assert searches("cuda", tune=True)
    assert not torch.backends.cudnn.benchmark
    assert not searches("cuda")
    assert not searches("cuda", tune=True, backend="masked-dense")
    assert not searches("cpu", tune=True)


def test_on_cuda_the_backends_chosen_by_tuning_are_named(config: Callable[..., Config], monkeypatch: pytest.MonkeyPatch) -> None:
    cuda = torch.device("cuda")
    monkeypatch.setattr(preparation, "remembered_backends", {"cuda": ["triton", "dense"]}.__getitem__)
    assert preparation.kernels_of(config(tune=True), cuda) == "tuned (triton, dense)"
    assert preparation.kernels_of(config(), cuda) == "dense"
    assert preparation.kernels_of(config(tune=True, backend="masked-dense"), cuda) == "dense"
    monkeypatch.setattr(preparation, "remembered_backends", lambda device: [])
    assert preparation.kernels_of(config(tune=True), cuda) == "dense"


def test_divergence_is_told_and_leaves_no_result(config: Callable[..., Config]) -> None:
    bad = config(lr=1e30, recipe=Recipe.vanilla(), steps=20)
    with pytest.raises(NonFiniteLoss, match=r"the loss became (nan|inf) at step \d+ of 20, as at the 5 steps before .*lower lr"):
        train(bad)
    assert not (Path(bad.out) / bad.hash / "result.json").exists()


def test_a_test_loss_without_a_number_is_no_result(config: Callable[..., Config], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(training, "evaluate", lambda *args: (0.1, float("inf")))
    with pytest.raises(NonFiniteLoss, match="the test loss of the finalized network is inf"):
        train(config(recipe=Recipe.vanilla()))
    (record,) = Path(config().out).glob("*/record.jsonl")
    assert json.loads(record.read_text().splitlines()[0])["test_loss"] is None


def test_a_crash_during_overwrite_leaves_the_run_unfinished(config: Callable[..., Config]) -> None:
    class Crash(Callback):
        def on_epoch_end(self, run: Run) -> None:
            raise KeyboardInterrupt

    result = train(config())
    with pytest.raises(KeyboardInterrupt):
        train(config(), overwrite=True, callbacks=[Crash()])
    assert not (result.run_dir / "result.json").exists()
    (result.run_dir / "model.safetensors").write_bytes(b"half")
    again = train(config())  # a run that was cut off begins anew
    assert (again.test_loss, again.masks_fingerprint) == (result.test_loss, result.masks_fingerprint)
    assert [line["train_loss"] for line in again.history] == [line["train_loss"] for line in result.history]


def test_batches_larger_than_the_data(config: Callable[..., Config]) -> None:
    with pytest.raises(ValueError, match="batch_size: expected 1 to 48"):
        train(config(batch_size=49))


def test_batches_that_processes_and_parts_cannot_share(config: Callable[..., Config], monkeypatch: pytest.MonkeyPatch) -> None:
    two = nullcontext(distributed.Processes(0, 2, torch.device("cpu")))
    monkeypatch.setattr(distributed, "processes", lambda device: two)
    with pytest.raises(ValueError, match=r"batch_size: expected a multiple of 4 \(accumulate x processes\), got 18"):
        train(config(batch_size=18, accumulate=2))


def test_evaluation_restores_the_mode(toy_images: Dataset) -> None:
    net = ResNet((1,), (4,), 3, 1)
    assert net.training
    before = net.bn1.running_mean.clone()
    accuracy, loss = evaluate(net, toy_images, 7)
    assert net.training
    assert torch.equal(net.bn1.running_mean, before)
    ((inputs, targets),) = eval_batches(toy_images, 20)
    logits = net.eval()(inputs)
    assert accuracy == (logits.argmax(1) == targets).double().mean().item()
    assert loss == pytest.approx(torch.nn.functional.cross_entropy(logits, targets).item())


def test_tuning_is_for_sparse_layers_and_ends_with_the_run(
    config: Callable[..., Config], monkeypatch: pytest.MonkeyPatch
) -> None:
    met: list[tuple[int, ...]] = []
    tune = tk.tune

    def quick(net: torch.nn.Module, inputs: torch.Tensor) -> tk.TuneReport:
        met.append(tuple(inputs.shape))
        assert tk.is_batch_last(inputs) == (preparation.kernels_of(config(tune=True), torch.device("cpu")) == "cpu")
        return tune(net, inputs, cache=False, timer=lambda trials, rounds: [float(t.plan.backend != "dense") for t in trials])

    monkeypatch.setattr(tk, "tune", quick)
    tuned = train(config(tune=True, steps=2))
    assert met == [(16, *training.load("toy", None).input_shape)]
    assert tost_kernels.plan._TUNED == {}
    untuned = train(config(steps=2))
    assert tuned.test_loss == pytest.approx(untuned.test_loss, rel=1e-3)
    train(config(tune=True, steps=2, backend="masked-dense"))
    assert len(met) == 1


def test_tuning_meets_what_training_will(config: Callable[..., Config], monkeypatch: pytest.MonkeyPatch) -> None:
    met: list[tuple[int, bool]] = []
    monkeypatch.setattr(tk, "tune", lambda net, inputs: met.append((len(inputs), torch.is_autocast_enabled("cpu"))))
    train(config(tune=True, steps=1, accumulate=4, amp="bf16", recipe=Recipe.vanilla()))
    assert met == [(4, True)]
