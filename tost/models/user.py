"""Networks of the user's own: `path/to/file.py:function` or `package.module:function`."""

from __future__ import annotations

import hashlib
import importlib
import importlib.util
import inspect
import sys
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn

from tost.models.sources import digest_of, sources_of_file, sources_of_module
from tost_kernels.nn.surgery import duplicate

__all__ = ["build_own", "check_outputs", "find_own", "source_digest"]


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
    if unnamed := [p.name for p in parameters if p.kind is p.POSITIONAL_ONLY and p.default is p.empty]:
        raise TypeError(f"model: {address}: expected arguments that take a name, got positional-only {', '.join(unnamed)}")
    named = {p.name for p in parameters if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)}
    if any(p.kind is p.VAR_KEYWORD for p in parameters):
        named = set(offered)
    needed = {p.name for p in parameters if p.default is p.empty and p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)}
    if needed - offered.keys():
        expected = "num_classes, in_channels, image_size or those with a default"
        raise TypeError(f"model: {address}: expected only the arguments {expected}, got {', '.join(sorted(needed))}")
    with _importable(_folder(address)), _told(address, "failed"):
        network = function(**{name: value for name, value in offered.items() if name in named})
    if not isinstance(network, nn.Module):
        raise TypeError(f"model: {address}: expected it to return an nn.Module, got {type(network).__name__}")
    return network


def check_outputs(address: str, network: nn.Module, num_classes: int, images: Tensor) -> None:
    """Run a copy of the network at `address` on `images`, float32 (N, C, H, W), in train and in eval mode.

    Raises:
        ValueError: it failed, or cannot be copied (the error of the user's code is the `__cause__`).
        TypeError: it does not give logits, (N, num_classes).
    """
    with _told(address, "cannot be copied"):
        probe = duplicate(network)
    for training in (True, False):
        mode = "train" if training else "eval"
        with torch.no_grad(), _told(address, f"failed on images {tuple(images.shape)} in {mode} mode"):
            logits = probe.train(training)(images)
        wanted = (len(images), num_classes)
        if not isinstance(logits, Tensor) or not logits.is_floating_point() or logits.shape != wanted:
            got = f"{logits.dtype} {tuple(logits.shape)}" if isinstance(logits, Tensor) else type(logits).__name__
            expected = f"it to return logits, a floating-point tensor {wanted} for images {tuple(images.shape)}"
            raise TypeError(f"model: {address}: expected {expected}, got {got} in {mode} mode")


def find_own(address: str) -> Callable[..., Any]:
    """The function (or class) at `address`; its file or module is imported, anew where that or what it imports was edited.

    Raises:
        ValueError: no such file, module or function, or the import failed. TypeError: it cannot be called.
    """
    place, name = _split(address)
    sources = _sources(address)
    _forget_edited(sources)
    module = _from_file(address, Path(place), sources) if place.endswith(".py") else _from_name(address, place)
    _imported.update(sources)
    function = getattr(module, name, None)
    if function is None:
        public = [key for key, value in vars(module).items() if callable(value) and not key.startswith("_")]
        raise ValueError(f"model: {place} has no {name!r}; it has {', '.join(public) or 'nothing to call'}")
    if isinstance(function, nn.Module):
        raise TypeError(f"model: {address}: expected a function or class that gives a network, got a network")
    if not callable(function):
        raise TypeError(f"model: {address}: expected a function, got {type(function).__name__}")
    return function  # type: ignore[no-any-return]


def source_digest(address: str) -> str | None:
    """SHA-256 of the Python files that make the network at `address`; None where there is none.

    They are its own file and those that it imports, directly or not, out of the same folder or, if installed, the same package.

    Raises:
        ValueError: the file cannot be read.
    """
    sources = _sources(address)
    return digest_of(sources) if sources else None


_imported: dict[Path, str] = {}  # file -> digest of what this process has imported


def _split(address: str) -> tuple[str, str]:
    """(file or module, name of the function)."""
    place, _, name = address.rpartition(":")
    if address.endswith(".py"):
        raise ValueError(f"model: expected {address}:function, got {address!r} without the function")
    if not place or not name.isidentifier():
        expected = "path/to/file.py:function or package.module:function"
        raise ValueError(f"model: expected a name of tost.models.names(), {expected}, got {address!r}")
    return place, name


def _folder(address: str) -> Path:
    """From where the code at `address` imports what is not installed."""
    place, _ = _split(address)
    return Path(place).resolve().parent if place.endswith(".py") else Path.cwd()


def _sources(address: str) -> dict[Path, str]:
    place, _ = _split(address)
    try:
        if place.endswith(".py"):
            return sources_of_file(Path(place))
        with _importable(_folder(address)):
            return sources_of_module(place)
    except OSError as error:
        raise ValueError(f"model: {address}: cannot read {place}: {error.strerror}") from error


def _forget_edited(sources: dict[Path, str]) -> None:
    """Let the modules of these files be imported anew, where one of them was another when this process imported it."""
    if all(_imported.get(file, digest) == digest for file, digest in sources.items()):
        return
    importlib.invalidate_caches()
    for name, module in list(sys.modules.items()):
        file = getattr(module, "__file__", None)
        if isinstance(file, str) and Path(file).resolve() in sources:
            while name:  # a package without a file of its own holds on to its modules too
                sys.modules.pop(name, None)
                name = name.rpartition(".")[0]


def _from_file(address: str, file: Path, sources: dict[Path, str]) -> ModuleType:
    # by content: an edited file is another module, and one that is built from twice is imported once
    digest = hashlib.sha256(f"{file.resolve()}: {digest_of(sources)}".encode()).hexdigest()
    name = f"{file.stem}_{digest[:12]}"
    if name not in sys.modules:
        spec = importlib.util.spec_from_file_location(name, file)
        assert spec is not None, "a .py file has a loader"
        assert spec.loader is not None, "a .py file has a loader"
        module = importlib.util.module_from_spec(spec)
        sys.modules[name] = module  # dataclasses and torch.fx look their module up
        try:
            with _importable(_folder(address)), _told(address, "cannot be imported"):
                spec.loader.exec_module(module)
        except BaseException:
            del sys.modules[name]
            raise
    return sys.modules[name]


def _from_name(address: str, name: str) -> ModuleType:
    with _importable(_folder(address)), _told(address, "cannot be imported"):
        return importlib.import_module(name)


@contextmanager
def _importable(folder: Path) -> Iterator[None]:
    """Inside, modules in `folder` can be imported, as from a script that lies there."""
    sys.path.insert(0, str(folder))
    # compiled files are told apart by size and second: one that is edited at once again would be taken for the one before
    writes_none, sys.dont_write_bytecode = sys.dont_write_bytecode, True
    try:
        yield
    finally:
        sys.dont_write_bytecode = writes_none
        with suppress(ValueError):  # what was imported may have cleaned up
            sys.path.remove(str(folder))


@contextmanager
def _told(address: str, what: str) -> Iterator[None]:
    """What the user's code raises, with the place of it, in one line."""
    try:
        yield
    except torch.OutOfMemoryError:
        raise
    except (Exception, SystemExit) as error:
        own = [frame for frame in traceback.extract_tb(error.__traceback__) if not frame.filename.startswith(_NOT_THEIRS)]
        where = f" ({Path(own[-1].filename).name}, line {own[-1].lineno})" if own else ""
        reason = " ".join(str(error).split())
        raise ValueError(f"model: {address} {what}: {type(error).__name__}: {reason}{where}") from error


# where an error of theirs may surface: in torch's files, in ours, in <frozen importlib>
_NOT_THEIRS = (*(str(Path(file).parent) for file in (torch.__file__, __file__, inspect.getfile(duplicate))), "<")
