"""Data set names -> loaders."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import lru_cache
from pathlib import Path

from tost.choices import check_choice
from tost.data import cifar, idx, image_folders, mnist5k
from tost.data.dataset import Dataset
from tost.data.places import default_dir

_LOADERS: Mapping[str, Callable[[Path | None], Dataset]] = {
    "cifar10": lambda folder: cifar.load("cifar10", folder),
    "cifar100": lambda folder: cifar.load("cifar100", folder),
    "fashionmnist": lambda folder: idx.load("fashionmnist", folder),
    "imagefolder": image_folders.load_folder,
    "imagenet": image_folders.load_imagenet,
    "mnist": lambda folder: idx.load("mnist", folder),
    "mnist5k": lambda folder: mnist5k.load(),
    "tinyimagenet": image_folders.load_tinyimagenet,
}


def names() -> tuple[str, ...]:
    """The names `load` knows, sorted."""
    return tuple(sorted(_LOADERS))


def load(name: str, data_dir: str | Path | None = None) -> Dataset:
    """The data set. Asked for twice, it is the same object: never write into its tensors.

    Args:
        name: one of `names()`.
        data_dir: folder of its files, or of a folder `name` with them; None: $TOST_DATA_DIR, else ~/.cache/tost/data, where
            `tost data fetch` puts them. mnist5k is installed with its package and does not need one.

    imagefolder: anybody's pictures in train/<class>/ and val/<class>/ at 224 x 224; `tost.data.load_folder` has options.

    Raises:
        ValueError: unknown name, damaged files. ModuleNotFoundError: pictures and no Pillow.
        FileNotFoundError: missing folder, file or package; says what to run or put where.
    """
    check_choice("dataset", name, _LOADERS)
    return _load(name, None if data_dir is None else str(data_dir), str(default_dir()))


@lru_cache(maxsize=2)
def _load(name: str, data_dir: str | None, default: str) -> Dataset:
    return _LOADERS[name](None if data_dir is None else Path(data_dir))
