"""Checkpoints: one safetensors file that holds a tree of Python values and tensors, whole or not at all. No pickle.

The tensors are the file's tensors, under the path that leads to them (`state['optimizer']['state'][0]['exp_avg']`), so that
any reader of safetensors can look into a checkpoint. The tree is JSON in the metadata. Each of its objects has one member,
whose name says what it stands for: {"dict": [[key, value], ...]}, {"tuple": [...]}, {"tensor": path}, and {"float": hex of the
eight bytes} for infinities and NaN; anything else is itself.
"""

from __future__ import annotations

import json
import math
import os
import struct
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from tost.files import DamagedFile
from tost.tensor_file import DTYPES, read, write

FORMAT = "tost.checkpoint"
VERSION = 1
MAX_DEPTH = 100  # of dicts, lists and tuples; keeps Python's own limit far away, on both ways
MAX_BITS = 4096  # of an int; Python reads no decimal numbers of more than 4300 digits

_EXPECTED = "expected a dict, list, tuple, str, int, float, bool, None or tensor"


def save(path: str | os.PathLike[str], state: Any) -> None:
    """Write `state` to `path`, atomically: after a crash there is the old file or the new one, whole.

    Args:
        path: a file in a folder that exists.
        state: a tree of dicts with str or int keys, lists, tuples, str, int, float, bool, None and tensors, such as the
            state_dicts of modules, optimizers, schedules and generators. Tensors may be of any dtype of safetensors, any
            shape, strides and device; each is saved on its own, also if it shares memory with another.

    Raises:
        TypeError: something else is in the tree; names its path.
        ValueError: an int, the depth or all of what is no tensor is too large, or a text is no Unicode.
        OSError: the file system refuses, see `tost.files.replacing`. The old file is as it was.
    """
    tensors: dict[str, Tensor] = {}
    tree = json.dumps(_encoded(state, "state", 0, tensors), allow_nan=False, separators=(",", ":"))
    write(path, tensors, {"format": FORMAT, "version": str(VERSION), "tree": tree})


def load(path: str | os.PathLike[str]) -> Any:
    """What `save` wrote: the same tree, floats and tensors to the bit.

    Subclasses of dict, list and tuple come back as plain ones; tensors as contiguous ones on the CPU, without gradients.
    Every changed byte of the file is noticed, and memory is bounded by the size of the file.

    Raises:
        FileNotFoundError: there is no such file.
        DamagedFile: it is damaged, is no checkpoint, or was written by a later version.
    """
    tensors, metadata = read(path, "checkpoint", FORMAT, VERSION)
    try:
        state = json.loads(
            metadata["tree"], object_pairs_hook=lambda pairs: _decoded(pairs, tensors), parse_constant=_no_constant
        )
    except (KeyError, ValueError, TypeError, RecursionError, struct.error) as error:
        raise DamagedFile(path, f"damaged: its tree cannot be read ({type(error).__name__})") from error
    if tensors:
        raise DamagedFile(path, f"damaged: {next(iter(tensors))!r} has no place in its tree")
    return state


def _encoded(value: Any, where: str, depth: int, tensors: dict[str, Tensor]) -> Any:
    """`value` as JSON types; its tensors go to `tensors`. `where` is its path, unique in the tree."""
    if depth > MAX_DEPTH:
        raise ValueError(f"state: expected at most {MAX_DEPTH} levels, got more (or a value that holds itself): {where[:200]}...")
    if value is None or isinstance(value, bool):
        return value
    if type(value) is str:
        return _text(value, where)
    if type(value) is int:
        return _whole(value, where)
    if type(value) is float:
        return value if math.isfinite(value) else {"float": struct.pack(">d", value).hex()}
    if isinstance(value, Tensor):
        tensors[where] = _checked(value, where)
        return {"tensor": where}
    if isinstance(value, Mapping):
        return {"dict": [[_key(k, where), _encoded(v, f"{where}[{k!r}]", depth + 1, tensors)] for k, v in value.items()]}
    if isinstance(value, list | tuple):
        items = [_encoded(item, f"{where}[{i}]", depth + 1, tensors) for i, item in enumerate(value)]
        return {"tuple": items} if isinstance(value, tuple) else items
    raise TypeError(f"{where}: {_EXPECTED}, got {type(value).__name__}")


def _key(key: object, where: str) -> str | int:
    if type(key) is str:
        return _text(key, where)
    if type(key) is int:
        return _whole(key, where)
    raise TypeError(f"{where}: expected keys of type str or int, got {key!r} of type {type(key).__name__}")


def _text(value: str, where: str) -> str:
    try:
        value.encode()
    except UnicodeEncodeError:
        raise ValueError(f"{where}: expected Unicode text, got {value[:50]!r}") from None
    return value


def _whole(value: int, where: str) -> int:
    if value.bit_length() > MAX_BITS:
        raise ValueError(f"{where}: expected an int of at most {MAX_BITS} bits, got {value.bit_length()}")
    return value


def _checked(tensor: Tensor, where: str) -> Tensor:
    if tensor.layout is not torch.strided or tensor.is_meta or tensor.is_quantized or tensor.is_nested:
        raise TypeError(f"{where}: expected a dense tensor with data, got {tensor.layout} on {tensor.device}, {tensor.dtype}")
    if tensor.dtype not in DTYPES:
        raise TypeError(f"{where}: expected a tensor of a dtype that safetensors has, got {tensor.dtype}")
    return tensor


def _decoded(pairs: list[tuple[str, Any]], tensors: dict[str, Tensor]) -> Any:
    """What a JSON object of the tree stands for; its members are decoded already. Tensors leave `tensors` as they are used."""
    ((kind, content),) = pairs
    if kind == "dict":
        values = dict(content)
        if len(values) != len(content) or not all(type(key) in (str, int) for key in values):
            raise ValueError("keys")
        return values
    if kind == "tuple" and isinstance(content, list):
        return tuple(content)
    if kind == "tensor":
        return tensors.pop(content)
    if kind == "float":
        return struct.unpack(">d", bytes.fromhex(content))[0]
    raise ValueError(kind)


def _no_constant(name: str) -> Any:
    raise ValueError(name)
