"""Data sets and their batches: `load("mnist5k")`, `TrainBatches(dataset, 128, seed=0)`."""

from __future__ import annotations

from tost.data.batches import TrainBatches, eval_batches, validation_split
from tost.data.dataset import Dataset, Images, MemoryImages, Picks
from tost.data.image_folders import load_folder
from tost.data.registry import find, load, names
from tost.data.transfer import near

__all__ = [
    "Dataset",
    "Images",
    "MemoryImages",
    "Picks",
    "TrainBatches",
    "eval_batches",
    "find",
    "load",
    "load_folder",
    "names",
    "near",
    "validation_split",
]
