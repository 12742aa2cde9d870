"""Data set names -> what loads them and where they are."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

from tost.choices import check_choice
from tost.data import cifar, idx, image_folders, mnist5k
from tost.data.dataset import Dataset
from tost.data.places import default_dir


class _Set(NamedTuple):
    """What is done with the folder of a data set; None: the default one. Raises FileNotFoundError where it is not there."""

    load: Callable[[Path | None], Dataset]
    find: Callable[[Path | None], Path]


def _folder_of(name: str) -> Callable[[Path | None], Path]:
    return lambda folder: image_folders.find_folder(folder, name, "")[0].parent


_SETS: Mapping[str, _Set] = {
    "cifar10": _Set(lambda folder: cifar.load("cifar10", folder), lambda folder: cifar.find("cifar10", folder)[0]),
    "cifar100": _Set(lambda folder: cifar.load("cifar100", folder), lambda folder: cifar.find("cifar100", folder)[0]),
    "fashionmnist": _Set(lambda folder: idx.load("fashionmnist", folder), lambda folder: idx.find("fashionmnist", folder)),
    "imagefolder": _Set(image_folders.load_folder, _folder_of("imagefolder")),
    "imagenet": _Set(image_folders.load_imagenet, _folder_of("imagenet")),
    "mnist": _Set(lambda folder: idx.load("mnist", folder), lambda folder: idx.find("mnist", folder)),
    "mnist5k": _Set(lambda folder: mnist5k.load(), lambda folder: mnist5k.csv_path()),
    "tinyimagenet": _Set(image_folders.load_tinyimagenet, image_folders.find_tinyimagenet),
}


def names() -> tuple[str, ...]:
    """The names `load` knows, sorted."""
    return tuple(sorted(_SETS))


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
    check_choice("dataset", name, _SETS)
    return _load(name, None if data_dir is None else str(data_dir), str(default_dir()))


@lru_cache(maxsize=2)
def _load(name: str, data_dir: str | None, default: str) -> Dataset:
    return _SETS[name].load(None if data_dir is None else Path(data_dir))


def find(name: str, data_dir: str | Path | None = None) -> Path | None:
    """Where the data set `name` is, None if it is not there; its files are not read. Arguments and ValueError as for `load`."""
    check_choice("dataset", name, _SETS)
    try:
        return _SETS[name].find(None if data_dir is None else Path(data_dir))
    except FileNotFoundError:
        return None
