"""MNIST and Fashion-MNIST in their idx files, plain or .gz (http://yann.lecun.com/exdb/mnist; arXiv 1708.07747).

A file is 0, 0, the type (8: bytes), the number of dimensions, each dimension as 4 bytes (big-endian), and the bytes.
"""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from tost.data.dataset import Dataset, MemoryImages
from tost.data.places import folders, missing, read_bounded

_CLASSES, _SIDE = 10, 28
_STATISTICS = {"mnist": (0.1307, 0.3081), "fashionmnist": (0.2860, 0.3530)}
# the two sets have files of the same names and sizes; their first test labels tell them apart
_FIRST_LABELS = {"mnist": (7, 2, 1, 0, 4, 1, 4, 9, 5, 9), "fashionmnist": (9, 2, 1, 1, 6, 1, 4, 6, 5, 7)}
FILES = tuple(f"{part}-{kind}-ubyte" for part in ("train", "t10k") for kind in ("images-idx3", "labels-idx1"))


def read_idx(path: Path, shape: tuple[int, ...]) -> Tensor:
    """uint8 tensor of `shape` out of `path`, or out of `path`.gz where there is no such file.

    Raises:
        FileNotFoundError: neither file is there.
        ValueError: another header or length than `shape` asks for, or a damaged .gz.
    """
    if not path.is_file():
        path = path.with_name(f"{path.name}.gz")
    header = bytes((0, 0, 8, len(shape))) + b"".join(size.to_bytes(4, "big") for size in shape)
    content = read_bounded(path, len(header) + math.prod(shape))
    if content[: len(header)] != header:
        raise ValueError(
            f"data_dir: expected {path} to begin with {header.hex(' ', 4)} (idx, bytes, {shape}), "
            f"got {content[: len(header)].hex(' ', 4) or 'nothing'}: damaged, or another file"
        )
    if len(content) != len(header) + math.prod(shape):
        problem = "is longer" if len(content) > len(header) + math.prod(shape) else f"is cut short after {len(content)} bytes"
        raise ValueError(f"data_dir: expected {path} to hold {len(header)} + {math.prod(shape)} bytes, but it {problem}")
    return torch.from_numpy(np.frombuffer(content, np.uint8, offset=len(header)).reshape(shape).copy())


def find(name: str, data_dir: str | Path | None = None) -> Path:
    """The folder to read; a FileNotFoundError where there is none."""
    places = folders(data_dir, name)
    for place in places:
        if any((place / file).is_file() or (place / f"{file}.gz").is_file() for file in FILES):
            return place
    raise missing(name, places, f"{', '.join(FILES)} (or the same as .gz)")


def load(name: str, data_dir: str | Path | None = None, train: int = 60_000, test: int = 10_000) -> Dataset:
    """The data set `name`, "mnist" or "fashionmnist".

    Args:
        name: which of the two.
        data_dir: folder of the four files, or of a folder `name` with them; None: see `tost.data.load`.
        train, test: how many images the files hold.

    Raises:
        FileNotFoundError, ValueError: a file is missing, damaged, or one of the other data set.
    """
    folder = find(name, data_dir)

    def read(part: str, count: int) -> MemoryImages:
        images = read_idx(folder / f"{part}-images-idx3-ubyte", (count, _SIDE, _SIDE))
        file = folder / f"{part}-labels-idx1-ubyte"
        labels = read_idx(file, (count,)).long()
        if int(labels.max()) >= _CLASSES:
            raise ValueError(f"data_dir: expected labels 0 to {_CLASSES - 1} in {file}, got {int(labels.max())}: damaged")
        for other, first in _FIRST_LABELS.items():
            if part == "t10k" and other != name and tuple(labels[: len(first)].tolist()) == first:
                raise ValueError(f"data_dir: expected {name}, but {folder} holds {other}, whose files have the same names")
        return MemoryImages(images.unsqueeze(1), labels)

    mean, std = _STATISTICS[name]
    return Dataset(
        name=name,
        train=read("train", train),
        test=read("t10k", test),
        num_classes=_CLASSES,
        mean=torch.tensor([mean]),
        std=torch.tensor([std]),
        crop_padding=2,
        flip=name == "fashionmnist",  # a mirrored 2 is not a 2, a mirrored shoe is a shoe
    )
