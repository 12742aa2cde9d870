"""Atomic files, locked folders, JSON and YAML."""

import errno
import fcntl
import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

import pytest

from tost import files
from tost.files import DamagedFile, FolderInUse, locked, read_json, read_yaml, remove_stale, replacing, write_atomic, write_json

ROOT = Path(__file__).parents[2]


def python(code: str, *arguments: object) -> "subprocess.Popen[str]":
    """Another process that runs `code`."""
    command = [sys.executable, "-c", code, *map(str, arguments)]
    return subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


def test_replaces_and_leaves_nothing_behind(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    write_atomic(path, "old")
    write_atomic(path, b"new")
    assert path.read_bytes() == b"new"
    assert os.listdir(tmp_path) == ["a.txt"]


@pytest.fixture
def umask() -> Iterator[None]:
    before = os.umask(0o027)
    yield
    os.umask(before)


@pytest.mark.usefixtures("umask")
def test_a_new_file_has_the_permissions_that_open_gives(tmp_path: Path) -> None:
    write_atomic(tmp_path / "a", "new")
    assert (tmp_path / "a").stat().st_mode & 0o777 == 0o640


@pytest.mark.usefixtures("umask")
@pytest.mark.parametrize("mode", [0o600, 0o666, 0o444])
def test_a_replaced_file_keeps_its_permissions(tmp_path: Path, mode: int) -> None:
    path = tmp_path / "a"
    path.write_text("old")
    path.chmod(mode)
    with replacing(path) as file:
        (temporary,) = set(tmp_path.iterdir()) - {path}
        assert temporary.stat().st_mode & 0o777 & ~mode == 0  # at no time more than that
        file.write(b"new")
    assert path.read_text() == "new"
    assert path.stat().st_mode & 0o777 == mode


def test_a_link_is_replaced_and_not_followed(tmp_path: Path) -> None:
    (tmp_path / "target").write_text("old")
    (tmp_path / "link").symlink_to("target")
    (tmp_path / "nowhere").symlink_to("no such file")
    for name in ("link", "nowhere"):
        write_atomic(tmp_path / name, "new")
        assert not (tmp_path / name).is_symlink()
        assert (tmp_path / name).read_text() == "new"
    assert (tmp_path / "target").read_text() == "old"


@pytest.mark.parametrize("name", ["x" * 255, "\N{EURO SIGN}" * 85, "\N{PILE OF POO}" * 63 + "..."], ids=len)
def test_names_as_long_as_they_may_be(tmp_path: Path, name: str) -> None:
    with replacing(tmp_path / name) as file:
        file.write(b"x")
        (temporary,) = tmp_path.iterdir()
        assert remove_stale(tmp_path) == (temporary,)  # as if this writer had been killed
        temporary.write_bytes(b"x")
    assert [path.name for path in tmp_path.iterdir()] == [name]


def test_a_failed_write_keeps_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.txt"
    write_atomic(path, "old")

    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match=r"cannot write .*a\.txt: no space left"):
        write_atomic(path, "new")
    assert path.read_text() == "old"
    assert os.listdir(tmp_path) == ["a.txt"]


@pytest.mark.parametrize(
    ("code", "kind", "advice"),
    [
        (errno.EDQUOT, OSError, "quota is used up: free some space and run the same command again"),
        (errno.EACCES, PermissionError, "no permission: choose another folder"),
        (errno.EROFS, OSError, "file system is read-only: choose another folder"),
        (errno.EIO, OSError, "Input/output error"),
    ],
)
def test_errors_name_the_path_and_what_to_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int, kind: type[OSError], advice: str
) -> None:
    def refuse(*_: object) -> None:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(os, "replace", refuse)
    with pytest.raises(kind, match=f"cannot write {re.escape(str(tmp_path / 'a.txt'))}: .*{advice}") as caught:
        write_atomic(tmp_path / "a.txt", "new")
    assert type(caught.value) is kind
    assert caught.value.errno == code
    assert "\n" not in str(caught.value)
    assert os.listdir(tmp_path) == []


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full to play a full disk")
@pytest.mark.parametrize("size", [10, 10_000_000], ids=["noticed at the end", "noticed while writing"])
def test_a_full_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, size: int) -> None:
    write_atomic(tmp_path / "a", "old")
    make = files._new_file

    def on_full_disk(path: Path, mode: int) -> BinaryIO:
        file = make(path, mode)
        full = os.open("/dev/full", os.O_WRONLY)
        os.dup2(full, file.fileno())
        os.close(full)
        return file

    monkeypatch.setattr(files, "_new_file", on_full_disk)
    with pytest.raises(
        OSError, match=r"/a: no space left on the device: free some space and run the same command again$"
    ) as error:
        write_atomic(tmp_path / "a", bytes(size))
    assert error.value.errno == errno.ENOSPC
    assert (tmp_path / "a").read_text() == "old"
    assert os.listdir(tmp_path) == ["a"]


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_folder_without_permission(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    with pytest.raises(PermissionError, match="no permission: choose another folder"):
        write_atomic(tmp_path / "a", "new")


def test_a_folder_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"cannot write .*no/a: no such folder"):
        write_atomic(tmp_path / "no" / "a", "new")


def test_an_error_of_the_writer_is_left_alone(tmp_path: Path) -> None:
    with pytest.raises(UnicodeEncodeError):
        write_atomic(tmp_path / "a", "\ud800")
    assert os.listdir(tmp_path) == []


# ---- what killed processes leave -----------------------------------------------------------------------------------------

KILLED_WRITERS = """
import os, random, signal, sys, time
from pathlib import Path
import torch
from tost import checkpoint
from tost.files import remove_stale

torch.set_num_threads(1)  # threads do not survive a fork
folder, kills = Path(sys.argv[1]), int(sys.argv[2])
path, moments, stale = folder / "last.safetensors", random.Random(0), 0
state = lambda n: {"step": n, "weights": [torch.full((50_000,), float(n)), torch.full((3, 5), n)]}
checkpoint.save(path, state(0))
at_least = 0
for _ in range(kills):
    child = os.fork()
    if child == 0:
        for n in range(at_least, 10**9):
            checkpoint.save(path, state(n))
    time.sleep(moments.uniform(0.005, 0.05))
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    loaded = checkpoint.load(path)  # whole, whenever the writer died
    n = loaded["step"]
    assert n >= at_least - 1, (n, at_least)
    assert [weights.unique().tolist() for weights in loaded["weights"]] == [[n], [n]]
    at_least = n + 1
    stale += len(remove_stale(folder))
    assert os.listdir(folder) == ["last.safetensors"], os.listdir(folder)
print(stale, n)
"""


def test_writers_killed_at_any_moment(tmp_path: Path) -> None:
    writer = python(KILLED_WRITERS, tmp_path, 20)
    output, _ = writer.communicate()
    assert writer.returncode == 0
    stale, steps = map(int, output.split())
    assert stale > 0, "no kill hit a writer at work"
    assert steps > 0, "no writer got through"


def test_only_left_over_temporary_files_are_removed(tmp_path: Path) -> None:
    keep = ["a.tmp", ".a.tmp", ".hidden", ".a.ABCDEFGH.tmp", ".a.1234567.tmp", ".a.abcdefgh.tmp.txt", "b.abcdefgh.tmp"]
    for name in keep:
        (tmp_path / name).write_text("x")
    (tmp_path / ".folder.abcdefgh.tmp").mkdir()
    (tmp_path / ".a.txt.abcd_123.tmp").write_text("x")
    (tmp_path / ".b.zzzzzzzz.tmp").write_text("x")
    assert [path.name for path in remove_stale(tmp_path)] == [".a.txt.abcd_123.tmp", ".b.zzzzzzzz.tmp"]
    assert sorted(os.listdir(tmp_path)) == sorted([*keep, ".folder.abcdefgh.tmp"])
    assert remove_stale(tmp_path) == ()


# ---- locks ---------------------------------------------------------------------------------------------------------------


def test_one_holder_at_a_time(tmp_path: Path) -> None:
    with locked(tmp_path):
        with (
            pytest.raises(FolderInUse, match=f"^another process is training this run: {re.escape(str(tmp_path))}$"),
            locked(tmp_path),
        ):
            raise AssertionError("two hold it")
        write_atomic(tmp_path / "a", "x")
    assert os.listdir(tmp_path) == ["a"]  # no lock file
    with locked(tmp_path):
        pass
    with pytest.raises(FileNotFoundError), locked(tmp_path / "no"):
        raise AssertionError("there is nothing to lock")


HOLDER = """
import os, sys, time
from pathlib import Path
from tost.files import locked
with locked(Path(sys.argv[1])):
    if os.fork() == 0:
        print(os.getpid(), flush=True)  # by the worker itself: it is through with what a fork sets off
    time.sleep(600)
"""


def test_a_killed_holder_lets_go_though_its_worker_lives(tmp_path: Path) -> None:
    holder = python(HOLDER, tmp_path)
    assert holder.stdout is not None
    worker = int(holder.stdout.readline())
    try:
        with pytest.raises(FolderInUse), locked(tmp_path):
            raise AssertionError("two hold it")
        holder.kill()
        holder.wait()
        with locked(tmp_path):
            os.kill(worker, 0)  # it lives
    finally:
        os.kill(worker, signal.SIGKILL)
        holder.communicate()


def test_a_file_system_without_locks_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: int) -> None:
        raise OSError(errno.EBADF, "Bad file descriptor")

    monkeypatch.setattr(fcntl, "flock", refuse)
    with pytest.warns(UserWarning, match=r"cannot lock .* \(Bad file descriptor\)"), locked(tmp_path):
        pass


# ---- JSON and YAML -------------------------------------------------------------------------------------------------------


def test_json_is_plain(tmp_path: Path) -> None:
    write_json(tmp_path / "a.json", {"a": [1, None]})
    assert json.loads((tmp_path / "a.json").read_text()) == {"a": [1, None]}
    with pytest.raises(ValueError, match="not JSON compliant"):
        write_json(tmp_path / "b.json", float("nan"))
    assert not (tmp_path / "b.json").exists()


def test_yaml_reads_what_people_mean_by_numbers(tmp_path: Path) -> None:
    path = tmp_path / "a.yaml"
    path.write_text("a: 2e-4\nb: 1E3\nc: -1.5e+2\nd: 3\ne: 3e\nf: '2e-4'\n")
    assert read_yaml(path) == {"a": 2e-4, "b": 1000.0, "c": -150.0, "d": 3, "e": "3e", "f": "2e-4"}


@pytest.mark.parametrize(
    "content",
    [b"", b"{", b"\xff", b"[" * 100_000, b'{"a": 1, "a": 2}', b"NaN", b"1" * 5000, b"1" * 400, b"-1e999"],
    ids=lambda content: repr(content[:9]),
)
def test_json_that_was_not_written(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "a.json").write_bytes(content)
    with pytest.raises(DamagedFile, match=r"a\.json: not the JSON that was written: "):
        read_json(tmp_path / "a.json")


def test_json_comes_back(tmp_path: Path) -> None:
    write_json(tmp_path / "a.json", {"a": [1, None, 0.1]})
    assert read_json(tmp_path / "a.json") == {"a": [1, None, 0.1]}
    with pytest.raises(FileNotFoundError):
        read_json(tmp_path / "b.json")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: [1", "is not YAML"),
        ("- 1\n", "to map names to values, got list"),
        ("a: !!int ''", "is not YAML"),
        ("a: 2001-99-99", "is not YAML"),
        ("a: " + "[" * 10_000, "is not YAML"),
    ],
    ids=lambda text: text[:20],
)
def test_bad_yaml_is_one_line(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "a.yaml"
    path.write_text(text)
    with pytest.raises(ValueError, match=message) as error:
        read_yaml(path)
    assert "\n" not in str(error.value)
    with pytest.raises(FileNotFoundError, match="config: no such file"):
        read_yaml(tmp_path / "none.yaml")
