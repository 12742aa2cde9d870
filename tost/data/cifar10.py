"""CIFAR-10 in its official binary layout (https://www.cs.toronto.edu/~kriz/cifar.html).

`data_batch_1.bin` ... `data_batch_5.bin` and `test_batch.bin`, each 10,000 records of 1 label byte and 3,072 pixel bytes
(red, green, blue planes, row by row).
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from tost.data.dataset import Dataset, MemoryImages

_MEAN, _STD = (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)
_CLASSES, _PIXELS, _RECORDS = 10, 3 * 32 * 32, 10_000
FOLDER = "cifar-10-batches-bin"
TRAIN_FILES = tuple(f"data_batch_{i}.bin" for i in range(1, 6))
TEST_FILES = ("test_batch.bin",)


def read_batch(path: Path, records: int = _RECORDS) -> tuple[Tensor, Tensor]:
    """Images uint8 (records, 3, 32, 32) and labels int64 (records,) of one file.

    Raises:
        FileNotFoundError: no such file.
        ValueError: the file has another length than `records` records, or a label above 9.
    """
    if not path.is_file():
        raise FileNotFoundError(f"data_dir: missing file {path}")
    raw = np.fromfile(path, dtype=np.uint8)
    if raw.size != records * (_PIXELS + 1):
        raise ValueError(
            f"data_dir: expected {path} to have {records * (_PIXELS + 1)} bytes "
            f"({records} images of 1 + {_PIXELS}), got {raw.size}: truncated or not the binary version"
        )
    table = torch.from_numpy(raw.reshape(records, _PIXELS + 1))
    targets = table[:, 0].long()
    if int(targets.max()) >= _CLASSES:
        raise ValueError(f"data_dir: expected labels 0 to 9 in {path}, got {int(targets.max())}: not a CIFAR-10 file")
    return table[:, 1:].reshape(records, 3, 32, 32), targets


def load(data_dir: str | Path) -> Dataset:
    """50,000 training and 10,000 test images from `data_dir`, or from its folder `cifar-10-batches-bin`."""
    folder = Path(data_dir)
    if not folder.is_dir():
        raise FileNotFoundError(f"data_dir: no such folder: {folder}")
    if (folder / FOLDER).is_dir():
        folder = folder / FOLDER

    def read(files: tuple[str, ...]) -> MemoryImages:
        pixels, targets = zip(*(read_batch(folder / file) for file in files), strict=True)
        return MemoryImages(torch.cat(pixels), torch.cat(targets))

    return Dataset(
        name="cifar10",
        train=read(TRAIN_FILES),
        test=read(TEST_FILES),
        num_classes=_CLASSES,
        mean=torch.tensor(_MEAN),
        std=torch.tensor(_STD),
        crop_padding=4,
        flip=True,
    )
