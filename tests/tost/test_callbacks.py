"""The learning rate and the record, without a training."""

import json
from pathlib import Path

import pytest
import torch
from torch import nn

from tost.callbacks import Evaluate, LearningRate, ProgressBar, Record, Run, learning_rate_at
from tost.config import Config


def test_learning_rate_warms_up_then_drops() -> None:
    config = Config(lr=0.8, warmup_steps=4, milestones=(0.5, 0.75), gamma=0.1)
    rates = [learning_rate_at(step, 16, config) for step in range(16)]
    assert rates == pytest.approx([0.2, 0.4, 0.6, 0.8, *[0.8] * 4, *[0.08] * 4, *[0.008] * 4])
    assert learning_rate_at(15, 16, Config(lr=0.3, milestones=())) == 0.3


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
    line = {"epoch": 1, "step": 3, "train_loss": 3.0, "ms_per_step": 2.0, "lr": 0.1}
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
