"""Data sets in memory and their batches: `load("mnist5k")`, `TrainBatches(dataset, 128, seed=0)`."""

from __future__ import annotations

from tost.data.batches import TrainBatches, eval_batches
from tost.data.dataset import Dataset
from tost.data.registry import load, names

__all__ = ["Dataset", "TrainBatches", "eval_batches", "load", "names"]
