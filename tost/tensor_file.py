"""Safetensors files: streamed out under a checksum, read in without trusting a word of their header."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, deserialize
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
_DTYPES = {name: dtype for dtype, name in DTYPES.items()}
MAX_HEADER = 100_000_000  # bytes; what readers of the format accept
_METADATA = "__metadata__"
_UNSEALED = "0" * 64
_NO_SUCH_FILE = "damaged, or no safetensors file at all"


def write(path: str | os.PathLike[str], tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> None:
    """Write a safetensors file, atomically, with `metadata` and the SHA-256 of the whole file in its header.

    The library's own `save_file` refuses tensors that share memory or are not contiguous and hides the reason of a failed
    write (a full disk); here each tensor is brought to the CPU and made contiguous when its turn comes, so that at no time
    there is a copy of more than one. The checksum is that of the file with 64 zeros in the checksum's own place.

    Raises:
        ValueError: the header would be larger than readers accept, or a tensor has the name that the format keeps for itself.
        OSError: see `tost.files.replacing`.
    """
    if _METADATA in tensors:
        raise ValueError(f"{path}: expected another name than {_METADATA!r} for a tensor: the file format keeps it for itself")
    # Large elements first: each tensor begins at a multiple of its element size, as readers that map the file need it.
    names = sorted(tensors, key=lambda name: -tensors[name].element_size())
    header: dict[str, Any] = {_METADATA: {**metadata, "sha256": _UNSEALED}}
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
    path: str | os.PathLike[str], what: str, format: str, version: int, sealed: bool = True, foreign: bool = False
) -> tuple[dict[str, Tensor], dict[str, str]]:
    """The tensors (on the CPU, in memory of their own) and the metadata of a file that `write` wrote.

    The file is opened and read once: also while a writer replaces it, what comes back is one whole version of it. Memory is
    bounded by a small multiple of the file's size, whatever the file says of itself.

    Args:
        path: the file.
        what: "mask file", for messages.
        format, version: what its metadata must say under these names.
        sealed: refuse a file without checksum.
        foreign: take also a file that says nothing of a version or checksum: another program wrote it.

    Raises:
        FileNotFoundError: there is no such file.
        DamagedFile: it is damaged, of another format or version, or no regular file.
        OSError: it cannot be read.
    """
    path = Path(path)
    content = _content(path, what)
    try:
        # The library compares lengths and offsets with the file's size before it allocates anything.
        parts = deserialize(content)  # type: ignore[no-untyped-call]  # it has no annotations
        header = content[8 : 8 + int.from_bytes(content[:8], "little")]
        metadata: dict[str, str] = json.loads(header).get(_METADATA) or {}
    except (SafetensorError, ValueError, RecursionError) as error:  # JSON of which the library passes over the odd parts
        raise DamagedFile(path, f"{_NO_SUCH_FILE}: {_line(error)}") from error
    if not foreign or metadata.get("format") == format or not metadata.keys().isdisjoint({"version", "sha256"}):
        _check_kind(path, metadata, what, format, version)
        if sealed or "sha256" in metadata:
            _check_seal(path, content, header, metadata.get("sha256"))
    del content  # parts are copies
    tensors = {}
    while parts:
        name, part = parts.pop()
        tensors[name] = _tensor(path, name, part)
    return tensors, metadata


def _content(path: Path, what: str) -> bytes:
    if path.exists() and not path.is_file():
        raise DamagedFile(path, f"expected a {what}, got a directory or device")  # to open a pipe would wait for its writer
    try:
        with path.open("rb", buffering=0) as file:  # a buffer would join pieces: twice the memory
            start = file.read(9)
            # what is no such file, however large, is mostly seen here
            if len(start) < 9 or start[8:] != b"{" or int.from_bytes(start[:8], "little") > MAX_HEADER:
                raise DamagedFile(path, f"{_NO_SUCH_FILE}: it does not begin with a header")
            file.seek(0)
            return file.readall()
    except FileNotFoundError:
        raise FileNotFoundError(f"{path}: no such {what}") from None


def _tensor(path: Path, name: str, part: Mapping[str, Any]) -> Tensor:
    try:
        dtype, shape, data = _DTYPES[part["dtype"]], part["shape"], part["data"]
        if not data:
            return torch.empty(shape, dtype=dtype)  # frombuffer refuses no bytes
        # a clone is aligned, and its storage may grow
        return torch.frombuffer(data, dtype=dtype).reshape(shape).clone()
    except (KeyError, RuntimeError, TypeError, ValueError, OverflowError) as error:
        # shapes and types that the format allows and torch does not, such as 2**63 times 0 elements
        raise DamagedFile(path, f"damaged: {name!r} is no tensor: {_line(error)}") from error


def _check_kind(path: Path, metadata: Mapping[str, str], what: str, format: str, version: int) -> None:
    if metadata.get("format") != format:
        got = repr(metadata.get("format"))[:100]
        raise DamagedFile(path, f"expected a {what} (format {format!r}), got format {got}")
    if metadata.get("version") != str(version):
        got = repr(metadata.get("version"))[:100]
        reason = f"expected version {version} of the {what}'s format, got {got} (was it written by a later tost?)"
        raise DamagedFile(path, reason)


def _check_seal(path: Path, content: bytes, header: bytes, expected: str | None) -> None:
    if expected is None or header.count(expected.encode()) != 1:
        raise DamagedFile(path, "damaged: it has no checksum")
    seal = hashlib.sha256(content[:8])
    seal.update(header.replace(expected.encode(), _UNSEALED.encode()))
    seal.update(memoryview(content)[8 + len(header) :])
    if seal.hexdigest() != expected:
        raise DamagedFile(path, "damaged: its content does not match its checksum")


def _line(error: Exception) -> str:
    return " ".join(str(error).split())[:200]
