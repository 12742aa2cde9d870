import json
import os

import pytest
import torch
from safetensors.torch import load_file, save_file

from tost.masks import Masks


@pytest.fixture
def masks() -> Masks:
    torch.manual_seed(0)
    return Masks({"z.conv": torch.rand(5, 3, 3, 1) < 0.3, "a": torch.rand(7, 11) < 0.5, "none": torch.zeros(2, 2)})


def test_round_trip_is_bit_exact_and_keeps_the_order(masks, tmp_path):
    path = tmp_path / "m.safetensors"
    masks.save(path)
    loaded = Masks.load(str(path))
    assert loaded == masks
    assert list(loaded) == list(masks)
    assert loaded.fingerprint == masks.fingerprint
    assert os.listdir(tmp_path) == ["m.safetensors"]  # no temporary file is left


def test_other_programs_can_read_it(masks, tmp_path):
    masks.save(tmp_path / "m")
    plain = load_file(tmp_path / "m")
    assert {name: mask.dtype for name, mask in plain.items()} == dict.fromkeys(masks, torch.bool)
    assert Masks(plain) == masks


def test_saving_replaces_and_a_failure_leaves_the_old_file(masks, tmp_path, monkeypatch):
    path = tmp_path / "m"
    path.write_bytes(b"old")

    def fail(*_):
        raise OSError("disk full")

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", fail)
        with pytest.raises(OSError, match="disk full"):
            masks.save(path)
    assert path.read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["m"]
    masks.save(path)
    assert Masks.load(path) == masks


def test_a_layer_with_the_name_of_the_metadata(masks, tmp_path):
    masks.save(tmp_path / "m")
    with pytest.raises(ValueError, match="m: expected another name than '__metadata__' for a tensor"):
        Masks({"a": torch.ones(1, 1), "__metadata__": torch.ones(1, 1)}).save(tmp_path / "m")
    assert Masks.load(tmp_path / "m") == masks


def test_missing(tmp_path):
    with pytest.raises(FileNotFoundError, match="nowhere"):
        Masks.load(tmp_path / "nowhere")
    with pytest.raises(ValueError, match="directory"):
        Masks.load(tmp_path)
    with pytest.raises(FileNotFoundError):
        Masks({"a": torch.ones(1, 1)}).save(tmp_path / "no" / "folder")


@pytest.mark.parametrize("content", [b"", b"hello", bytes(4096), b"PK\x03\x04" * 100])
def test_not_a_safetensors_file(tmp_path, content):
    (tmp_path / "m").write_bytes(content)
    with pytest.raises(ValueError, match="m: damaged, or no safetensors"):
        Masks.load(tmp_path / "m")


def test_every_cut_is_noticed(masks, tmp_path):
    masks.save(tmp_path / "m")
    whole = (tmp_path / "m").read_bytes()
    for length in (0, 1, 7, 8, 50, len(whole) // 2, len(whole) - 1):
        (tmp_path / "cut").write_bytes(whole[:length])
        with pytest.raises(ValueError, match="cut: "):
            Masks.load(tmp_path / "cut")


def test_a_flipped_bit_is_noticed(masks, tmp_path):
    masks.save(tmp_path / "m")
    whole = bytearray((tmp_path / "m").read_bytes())
    for position, bit in ((-1, 1), (-20, 1), (-3, 2), (-100, 64)):
        damaged = bytearray(whole)
        damaged[position] ^= bit
        (tmp_path / "bad").write_bytes(damaged)
        with pytest.raises(ValueError, match="bad: damaged"):
            Masks.load(tmp_path / "bad")


@pytest.mark.parametrize(
    ("metadata", "text"),
    [
        ({"format": "pt", "version": "1"}, "expected a mask file .*got format 'pt'"),
        ({"sha256": "0"}, "expected a mask file .*got format None"),
        ({"format": "tost.masks", "version": "2"}, "expected version 1.*got '2'"),
        ({"format": "tost.masks", "version": "1"}, "list of layers"),
        ({"format": "tost.masks", "version": "1", "order": "[", "fingerprint": "0"}, "list of layers"),
        ({"format": "tost.masks", "version": "1", "order": "3", "fingerprint": "0"}, "list of layers"),
        ({"format": "tost.masks", "version": "1", "order": "[]", "fingerprint": "0"}, "list of layers"),
        ({"format": "tost.masks", "version": "1", "order": '["b"]', "fingerprint": "0"}, "list of layers"),
        ({"format": "tost.masks", "version": "1", "order": '["a"]', "fingerprint": "0"}, "fingerprint"),
    ],
)
def test_files_of_ours_that_are_no_masks(tmp_path, metadata, text):
    save_file({"a": torch.ones(2, 2, dtype=torch.bool)}, tmp_path / "m", metadata)
    with pytest.raises(ValueError, match=text):
        Masks.load(tmp_path / "m")


def test_weights_are_no_masks(tmp_path):
    metadata = {"format": "tost.masks", "version": "1", "order": json.dumps(["a"]), "fingerprint": "0"}
    save_file({"a": torch.ones(2, 2)}, tmp_path / "m", metadata)
    with pytest.raises(ValueError, match="expected booleans in 'a'"):
        Masks.load(tmp_path / "m")
