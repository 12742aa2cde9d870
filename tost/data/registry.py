"""Data set names -> loaders."""

from __future__ import annotations

from functools import lru_cache

from tost.choices import check_choice
from tost.data import cifar10, mnist5k
from tost.data.dataset import Dataset

_NAMES = ("cifar10", "mnist5k")


def names() -> tuple[str, ...]:
    """The names `load` knows, sorted."""
    return _NAMES


def load(name: str, data_dir: str | None = None) -> Dataset:
    """The data set in memory. Asked for twice, it is the same object: never write into its tensors.

    Args:
        name: one of `names()`.
        data_dir: folder of the files; needed by cifar10, not used by mnist5k.

    Raises:
        ValueError: unknown name, no `data_dir` where one is needed, damaged files.
        FileNotFoundError: missing folder, file or package.
    """
    check_choice("dataset", name, _NAMES)
    if name == "mnist5k":
        return _load(name, "")
    if data_dir is None:
        raise ValueError(f"data_dir: {name} needs the folder of its binary files ({cifar10.FOLDER}), got none")
    return _load(name, str(data_dir))


@lru_cache(maxsize=2)
def _load(name: str, data_dir: str) -> Dataset:
    return mnist5k.load() if name == "mnist5k" else cifar10.load(data_dir)
