"""`train` in two processes: tests/tost/ddp_run.py under torchrun."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from safetensors.torch import load_file

SCRIPT = str(Path(__file__).with_name("ddp_run.py"))


def torchrun(*arguments: str) -> subprocess.CompletedProcess[str]:
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    return subprocess.run(
        [*launcher, *arguments],
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(sys.path)},
        capture_output=True,
        text=True,
        timeout=300,
    )


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[dict[str, float]]]:
    """The folder of an uninterrupted run and what both processes said."""
    folder = tmp_path_factory.mktemp("whole")
    done = torchrun(SCRIPT, str(folder))
    assert done.returncode == 0, done.stderr
    (run,) = folder.iterdir()
    return run, [json.loads(line) for line in done.stdout.splitlines()]


def test_both_processes_see_the_same_run(whole: tuple[Path, list[dict[str, float]]]) -> None:
    run, said = whole
    assert sorted(line["rank"] for line in said) == [0, 1]
    assert said[0]["loss"] == said[1]["loss"]
    assert said[0]["history"] == said[1]["history"]
    result = json.loads((run / "result.json").read_text())
    assert result["processes"] == 2
    assert result["test_loss"] == said[0]["loss"]
    assert result["accounting"]["ghost_weights"] == 0


@pytest.mark.parametrize(("rank", "step"), [(1, 4), (0, 9)])
def test_a_killed_process_ends_the_other_and_the_run_goes_on(
    whole: tuple[Path, list[dict[str, float]]], tmp_path: Path, rank: int, step: int
) -> None:
    done = torchrun(SCRIPT, str(tmp_path), "--die", str(rank), str(step))
    assert done.returncode != 0
    assert f"tost: rank {1 - rank} of 2: another process of this run died" in done.stderr
    assert "the same command goes on from the last checkpoint" in done.stderr
    (run,) = tmp_path.iterdir()
    assert (run / "checkpoint.safetensors").is_file()
    assert torchrun(SCRIPT, str(tmp_path)).returncode == 0
    for name in ("model.safetensors", "best.safetensors", "masks.safetensors"):
        ours, theirs = load_file(run / name), load_file(whole[0] / name)
        assert all((ours[key] == theirs[key]).all() for key in theirs)
    assert not (run / "checkpoint.safetensors").exists()


def test_the_command_line_speaks_once(tmp_path: Path) -> None:
    """Of a whole comparison: run after run, a lottery first, in the same two processes."""
    options = ["--model", "lenet300100", "--steps", "2", "--batch-size", "16", "--density", "0.85", "--out", str(tmp_path)]
    variants = ["--variants", "{vanilla: vanilla, smooth: {recipe: vanilla, label_smoothing: 0.1}}", "--seeds", "1"]
    done = torchrun("-m", "tost", "compare", *options, *variants, "--methods", "lth", "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["kind"] == "comparison"
    assert done.stderr.count("seed 0  vanilla") == 1
    runs = [json.loads(path.read_text()) for path in tmp_path.rglob("result.json")]
    assert [run["processes"] for run in runs] == [2, 2, 2, 2]  # two rounds, two recipes
