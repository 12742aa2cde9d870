"""Which launcher the options of a command mean."""

from pathlib import Path

import pytest

from tost.cli.launching import add_launcher, launcher_of
from tost.cli.options import Parser
from tost.launch import Launcher, Processes, Slurm


def launcher(out: Path, *words: str) -> Launcher:
    parser = Parser(prog="tost compare")
    add_launcher(parser)
    parser.add_argument("--out", type=str)
    return launcher_of(parser.parse_args([*words, "--out", str(out)]))


def test_processes(tmp_path: Path) -> None:
    assert launcher(tmp_path) == Processes(1)
    assert launcher(tmp_path, "--jobs", "3") == Processes(3)


@pytest.mark.parametrize(
    "words",
    [
        ["--slurm", "{cluster: local, timeout_min: 240}"],
        ["--slurm.cluster", "local", "--slurm.timeout_min=240"],
    ],
)
def test_slurm(tmp_path: Path, words: list[str]) -> None:
    chosen = launcher(tmp_path, "--launcher", "slurm", *words)
    assert isinstance(chosen, Slurm)
    assert (chosen.folder, chosen.parameters) == (tmp_path / "slurm", {"cluster": "local", "timeout_min": 240})


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--launcher", "slrum"], r"launcher: unknown name 'slrum'; did you mean slurm\?"),
        (["--slurm", "{timeout_min: 3}"], "slurm: expected nothing, as the launcher is 'processes', got {'timeout_min': 3}"),
        (["--launcher", "slurm", "--jobs", "2"], "jobs: expected 1, as slurm.slurm_array_parallelism limits .* got 2"),
        (["--jobs", "0"], "jobs: expected a whole number of at least 1, got 0"),
    ],
)
def test_wrong_options_are_named(tmp_path: Path, words: list[str], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        launcher(tmp_path, *words)


def test_one_job_under_torchrun(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert launcher(tmp_path) == Processes(1)
    with pytest.raises(ValueError, match="expected 1 job under torchrun"):
        launcher(tmp_path, "--jobs", "2")
