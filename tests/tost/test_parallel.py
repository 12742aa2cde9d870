"""Many runs: in processes of their own or as jobs they give what they give in this one, and one that fails stops no other."""

import dataclasses
import os
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.tost.launched_work import work
from tost import Config, Recipe
from tost.callbacks import NonFiniteLoss
from tost.files import FolderInUse
from tost.launch import Processes, Slurm
from tost.parallel import RunsFailed, carry_out, train_all
from tost.runs import Result, RunFolder


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


def test_jobs_give_what_this_process_gives(config: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By submitit's executor that needs no cluster: real jobs, their files and their results."""
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(Path(__file__).parents[2]), *sys.path]))
    here = dataclasses.replace(config, out=str(tmp_path / "here"))
    (expected,) = train_all([here], snapshots=[1])
    (result,) = train_all([config], Slurm(tmp_path / "jobs", cluster="local", cpus_per_task=1), snapshots=[1])
    assert (result.test_loss, result.threads) == (expected.test_loss, 1)
    folders = RunFolder.of(config), RunFolder.of(here)
    assert folders[0].snapshot(1).read_bytes() == folders[1].snapshot(1).read_bytes()


def test_finished_runs_are_read_back_whatever_the_launcher(config: Config) -> None:
    class Nobody:
        def outcomes(self, work: Any, items: Any) -> Any:
            assert not list(items)
            yield from ()

    (result,) = train_all([config])
    seen: list[bool] = []
    assert train_all([config], Nobody(), ended=lambda config, outcome, earlier: seen.append(earlier)) == [result]
    assert seen == [True]
    with pytest.raises(ValueError, match=r"snapshots: .* repeat it \(--overwrite\)"):
        train_all([config], Nobody(), snapshots=[1])


def test_overwriting_makes_all_of_them_unfinished_first(config: Config) -> None:
    configs = [dataclasses.replace(config, seed=seed) for seed in (0, 1)]
    train_all(configs)

    class Interrupted:
        def outcomes(self, work: Any, items: Any) -> Any:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train_all(configs, Interrupted(), overwrite=True)
    assert not any(RunFolder.of(config).finished for config in configs)


def test_runs_that_fail_are_named_when_the_others_are_done(config: Config) -> None:
    busy, diverging, good = (dataclasses.replace(config, seed=seed, lr=lr) for seed, lr in ((0, 0.1), (1, 1e30), (2, 0.1)))
    diverging = dataclasses.replace(diverging, max_skipped=0, steps=4)
    ended: dict[int, Result | Exception] = {}
    with (
        RunFolder.of(busy).held(),
        pytest.raises(RunsFailed, match=r"2 of 3 runs failed, the others are done: seed 0: FolderInUse: .*; seed 1: NonFin"),
    ):
        train_all(
            [busy, diverging, good],
            title=lambda config: f"seed {config.seed}",
            ended=lambda config, outcome, earlier: ended.update({config.seed: outcome}),
        )
    assert isinstance(ended[0], FolderInUse)
    assert isinstance(ended[1], NonFiniteLoss)
    assert isinstance(ended[2], Result)
    with pytest.raises(RunsFailed) as failed:
        train_all([good, diverging], title=lambda config: f"seed {config.seed}")
    assert [*failed.value.errors] == ["seed 1"]
    result, error = train_all([good, diverging], bear=NonFiniteLoss)
    assert result == ended[2]
    assert isinstance(error, NonFiniteLoss)


def test_where_all_fail_alike_it_is_that_error(config: Config) -> None:
    configs = [dataclasses.replace(config, seed=seed, data_dir="nowhere", dataset="cifar10") for seed in (0, 1)]
    with pytest.raises(FileNotFoundError, match="data_dir: no such folder: nowhere"):
        train_all(configs)
    with pytest.raises(RunsFailed, match=r"^1 of 1 runs failed: bad: ArithmeticError: that was bad$"):
        carry_out(work, ["bad"])  # nothing wrong with the configuration


def test_several_runs_at_once_and_several_processes_a_run_exclude_each_other(
    config: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(ValueError, match=r"jobs, launcher: expected 1 job under torchrun.* got Processes\(jobs=2\)"):
        train_all([config, dataclasses.replace(config, seed=1)], Processes(2))
    with pytest.raises(ArithmeticError, match="that was bad"):  # at once: the other processes wait
        carry_out(work, ["bad", "dies"])
