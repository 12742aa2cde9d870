"""Atomic files and YAML numbers."""

import json
import os
from pathlib import Path

import pytest

from tost.files import read_yaml, write_atomic, write_json


def test_replaces_and_leaves_nothing_behind(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    write_atomic(path, "old")
    write_atomic(path, b"new")
    assert path.read_bytes() == b"new"
    assert os.listdir(tmp_path) == ["a.txt"]


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


@pytest.mark.parametrize(("text", "message"), [("a: [1", "is not YAML"), ("- 1\n", "to map names to values, got list")])
def test_bad_yaml_is_one_line(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "a.yaml"
    path.write_text(text)
    with pytest.raises(ValueError, match=message) as error:
        read_yaml(path)
    assert "\n" not in str(error.value)
    with pytest.raises(FileNotFoundError, match="config: no such file"):
        read_yaml(tmp_path / "none.yaml")
