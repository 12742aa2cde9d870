"""Which Python files a module of the user's is made of: its own, and those that it imports from beside it."""

from __future__ import annotations

import ast
import hashlib
import importlib.util
import sys
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path

__all__ = ["digest_of", "sources_of_file", "sources_of_module"]

_OURS = ("tost", "tost_kernels")  # their version counts, see Config.hash
_INSTALLED = ("site-packages", "dist-packages")


def sources_of_file(file: Path) -> dict[Path, str]:
    """File -> SHA-256 of its content: `file` first, then what it imports, directly or not, out of its folder.

    Read, not run: what is imported under a name that is made at run time is not seen, nor are files of data.

    Raises:
        OSError: `file` cannot be read.
    """
    file = file.resolve()
    return _sources([file], file.parent, None)


def sources_of_module(name: str) -> dict[Path, str]:
    """The same of the module `name` and its packages, out of the folder that its first package is in; of an installed one out of
    that package. Empty where there is no such module, or it is not written in Python.
    """
    top = name.partition(".")[0]
    try:
        spec = importlib.util.find_spec(top)
    except (ValueError, ImportError):  # __main__ has no spec
        spec = None
    if spec is None:
        return {}
    place = next(iter(spec.submodule_search_locations or ()), spec.origin)
    if place is None or not Path(place).exists():
        return {}
    root = Path(place).resolve().parent
    files = list(_files(root, name))
    return _sources(files[::-1], root, top if root.name in _INSTALLED or top in sys.stdlib_module_names else None)


def digest_of(sources: dict[Path, str]) -> str:
    """SHA-256 over the contents of `sources`, whatever folder they are in and whatever the first is called."""
    first, *others = sources
    folder = _common(sources)
    named = {"": sources[first], **{path.relative_to(folder).as_posix(): sources[path] for path in others}}
    return hashlib.sha256(repr(sorted(named.items())).encode()).hexdigest()


def _common(sources: dict[Path, str]) -> Path:
    """The innermost folder that holds all of `sources`."""
    folder = next(iter(sources)).parent
    while not all(path.is_relative_to(folder) for path in sources):
        folder = folder.parent
    return folder


def _sources(files: list[Path], root: Path, only: str | None) -> dict[Path, str]:
    """`files` and what they import out of `root`, there only the package `only`."""
    found: dict[Path, str] = {}
    waiting = list(files)
    while waiting:
        file = waiting.pop(0)
        if file in found:
            continue
        source = file.read_bytes()
        found[file] = hashlib.sha256(source).hexdigest()
        for level, name in _imports(source):
            top = name.partition(".")[0]
            if level or (top not in _OURS and only in (None, top)):
                waiting += _files(file.parents[level - 1] if level else root, name)
    return found


@lru_cache(maxsize=4096)
def _imports(source: bytes) -> tuple[tuple[int, str], ...]:
    """(leading dots, dotted name) of all that `source` imports; of `from a import b` both a and a.b, for b may be a module."""
    try:
        tree = ast.parse(source)
    except (SyntaxError, ValueError, RecursionError, MemoryError):  # told when it is imported
        return ()
    found: list[tuple[int, str]] = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found += [(0, alias.name) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            found += [(node.level, ".".join(filter(None, (node.module, alias.name)))) for alias in node.names]
    return tuple(found)


def _files(folder: Path, name: str) -> Iterator[Path]:
    """The files of the dotted `name` in `folder`: of each package on the way and of the module."""
    for part in name.split("."):
        folder /= part
        for file in (folder / "__init__.py", folder.with_name(f"{part}.py")):
            if part.isidentifier() and file.is_file():
                yield file.resolve()
                break
