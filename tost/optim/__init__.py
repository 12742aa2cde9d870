"""Optimizers that find sparse structure while they train: SplitLBI, its parameter groups, and the record of its path."""

from __future__ import annotations

from tost.optim.groups import split_lbi_groups
from tost.optim.path import SolutionPath
from tost.optim.read_out import PathPoint
from tost.optim.split_lbi import SplitLBI, stable_lr

__all__ = ["PathPoint", "SolutionPath", "SplitLBI", "split_lbi_groups", "stable_lr"]
