"""CIFAR-10 and CIFAR-100 in their official binary and python versions (https://www.cs.toronto.edu/~kriz/cifar.html).

A binary file is records of the label bytes (CIFAR-10: the class; CIFAR-100: the superclass and the class) and 3,072 pixel
bytes (red, green, blue planes, row by row). A python file is a pickled dict with the same pixels and lists of labels.
Either is read from its folder or out of its .tar.gz.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from tost.data import cifar_pickle
from tost.data.dataset import Dataset, MemoryImages
from tost.data.places import folders, missing, read_bounded, read_members

_PIXELS = 3 * 32 * 32


@dataclass(frozen=True)
class _Set:
    classes: int
    archive: str  # how the names of the archives begin
    binary: str  # the folder in each archive
    python: str
    train: tuple[str, ...]  # file names, in the binary version with .bin
    test: str
    label_bytes: int  # in the binary version; the last one is the class
    label_key: str  # in the python version
    mean: tuple[float, float, float]
    std: tuple[float, float, float]


_SETS = {
    "cifar10": _Set(
        classes=10,
        archive="cifar-10",
        binary="cifar-10-batches-bin",
        python="cifar-10-batches-py",
        train=tuple(f"data_batch_{i}" for i in range(1, 6)),
        test="test_batch",
        label_bytes=1,
        label_key="labels",
        mean=(0.4914, 0.4822, 0.4465),
        std=(0.2470, 0.2435, 0.2616),
    ),
    "cifar100": _Set(
        classes=100,
        archive="cifar-100",
        binary="cifar-100-binary",
        python="cifar-100-python",
        train=("train",),
        test="test",
        label_bytes=2,
        label_key="fine_labels",
        mean=(0.5071, 0.4865, 0.4409),
        std=(0.2673, 0.2564, 0.2762),
    ),
}


def load(name: str, data_dir: str | Path | None = None, train: int = 50_000, test: int = 10_000) -> Dataset:
    """The data set `name`, "cifar10" or "cifar100" (its 100 classes).

    Args:
        name: which of the two.
        data_dir: folder of the files, of their official folder or of the .tar.gz, or of a folder `name` with one of these;
            None: see `tost.data.load`.
        train, test: how many images there are.

    Raises:
        FileNotFoundError, ValueError: a file is missing, damaged, or one of another data set.
    """
    facts = _SETS[name]
    counts = {stem: train // len(facts.train) for stem in facts.train} | {facts.test: test}
    first = np.cumsum([0, *counts.values()])
    start = dict(zip(counts, first.tolist(), strict=False))
    pixels = np.empty((train + test, _PIXELS), np.uint8)
    labels = np.empty(train + test, np.int64)
    source, binary = find(name, data_dir)
    for stem, content in _contents(source, binary, counts, facts):
        part = slice(start[stem], start[stem] + counts[stem])
        try:
            parse = _parse_binary if binary else _parse_python
            pixels[part], classes = parse(content, counts[stem], facts)
            wrong = [label for label in classes if not 0 <= label < facts.classes]
            if wrong:
                raise ValueError(f"expected labels 0 to {facts.classes - 1}, got {wrong[0]}: damaged, or not a file of {name}")
            labels[part] = classes
        except ValueError as error:
            raise ValueError(f"data_dir: {source / stem}{'.bin' if binary else ''}: {error}") from error
    images, targets = torch.from_numpy(pixels).view(-1, 3, 32, 32), torch.from_numpy(labels)
    return Dataset(
        name=name,
        train=MemoryImages(images[:train], targets[:train]),
        test=MemoryImages(images[train:], targets[train:]),
        num_classes=facts.classes,
        mean=torch.tensor(facts.mean),
        std=torch.tensor(facts.std),
        crop_padding=4,
        flip=True,
    )


def find(name: str, data_dir: str | Path | None = None) -> tuple[Path, bool]:
    """The folder or archive to read, and whether it is the binary version; a FileNotFoundError where there is none."""
    facts = _SETS[name]
    places = folders(data_dir, name)
    for place in places:
        for binary, folder, ending in ((True, facts.binary, ".bin"), (False, facts.python, "")):
            for source in (place / folder, place):
                if any((source / f"{stem}{ending}").is_file() for stem in (*facts.train, facts.test)):
                    return source, binary
        for binary, version in ((True, "binary"), (False, "python")):
            source = place / f"{facts.archive}-{version}.tar.gz"
            if source.is_file():
                return source, binary
    files = f"{facts.train[0]}.bin{' ... ' if len(facts.train) > 1 else ', '}{facts.test}.bin"
    raise missing(name, places, f"{files} (or {facts.archive}-binary.tar.gz, or {facts.archive}-python.tar.gz)")


def _contents(source: Path, binary: bool, counts: Mapping[str, int], facts: _Set) -> Iterator[tuple[str, bytes]]:
    """(name without .bin, content) of each file; at most a little more of it than it should have."""
    # Python 3 may write a byte as two; the file name and labels of a record are about 40 bytes
    most = {stem: count * (facts.label_bytes + _PIXELS if binary else 2 * _PIXELS + 200) for stem, count in counts.items()}
    ending = ".bin" if binary else ""
    if source.is_file():
        files = read_members(source, [f"{stem}{ending}" for stem in counts], sum(most.values()) + 1_000_000)
        yield from ((file.removesuffix(".bin"), content) for file, content in files)
    else:
        yield from ((stem, read_bounded(source / f"{stem}{ending}", limit + 1000)) for stem, limit in most.items())


def _parse_binary(content: bytes, records: int, facts: _Set) -> tuple[NDArray[np.uint8], list[int]]:
    size = facts.label_bytes + _PIXELS
    if len(content) != records * size:
        raise ValueError(
            f"expected {records * size} bytes ({records} images of {facts.label_bytes} + {_PIXELS}), "
            f"got {'more' if len(content) > records * size else len(content)}: cut short, or another file"
        )
    table = np.frombuffer(content, np.uint8).reshape(records, size)
    return table[:, facts.label_bytes :], table[:, facts.label_bytes - 1].tolist()


def _parse_python(content: bytes, records: int, facts: _Set) -> tuple[NDArray[np.uint8], list[int]]:
    pixels, entries = cifar_pickle.read_batch(content, records, _PIXELS)
    labels = entries.get(facts.label_key)
    if not isinstance(labels, list) or len(labels) != records or not all(type(label) is int for label in labels):
        got = f"{len(labels)} entries" if isinstance(labels, list) else type(labels).__name__
        raise ValueError(f"expected a list '{facts.label_key}' of {records} whole numbers, got {got}")
    return pixels, labels
