"""Jobs of a cluster: a pretended one, and submitit's own executor without one."""

import os
import sys
from pathlib import Path

import pytest
import submitit

from tests.tost.fake_slurm import install
from tests.tost.launched_work import work
from tost.launch import Slurm, slurm


@pytest.fixture
def cluster(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of a pretended cluster, whose commands are found."""
    folder = tmp_path / "cluster"
    monkeypatch.setenv("PATH", f"{install(folder)}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(Path(__file__).parents[3]), *sys.path]))
    monkeypatch.setattr(submitit.SlurmJob, "_results_timeout_s", 0)  # how long a file may take to show on another node
    monkeypatch.setattr(slurm, "_POLL_SECONDS", 0.1)
    return folder


def test_every_job_ends_in_its_own_way(cluster: Path, tmp_path: Path) -> None:
    launcher = Slurm(tmp_path / "jobs", slurm_partition="gpu", slurm_array_parallelism=3, timeout_min=7)
    preempted = f"is preempted {tmp_path}"
    found = dict(launcher.outcomes(work, ["good", "bad", "dies", preempted]))
    assert found["good"] == "good, done"
    assert found[preempted] == "is preempted, done"  # put back into the queue, and done there
    assert isinstance(found["bad"], ArithmeticError)
    assert str(found["bad"]) == "that was bad"
    assert isinstance(found["dies"], RuntimeError)
    assert "job 100_2 ended without a result" in str(found["dies"])
    (script,) = (cluster / "submitted").iterdir()
    for line in ("--partition=gpu", "--array=0-3%3", "--time=7", "--job-name=tost"):
        assert f"#SBATCH {line}\n" in script.read_text()


def test_jobs_outlive_the_parent_and_are_waited_for_again(cluster: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    items = [f"waits {tmp_path}", "good"]

    def interrupt(seconds: float) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(slurm.time, "sleep", interrupt)
        with pytest.raises(slurm.JobsGoOn, match=r"interrupted; 2 jobs go on .* the same command waits for them"):
            list(Slurm(tmp_path / "jobs").outcomes(work, items))
    ends = Slurm(tmp_path / "jobs").outcomes(work, [items[0], "good "])  # one that is there, one that is not
    assert next(ends) == ("good ", "good , done")
    (tmp_path / "go").touch()
    assert list(ends) == [(items[0], "waits, done")]
    assert len(list(tmp_path.glob("waiting-*"))) == 1
    assert len(list((cluster / "submitted").iterdir())) == 2
    # what has ended is no longer there
    assert dict(Slurm(tmp_path / "jobs").outcomes(work, items[:1])) == {items[0]: "waits, done"}
    assert len(list((cluster / "submitted").iterdir())) == 3


@pytest.mark.usefixtures("cluster")
@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"slurm_partitoin": "gpu"}, "slurm: .*Unknown argument 'partitoin'"),
        ({"timeout_min": "long"}, 'slurm: Parameter "timeout_min" expected type'),
        ({"tasks_per_node": 4}, "slurm: tasks_per_node: expected 1, as each run is one process, got 4"),
        ({"cluster": "nowhere"}, "slurm: .*nowhere"),
    ],
)
def test_wrong_parameters_are_told_before_anything_is_submitted(
    tmp_path: Path, parameters: dict[str, object], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        Slurm(tmp_path / "jobs", **parameters)


def test_no_cluster_here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(ValueError, match=r"slurm: .*srun"):
        Slurm(tmp_path / "jobs")


def test_submitit_is_named_where_it_is_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "submitit", None)
    with pytest.raises(ModuleNotFoundError, match=r'pip install "tost-sparse\[slurm\]", or choose --launcher processes'):
        Slurm(tmp_path / "jobs")
