"""`tost data fetch`: download a data set from its official source, checked, and going on where an earlier try stopped."""

from __future__ import annotations

import errno
import gzip
import hashlib
import http.client
import os
import shutil
import ssl
import tarfile
import tempfile
import time
import urllib.error
import urllib.request
import zipfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from io import RawIOBase
from pathlib import Path, PurePosixPath
from typing import Any

from tost.choices import check_choice
from tost.data.places import default_dir
from tost.data.registry import names
from tost.data.sources import BY_HAND, SOURCES, File, Source
from tost.files import flush_folder, locked

_CHUNK = 1 << 20
_TIMEOUT = 30.0  # seconds without a byte
_TRIES, _PAUSE = 5, 2.0  # tries that bring nothing new before giving up; seconds between them
_UNPACKING = ".unpacking-"

Report = Callable[[str, int, int], None]  # file name, bytes there, bytes in all


@dataclass(frozen=True)
class Fetched:
    """What `fetch` did.

    Attributes:
        name: the data set.
        folder: where its files are: what `tost.data.load` finds when it is given the same `data_dir`.
        downloaded: bytes that came over the network; 0: everything was there.
    """

    name: str
    folder: Path
    downloaded: int

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {"name": self.name, "folder": str(self.folder), "downloaded_bytes": self.downloaded}


def fetch(name: str, data_dir: str | Path | None = None, *, progress: bool = False) -> Fetched:
    """Download the data set `name` into `data_dir`/`name` (None: `default_dir()`), unless it is there.

    What has arrived when this is interrupted stays in *.part files; the next call goes on there.

    Args:
        name: one of `tost.data.names()`.
        data_dir: created where it is missing.
        progress: show a bar on stderr.

    Raises:
        ValueError: no such data set, one that cannot be fetched, or what arrived has a wrong checksum.
        OSError: offline, the server's answer, no space, no permission; says so in a line.
    """
    check_choice("name", name, names())
    root = default_dir() if data_dir is None else Path(data_dir)
    if name in BY_HAND:
        raise ValueError(f"name: {name} cannot be fetched: {BY_HAND[name].format(folder=root / name)}")
    with _bar() if progress else nullcontext(_silent) as report:
        downloaded = fetch_source(SOURCES[name], root / name, report)
    return Fetched(name, root / name, downloaded)


def fetch_source(source: Source, folder: Path, report: Report) -> int:
    """Download what is missing of `source` into `folder` and unpack it; the number of bytes downloaded. Raises as `fetch`."""
    folder.mkdir(parents=True, exist_ok=True)
    with locked(folder, doing="fetching into this folder"):
        if source.folder is not None and (folder / source.folder).is_dir():
            return 0
        for stale in folder.glob(f"{_UNPACKING}*"):
            shutil.rmtree(stale)
        downloaded = 0
        for file in source.files:
            downloaded += _download(file, folder, source.unpacked, report)
        if source.folder is not None:
            _unpack(folder / source.files[0].name, folder, source, report)
        return downloaded


# ---- download --------------------------------------------------------------------------------------------------------


def _download(file: File, folder: Path, more: int, report: Report) -> int:
    """Bytes downloaded; `more` is the disk space that is needed besides the file's."""
    target, part = folder / file.name, folder / f"{file.name}.part"
    if target.is_file():
        if _sha256(target) != file.sha256:
            raise ValueError(f"{target} has another checksum than {file.urls[0]}: remove it and run this again")
        report(file.name, file.size, file.size)
        return 0
    have = part.stat().st_size if part.exists() else 0
    need, free = file.size - have + more, shutil.disk_usage(folder).free
    if free < need:
        raise OSError(errno.ENOSPC, f"{folder}: {file.name} needs {need:,} bytes of disk, {free:,} are free")
    downloaded = 0
    for number, url in enumerate(file.urls):
        try:
            downloaded += _receive(url, file, part, report)
            break
        except ConnectionError:
            if number + 1 == len(file.urls):
                if part.stat().st_size == 0:
                    part.unlink()
                raise
    got = _sha256(part)
    if got != file.sha256:
        part.unlink()
        raise ValueError(
            f"{file.name}: expected the SHA-256 {file.sha256}, got {got}: damaged on the way, or changed at its source; removed"
        )
    os.replace(part, target)
    flush_folder(folder)
    return downloaded


def _receive(url: str, file: File, part: Path, report: Report) -> int:
    """Bring `part` to its full size; the bytes that came over the network.

    Raises:
        ConnectionError: no connection, or the server does not send the file.
        OSError: the disk is full.
    """
    downloaded = tries = farthest = 0
    with part.open("ab", buffering=0) as out:  # a buffer that cannot be written would fail once more when it is closed
        if out.tell() > file.size:
            out.truncate(0)
        while (have := out.seek(0, os.SEEK_END)) < file.size:
            problem = "the connection was cut"
            try:
                with _open(url, have, file.size) as (response, goes_on):
                    if have and not goes_on:
                        out.truncate(0)  # the server sends the whole file, whatever was asked for
                        have = 0
                    report(file.name, have, file.size)
                    # read1: what `read` has collected when a connection stalls would be lost
                    while chunk := response.read1(min(_CHUNK, file.size - have)):
                        _write(out, chunk, file)
                        have += len(chunk)
                        downloaded += len(chunk)
                        if have > farthest:
                            farthest, tries = have, 0
                        report(file.name, have, file.size)
            except _Cut as error:
                problem = str(error)
            except _NoSuchRange:
                problem = "the server has less of it than is there already"
                out.truncate(0)
                have = 0
            if have < file.size:
                tries += 1
                if tries == _TRIES:
                    raise ConnectionError(
                        f"{url}: {problem}; {have:,} of {file.size:,} bytes are in {part}: run this again to go on"
                    )
                time.sleep(_PAUSE)
        os.fsync(out.fileno())
    return downloaded


class _Cut(Exception):
    """The connection ended early, or brought something else: worth another try."""


class _NoSuchRange(Exception):
    """The server's file is shorter than what is there: that is not the beginning of it."""


class _WebOnly(urllib.request.HTTPRedirectHandler):
    """Follows redirects to http and https, not to ftp."""

    def redirect_request(
        self, req: Any, fp: Any, code: int, msg: str, headers: Any, newurl: str
    ) -> urllib.request.Request | None:
        """Called by urllib for every redirect."""
        if not newurl.lower().startswith(("http://", "https://")):
            raise urllib.error.HTTPError(req.full_url, code, f"{msg}: {newurl}, which is not followed", headers, fp)
        return super().redirect_request(req, fp, code, msg, headers, newurl)


@contextmanager
def _open(url: str, start: int, size: int) -> Iterator[tuple[Any, bool]]:
    """The response to a request for the bytes from `start` on of a file of `size`, and whether it begins there, else at 0.

    A login page of a network, or another part of the file, is a _Cut: it must not replace what is there, nor become its
    beginning.
    """
    request = urllib.request.Request(url, headers={"User-Agent": "tost", **({"Range": f"bytes={start}-"} if start else {})})
    try:
        with urllib.request.build_opener(_WebOnly).open(request, timeout=_TIMEOUT) as response:
            length, part = response.headers.get("Content-Length"), response.headers.get("Content-Range", "")
            goes_on = response.status == http.HTTPStatus.PARTIAL_CONTENT
            whole = length == str(size) or (length is None and not start)
            if not (part.startswith(f"bytes {start}-") if goes_on else whole):
                raise _Cut("the server answered with something else than the file")
            yield response, goes_on
    except urllib.error.HTTPError as error:
        if error.code == http.HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE:
            raise _NoSuchRange from None
        if error.code >= 500:
            raise _Cut(f"the server answered {error.code} {error.reason}") from None
        raise ConnectionError(f"{url}: the server answered {error.code} {error.reason}") from None
    except urllib.error.URLError as error:
        raise ConnectionError(f"{url}: no connection ({error.reason}): offline?") from None
    except (http.client.HTTPException, ConnectionError, TimeoutError, ssl.SSLError) as error:
        raise _Cut(f"the connection was cut ({type(error).__name__})") from None


def _write(out: RawIOBase, chunk: bytes, file: File) -> None:
    left = memoryview(chunk)
    try:
        while left:
            left = left[out.write(left) :]
    except OSError as error:
        raise OSError(error.errno, f"{file.name}: {error.strerror}; what has arrived stays, run this again to go on") from None


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        digest = hashlib.sha256()
        while chunk := file.read(_CHUNK):
            digest.update(chunk)
    return digest.hexdigest()


# ---- unpack ----------------------------------------------------------------------------------------------------------


def _unpack(archive: Path, folder: Path, source: Source, report: Report) -> None:
    """Unpack into a folder of its own and rename that: a data set is there whole, or not at all. Removes the archive."""
    assert source.folder is not None
    aside = Path(tempfile.mkdtemp(dir=folder, prefix=_UNPACKING))
    try:
        if archive.suffix == ".zip":
            with zipfile.ZipFile(archive) as zipped:
                infos = zipped.infolist()
                for i in _checked([(info.filename, info.file_size) for info in infos], archive, source, report):
                    zipped.extract(infos[i], aside)
        else:
            with tarfile.open(archive) as tar:
                members = tar.getmembers()
                for i in _checked([(member.name, member.size) for member in members], archive, source, report):
                    _extract(tar, members[i], aside)
        if not (aside / source.folder).is_dir():
            raise ValueError(f"{archive}: expected a folder {source.folder} in it")
        os.sync()  # the content before the name: a hundred thousand files, each flushed alone, would take minutes
        os.replace(aside / source.folder, folder / source.folder)
        flush_folder(folder)
    except _BAD_ARCHIVE as error:
        raise ValueError(f"{archive}: cannot be unpacked: {error}") from error
    finally:
        shutil.rmtree(aside, ignore_errors=True)
    archive.unlink()


def _extract(tar: tarfile.TarFile, member: tarfile.TarInfo, folder: Path) -> None:
    """Files and folders alone, with the rights of new ones. (tarfile filters came with Python 3.11.4 and 3.10.12.)"""
    target = folder / member.name
    if member.isdir():
        target.mkdir(parents=True, exist_ok=True)
        return
    content = tar.extractfile(member) if member.isfile() else None  # for a link that of another member
    if content is None:
        raise tarfile.ExtractError(f"{member.name} is neither a file nor a folder")
    target.parent.mkdir(parents=True, exist_ok=True)
    with content, target.open("wb") as out:
        shutil.copyfileobj(content, out)


# a damaged stream; (zip) a password, or a compression that Python does not know; a name that stands for a file and a folder
_BAD_ARCHIVE = (
    tarfile.TarError,
    zipfile.BadZipFile,
    gzip.BadGzipFile,
    zlib.error,
    EOFError,
    RuntimeError,
    FileExistsError,
    NotADirectoryError,
    IsADirectoryError,
)


def _checked(members: list[tuple[str, int]], archive: Path, source: Source, report: Report) -> Iterator[int]:
    """The numbers of the members, in their order, reported as they are asked for; all of them are checked before the first."""
    for name, _ in members:
        path = PurePosixPath(name.replace("\\", "/"))
        if path.is_absolute() or ".." in path.parts:
            raise ValueError(f"{archive}: refused, as its member {name!r} would be written outside the folder")
    total = sum(size for _, size in members)
    if total > source.unpacked:
        raise ValueError(f"{archive}: refused, as it unpacks to {total:,} bytes, more than {source.unpacked:,}")
    done = 0
    for i, (_, size) in enumerate(members):
        yield i
        done += size
        report("unpacking", done, total)


# ---- progress --------------------------------------------------------------------------------------------------------


def _silent(name: str, have: int, size: int) -> None:
    pass


@contextmanager
def _bar() -> Iterator[Report]:
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn

    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TransferSpeedColumn(), TimeRemainingColumn())
    bar = Progress(*columns, console=Console(stderr=True))
    tasks: dict[str, Any] = {}

    def report(name: str, have: int, size: int) -> None:
        if not tasks:
            bar.start()  # not before: an empty bar prints an empty line above an error
        if name not in tasks:
            tasks[name] = bar.add_task(name, total=size)
        bar.update(tasks[name], completed=have)

    try:
        yield report
    finally:
        if tasks:
            bar.stop()
