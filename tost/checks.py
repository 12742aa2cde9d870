"""One way to check numbers and to say what is wrong with them: `name: expected ..., got ...`."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from numbers import Integral, Real
from types import UnionType
from typing import Any, ClassVar, TypeVar, get_args, get_origin, get_type_hints

__all__ = ["check_types", "filled", "integer", "is_of", "number", "sample_shape", "sample_shapes"]

Checked = TypeVar("Checked")


def number(
    name: str,
    value: object,
    *,
    least: float = -math.inf,
    most: float = math.inf,
    above: float = -math.inf,
    below: float = math.inf,
) -> float:
    """`value` as a float, if it is a finite number (no bool) with least <= value <= most and above < value < below.

    Raises:
        TypeError: it is no real number. ValueError: it is NaN, infinite or out of range. Both name the argument.
    """
    expected = f"{name}: expected a number{_interval(least, most, above, below)}"
    if isinstance(value, bool) or not isinstance(value, Real):
        raise TypeError(f"{expected}, got {type(value).__name__} ({value!r})")
    try:
        plain = float(value)
    except OverflowError:  # an int beyond the largest float
        plain = math.inf
    if not (math.isfinite(plain) and least <= plain <= most and above < plain < below):
        raise ValueError(f"{expected}, got {value!r}")
    return plain


def integer(name: str, value: object, least: int, below: int | None = None) -> int:
    """`value` as an int, if it is a whole number (no bool, no float) with least <= value < below.

    Raises:
        TypeError: it is no whole number. ValueError: it is out of range. Both name the argument.
    """
    expected = f"{name}: expected a whole number of at least {least}" + (f" and below {below}" if below is not None else "")
    if isinstance(value, bool) or not isinstance(value, Integral):
        raise TypeError(f"{expected}, got {type(value).__name__} ({value!r})")
    plain = int(value)
    if plain < least or (below is not None and plain >= below):
        raise ValueError(f"{expected}, got {value!r}")
    return plain


def sample_shape(shape: object) -> tuple[int, ...]:
    """The argument `input_shape`, the shape of one sample, as a tuple of positive ints.

    Raises:
        TypeError: it is no sequence. ValueError: it holds something else than positive whole numbers.
    """
    if isinstance(shape, str) or not isinstance(shape, Sequence) or not shape:
        raise TypeError(f"input_shape: expected the shape of one sample, such as (3, 32, 32), got {shape!r}")
    for size in shape:
        if isinstance(size, bool) or not isinstance(size, Integral) or int(size) < 1:
            raise ValueError(f"input_shape: expected positive integers, got {shape!r}")
    return tuple(int(size) for size in shape)


def sample_shapes(shape: object) -> Any:
    """The argument `input_shape` of a network of one or several inputs: a shape, or a tuple or dict of shapes.

    Raises:
        TypeError, ValueError: as `sample_shape`.
    """
    if isinstance(shape, Mapping) and shape:
        return {name: sample_shape(part) for name, part in shape.items()}
    if isinstance(shape, Sequence) and not isinstance(shape, str) and any(isinstance(part, Sequence) for part in shape):
        return tuple(sample_shape(part) for part in shape)
    return sample_shape(shape)


def _interval(least: float, most: float, above: float, below: float) -> str:
    closed_left, closed_right = math.isfinite(least), math.isfinite(most)
    left = f"[{least:g}" if closed_left else f"({above:g}" if math.isfinite(above) else ""
    right = f"{most:g}]" if closed_right else f"{below:g})" if math.isfinite(below) else ""
    if left and right:
        return f" in {left}, {right}"
    if left:
        return f" {'>=' if closed_left else '>'} {left[1:]}"
    if right:
        return f" {'<=' if closed_right else '<'} {right[:-1]}"
    return ", finite"


def check_types(record: Checked) -> Checked:
    """`record`, a dataclass or named tuple that was read from a file, if every field is of the type that it declares.

    Raises:
        TypeError: one is not.
    """
    for name, kind in get_type_hints(type(record)).items():
        value = getattr(record, name)
        if get_origin(kind) is not ClassVar and not is_of(value, kind):
            raise TypeError(f"{name}: expected {kind}, got {value!r:.50}")
    return record


def filled(name: str, values: Sequence[Checked]) -> tuple[Checked, ...]:
    """`values` of a record that was read from a file, each checked as by `check_types`.

    Raises:
        ValueError: there is none. TypeError: as `check_types`.
    """
    if not values:
        raise ValueError(f"{name}: expected at least one, got none")
    return tuple(map(check_types, values))


def is_of(value: Any, kind: Any) -> bool:
    """Whether `value` is what an annotation says: Any, unions, tuples and mappings of such; a float may be whole."""
    outer, inner = get_origin(kind), get_args(kind)
    if kind is Any or outer is ClassVar:
        return True
    if outer is UnionType:
        return any(is_of(value, one) for one in inner)
    if outer is tuple:
        return isinstance(value, tuple) and all(is_of(item, inner[0]) for item in value)
    if outer in (Mapping, dict):
        return isinstance(value, Mapping) and all(is_of(key, inner[0]) and is_of(item, inner[1]) for key, item in value.items())
    if isinstance(value, bool):
        return kind is bool
    return isinstance(value, (int, float) if kind is float else kind)
