"""Deterministic damage to files: the same seed gives the same bytes, on every machine."""

from __future__ import annotations

import functools
import gzip
import hashlib
import json
import random
import re
import zlib
from collections.abc import Callable
from typing import Any, NamedTuple


class Mutation(NamedTuple):
    """A damaged file.

    Attributes:
        data: its content.
        how: what was done, for the report.
        forged: the checksum was made anew, so that it may be read as another file that is whole.
    """

    data: bytes
    how: str
    forged: bool = False


Mutator = Callable[[bytes, random.Random], bytes]

# what lengths, counts and offsets go wrong with
_EDGES = [
    0,
    1,
    2,
    7,
    8,
    255,
    2**15,
    2**16 - 1,
    2**31 - 1,
    2**31,
    2**32 - 1,
    2**32,
    2**53,
    2**63 - 1,
    2**63,
    2**64 - 1,
    -1,
    -8,
    -(2**63),
]


def mutate_bytes(data: bytes, seed: str) -> Mutation:
    """`data` with one to three damages that know nothing of any format; half of the time inside its compression, if any."""
    draw = random.Random(seed)
    if data[:2] == b"\x1f\x8b" and draw.random() < 0.5:
        if draw.random() < 0.05:
            return Mutation(data + _bomb(), "gzip bomb")
        inside, how, _ = mutate_bytes(gzip.decompress(data), seed + "/inside")
        return Mutation(gzip.compress(inside, 1, mtime=0), f"inside gzip: {how}")
    names = []
    for _ in range(draw.choice([1, 1, 1, 2, 3])):
        mutator = draw.choice(_OF_BYTES)
        names.append(mutator.__name__.strip("_"))
        data = mutator(data, draw)
    return Mutation(data, " + ".join(names))


def mutate_safetensors(data: bytes, seed: str) -> Mutation:
    """Half of the time `mutate_bytes`, else a damage to the header of a safetensors file; one in three with a new checksum."""
    draw = random.Random(seed)
    if draw.random() < 0.5:
        data, how, _ = mutate_bytes(data, seed + "/bytes")
    else:
        mutator = draw.choice([_length, _edited_header, _edited_header, _edited_header, _swapped_data])
        data, how = mutator(data, draw), mutator.__name__.strip("_")
    if draw.random() < 1 / 3:
        forged = sealed(data)
        return Mutation(forged, f"{how}, new checksum", forged=forged != data)
    return Mutation(data, how)


@functools.cache
def _bomb() -> bytes:
    """A gzip stream of 256 MB of zeros, made piece by piece: the memory of this process is watched."""
    packer = zlib.compressobj(1, wbits=31)
    return b"".join(packer.compress(bytes(1 << 20)) for _ in range(256)) + packer.flush()


# ---- bytes ---------------------------------------------------------------------------------------------------------------


def _place(data: bytes, draw: random.Random) -> int:
    """Often near the beginning, where headers are."""
    return draw.randrange(min(len(data), draw.choice([16, 256, len(data) + 1])) + 1)


def _flipped_bits(data: bytes, draw: random.Random) -> bytes:
    changed = bytearray(data)
    for _ in range(min(draw.choice([1, 1, 2, 8]), len(data))):
        changed[min(_place(data, draw), len(data) - 1)] ^= 1 << draw.randrange(8)
    return bytes(changed)


def _overwritten(data: bytes, draw: random.Random) -> bytes:
    at, size = _place(data, draw), draw.randrange(1, 65)
    new = draw.choice([draw.randbytes(size), bytes(size), b"\xff" * size, draw.choice(b'[]{}":,-0 9').to_bytes(1, "big") * size])
    return data[:at] + new + data[at + size :]


def _truncated(data: bytes, draw: random.Random) -> bytes:
    return data[: draw.choice([_place(data, draw), max(len(data) - draw.randrange(1, 20), 0)])]


def _extended(data: bytes, draw: random.Random) -> bytes:
    return data + draw.choice([draw.randbytes(draw.randrange(1, 4097)), bytes(draw.randrange(1, 100)), data])


def _cut_out(data: bytes, draw: random.Random) -> bytes:
    at = _place(data, draw)
    return data[:at] + data[at + draw.randrange(1, 100) :]


def _copied(data: bytes, draw: random.Random) -> bytes:
    start, at = _place(data, draw), _place(data, draw)
    return data[:at] + data[start : start + draw.randrange(1, 200)] + data[at:]


def _edge_number(data: bytes, draw: random.Random) -> bytes:
    size, order = draw.choice([1, 2, 4, 8]), draw.choice(["little", "big"])
    value = draw.choice([*_EDGES, len(data), len(data) + 1])
    at = _place(data, draw)
    return data[:at] + (value % 256**size).to_bytes(size, order) + data[at + size :]  # type: ignore[arg-type]


def _edge_digits(data: bytes, draw: random.Random) -> bytes:
    numbers = list(re.finditer(rb"\d+", data))
    if not numbers:
        return _flipped_bits(data, draw)
    number = draw.choice(numbers)
    new = draw.choice([str(draw.choice(_EDGES)).encode(), b"9" * 400, b"1" * 5000, b"1e999", b"0.5", b"NaN", b"null", b'"x"'])
    return data[: number.start()] + new + data[number.end() :]


def _brackets(data: bytes, draw: random.Random) -> bytes:
    at = _place(data, draw)
    return data[:at] + draw.choice([b"[", b'{"a":', b"(", b"]"]) * draw.choice([10, 1000, 50_000]) + data[at:]


_OF_BYTES: list[Mutator] = [
    _flipped_bits,
    _flipped_bits,
    _overwritten,
    _truncated,
    _extended,
    _cut_out,
    _copied,
    _edge_number,
    _edge_digits,
    _brackets,
]


# ---- safetensors ---------------------------------------------------------------------------------------------------------


def _parts(data: bytes) -> tuple[dict[str, Any], bytes]:
    length = int.from_bytes(data[:8], "little")
    return json.loads(data[8 : 8 + length]), data[8 + length :]


def _joined(header: bytes, content: bytes) -> bytes:
    return len(header).to_bytes(8, "little") + header + content


def _length(data: bytes, draw: random.Random) -> bytes:
    true = int.from_bytes(data[:8], "little")
    value = draw.choice([*_EDGES, true + 1, true - 1, true + 8, len(data) - 8, len(data), 100_000_000, 100_000_001, 2**40])
    return (value % 2**64).to_bytes(8, "little") + data[8:]


def _swapped_data(data: bytes, draw: random.Random) -> bytes:
    """The same header over the bytes of two tensors changed about."""
    header, content = _parts(data)
    a, b = (draw.choice([tensor for name, tensor in header.items() if name != "__metadata__"])["data_offsets"] for _ in "ab")
    if a[0] > b[0]:
        a, b = b, a
    swapped = content[: a[0]] + content[b[0] : b[1]] + content[a[1] : b[0]] + content[a[0] : a[1]] + content[b[1] :]
    return data[: len(data) - len(content)] + swapped


def _edited_header(data: bytes, draw: random.Random) -> bytes:
    header, content = _parts(data)
    for _ in range(draw.choice([1, 1, 2])):
        draw.choice(_OF_HEADERS)(header, draw)
    text = json.dumps(header)
    for mark, new in _MARKS.items():
        text = text.replace(f'"{mark}"', new, 1)
    return _joined(text.encode() + b" " * draw.choice([0, 0, 3, 1000]), content)


# what json.dumps cannot say
_MARKS = {
    "<deep>": "[" * 100_000 + "]" * 100_000,
    "<deep object>": '{"a":' * 2000 + "1" + "}" * 2000,
    "<huge>": "9" * 5000,
    "<twice>": '1,"__metadata__":{"format":"tost.masks"},"a":{"dtype":"BOOL","shape":[1],"data_offsets":[0,1]},"a":2',
    "<float>": "1.5",
    "<exponent>": "1e400",
}
_NAMES = ["", "a", "x" * 10_000, "__metadata__", "\ud83d\ude00", "\0", "../../x", "state", "state['model']"]
_DTYPES = [
    "BOOL",
    "U8",
    "I8",
    "F16",
    "F32",
    "F64",
    "I64",
    "C64",
    "F8_E4M3",
    "F8_E8M0",
    "F4",
    "F6_E2M3",
    "F128",
    "",
    "bool",
    None,
    1,
]


def _tensors(header: dict[str, Any]) -> list[str]:
    return [name for name, tensor in header.items() if name != "__metadata__" and isinstance(tensor, dict)]


def _tensor(header: dict[str, Any], draw: random.Random) -> dict[str, Any]:
    names = _tensors(header)
    tensor: dict[str, Any] = header[draw.choice(names)] if names else {}
    for key, default in (("shape", [1]), ("data_offsets", [0, 1])):
        if not isinstance(tensor.get(key), list) or len(tensor[key]) < 1:
            tensor[key] = default
    return tensor


def _offsets(header: dict[str, Any], draw: random.Random) -> None:
    offsets = _tensor(header, draw)["data_offsets"]
    at = draw.randrange(len(offsets))
    old = offsets[at] if isinstance(offsets[at], int) else 0
    offsets[at] = draw.choice([old + 1, old - 1, old + 8, draw.choice(_EDGES), *_MARKS, None])
    if draw.random() < 0.2:
        offsets.reverse()


def _exchanged_offsets(header: dict[str, Any], draw: random.Random) -> None:
    a, b = _tensor(header, draw), _tensor(header, draw)
    a["data_offsets"], b["data_offsets"] = b["data_offsets"], a["data_offsets"]


def _dtype(header: dict[str, Any], draw: random.Random) -> None:
    _tensor(header, draw)["dtype"] = draw.choice(_DTYPES)


def _shape(header: dict[str, Any], draw: random.Random) -> None:
    tensor = _tensor(header, draw)
    shape = tensor["shape"]
    kind = draw.randrange(5)
    if kind == 0:
        draw.shuffle(shape)
    elif kind == 1:
        shape.insert(0, draw.choice([1, 0, *_EDGES]))
    elif kind == 2:
        shape[draw.randrange(len(shape))] = draw.choice([*_EDGES, *_MARKS])
    elif kind == 3:
        tensor["shape"] = [draw.choice([1, 2**20, 2**32, 2**62]) for _ in range(draw.choice([0, 2, 3, 70, 5000]))]
    else:
        tensor["shape"] = [0, draw.choice(_EDGES), draw.choice(_EDGES)]
        tensor["data_offsets"] = [tensor["data_offsets"][0]] * 2


def _renamed(header: dict[str, Any], draw: random.Random) -> None:
    names = _tensors(header)
    if names:
        header[draw.choice(_NAMES)] = header.pop(draw.choice(names))


def _removed(header: dict[str, Any], draw: random.Random) -> None:
    if header:
        header.pop(draw.choice(list(header)))


def _added(header: dict[str, Any], draw: random.Random) -> None:
    value = {"dtype": "BOOL", "shape": [0], "data_offsets": [0, 0]}
    header[draw.choice(_NAMES)] = draw.choice([value, value, 1, None, [], *_MARKS])


def _member(header: dict[str, Any], draw: random.Random) -> None:
    tensor = _tensor(header, draw)
    tensor[draw.choice([*tensor, "more"])] = draw.choice([None, [], {}, "x", -1, *_MARKS])


def _metadata(header: dict[str, Any], draw: random.Random) -> None:
    metadata = header.get("__metadata__")
    if not isinstance(metadata, dict) or not metadata or draw.random() < 0.1:
        header["__metadata__"] = draw.choice([{}, None, 3, [], "x", *_MARKS])
        return
    key = draw.choice(list(metadata))
    old = metadata[key] if isinstance(metadata[key], str) else ""
    kind = draw.randrange(4)
    if kind == 0:
        del metadata[key]
    elif kind == 1:
        metadata[key] = draw.choice(["", "0", "2", "x", "[", "{}", "null", "tost.masks", "tost.checkpoint", None, 1, *_MARKS])
    elif kind == 2:  # also inside the list of layers and the tree
        metadata[key] = mutate_bytes(old.encode(), str(draw.random())).data.decode("utf-8", "replace")
    else:
        metadata[key] = draw.choice(
            ["[" * 50_000, '{"dict":' * 20_000, '{"tuple":[' * 300 + "]}" * 300, "[" + "1," * 50_000 + "1]"]
        )


_OF_HEADERS: list[Callable[[dict[str, Any], random.Random], None]] = [
    _offsets,
    _exchanged_offsets,
    _dtype,
    _shape,
    _renamed,
    _removed,
    _added,
    _member,
    _metadata,
    _metadata,
]


def sealed(data: bytes) -> bytes:
    """`data` with a checksum that is right again, as a forger would make it; where it has none, as it is."""
    length = int.from_bytes(data[:8], "little")
    found = re.search(rb'"sha256": ?"([^"]*)"', data[8 : 8 + min(length, len(data))])
    if found is None:
        return data
    start, end = 8 + found.start(1), 8 + found.end(1)
    zeros = b"0" * 64
    if end - start != 64:
        return data
    seal = hashlib.sha256(data[:start] + zeros + data[end:]).hexdigest().encode()
    return data[:start] + seal + data[end:]
