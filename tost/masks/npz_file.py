"""Masks in numpy's archive: one bool array a layer, the fingerprint as the archive's comment. Nothing is ever unpickled."""

from __future__ import annotations

import io
import os
import re
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from tost.files import DamagedFile, replacing

_TAG = b"tost.masks/1 "
_SUFFIX = ".npy"
_NAMELESS = re.compile(r"arr_\d+")  # what numpy.savez(path, mask) calls an array
_MOST_NAME = 2**16 - 1  # bytes; of any zip archive
_MOST_HEADER = 10_000  # bytes; numpy's own limit
# how much smaller deflate makes anything, at most: what claims to be larger is not what it claims
_MOST_RATIO = 1100


def save(path: str | os.PathLike[str], tensors: Mapping[str, Tensor], fingerprint: str) -> None:
    """Write `tensors` to `path`, atomically; the same masks give the same bytes.

    Raises:
        ValueError: the archive cannot hold a name.
        OSError: see `tost.files.replacing`.
    """
    for name in tensors:
        if "\0" in name:  # zipfile would cut it there
            raise ValueError(f"{path}: expected names without a zero byte, got {name!r}")
        if len((name + _SUFFIX).encode()) > _MOST_NAME:
            raise ValueError(f"{path}: expected names up to {_MOST_NAME - len(_SUFFIX)} bytes, got one of {len(name.encode())}")
    with replacing(Path(path)) as file, zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.comment = _TAG + fingerprint.encode()
        for name, tensor in tensors.items():
            # not numpy.savez, which has no names such as "file" and takes no comment. ZipInfo: the same date at any time.
            entry = zipfile.ZipInfo(name + _SUFFIX)
            entry.compress_type = zipfile.ZIP_DEFLATED
            with archive.open(entry, "w", force_zip64=True) as member:
                np.lib.format.write_array(member, tensor.numpy(), allow_pickle=False)


def load(path: str | os.PathLike[str]) -> tuple[dict[str, Tensor], str | None]:
    """The arrays of an archive as tensors, in their order, and the fingerprint saved with them; None: another program's.

    Raises:
        FileNotFoundError: there is no such file.
        DamagedFile: it is damaged, or no archive of arrays of numbers.
    """
    path = Path(path)
    if path.exists() and not path.is_file():
        raise DamagedFile(path, "expected an .npz file, got a directory or device")
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        raise FileNotFoundError(f"{path}: no such mask file") from None
    try:
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            comment = archive.comment
            entries = archive.infolist()
            if sum(entry.file_size for entry in entries) > _MOST_RATIO * len(content):
                raise ValueError("it claims to hold more than can be in it")
            tensors = {entry.filename: _tensor(entry.filename, archive.read(entry)) for entry in entries}
    except MemoryError:
        raise
    except Exception as error:  # zipfile and its decompressors raise a dozen kinds
        reason = " ".join(f"{type(error).__name__}: {error}".split())[:200]
        raise DamagedFile(path, f"damaged, or no .npz archive of numbers: {reason}") from error
    if len(tensors) != len(entries):
        raise DamagedFile(path, "damaged: a name is there twice")
    if comment.startswith(_TAG):
        return _named(tensors), comment.removeprefix(_TAG).decode("ascii", "replace")
    if comment.startswith(_TAG[:-2]):
        raise DamagedFile(path, f"expected version 1 of the mask file's format, got {comment[:30]!r} (by a later tost?)")
    named = _named(tensors)
    if named and all(_NAMELESS.fullmatch(name) for name in named):
        raise DamagedFile(
            path,
            f"expected arrays under the names of layers, got {', '.join(named)}: numpy.savez(path, **{{name: mask}}) "
            "saves them with names",
        )
    return named, None


def _named(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name.removesuffix(_SUFFIX): tensor for name, tensor in tensors.items()}


def _tensor(name: str, data: bytes) -> Tensor:
    """The array in an .npy file. numpy's own reader would allocate whatever the header asks for."""
    if not name.endswith(_SUFFIX):
        raise ValueError(f"expected arrays (.npy), got {name!r}")
    file = io.BytesIO(data)
    shape, by_columns, dtype = _header(file)
    if any(size < 0 for size in shape):  # numpy would make one of them up
        raise ValueError(f"{name!r}: expected a shape, got {shape}")
    if dtype.kind not in "biuf" or dtype.itemsize > 8:
        raise ValueError(f"{name!r}: expected bool or numbers, got {dtype}")
    values = np.frombuffer(data, dtype, offset=file.tell())
    if dtype.kind == "b" and (values.view(np.uint8) > 1).any():  # such a bool is undefined behaviour
        raise ValueError(f"{name!r}: expected booleans, got bytes other than 0 and 1")
    array = values.reshape(shape, order="F" if by_columns else "C")
    return torch.from_numpy(np.array(array, dtype.newbyteorder("="), order="C"))


def _header(file: io.BytesIO) -> Any:
    """(shape, whether it is by columns, dtype) at the beginning of an .npy file."""
    version = np.lib.format.read_magic(file)
    if version not in ((1, 0), (2, 0)):
        raise ValueError(f"expected an array of version 1.0 or 2.0, got {version}")
    read: Any = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    try:
        return read(file, max_header_size=_MOST_HEADER)
    except MemoryError as error:  # Python's parser; a header is short, and memory is not what it lacks
        raise ValueError("its header is nested too deeply") from error
