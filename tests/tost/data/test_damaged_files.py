"""Files with flipped bytes, cut short or lengthened: a ValueError or FileNotFoundError, or a data set; nothing else ever."""

from pathlib import Path

import numpy as np
import pytest

from tests.tost.data.tiny_files import FORMATS

ROUNDS = 40


def damaged(content: bytes, random: np.random.Generator) -> bytes:
    """One of: some bytes flipped (near the head more often than elsewhere), cut, lengthened, a piece repeated or zeroed."""
    value = bytearray(content)
    kind = random.integers(6)
    if kind < 2 and value:
        reach = len(value) if kind == 0 else min(len(value), 200)
        for place in random.integers(0, reach, random.integers(1, 9)):
            value[place] = random.integers(256)
    elif kind == 2:
        del value[random.integers(0, len(value) + 1) :]
    elif kind == 3:
        value += random.bytes(random.integers(1, 300))
    else:
        start, size = random.integers(0, len(value) + 1), random.integers(1, 64)
        value[start : start + size] = bytes(size) if kind == 4 else value[start : start + size] * 2
    return bytes(value)


@pytest.mark.parametrize("name", FORMATS)
def test_damage_is_a_typed_error(name: str, tmp_path: Path) -> None:
    files = FORMATS[name]
    files.write(tmp_path)
    assert len(files.load(tmp_path).train) > 0
    paths = sorted(path for path in tmp_path.rglob("*") if path.is_file())
    random = np.random.default_rng(0)
    messages = []
    for _ in range(ROUNDS):
        path = paths[random.integers(len(paths))]
        whole = path.read_bytes()
        path.write_bytes(damaged(whole, random))
        try:
            files.load(tmp_path)
        except (ValueError, FileNotFoundError) as error:
            messages.append(str(error))
        path.write_bytes(whole)
    assert messages
    for message in messages:
        assert message.startswith("data_dir: ")  # not numpy's or torch's words
        assert len(message) < 1000
        assert "\n" not in message


@pytest.mark.parametrize("name", [name for name in FORMATS if name != "imagefolder"])  # anybody's pictures may be any number
def test_every_file_is_needed(name: str, tmp_path: Path) -> None:
    files = FORMATS[name]
    files.write(tmp_path)
    for path in sorted(path for path in tmp_path.rglob("*") if path.is_file()):
        whole = path.read_bytes()
        path.unlink()
        with pytest.raises((ValueError, FileNotFoundError), match=r"^data_dir: "):
            files.load(tmp_path)
        path.write_bytes(whole)
