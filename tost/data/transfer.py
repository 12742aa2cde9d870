"""Data on the device that trains: small sets whole, once; what is drawn for a batch together, in one copy."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import torch
from torch import Tensor

from tost.data.dataset import Dataset, Images, MemoryImages

__all__ = ["near", "together"]

_SHARE = 4  # a set may take one part in so many of the memory that is free: activations and moments come on top


def near(dataset: Dataset, device: torch.device) -> Dataset:
    """`dataset` with its images in the memory of the CUDA device `device`; `dataset` itself on other devices, where the images
    are read from files, and where they would take more than a quarter of the memory that is free.

    Batches of it are made there, and have the pixels and classes of those made on the CPU: what is drawn is drawn on the CPU.
    """
    if device.type != "cuda" or not _fits(dataset, torch.cuda.mem_get_info(device)[0]):
        return dataset
    return moved(dataset, device)


def moved(dataset: Dataset, device: torch.device) -> Dataset:
    """`dataset` with the tensors of its images in memory on `device`, as bytes."""

    def there(images: Images) -> Images:
        return MemoryImages(images.pixels.to(device), images.targets.to(device)) if isinstance(images, MemoryImages) else images

    train, test = there(dataset.train), there(dataset.test)
    return dataclasses.replace(dataset, train=train, test=test, mean=dataset.mean.to(device), std=dataset.std.to(device))


def _fits(dataset: Dataset, free: int) -> bool:
    sets = (dataset.train, dataset.test)
    return all(isinstance(images, MemoryImages) for images in sets) and sum(_bytes(images) for images in sets) <= free // _SHARE


def _bytes(images: Images) -> int:
    channels, height, width = images.shape
    return len(images) * (channels * height * width + 8)  # a class is an int64


def together(tensors: Sequence[Tensor], device: torch.device) -> list[Tensor]:
    """Tensors (n,) of whole numbers or bools on `device`, copied as one: a transfer costs its start, not its bytes."""
    packed = torch.stack([tensor.long() for tensor in tensors])
    if device.type == "cuda":
        packed = packed.pin_memory()  # else the host would wait for the copy
    rows = packed.to(device, non_blocking=True).unbind()
    return [row.to(tensor.dtype) for row, tensor in zip(rows, tensors, strict=True)]
