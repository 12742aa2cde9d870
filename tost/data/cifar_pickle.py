"""The pickled batches of CIFAR's python archives, read without running what a pickle can run.

A pickle is a program. This reader knows the instructions that build dicts, lists, tuples, strings, bytes and numbers, and
a few names, each of which stands for a record of its arguments: no numpy code runs either, and nothing is allocated that is
not in the file. Every other instruction and name is an error that says which.
"""

from __future__ import annotations

import io
import pickle
import pickletools
import reprlib
from typing import Any

import numpy as np
from numpy.typing import NDArray

# what Python 2 wrote the official files with (protocol 2), and what Python 3 uses when it writes the same (up to protocol 3)
_OPCODES = {
    *("PROTO", "STOP", "MARK", "NONE", "NEWTRUE", "NEWFALSE", "BININT", "BININT1", "BININT2", "LONG1"),
    *("EMPTY_DICT", "EMPTY_LIST", "TUPLE", "TUPLE1", "TUPLE2", "TUPLE3", "APPEND", "APPENDS", "SETITEM", "SETITEMS"),
    *("BINPUT", "LONG_BINPUT", "BINGET", "LONG_BINGET", "GLOBAL", "REDUCE"),
    *("BINSTRING", "SHORT_BINSTRING", "BINUNICODE", "BINBYTES", "SHORT_BINBYTES"),
}
_READS_A_RECORD = 64  # a record has two labels and a file name: about twenty


class _Refused(pickle.UnpicklingError):
    """The pickle asks for what these files do not need."""


class _Array:
    """Stands for a numpy array or dtype; its state is what the pickle says, unchecked."""

    def __init__(self, name: Any = None, *rest: Any) -> None:
        self.name = name
        self.state: Any = None


class _Type:
    """Stands for the class numpy.ndarray, an argument of the reconstruction."""


def _reconstruct(*arguments: Any) -> _Array:
    return _Array()


def _encode(text: Any, encoding: Any) -> bytes:
    """How Python 3 writes bytes in protocol 2."""
    if not isinstance(text, str) or encoding != "latin1":
        raise _Refused(f"_codecs.encode to {encoding!r}")
    return text.encode("latin1")


_NAMES: dict[tuple[str, str], Any] = {
    ("numpy", "ndarray"): _Type,
    ("numpy", "dtype"): _Array,
    ("numpy.core.multiarray", "_reconstruct"): _reconstruct,
    ("numpy._core.multiarray", "_reconstruct"): _reconstruct,
    ("_codecs", "encode"): _encode,
}


def _build(reader: Any) -> None:
    """The instruction BUILD: it would set attributes of whatever comes before it."""
    state = reader.stack.pop()
    if not isinstance(reader.stack[-1], _Array):
        raise _Refused("the state of something else than an array")
    reader.stack[-1].state = state


class _Instructions(dict[int, Any]):
    """What the reader does for each instruction; the others are refused by name."""

    def __init__(self) -> None:
        known = {ord(opcode.code): opcode.name for opcode in pickletools.opcodes}
        super().__init__({code: pickle._Unpickler.dispatch[code] for code, name in known.items() if name in _OPCODES})
        self[pickle.BUILD[0]] = _build
        self._known = known

    def __missing__(self, code: int) -> Any:
        raise _Refused(f"the instruction {self._known.get(code, hex(code))}")


class _Counted(io.BytesIO):
    """A stream that ends a program of far more instructions than such a file needs."""

    def __init__(self, content: bytes, most: int) -> None:
        super().__init__(content)
        self._left = most

    def read(self, size: int | None = -1) -> bytes:
        self._left -= 1
        if self._left < 0:
            raise _Refused("more instructions than its records need")
        return super().read(size)


class _Reader(pickle._Unpickler):
    # The one in Python, not the one in C: its instructions are a table that can be shortened, and its memo a dict, where that
    # in C allocates an array as long as the largest number in the file.
    dispatch = _Instructions()

    def find_class(self, module: str, name: str) -> Any:
        try:
            return _NAMES[module, name]
        except KeyError:
            raise _Refused(f"the name {module[:80]}.{name[:80]}") from None


def read_batch(content: bytes, records: int, pixels: int) -> tuple[NDArray[np.uint8], dict[str, Any]]:
    """The pixels, uint8 (records, pixels) and not writable, and the other entries of a pickled batch.

    Raises:
        ValueError: no such batch; says what is wrong, but not in which file.
    """
    try:
        batch = _Reader(_Counted(content, 1000 + _READS_A_RECORD * records), encoding="bytes").load()
    except _Refused as error:
        raise ValueError(f"its pickle asks for {error}, which such a file does not need: refused") from None
    except Exception as error:  # a damaged pickle can fail in any instruction, in any way
        raise ValueError(f"its pickle is damaged ({type(error).__name__}: {error})") from error
    if not isinstance(batch, dict):
        raise ValueError(f"expected a pickled dict, got {type(batch).__name__}")
    entries = {key.decode("latin1") if isinstance(key, bytes) else str(key): value for key, value in batch.items()}
    data = entries.pop("data", None)
    if not isinstance(data, _Array) or not isinstance(data.state, tuple) or len(data.state) != 5:
        raise ValueError(f"expected an array 'data' in its dict, got {reprlib.repr(sorted(entries))}")
    _, shape, dtype, by_columns, raw = data.state
    kind = dtype.name if isinstance(dtype, _Array) else dtype
    if shape != (records, pixels) or by_columns not in (True, False) or kind not in (b"u1", "u1"):
        raise ValueError(
            f"expected 'data' to be bytes of shape {(records, pixels)}, got {reprlib.repr(kind)} of shape {reprlib.repr(shape)}"
        )
    if not isinstance(raw, bytes) or len(raw) != records * pixels:
        got = len(raw) if isinstance(raw, bytes) else type(raw).__name__
        raise ValueError(f"expected 'data' to hold {records * pixels} bytes, got {got}")
    return np.frombuffer(raw, np.uint8).reshape((records, pixels), order="F" if by_columns else "C"), entries
