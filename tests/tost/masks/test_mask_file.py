import io
import json
import os
import zipfile

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from tost.files import DamagedFile
from tost.masks import Masks
from tost.tensor_file import write


def npy(shape: str, dtype: str = "|b1") -> bytes:
    """The header of an .npy file that says so."""
    text = f"{{'descr': '{dtype}', 'fortran_order': False, 'shape': {shape}, }}".encode()
    text += b" " * (-(len(text) + 11) % 64) + b"\n"
    return b"\x93NUMPY\x01\x00" + len(text).to_bytes(2, "little") + text


@pytest.fixture
def masks() -> Masks:
    torch.manual_seed(0)
    return Masks({"z.conv": torch.rand(5, 3, 3, 1) < 0.3, "a": torch.rand(7, 11) < 0.5, "none": torch.zeros(2, 2)})


@pytest.mark.parametrize("name", ["m.safetensors", "M.SAFETENSORS", "m.npz", "M.NPZ"])
def test_round_trip_is_bit_exact_and_keeps_the_order(masks, tmp_path, name):
    path = tmp_path / name
    masks.save(path)
    loaded = Masks.load(str(path))
    assert loaded == masks
    assert list(loaded) == list(masks)
    assert loaded.fingerprint == masks.fingerprint
    assert os.listdir(tmp_path) == [name]  # no temporary file is left
    before = path.read_bytes()
    loaded.save(path)
    assert path.read_bytes() == before


@pytest.mark.parametrize("suffix", ["safetensors", "npz"])
@settings(max_examples=30, deadline=None)
@given(data=st.data())
def test_any_masks_survive_the_round_trip(tmp_path_factory, suffix, data):
    names = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), min_size=1, max_size=20)
    shapes = st.tuples(*[st.integers(1, 4)] * 2) | st.tuples(*[st.integers(1, 4)] * 4)
    chosen = data.draw(st.dictionaries(names, shapes, min_size=1, max_size=5))
    seed = data.draw(st.integers(0, 100))
    random = torch.Generator().manual_seed(seed)
    masks = Masks({name: torch.rand(shape, generator=random) < 0.5 for name, shape in chosen.items()})
    path = tmp_path_factory.getbasetemp() / f"any.{suffix}"
    masks.save(path)
    loaded = Masks.load(path)
    assert loaded == masks
    assert list(loaded) == list(masks)


def test_other_programs_can_read_it(masks, tmp_path):
    masks.save(tmp_path / "m.safetensors")
    plain = load_file(tmp_path / "m.safetensors")
    assert {name: mask.dtype for name, mask in plain.items()} == dict.fromkeys(masks, torch.bool)
    assert Masks(plain) == masks


def test_numpy_reads_the_archive_and_it_is_packed(tmp_path):
    masks = Masks({"a.b/c": torch.eye(300), "file": torch.ones(2, 2)})  # numpy.savez has no name "file"
    masks.save(tmp_path / "m.npz")
    with np.load(tmp_path / "m.npz") as archive:  # allow_pickle=False is its default
        arrays = {name: archive[name] for name in archive.files}
    assert {name: array.dtype for name, array in arrays.items()} == dict.fromkeys(masks, np.dtype(bool))
    assert Masks(arrays) == masks
    assert (tmp_path / "m.npz").stat().st_size < 300 * 300 / 8


@pytest.mark.parametrize("pack", [np.savez, np.savez_compressed])
@pytest.mark.parametrize("suffix", ["", ".weight", ".weight_mask"])
def test_archives_of_numpy(tmp_path, pack, suffix):
    conv, fc = np.zeros((2, 1, 1, 2), np.float32, order="F"), np.array([[1, 0], [1, 1]], dtype=">i4")
    conv[0, 0, 0, 1] = 1
    pack(tmp_path / "m.npz", **{f"layer.conv{suffix}": conv, f"fc{suffix}": fc, f"double{suffix}": np.eye(2)})
    masks = Masks.load(tmp_path / "m.npz")
    assert masks == Masks({"layer.conv": conv, "fc": fc, "double": np.eye(2)})


def test_safetensors_files_of_other_programs(tmp_path):
    a, b = torch.eye(2), torch.ones(1, 3, dtype=torch.uint8)
    for tensors, metadata in (
        ({"a": a, "b.b": b}, None),
        ({"a.weight": a, "b.b.weight": b}, {"format": "pt"}),
        ({"a": a, "b.b.weight": b, "bn.weight": torch.ones(3), "a.bias": torch.ones(2)}, {"epoch": "3"}),
        # the state_dict of a network that torch.nn.utils.prune has pruned
        ({"a.weight_mask": a, "a.weight_orig": a * 3, "b.b.weight_mask": b, "c.weight": a * 2, "a.bias": b[0] * 7}, None),
    ):
        save_file(tensors, tmp_path / "m.safetensors", metadata)
        assert Masks.load(tmp_path / "m.safetensors") == Masks({"a": a, "b.b": b})


@pytest.mark.parametrize(
    ("tensors", "text"),
    [
        ({"a.weight": torch.tensor([[1.0, 0.5]])}, r"no masks: masks\['a'\]: expected only 0 and 1, got 1 other value"),
        ({"a.weight": torch.ones(1, 1), "a.weight_mask": torch.ones(1, 1), "a": torch.ones(1, 1)}, None),
        ({"a.weight": torch.ones(1, 1), "a": torch.ones(1, 1)}, "no masks: expected one mask for each layer, got two for 'a'"),
        ({"a": torch.ones(1, 1), "a.bias": torch.tensor([1.0, 0.0])}, r"no masks: masks\['a.bias'\]: expected the shape"),
        ({"bias": torch.ones(2)}, "no masks: masks: expected at least one layer"),
    ],
)
def test_what_is_no_mask_of_another_program(tmp_path, tensors, text):
    save_file(tensors, tmp_path / "m.safetensors")
    np.savez(tmp_path / "m.npz", **{name: tensor.numpy() for name, tensor in tensors.items()})
    for name in ("m.safetensors", "m.npz"):
        if text is None:
            assert Masks.load(tmp_path / name).kept == 1
            continue
        with pytest.raises(DamagedFile, match=text) as error:
            Masks.load(tmp_path / name)
        assert str(error.value).startswith(str(tmp_path / name))


@pytest.mark.parametrize("name", ["m.pt", "m.PTH", "m.npy", "m.pkl"])
def test_pickles_and_other_formats(masks, tmp_path, name):
    torch.save(dict(masks), tmp_path / name)
    before = (tmp_path / name).read_bytes()
    with pytest.raises(ValueError, match=r"expected a mask file, \.safetensors or \.npz, got .*Masks\.from_state_dict"):
        Masks.load(tmp_path / name)
    with pytest.raises(ValueError, match=r"expected a mask file, \.safetensors or \.npz"):
        masks.save(tmp_path / name)
    assert (tmp_path / name).read_bytes() == before


@pytest.mark.parametrize(("name", "got"), [("m", "a name without suffix"), ("m.safetensor", ".safetensor"), ("m.zip", ".zip")])
def test_only_names_that_say_the_format_are_written(masks, tmp_path, name, got):
    with pytest.raises(ValueError, match=rf"{name}: expected a mask file, \.safetensors or \.npz, got {got}$"):
        masks.save(tmp_path / name)
    assert not any(tmp_path.iterdir())
    masks.save(tmp_path / "m.safetensors")
    (tmp_path / "m.safetensors").rename(tmp_path / name)
    assert Masks.load(tmp_path / name) == masks  # its content says what it is


class Bomb:
    """Unpickled, it would make a folder."""

    def __reduce__(self):
        return os.mkdir, ("exploded",)


def test_nothing_is_unpickled(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    np.savez("m.npz", a=np.array([[Bomb()]], dtype=object))
    with pytest.raises(
        DamagedFile, match=r"m\.npz: damaged, or no \.npz archive of numbers: .*expected bool or numbers, got object"
    ):
        Masks.load("m.npz")
    assert os.listdir() == ["m.npz"]


@pytest.mark.parametrize(
    ("member", "content", "text"),
    [
        ("a.txt", b"hello", r"expected arrays \(\.npy\), got 'a\.txt'"),
        ("a.npy", b"hello", "magic string"),
        ("a.npy", npy("(2, 3)") + bytes(5), "cannot reshape array of size 5"),
        ("a.npy", npy("(2, 3)") + bytes(7), "cannot reshape array of size 7"),
        ("a.npy", npy("(1099511627776, 1099511627776)") + bytes(4), "reshape|too large|Maximum"),
        ("a.npy", npy("(2, 2)") + bytes([0, 1, 2, 1]), "bytes other than 0 and 1"),
        ("a.npy", npy("(2, 2)", "<U1") + bytes(16), "expected bool or numbers, got <U1"),
        ("a.npy", npy("(-1, 4)") + bytes(8), r"expected a shape, got \(-1, 4\)"),
        ("a.npy", npy("-" * 9000 + "1") + bytes(8), "damaged, or no"),
        ("a.npy", npy("(2, 2)", "<c16") + bytes(64), "expected bool or numbers, got complex128"),
        ("a.npy", npy("(2, 2)", "<f2")[:6] + b"\x03" + npy("(2, 2)", "<f2")[7:] + bytes(8), "version 1.0 or 2.0"),
    ],
)
def test_archives_that_are_damaged_inside(tmp_path, member, content, text):
    with zipfile.ZipFile(tmp_path / "m.npz", "w") as archive:
        archive.writestr(member, content)
    with pytest.raises(DamagedFile, match=text):
        Masks.load(tmp_path / "m.npz")


def test_archives_that_are_damaged_outside(masks, tmp_path):
    masks.save(tmp_path / "m.npz")
    whole = (tmp_path / "m.npz").read_bytes()
    cases = {
        "archive of numbers": whole[: len(whole) // 2],
        "do not match the fingerprint": whole[:-1] + b"z",
        "by a later tost": whole.replace(b"tost.masks/1 ", b"tost.masks/2 "),
        "hold more": zip_bomb(),
    }
    for text, content in cases.items():
        (tmp_path / "bad.npz").write_bytes(content)
        with pytest.raises(DamagedFile, match=text):
            Masks.load(tmp_path / "bad.npz")
    with zipfile.ZipFile(tmp_path / "bad.npz", "w") as archive:
        archive.writestr("a.npy", npy("(1, 1)") + b"\0")
        with pytest.warns(UserWarning, match="Duplicate name"):
            archive.writestr("a.npy", npy("(1, 1)") + b"\1")
    with pytest.raises(DamagedFile, match="a name is there twice"):
        Masks.load(tmp_path / "bad.npz")
    with pytest.raises(FileNotFoundError, match="nowhere"):
        Masks.load(tmp_path / "nowhere.npz")
    (tmp_path / "folder.npz").mkdir()
    with pytest.raises(DamagedFile, match="directory"):
        Masks.load(tmp_path / "folder.npz")


def zip_bomb() -> bytes:
    """One small entry that says it holds a gigabyte."""
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("a.npy", npy("(1, 1)") + b"\0")
    content = bytearray(file.getvalue())
    entry = content.index(b"PK\x01\x02")
    content[entry + 24 : entry + 28] = (1 << 30).to_bytes(4, "little")
    return bytes(content)


def test_saving_replaces_and_a_failure_leaves_the_old_file(masks, tmp_path, monkeypatch):
    path = tmp_path / "m.safetensors"
    path.write_bytes(b"old")

    def fail(*_):
        raise OSError("disk full")

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", fail)
        with pytest.raises(OSError, match="disk full"):
            masks.save(path)
    assert path.read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["m.safetensors"]
    masks.save(path)
    assert Masks.load(path) == masks


def test_a_layer_with_the_name_of_the_metadata(masks, tmp_path):
    masks.save(tmp_path / "m.safetensors")
    with pytest.raises(ValueError, match=r"m\.safetensors: expected another name than '__metadata__' for a tensor"):
        Masks({"a": torch.ones(1, 1), "__metadata__": torch.ones(1, 1)}).save(tmp_path / "m.safetensors")
    assert Masks.load(tmp_path / "m.safetensors") == masks
    with pytest.raises(ValueError, match=r"m.npz: expected names without a zero byte, got 'a\\x00b'"):
        Masks({"a\0b": torch.ones(1, 1)}).save(tmp_path / "m.npz")
    with pytest.raises(ValueError, match=r"m.npz: expected names up to 65531 bytes, got one of 65532"):
        Masks({"\xe9" * 32766: torch.ones(1, 1)}).save(tmp_path / "m.npz")
    longest = Masks({"\xe9" * 32765 + "e": torch.ones(1, 1)})
    longest.save(tmp_path / "m.npz")
    assert Masks.load(tmp_path / "m.npz") == longest


def test_the_file_of_a_network_says_where_its_masks_are(tmp_path):
    zeros, path = torch.tensor([[0.5, 0.0]]), tmp_path / "model.safetensors"
    parametrized = {"a.parametrizations.weight.original": zeros, "a.parametrizations.weight.0.mask": torch.tensor([[1, 0]])}
    for state in ({"a.weight": zeros, "a.bias": torch.ones(1)}, parametrized):
        save_file(state, path)
        with pytest.raises(
            DamagedFile, match=r"no masks: .*; the masks of a run are in its masks\.safetensors; .*from_state_dict"
        ):
            Masks.load(path)
        write(path, state, {"format": "pt", "version": "1"})  # as runs do
        with pytest.raises(DamagedFile, match=r"got format 'pt'; the masks of a run are in its masks\.safetensors; .*from_state"):
            Masks.load(path)
        assert Masks.from_state_dict(load_file(path)) == Masks({"a": torch.tensor([[1, 0]])})
    with pytest.raises(DamagedFile, match=r"got a directory or device; the masks of a run are in its masks\.safetensors"):
        Masks.load(tmp_path)


def test_arrays_without_names(tmp_path):
    np.savez(tmp_path / "m.npz", np.eye(2), np.eye(3))
    with pytest.raises(DamagedFile, match=r"expected arrays under the names of layers, got arr_0, arr_1: numpy\.savez\("):
        Masks.load(tmp_path / "m.npz")
    np.savez(tmp_path / "m.npz", arr_0=np.eye(2), fc=np.eye(3))
    assert list(Masks.load(tmp_path / "m.npz")) == ["arr_0", "fc"]
    Masks({"arr_0": np.eye(2)}).save(tmp_path / "m.npz")  # a layer may have this name
    assert list(Masks.load(tmp_path / "m.npz")) == ["arr_0"]


def test_missing(tmp_path):
    with pytest.raises(FileNotFoundError, match="nowhere"):
        Masks.load(tmp_path / "nowhere")
    with pytest.raises(ValueError, match="directory"):
        Masks.load(tmp_path)
    with pytest.raises(FileNotFoundError):
        Masks({"a": torch.ones(1, 1)}).save(tmp_path / "no" / "m.npz")


@pytest.mark.parametrize("content", [b"", b"hello", bytes(4096), b"PK\x03\x04" * 100])
def test_not_a_safetensors_file(tmp_path, content):
    (tmp_path / "m.safetensors").write_bytes(content)
    with pytest.raises(ValueError, match=r"m\.safetensors: damaged, or no safetensors"):
        Masks.load(tmp_path / "m.safetensors")


def test_every_cut_is_noticed(masks, tmp_path):
    masks.save(tmp_path / "m.safetensors")
    whole = (tmp_path / "m.safetensors").read_bytes()
    for length in (0, 1, 7, 8, 50, len(whole) // 2, len(whole) - 1):
        (tmp_path / "cut").write_bytes(whole[:length])
        with pytest.raises(ValueError, match="cut: "):
            Masks.load(tmp_path / "cut")


def test_a_flipped_bit_is_noticed(masks, tmp_path):
    masks.save(tmp_path / "m.safetensors")
    whole = bytearray((tmp_path / "m.safetensors").read_bytes())
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
    save_file({"a": torch.ones(2, 2, dtype=torch.bool)}, tmp_path / "m.safetensors", metadata)
    with pytest.raises(ValueError, match=text):
        Masks.load(tmp_path / "m.safetensors")


def test_weights_are_no_masks(tmp_path):
    metadata = {"format": "tost.masks", "version": "1", "order": json.dumps(["a"]), "fingerprint": "0"}
    save_file({"a": torch.ones(2, 2)}, tmp_path / "m.safetensors", metadata)
    with pytest.raises(ValueError, match="expected booleans in 'a'"):
        Masks.load(tmp_path / "m.safetensors")
