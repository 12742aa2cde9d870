"""The mask file: safetensors, one BOOL tensor a layer, with a format version, the layers' order and a fingerprint."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping

import torch
from torch import Tensor

from tost.files import DamagedFile
from tost.tensor_file import read, write

FORMAT = "tost.masks"
VERSION = 1
# where the masks are, if they are not in this file
OTHERWISE = (
    "the masks of a run are in its masks.safetensors; "
    "Masks.from_state_dict(safetensors.torch.load_file(...)) reads those in the weights of a network"
)


def save(path: str | os.PathLike[str], tensors: Mapping[str, Tensor], fingerprint: str) -> None:
    """Write `tensors` to `path`, atomically."""
    metadata = {
        "format": FORMAT,
        "version": str(VERSION),
        "order": json.dumps(list(tensors)),  # the file sorts its tensors
        "fingerprint": fingerprint,
    }
    write(path, tensors, metadata)


def load(path: str | os.PathLike[str]) -> tuple[dict[str, Tensor], str | None]:
    """The tensors of a mask file, in their saved order, and the fingerprint saved with them (not compared yet).

    Of a safetensors file that another program wrote: all its tensors, whatever they are, and None.

    Raises:
        FileNotFoundError: there is no such file.
        DamagedFile: it is damaged, no safetensors file, or one of ours that holds something else than masks.
    """
    # The first mask files had no checksum of the whole file; the fingerprint guards what is in them.
    try:
        tensors, metadata = read(path, "mask file", FORMAT, VERSION, sealed=False, foreign=True)
    except DamagedFile as error:
        if not error.reason.startswith("expected a mask file"):
            raise
        raise DamagedFile(path, f"{error.reason}; {OTHERWISE}") from error  # a network, or the folder of a run
    if metadata.get("format") != FORMAT:
        return tensors, None
    try:
        order = json.loads(metadata["order"])
        ordered = {name: tensors[name] for name in order}
        fingerprint = metadata["fingerprint"]
    except (KeyError, TypeError, ValueError, RecursionError) as error:
        raise DamagedFile(path, "damaged: its list of layers does not match its tensors") from error
    if ordered.keys() != tensors.keys():
        raise DamagedFile(path, "damaged: its list of layers does not match its tensors")
    for name, tensor in ordered.items():
        # a byte that is neither 0 nor 1 would be a bool tensor with undefined behaviour
        if tensor.dtype is not torch.bool or bool((tensor.view(torch.uint8) > 1).any()):
            raise DamagedFile(path, f"damaged: expected booleans in {name!r}, got {tensor.dtype} or bytes other than 0 and 1")
    return ordered, fingerprint
