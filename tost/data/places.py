"""Where the files of a data set are looked for, and reading them without trusting their size."""

from __future__ import annotations

import gzip
import io
import os
import tarfile
import zlib
from collections.abc import Collection, Iterator
from pathlib import Path

VARIABLE = "TOST_DATA_DIR"


def default_dir() -> Path:
    """The folder of data sets when none is named: $TOST_DATA_DIR, else ~/.cache/tost/data."""
    return Path(os.environ.get(VARIABLE) or Path.home() / ".cache" / "tost" / "data")


def folders(data_dir: str | Path | None, name: str) -> list[Path]:
    """The folders that may hold data set `name`: `data_dir` (None: `default_dir()`), its folder `name` before it.

    Raises:
        FileNotFoundError: there is no folder `data_dir`.
    """
    folder = default_dir() if data_dir is None else Path(data_dir)
    if data_dir is not None and not folder.is_dir():
        raise FileNotFoundError(f"data_dir: no such folder: {folder}")
    return [place for place in (folder / name, folder) if place.is_dir()] or [folder]


def missing(name: str, places: list[Path], put: str, *, fetch: bool = True) -> FileNotFoundError:
    """The error for a data set that is not there: what to run or `put` where."""
    where = places[-1]
    option = "" if where == default_dir() else f" --data_dir {where}"
    run = f"run `tost data fetch {name}{option}`, or " if fetch else ""
    return FileNotFoundError(f"data_dir: no {name} in {where}: {run}put {put} there")


def read_bounded(path: Path, most: int) -> bytes:
    """The content of a file, of a .gz the unpacked one, but never more than `most` + 1 bytes: enough to see that it is too long.

    Raises:
        FileNotFoundError: no such file. ValueError: damaged .gz.
    """
    if not path.is_file():
        raise FileNotFoundError(f"data_dir: missing file {path}")
    if path.suffix != ".gz":
        with path.open("rb") as file:
            return file.read(most + 1)
    try:
        with gzip.open(path) as unpacked:
            return unpacked.read(most + 1)
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise ValueError(f"data_dir: {path} is damaged or cut short: {error}") from error


def read_members(archive: Path, names: Collection[str], most: int) -> Iterator[tuple[str, bytes]]:
    """(file name, content) of those files in a .tar.gz whose name, without folders, is one of `names`, in the archive's order.

    Nothing is written to the disk, and no more than `most` bytes are unpacked.

    Raises, while iterating:
        ValueError: damaged, larger than `most`, or not all of `names` are in it, or one of them twice (in two folders).
    """
    left = set(names)
    with gzip.open(archive) as unpacked:
        limited = _Limited(unpacked, archive, most)
        try:
            with tarfile.open(fileobj=limited, mode="r|") as tar:
                for member in tar:
                    name = Path(member.name).name
                    # a sparse member says how long it is and need not hold that much
                    if name in names and member.isreg() and not member.issparse():
                        if name not in left:
                            raise _OtherArchive(f"data_dir: {archive} has two files {name}: not the archive of this data set")
                        file = tar.extractfile(member)
                        assert file is not None
                        left.remove(name)
                        yield name, file.read(min(member.size, most))
            while limited.read(1 << 20):
                pass  # the checksum comes last
        except _OtherArchive:
            raise
        except Exception as error:  # damaged headers fail in many ways
            raise ValueError(f"data_dir: {archive} is damaged or cut short ({type(error).__name__}: {error})") from error
    if left:
        raise ValueError(
            f"data_dir: {archive} has no file {', '.join(sorted(left))}: damaged, or not the archive of this data set"
        )


class _OtherArchive(ValueError):
    """An archive holds more than the data set has."""


class _Limited(io.RawIOBase):
    """A stream that refuses to unpack more than so many bytes: a few kB of gzip can hold gigabytes."""

    def __init__(self, file: gzip.GzipFile, path: Path, most: int) -> None:
        self._file, self._path, self._left = file, path, most

    def read(self, size: int = -1) -> bytes:
        content = self._file.read(min(size, self._left + 1) if size >= 0 else self._left + 1)
        self._left -= len(content)
        if self._left < 0:
            raise _OtherArchive(f"data_dir: {self._path} unpacks to more than it should: not the archive of this data set")
        return content
