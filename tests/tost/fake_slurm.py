"""A cluster of one machine: stands for sbatch, srun, sacct and scontrol, whichever name it is called by. Standard library only.

    install(folder) makes the commands in folder/bin, to be put into PATH

A job's state is a file in folder/states: RUNNING, COMPLETED, FAILED. Jobs outlive whoever submitted them.
"""

import os
import re
import subprocess
import sys
from pathlib import Path

COMMANDS = ("sbatch", "srun", "sacct", "scontrol")


def install(folder: Path) -> Path:
    for name in ("bin", "states", "submitted"):
        (folder / name).mkdir(parents=True)
    for name in COMMANDS:
        command = folder / "bin" / name
        command.write_text(f'#!/bin/sh\nexec {sys.executable} {Path(__file__)} {name} {folder} "$@"\n')
        command.chmod(0o755)
    return folder / "bin"


def sbatch(folder: Path, script: str) -> None:
    text = Path(script).read_text()
    number = 100 + len(list((folder / "submitted").iterdir()))
    (folder / "submitted" / str(number)).write_text(text)
    array = re.search(r"--array=0-(\d+)", text)
    for job in [f"{number}_{task}" for task in range(int(array[1]) + 1)] if array else [str(number)]:
        (folder / "states" / job).write_text("PENDING")
        own = [sys.executable, __file__, "job", str(folder), job, str(folder / "submitted" / str(number))]
        # no pipe of the caller's: it waits for their ends
        nowhere = subprocess.DEVNULL
        subprocess.Popen(own, start_new_session=True, stdin=nowhere, stdout=nowhere, stderr=nowhere)
    print(f"Submitted batch job {number}")


def job(folder: Path, name: str, script: str) -> None:
    number, _, task = name.partition("_")
    env = {**os.environ, "SLURM_JOB_ID": number}
    if task:
        env |= {"SLURM_ARRAY_JOB_ID": number, "SLURM_ARRAY_TASK_ID": task}
    again, state = folder / f"{name}.requeued", folder / "states" / name
    while True:
        state.write_text("RUNNING")
        code = subprocess.run(["bash", script], env=env, check=False).returncode
        if not again.exists():
            break
        again.unlink()
    state.write_text("FAILED" if code else "COMPLETED")


def srun(folder: Path, *words: str) -> None:
    number, task = os.environ["SLURM_JOB_ID"], os.environ.get("SLURM_ARRAY_TASK_ID", "")
    rest = list(words)
    for option, stream in (("--output", 1), ("--error", 2)):
        place = rest.index(option)
        path = rest[place + 1].replace("%j", number).replace("%A", number).replace("%a", task).replace("%t", "0")
        os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND), stream)
        del rest[place : place + 2]
    rest.remove("--unbuffered")
    os.execvp(rest[0], rest)


def sacct(folder: Path, *words: str) -> None:
    print("JobID|State|NodeList")
    for state in sorted((folder / "states").iterdir()):
        print(f"{state.name}|{state.read_text()}|here")


def scontrol(folder: Path, requeue: str, name: str) -> None:
    assert requeue == "requeue"
    (folder / f"{name}.requeued").touch()


if __name__ == "__main__":
    {"sbatch": sbatch, "job": job, "srun": srun, "sacct": sacct, "scontrol": scontrol}[sys.argv[1]](
        Path(sys.argv[2]), *sys.argv[3:]
    )
