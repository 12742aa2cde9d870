"""The mask file: safetensors, one BOOL tensor a layer, with a format version, the layers' order and a fingerprint."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save as serialize
from torch import Tensor

from tost.files import write_atomic

FORMAT = "tost.masks"
VERSION = 1


def save(path: str | os.PathLike[str], tensors: Mapping[str, Tensor], fingerprint: str) -> None:
    """Write `tensors` to `path`, atomically."""
    metadata = {
        "format": FORMAT,
        "version": str(VERSION),
        "order": json.dumps(list(tensors)),  # safetensors sorts its tensors
        "fingerprint": fingerprint,
    }
    write_atomic(Path(path), serialize(dict(tensors), metadata))


def load(path: str | os.PathLike[str]) -> tuple[dict[str, Tensor], str]:
    """The tensors of a mask file, in their saved order, and the fingerprint saved with them."""
    path = Path(path)
    if not path.exists():
        raise FileNotFoundError(f"{path}: no such mask file")
    if not path.is_file():
        raise ValueError(f"{path}: expected a mask file, got a directory or device")
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (safe_open is not iterable)
    except SafetensorError as error:
        raise ValueError(f"{path}: damaged, or no safetensors file at all: {error}") from error
    if metadata.get("format") != FORMAT:
        raise ValueError(
            f"{path}: expected a mask file (format {FORMAT!r}), got format {metadata.get('format')!r}; for masks of another "
            f"program use Masks(safetensors.torch.load_file(path))"
        )
    if metadata.get("version") != str(VERSION):
        raise ValueError(f"{path}: expected version {VERSION} of the mask format, got {metadata.get('version')!r}")
    try:
        order = json.loads(metadata["order"])
        ordered = {name: tensors[name] for name in order}
        fingerprint = metadata["fingerprint"]
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{path}: damaged: its list of layers does not match its tensors") from error
    if ordered.keys() != tensors.keys():
        raise ValueError(f"{path}: damaged: its list of layers does not match its tensors")
    for name, tensor in ordered.items():
        # a byte that is neither 0 nor 1 would be a bool tensor with undefined behaviour
        if tensor.dtype is not torch.bool or bool((tensor.view(torch.uint8) > 1).any()):
            raise ValueError(f"{path}: damaged: expected booleans in {name!r}, got {tensor.dtype} or bytes other than 0 and 1")
    return ordered, fingerprint
