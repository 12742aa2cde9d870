"""Networks of the user's own: `path/to/file.py:function` or `package.module:function`."""

from __future__ import annotations

import hashlib
import importlib
import importlib.util
import inspect
import os
import sys
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import ModuleType
from typing import Any

from torch import nn

__all__ = ["build_own", "find_own", "is_address", "source_digest"]


def is_address(name: str) -> bool:
    """Whether `name` says where a function is, instead of naming a network of ours."""
    return ":" in name


def build_own(address: str, num_classes: int, in_channels: int, image_size: tuple[int, int]) -> nn.Module:
    """Call the function at `address` with those of these arguments that its signature names.

    Raises:
        ValueError: there is no such function, or it failed (the error of the user's code is the `__cause__`).
        TypeError: it cannot be called so, or gave no network.
    """
    function = find_own(address)
    offered = {"num_classes": num_classes, "in_channels": in_channels, "image_size": image_size}
    try:
        parameters = inspect.signature(function).parameters.values()
    except (TypeError, ValueError) as error:
        raise TypeError(f"model: {address}: expected a Python function, got {function!r}") from error
    named = {p.name for p in parameters if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)}
    if any(p.kind is p.VAR_KEYWORD for p in parameters):
        named = set(offered)
    needed = {p.name for p in parameters if p.default is p.empty and p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)}
    if needed - offered.keys():
        expected = "num_classes, in_channels, image_size or those with a default"
        raise TypeError(f"model: {address}: expected only the arguments {expected}, got {', '.join(sorted(needed))}")
    with _told(address, "failed"):
        network = function(**{name: value for name, value in offered.items() if name in named})
    if not isinstance(network, nn.Module):
        raise TypeError(f"model: {address}: expected it to return an nn.Module, got {type(network).__name__}")
    return network


def find_own(address: str) -> Callable[..., Any]:
    """The function (or class) at `address`; its file or module is imported.

    Raises:
        ValueError: no such file, module or function, or the import failed. TypeError: it cannot be called.
    """
    place, _, name = address.rpartition(":")
    if not place or not name.isidentifier():
        expected = "path/to/file.py:function or package.module:function"
        raise ValueError(f"model: expected a name of tost.models.names(), {expected}, got {address!r}")
    module = _from_file(address, Path(place)) if place.endswith(".py") else _from_name(address, place)
    function = getattr(module, name, None)
    if function is None:
        public = [key for key, value in vars(module).items() if callable(value) and not key.startswith("_")]
        raise ValueError(f"model: {place} has no {name!r}; it has {', '.join(public) or 'nothing to call'}")
    if not callable(function):
        raise TypeError(f"model: {address}: expected a function, got {type(function).__name__}")
    return function  # type: ignore[no-any-return]


def source_digest(address: str) -> str | None:
    """SHA-256 of the file that `address` names; None where it names a module.

    Raises:
        ValueError: the file cannot be read.
    """
    place = address.rpartition(":")[0]
    if not place.endswith(".py"):
        return None
    return hashlib.sha256(_source(address, Path(place))).hexdigest()


def _source(address: str, file: Path) -> bytes:
    try:
        return file.read_bytes()
    except OSError as error:
        raise ValueError(f"model: {address}: cannot read {file}: {error.strerror}") from error


def _from_file(address: str, file: Path) -> ModuleType:
    # by content: an edited file is another module, and one that is built from twice is imported once
    digest = hashlib.sha256(os.fsencode(file.resolve()) + _source(address, file)).hexdigest()
    name = f"{file.stem}_{digest[:12]}"
    if name not in sys.modules:
        spec = importlib.util.spec_from_file_location(name, file)
        assert spec is not None, "a .py file has a loader"
        assert spec.loader is not None, "a .py file has a loader"
        module = importlib.util.module_from_spec(spec)
        sys.modules[name] = module  # dataclasses and torch.fx look their module up
        try:
            with _importable(file.resolve().parent), _told(address, "cannot be imported"):
                spec.loader.exec_module(module)
        except BaseException:
            del sys.modules[name]
            raise
    return sys.modules[name]


def _from_name(address: str, name: str) -> ModuleType:
    with _importable(Path.cwd()), _told(address, "cannot be imported"):
        return importlib.import_module(name)


@contextmanager
def _importable(folder: Path) -> Iterator[None]:
    """Inside, modules in `folder` can be imported, as from a script that lies there."""
    sys.path.insert(0, str(folder))
    try:
        yield
    finally:
        with suppress(ValueError):  # what was imported may have cleaned up
            sys.path.remove(str(folder))


@contextmanager
def _told(address: str, what: str) -> Iterator[None]:
    """What the user's code raises, with the place of it, in one line."""
    try:
        yield
    except Exception as error:
        last = traceback.extract_tb(error.__traceback__)[-1]
        own = last.filename != __file__ and not last.filename.startswith("<")  # <frozen importlib>: no line of theirs
        where = f" ({Path(last.filename).name}, line {last.lineno})" if own else ""
        raise ValueError(f"model: {address} {what}: {type(error).__name__}: {error}{where}") from error
