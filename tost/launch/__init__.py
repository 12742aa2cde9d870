"""Where work on many things is carried out: in processes of this machine, or by Slurm."""

from tost.launch.launcher import Launcher
from tost.launch.processes import Processes
from tost.launch.slurm import Slurm

__all__ = ["Launcher", "Processes", "Slurm"]
