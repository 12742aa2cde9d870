"""Safetensors files: streamed out under a checksum, read in without trusting a word of their header."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from tost.files import DamagedFile, replacing

# names of the format's element types; 4-bit ones are missing because their shapes count packed pairs
DTYPES = {
    torch.float64: "F64",
    torch.int64: "I64",
    torch.uint64: "U64",
    torch.complex64: "C64",
    torch.float32: "F32",
    torch.int32: "I32",
    torch.uint32: "U32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.int16: "I16",
    torch.uint16: "U16",
    torch.float8_e4m3fn: "F8_E4M3",
    torch.float8_e5m2: "F8_E5M2",
    torch.int8: "I8",
    torch.uint8: "U8",
    torch.bool: "BOOL",
}
MAX_HEADER = 100_000_000  # bytes; what readers of the format accept
_UNSEALED = "0" * 64


def write(path: str | os.PathLike[str], tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> None:
    """Write a safetensors file, atomically, with `metadata` and the SHA-256 of the whole file in its header.

    The library's own `save_file` refuses tensors that share memory or are not contiguous and hides the reason of a failed
    write (a full disk); here each tensor is brought to the CPU and made contiguous when its turn comes, so that at no time
    there is a copy of more than one. The checksum is that of the file with 64 zeros in the checksum's own place.

    Raises:
        ValueError: the header would be larger than readers accept.
        OSError: see `tost.files.replacing`.
    """
    # Large elements first: each tensor begins at a multiple of its element size, as readers that map the file need it.
    names = sorted(tensors, key=lambda name: -tensors[name].element_size())
    header: dict[str, Any] = {"__metadata__": {**metadata, "sha256": _UNSEALED}}
    end = 0
    for name in names:
        start, end = end, end + tensors[name].numel() * tensors[name].element_size()
        header[name] = {
            "dtype": DTYPES[tensors[name].dtype],
            "shape": list(tensors[name].shape),
            "data_offsets": [start, end],
        }
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    if len(text) > MAX_HEADER:
        raise ValueError(
            f"{path}: expected a header of at most {MAX_HEADER:,} bytes, got {len(text):,}: fewer tensors or metadata"
        )
    start_of_seal = 8 + text.index(f'"sha256":"{_UNSEALED}"'.encode()) + len('"sha256":"')
    with replacing(Path(path)) as file:
        seal = hashlib.sha256()
        for part in (len(text).to_bytes(8, "little"), text):
            file.write(part)
            seal.update(part)
        for name in names:
            data = _bytes_of(tensors[name])
            file.write(data)
            seal.update(data)
            del data  # before the next is copied
        file.seek(start_of_seal)
        file.write(seal.hexdigest().encode())


def _bytes_of(tensor: Tensor) -> memoryview:
    plain = tensor.detach().cpu().resolve_conj().resolve_neg().contiguous()
    # not reshape(-1): one element, or none, may have any stride and still count as contiguous
    return plain.as_strided((plain.numel(),), (1,)).view(torch.uint8).numpy().data


def read(
    path: str | os.PathLike[str], what: str, format: str, version: int, hint: str = "", sealed: bool = True
) -> tuple[dict[str, Tensor], dict[str, str]]:
    """The tensors (on the CPU, in memory of their own) and the metadata of a file that `write` wrote.

    Memory is bounded by a small multiple of the file's size, whatever the file says of itself.

    Args:
        path: the file.
        what: "mask file", for messages.
        format, version: what its metadata must say under these names.
        hint: added to the message where it is of another format.
        sealed: refuse a file without checksum.

    Raises:
        FileNotFoundError: there is no such file.
        DamagedFile: it is damaged, of another format or version, or no regular file.
        OSError: it cannot be read.
    """
    path = Path(path)
    if not path.exists():
        raise FileNotFoundError(f"{path}: no such {what}")
    if not path.is_file():
        raise DamagedFile(path, f"expected a {what}, got a directory or device")
    try:
        # The library compares lengths and offsets with the file's size before it reads or allocates anything.
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            if metadata.get("format") != format:
                got = repr(metadata.get("format"))[:100]
                raise DamagedFile(path, f"expected a {what} (format {format!r}), got format {got}{hint}")
            if metadata.get("version") != str(version):
                got = repr(metadata.get("version"))[:100]
                reason = f"expected version {version} of the {what}'s format, got {got} (was it written by a later tost?)"
                raise DamagedFile(path, reason)
            if sealed or "sha256" in metadata:
                _check_seal(path, metadata.get("sha256"))
            # a clone is aligned and needs the file no more; what the library hands out is the file itself, mapped
            tensors = {name: _mapped(file, name, path).clone() for name in file.keys()}  # noqa: SIM118 (not iterable)
    except SafetensorError as error:
        raise DamagedFile(path, f"damaged, or no safetensors file at all: {' '.join(str(error).split())[:200]}") from error
    return tensors, metadata


def _mapped(file: Any, name: str, path: Path) -> Tensor:
    try:
        tensor: Tensor = file.get_tensor(name)
    except (SafetensorError, RuntimeError, TypeError, ValueError, OverflowError) as error:
        # shapes and types that the format allows and torch does not, such as 2**63 times 0 elements
        raise DamagedFile(path, f"damaged: {name!r} is no tensor: {' '.join(str(error).split())[:200]}") from error
    return tensor


def _check_seal(path: Path, expected: str | None) -> None:
    with path.open("rb") as file:
        length = file.read(8)
        header = file.read(int.from_bytes(length, "little"))
        if expected is None or header.count(expected.encode()) != 1:
            raise DamagedFile(path, "damaged: it has no checksum")
        seal = hashlib.sha256(length)
        seal.update(header.replace(expected.encode(), _UNSEALED.encode()))
        while chunk := file.read(1 << 20):
            seal.update(chunk)
    if seal.hexdigest() != expected:
        raise DamagedFile(path, "damaged: its content does not match its checksum")
