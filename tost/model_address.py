"""Names of networks of the user's own, told apart from ours. Without torch: configurations are checked before it is loaded."""

from __future__ import annotations

from pathlib import Path

__all__ = ["absolute", "is_address", "short_name"]


def is_address(name: str) -> bool:
    """Whether `name` says where a function is (`path/to/file.py:function`, `module:function`), and names no network of ours."""
    return ":" in name or name.endswith(".py")


def absolute(name: str) -> str:
    """`name` with the whole path of the file, where it names one: the same network from any folder."""
    place, _, function = name.rpartition(":")
    return f"{Path(place).absolute()}:{function}" if place.endswith(".py") else name


def short_name(name: str) -> str:
    """`name` as titles say it: of a file only its name."""
    return Path(name).name if is_address(name) else name
