"""Runs in processes of their own give what runs in this one give."""

import dataclasses
from pathlib import Path

import pytest
import torch

from tost import Config, Recipe
from tost.launch import Processes
from tost.parallel import train_all
from tost.runs import Result


@pytest.fixture
def config(tmp_path: Path) -> Config:
    return Config(model="lenet300100", recipe=Recipe.vanilla(), steps=2, batch_size=16, out=str(tmp_path / "runs"))


def test_two_at_a_time_equal_one_after_the_other(config: Config, tmp_path: Path) -> None:
    ended: list[tuple[Config, Result | Exception, bool]] = []
    configs = [dataclasses.replace(config, seed=seed) for seed in (0, 1)]
    together = train_all(configs, Processes(2), progress=True, ended=lambda *args: ended.append(args))
    assert [result.config.seed for result in together] == [0, 1]
    assert {config: outcome for config, outcome, _ in ended} == dict(zip(configs, together, strict=True))
    assert [earlier for _, _, earlier in ended] == [False, False]
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        (alone,) = train_all([dataclasses.replace(config, out=str(tmp_path / "alone"))])
    finally:
        torch.set_num_threads(threads)
    assert (alone.test_loss, alone.batches_fingerprint) == (together[0].test_loss, together[0].batches_fingerprint)


def test_several_runs_at_once_and_several_processes_a_run_exclude_each_other(
    config: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(ValueError, match="jobs, launcher: expected 1 job under torchrun"):
        train_all([config, dataclasses.replace(config, seed=1)], Processes(2))
