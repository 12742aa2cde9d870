"""Distillation from a finished run."""

import dataclasses
from pathlib import Path

import pytest
import torch

from tost import Config, Recipe, training
from tost.data import Dataset
from tost.losses import Distillation
from tost.teacher import load_teacher, loss_of
from tost.training import train

STUDENT = Recipe(ghost_skip=False, ghost_swish=False, rescale_init=False, label_smoothing=0.1, distillation=0.7, temperature=3.0)
CPU = torch.device("cpu")


@pytest.fixture
def teacher(monkeypatch: pytest.MonkeyPatch, toy_images: Dataset, tmp_path: Path) -> training.Result:
    monkeypatch.setattr(training, "load", lambda name, folder: toy_images)
    dense = Config(model="resnet20", backend="dense", recipe="vanilla", steps=3, batch_size=16, out=str(tmp_path / "teacher"))
    return train(dense)


def student(teacher: training.Result, tmp_path: Path) -> Config:
    changes = {"recipe": STUDENT, "backend": "sparse", "teacher": str(teacher.run_dir), "out": str(tmp_path / "student")}
    return dataclasses.replace(teacher.config, **changes)


def test_the_loss_is_the_distillation_from_the_finished_network(
    teacher: training.Result, toy_images: Dataset, tmp_path: Path
) -> None:
    net = load_teacher(teacher.run_dir, toy_images)
    assert training.evaluate(net, toy_images, 16)[0] == teacher.test_accuracy
    assert not net.training
    assert not any(p.requires_grad for p in net.parameters())
    inputs, targets = torch.randn(5, 1, 8, 8), torch.tensor([0, 1, 2, 0, 1])
    outputs = torch.randn(5, 3, requires_grad=True)
    loss = loss_of(student(teacher, tmp_path), toy_images, CPU)(outputs, inputs, targets)
    assert loss.item() == pytest.approx(Distillation(3.0, 0.7, 0.1)(outputs, net(inputs), targets).item())
    loss.backward()
    assert outputs.grad is not None


def test_a_student_is_trained_from_its_teacher(teacher: training.Result, tmp_path: Path) -> None:
    taught = train(student(teacher, tmp_path))
    alone = train(dataclasses.replace(student(teacher, tmp_path), recipe=dataclasses.replace(STUDENT, distillation=0.0)))
    losses = [result.history[0]["train_loss"] for result in (taught, alone)]
    assert losses[0] != pytest.approx(losses[1], rel=0.01)
    assert taught.weights_fingerprint == alone.weights_fingerprint


@pytest.mark.parametrize(("backend", "swish"), [("dense", "mish"), ("sparse", "swish")])
def test_a_teacher_keeps_its_permanent_ghosts(teacher: training.Result, toy_images: Dataset, backend: str, swish: str) -> None:
    recipe = Recipe(rescale_init=False, permanent=True, swish=swish)
    kept = train(dataclasses.replace(teacher.config, recipe=recipe, backend=backend, density=0.5))
    accuracy, loss = training.evaluate(load_teacher(kept.run_dir, toy_images), toy_images, 16)
    assert (accuracy, loss) == (kept.test_accuracy, pytest.approx(kept.test_loss, rel=1e-4))


def test_a_wrong_teacher_is_told(teacher: training.Result, toy_images: Dataset, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="teacher: expected the folder of a finished run, got nowhere without config"):
        load_teacher("nowhere", toy_images)
    with pytest.raises(ValueError, match=r"teacher: the network in .* does not fit resnet20 for toy"):
        load_teacher(teacher.run_dir, dataclasses.replace(toy_images, num_classes=7))
    (teacher.run_dir / "model.safetensors").write_bytes(b"no weights")
    with pytest.raises(ValueError, match=r"teacher: .* is damaged"):
        load_teacher(teacher.run_dir, toy_images)
    with pytest.raises(ValueError, match=r"teacher: expected a run folder, as recipe\.distillation > 0, got None"):
        Config(recipe=STUDENT)


def test_a_teacher_of_the_users_own_teaches_from_any_folder(
    monkeypatch: pytest.MonkeyPatch, toy_images: Dataset, tmp_path: Path
) -> None:
    monkeypatch.setattr(training, "load", lambda name, folder: toy_images)
    monkeypatch.chdir(tmp_path)
    file, lines = (
        tmp_path / "net.py",
        ["from torch import nn", "def small(): return nn.Sequential(nn.Flatten(), nn.Linear(64, 3))"],
    )
    file.write_text("\n".join(lines))
    run = train(Config(model="net.py:small", backend="dense", recipe="vanilla", steps=1, batch_size=16)).run_dir.absolute()
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    assert load_teacher(run, toy_images)[1].out_features == 3  # type: ignore[index, union-attr]
    file.unlink()
    with pytest.raises(ValueError, match=r"^teacher: the network in .* cannot be built for toy: model: .* cannot read .*net\.py"):
        load_teacher(run, toy_images)
