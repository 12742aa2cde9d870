"""The options that commands of many runs share: where they are trained."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import yaml
from jsonargparse import ArgumentParser, Namespace

from tost.choices import check_choice

if TYPE_CHECKING:
    from tost.launch import Launcher

_LAUNCHERS = ("processes", "slurm")


def add_launcher(parser: ArgumentParser) -> None:
    parser.add_argument("--jobs", type=int, default=1, help="launcher processes: runs at the same time, sharing the threads")
    parser.add_argument(
        "--launcher", type=str, default="processes", help="processes of this machine, or slurm: a job of the cluster for each run"
    )
    parser.add_argument(
        "--slurm",
        type=dict,
        default={},
        help="launcher slurm: parameters of submitit, as {slurm_partition: gpu, timeout_min: 240, slurm_array_parallelism: 8}, "
        "or one each as --slurm.timeout_min 240",
    )


def launcher_of(options: Namespace) -> Launcher:
    """The launcher that the options ask for; what it needs is there.

    Raises:
        ValueError: a number or a name is wrong, or an option is for the other launcher. ModuleNotFoundError: no submitit.
    """
    from tost.launch import Processes, Slurm
    from tost.parallel import check_launcher

    launcher: Launcher
    if check_choice("launcher", options.launcher, _LAUNCHERS) == "slurm":
        if options.jobs != 1:
            raise ValueError(f"jobs: expected 1, as slurm.slurm_array_parallelism limits the jobs of Slurm, got {options.jobs}")
        # what comes from --slurm.timeout_min 240 is text
        parameters = {name: yaml.safe_load(value) if isinstance(value, str) else value for name, value in options.slurm.items()}
        launcher = Slurm(Path(options.out) / "slurm", **parameters)
    else:
        if options.slurm:
            raise ValueError(f"slurm: expected nothing, as the launcher is {options.launcher!r}, got {options.slurm}")
        launcher = Processes(options.jobs)
    check_launcher(launcher)
    return launcher
