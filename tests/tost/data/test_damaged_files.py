"""What is said about damaged and missing files. That nothing worse than an error comes of them: tests/fuzz."""

from pathlib import Path

import pytest

from tests.fuzz.mutations import mutate_bytes
from tests.tost.data.tiny_files import FORMATS

ROUNDS = 40


@pytest.mark.parametrize("name", FORMATS)
def test_damage_is_told_in_one_line(name: str, tmp_path: Path) -> None:
    files = FORMATS[name]
    files.write(tmp_path)
    assert len(files.load(tmp_path).train) > 0
    paths = sorted(path for path in tmp_path.rglob("*") if path.is_file())
    messages = []
    for seed in range(ROUNDS):
        path = paths[seed % len(paths)]
        whole = path.read_bytes()
        path.write_bytes(mutate_bytes(whole, str(seed)).data)
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
