"""Files that are whole or absent, folders that one process writes into, and YAML that reads 2e-4 as a number."""

from __future__ import annotations

import errno
import json
import os
import re
import secrets
import stat
import sys
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO

import yaml

if sys.platform != "win32":
    import fcntl


class DamagedFile(ValueError):
    """A file that is not what its reader expects: damaged, of another kind, or of a version that is not known here.

    Attributes:
        path: the file.
        reason: what is wrong with it.
    """

    def __init__(self, path: str | os.PathLike[str], reason: str) -> None:
        super().__init__(path, reason)  # both in `args`, so that the error survives the way to another process
        self.path = Path(path)
        self.reason = reason

    def __str__(self) -> str:
        return f"{self.path}: {self.reason}"


class FolderInUse(BlockingIOError):
    """Another process holds the lock of a folder."""


_ADVICE = {
    errno.ENOSPC: "no space left on the device: free some space and run the same command again",
    errno.EDQUOT: "the disk quota is used up: free some space and run the same command again",
    errno.EACCES: "no permission: choose another folder, or change the permissions of this one",
    errno.EPERM: "no permission: choose another folder, or change the permissions of this one",
    errno.EROFS: "the file system is read-only: choose another folder",
    errno.ENOENT: "no such folder",
}


def _mode(path: Path) -> int | None:
    """The permissions of the file at `path`, None where there is none."""
    try:
        return stat.S_IMODE(path.stat().st_mode)
    except FileNotFoundError:
        return None


def _new_file(path: Path, mode: int) -> BinaryIO:
    """A hidden file beside `path`, with at most the permissions `mode`."""
    # 50 characters have at most 200 bytes: the name fits wherever `path.name` does, 255 bytes on most file systems
    name = path.with_name(f".{path.name[:50]}.{secrets.token_hex(4)}.tmp")
    return open(name, "xb", opener=lambda file, flags: os.open(file, flags, mode))


@contextmanager
def replacing(path: Path) -> Iterator[BinaryIO]:
    """A new file to write into, beside `path`; at the end of the block it is flushed to the disk and renamed over `path`.

    A reader, or a run after a crash, sees the old content or the new, never a part. If the block ends in an error, the old
    file stays and the new one is deleted; a killed process leaves a temporary file, which `remove_stale` deletes.

    The new file has the permissions of the one it replaces, a first one those that `open` gives (0o666 without the umask).
    Where `path` is a symbolic link, the link is replaced; the file that it leads to stays as it is.

    Raises:
        OSError: the file system refuses. Of the class that the system raised (PermissionError, FileNotFoundError, ...); one
            line names the path and what to do.
    """
    temporary: Path | None = None
    try:
        mode = _mode(path)
        with _new_file(path, 0o666 if mode is None else mode) as file:
            temporary = Path(file.name)
            yield file
            file.flush()
            os.fsync(file.fileno())
        if mode is not None:
            temporary.chmod(mode)  # the umask took some of it
        os.replace(temporary, path)
        flush_folder(path.parent)  # the rename itself must reach the disk too
    except BaseException as error:
        if temporary is not None:
            temporary.unlink(missing_ok=True)
        if isinstance(error, OSError) and error.errno is not None:
            advice = _ADVICE.get(error.errno) or error.strerror or "the file system refuses"
            raise OSError(error.errno, f"cannot write {path}: {advice}") from error  # errno decides the class
        raise


def flush_folder(folder: Path) -> None:
    """Bring the names in `folder` to the disk."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_atomic(path: Path, data: bytes | str) -> None:
    """`data` under `path`, whole or not at all: see `replacing`."""
    with replacing(path) as file:
        file.write(data.encode() if isinstance(data, str) else data)


_STALE = re.compile(
    r"\..+\.[a-z0-9_]{8}\.tmp", re.DOTALL
)  # `replacing`'s names, also with the random characters of older versions


def remove_stale(folder: Path) -> tuple[Path, ...]:
    """Delete the temporary files that killed writers left in `folder` itself, and return their paths.

    Only for a folder that nobody writes into meanwhile (see `locked`): a living writer would lose its file.
    """
    stale = tuple(sorted(path for path in folder.iterdir() if _STALE.fullmatch(path.name) and path.is_file()))
    for path in stale:
        path.unlink(missing_ok=True)
    return stale


_locks: set[int] = set()  # descriptors of the folders locked here


def _close_inherited_locks() -> None:
    # A forked child (a worker that loads images) shares the lock. Left open, it would outlive a killed parent by some
    # seconds and refuse the run that is started again at once.
    while _locks:
        os.close(_locks.pop())


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_close_inherited_locks)


@contextmanager
def locked(folder: Path, doing: str = "training this run") -> Iterator[None]:
    """Hold the exclusive lock of `folder` for the block. It ends with the process, however that ends; no file is made.

    `doing` says what another process is at when it has the lock, for the message.

    Windows has no such locks, so there nothing is held; where only the file system has none (some network ones), a warning
    says so.

    Raises:
        FolderInUse: another process, or another block of this one, holds it.
        FileNotFoundError, PermissionError: the folder cannot be opened.
    """
    if sys.platform == "win32":
        yield
        return
    descriptor = os.open(folder, os.O_RDONLY)
    _locks.add(descriptor)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise FolderInUse(f"another process is {doing}: {folder}") from None
        except OSError as error:
            warnings.warn(f"cannot lock {folder} ({error.strerror}): make sure that no other process is {doing}", stacklevel=3)
        yield
    finally:
        if descriptor in _locks:
            _locks.remove(descriptor)
            os.close(descriptor)


def write_json(path: Path, values: Any) -> None:
    """`values` as indented JSON, atomically. NaN and infinity are errors: no other program reads them."""
    write_atomic(path, json.dumps(values, indent=2, allow_nan=False) + "\n")


def read_json(path: Path) -> Any:
    """What `write_json` wrote.

    Raises:
        DamagedFile: not JSON, nested too deep, an object names a member twice, or a number is beyond float64.
        OSError: it cannot be read; FileNotFoundError: there is no such file.
    """
    content = path.read_bytes()
    try:
        return json.loads(
            content.decode(),
            object_pairs_hook=_members,
            parse_constant=_no_number,
            parse_float=partial(_finite, float),
            parse_int=partial(_finite, int),
        )
    except (ValueError, RecursionError) as error:
        raise DamagedFile(path, f"not the JSON that was written: {error}") from error


def _members(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    members = dict(pairs)
    if len(members) != len(pairs):
        raise ValueError("a name is there twice")
    return members


def _no_number(name: str) -> Any:
    raise ValueError(f"{name} is no number")


def _finite(kind: Callable[[str], Any], text: str) -> Any:
    """`text` as a number; statistics of one that float64 takes for infinite end in errors far from here."""
    value = kind(text)
    if not abs(value) <= sys.float_info.max:
        raise ValueError(f"{text:.20}... is beyond float64")
    return value


class _Loader(yaml.SafeLoader):
    """YAML 1.1 reads 2e-4 and 1e3 as strings; everybody who writes a learning rate means numbers."""


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"^[-+]?(\d+(\.\d*)?|\.\d+)[eE][-+]?\d+$"), list("-+.0123456789")
)


def read_yaml(path: str | Path) -> dict[str, Any]:
    """The mapping in a YAML file.

    Raises:
        FileNotFoundError: no such file.
        ValueError: not YAML, or not a mapping.
    """
    file = Path(path)
    if not file.is_file():
        raise FileNotFoundError(f"config: no such file: {file}")
    content = file.read_bytes()
    try:
        values = yaml.load(content.decode(), Loader=_Loader)
    except Exception as error:  # the parser's own, and whatever its constructors let through: `!!int ''`, [[[[...
        raise ValueError(f"config: {file} is not YAML: {' '.join(str(error).split())[:500]}") from error
    if not isinstance(values, Mapping):
        raise ValueError(f"config: expected {file} to map names to values, got {type(values).__name__}")
    return dict(values)
