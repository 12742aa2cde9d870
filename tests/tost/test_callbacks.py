"""The learning rate and the record, without a training."""

import json
import math
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from tost.callbacks import Average, Evaluate, LearningRate, ProgressBar, Record, Run, TensorBoard, learning_rate_at
from tost.config import Config


def test_learning_rate_warms_up_then_drops() -> None:
    config = Config(lr=0.8, warmup_steps=4, milestones=(0.5, 0.75), gamma=0.1)
    rates = [learning_rate_at(step, 16, config) for step in range(16)]
    assert rates == pytest.approx([0.2, 0.4, 0.6, 0.8, *[0.8] * 4, *[0.08] * 4, *[0.008] * 4])
    assert learning_rate_at(15, 16, Config(lr=0.3, milestones=())) == 0.3


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        (Config(lr=1.0, schedule="step", drop_every=0.25), [1.0, 1.0, 0.1, 0.1, 0.01, 0.01, 0.001, 0.001]),
        (Config(lr=1.0, schedule="step", drop_every=0.5, gamma=0.5, warmup_steps=2), [0.5, 1.0, 1.0, 1.0, *[0.5] * 4]),
        (Config(lr=1.0, schedule="constant"), [1.0] * 8),
        (Config(lr=2.0, schedule="cosine"), [1 + math.cos(math.pi * k / 8) for k in range(8)]),
        (
            Config(lr=2.0, schedule="cosine", warmup_steps=4),
            [0.5, 1.0, 1.5, 2.0, *[1 + math.cos(math.pi * k / 4) for k in range(4)]],
        ),
    ],
    ids=["step", "step, warm-up", "constant", "cosine", "cosine, warm-up"],
)
def test_schedules(config: Config, expected: list[float]) -> None:
    assert [learning_rate_at(step, 8, config) for step in range(8)] == pytest.approx(expected)


@pytest.mark.parametrize(
    ("config", "drop"),
    [
        (Config(milestones=(0.3, 0.6)), 0.3),
        (Config(milestones=()), None),
        (Config(schedule="step", drop_every=0.2), 0.2),
        (Config(schedule="cosine"), 0.5),
        (Config(schedule="constant"), None),
    ],
)
def test_the_first_drop_is_where_the_rate_has_fallen(config: Config, drop: float | None) -> None:
    assert config.first_drop == drop


def run(config: Config) -> Run:
    net = nn.Linear(1, 1)
    groups = [{"params": [net.weight]}, {"params": [net.bias]}]
    return Run(config, net, torch.optim.SGD(groups, lr=1.0), total_steps=8)


def test_learning_rate_reaches_every_group() -> None:
    state = run(Config(lr=0.5, milestones=(0.5,)))
    state.step = 4
    LearningRate().before_step(state)
    assert [g["lr"] for g in state.optimizer.param_groups] == [0.05, 0.05]
    assert state.line == {"lr": 0.05}


def test_record_takes_means_medians_and_starts_anew(tmp_path: Path) -> None:
    path = tmp_path / "record.jsonl"
    path.write_text("left over\n")
    record, state = Record(path), run(Config())
    record.on_start(state)
    for loss, seconds in ((1.0, 0.001), (2.0, 0.002), (6.0, 0.009)):
        state.loss = loss
        state.step_seconds.append(seconds)
        state.step += 1
        record.after_step(state)
    state.epoch, state.line = 1, {"lr": 0.1}
    record.on_epoch_end(state)
    record.on_end(state)
    rate = record.history[0]["images_per_second"]
    line = {"epoch": 1, "step": 3, "train_loss": 3.0, "ms_per_step": 2.0, "images_per_second": rate, "lr": 0.1}
    assert rate > 0
    assert record.history == [line]
    assert [json.loads(text) for text in path.read_text().splitlines()] == [line]
    assert state.line == {}


def test_accuracy_is_measured_now_and_then_and_at_the_end() -> None:
    state = run(Config(eval_every=3))
    seen = []
    for epoch in range(1, 8):
        state.epoch, state.step, state.line = epoch, epoch + 1, {}
        Evaluate({"test": lambda net: (0.5, 1.0)}).on_epoch_end(state)
        seen += [epoch] if state.line else []
    assert seen == [3, 6, 7]  # epoch 7 is the last: step 8 of 8


def test_progress_bar_is_silent_where_stderr_is_no_terminal(capfd: pytest.CaptureFixture[str]) -> None:
    bar, state = ProgressBar("title"), run(Config())
    bar.on_start(state)
    state.step, state.line = 1, {"test_accuracy": 0.5}
    bar.after_step(state)
    bar.on_epoch_end(state)
    bar.on_end(state)
    ProgressBar("never started").on_end(state)
    captured = capfd.readouterr()
    assert captured.out == ""
    assert "title" not in captured.err


def test_averages_decay_and_follow_the_statistics() -> None:
    state = Run(Config(), nn.BatchNorm1d(1), torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=1.0), total_steps=8)
    average = Average(0.75)
    average.on_start(state)
    for value, loss in ((1.0, 0.5), (2.0, math.nan), (3.0, 0.5)):
        for tensor in (state.net.weight, state.net.running_mean):
            tensor.data.fill_(value)
        state.loss = loss
        average.after_step(state)
    assert state.result_net is not state.net
    for name in ("weight", "running_mean"):  # the first step is taken as it is, the second was skipped
        assert getattr(state.result_net, name).item() == pytest.approx(0.75 * 1.0 + 0.25 * 3.0)


def test_curves_for_tensorboard_go_on_where_a_run_was_cut_off(tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    record = Record(None)
    for first in (0, 2):  # an earlier process was killed behind step 3, with a checkpoint of step 2
        state = run(Config())
        state.step = first
        board = TensorBoard(tmp_path, record)
        board.on_start(state)
        for state.step in range(first + 1, first + 4):
            record.history.append({"epoch": 1, "step": state.step, "train_loss": 0.5 + first, "beta": None})
            board.on_epoch_end(state)
        board.on_end(state)
    TensorBoard(tmp_path, record).on_end(state)  # never started
    events = EventAccumulator(str(tmp_path))
    events.Reload()
    assert events.Tags()["scalars"] == ["train_loss"]
    assert [(e.step, e.value) for e in events.Scalars("train_loss")] == [(1, 0.5), (2, 0.5), (3, 2.5), (4, 2.5), (5, 2.5)]
    state.step = 2  # begun anew, at that step
    board = TensorBoard(tmp_path, Record(None))
    board.on_start(state)
    board.on_end(state)
    events = EventAccumulator(str(tmp_path))
    events.Reload()
    assert events.Tags()["scalars"] == []


def test_tensorboard_is_named_where_it_is_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    with pytest.raises(ModuleNotFoundError, match=r'pip install "tost-sparse\[tensorboard\]"'):
        TensorBoard(tmp_path, Record(None))
