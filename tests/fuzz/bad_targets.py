"""A reader that does what no reader may, for the tests of the harness: at each of some seeds something else goes wrong."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from pathlib import Path

from tests.fuzz.mutations import Mutation
from tests.fuzz.targets import Target
from tost.files import DamagedFile

_held: list[bytearray] = []


def _key_error() -> None:
    raise KeyError("x")


def _nameless() -> None:
    raise DamagedFile("", "damaged")


# seed -> (what the harness should say, what the reader does)
SINS: dict[int, tuple[str, Callable[[], object]]] = {
    2: ("a crash (SIGSEGV)", lambda: os.kill(os.getpid(), signal.SIGSEGV)),
    4: ("a hang", lambda: time.sleep(600)),
    6: ("100 MB more memory", lambda: _held.append(bytearray(100 << 20)) or _damaged()),
    7: ("MemoryError", lambda: bytearray(100 << 30)),
    8: ("KeyError: \"'x'\"", _key_error),
    9: ("an error that does not name the file: '.: damaged'", _nameless),
    10: ("other content, without a word", lambda: "another"),
    11: ("a changed byte was not noticed", lambda: "valid"),
}


def _damaged() -> None:
    raise DamagedFile("file", "damaged")


def _write(folder: Path) -> None:
    (folder / "file").write_text("valid")


def _load(folder: Path) -> object:
    content = (folder / "file").read_text()
    if content == "valid":
        return content
    if content.isdecimal() and int(content) in SINS:
        return SINS[int(content)][1]()
    return _damaged()


def _mutate(content: bytes, seed: str) -> Mutation:
    """The file holds its seed; what comes before the first seed ("bad/warm-up/3") is harmless."""
    return Mutation(seed.removeprefix("bad/").encode(), "replaced")


TARGETS = {"bad": Target(_write, _load, lambda valid, loaded: valid == loaded, mutate=_mutate, sealed=True)}
