"""CIFAR's binary and python versions, on tiny files of the same layout."""

import io
import pickle
import tarfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.tost.data.tiny_files import (
    CIFAR_FOLDERS,
    CIFAR_TEST,
    CIFAR_TRAIN,
    FORMATS,
    cifar_batch,
    cifar_binary,
    cifar_files,
    cifar_python,
    cifar_python3,
    tar_of,
)
from tost.data import Dataset, cifar, cifar_pickle, eval_batches

NAMES = ("cifar10", "cifar100")


def load(name: str, place: Path) -> Dataset:
    return cifar.load(name, place, train=CIFAR_TRAIN, test=CIFAR_TEST)


def put(place: Path, files: dict[str, bytes]) -> None:
    place.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        (place / name).write_bytes(content)


def same(first: Dataset, second: Dataset) -> bool:
    return all(
        torch.equal(a.pixels, b.pixels) and torch.equal(a.targets, b.targets)
        for a, b in ((first.train, second.train), (first.test, second.test))
    )


@pytest.mark.parametrize("name", NAMES)
def test_pixel_by_pixel(name: str, tmp_path: Path) -> None:
    put(tmp_path, cifar_files(name, cifar_binary))
    dataset = load(name, tmp_path)
    assert (dataset.name, dataset.num_classes) == (name, 10 if name == "cifar10" else 100)
    assert dataset.input_shape == (3, 32, 32)
    stems = [f"data_batch_{i}" for i in range(1, 6)] if name == "cifar10" else ["train"]
    assert dataset.train.targets.tolist() == [label for stem in stems for label in cifar_batch(name, stem)[1]]
    pixels, labels = cifar_batch(name, "test_batch" if name == "cifar10" else "test")
    ((inputs, targets),) = eval_batches(dataset, 10)
    assert targets.tolist() == labels
    # plane by plane, row by row
    assert dataset.test.pixels[1, 2, 31, 4].item() == pixels[1, 2 * 1024 + 31 * 32 + 4]
    mean, std = (0.4822, 0.2435) if name == "cifar10" else (0.4865, 0.2564)
    assert inputs[0, 1, 0, 0].item() == pytest.approx((pixels[0, 1024] / 255 - mean) / std, abs=1e-5)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("nested", ["", "{name}", "{folder}", "{name}/{folder}"])
@pytest.mark.parametrize("version", ["bin", "py"])
def test_every_version_at_every_place(name: str, nested: str, version: str, tmp_path: Path) -> None:
    put(tmp_path / "plain", cifar_files(name, cifar_binary))
    expected = load(name, tmp_path / "plain")
    folder = CIFAR_FOLDERS[name, version]
    files = cifar_files(name, cifar_binary if version == "bin" else cifar_python)
    put(tmp_path / "here" / nested.format(name=name, folder=folder), files)
    assert same(load(name, tmp_path / "here"), expected)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("version", ["bin tar", "py tar"])
@pytest.mark.parametrize("nested", [False, True])
def test_archives_are_read_as_they_are(name: str, version: str, nested: bool, tmp_path: Path) -> None:
    put(tmp_path / "plain", cifar_files(name, cifar_binary))
    place = tmp_path / "packed"
    (place / name).mkdir(parents=True)
    FORMATS[f"{name} {version}"].write(place / name if nested else place)
    before = sorted(place.rglob("*"))
    assert same(load(name, place), load(name, tmp_path / "plain"))
    assert sorted(place.rglob("*")) == before


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("protocol", [2, 3])
def test_batches_saved_again_by_python_3(name: str, protocol: int, tmp_path: Path) -> None:
    put(tmp_path / "plain", cifar_files(name, cifar_binary))
    put(tmp_path / "new", cifar_files(name, lambda name, stem: cifar_python3(name, stem, protocol)))
    assert same(load(name, tmp_path / "new"), load(name, tmp_path / "plain"))


def test_missing_files_say_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(FileNotFoundError, match=r"data_dir: no such folder: .*nowhere"):
        load("cifar10", tmp_path / "nowhere")
    expected = (
        r"run `tost data fetch cifar10 --data_dir .*`, or put data_batch_1\.bin \.\.\. test_batch\.bin \(or cifar-10-binary"
    )
    with pytest.raises(FileNotFoundError, match=f"data_dir: no cifar10 in .*: {expected}"):
        load("cifar10", tmp_path)
    monkeypatch.setenv("TOST_DATA_DIR", str(tmp_path))
    with pytest.raises(FileNotFoundError, match=r"run `tost data fetch cifar100`, or put train\.bin, test\.bin"):
        cifar.load("cifar100")
    put(tmp_path, cifar_files("cifar10", cifar_binary))
    (tmp_path / "data_batch_4.bin").unlink()
    with pytest.raises(FileNotFoundError, match=r"data_dir: missing file .*data_batch_4\.bin"):
        load("cifar10", tmp_path)


def edited(place: Path, file: str, edit: Callable[[bytes], bytes]) -> None:
    (place / file).write_bytes(edit((place / file).read_bytes()))


def test_damaged_binary_files_are_named(tmp_path: Path) -> None:
    put(tmp_path, cifar_files("cifar10", cifar_binary))
    edited(tmp_path, "data_batch_3.bin", lambda old: old[:-1])
    with pytest.raises(
        ValueError, match=r"data_batch_3\.bin: expected 6146 bytes \(2 images of 1 \+ 3072\), got 6145: cut short"
    ):
        load("cifar10", tmp_path)
    edited(tmp_path, "data_batch_3.bin", lambda old: old + b"ab")
    with pytest.raises(ValueError, match=r"expected 6146 bytes .* got more"):
        load("cifar10", tmp_path)
    edited(tmp_path, "data_batch_3.bin", lambda old: b"\x0a" + old[1:-1])
    with pytest.raises(ValueError, match=r"data_batch_3\.bin: expected labels 0 to 9, got 10: damaged, or not a file of cifar10"):
        load("cifar10", tmp_path)


def test_damaged_archives_are_named(tmp_path: Path) -> None:
    archive = tmp_path / "cifar-10-binary.tar.gz"
    files = cifar_files("cifar10", cifar_binary)
    whole = tar_of(files, "cifar-10-batches-bin")
    for content in (whole[: len(whole) // 2], b"not gzip", b"", whole[:3000] + b"xxxx" + whole[3004:]):
        archive.write_bytes(content)
        with pytest.raises(ValueError, match=r"cifar-10-binary\.tar\.gz"):
            load("cifar10", tmp_path)
    del files["test_batch.bin"]
    archive.write_bytes(tar_of(files, "cifar-10-batches-bin"))
    with pytest.raises(ValueError, match=r"cifar-10-binary\.tar\.gz has no file test_batch\.bin"):
        load("cifar10", tmp_path)


@pytest.mark.parametrize("again", ["old/test_batch.bin", "test_batch.bin"])
def test_an_archive_with_two_files_of_one_name_is_refused(again: str, tmp_path: Path) -> None:
    files = cifar_files("cifar10", cifar_binary)
    members = [*files.items(), (again, files["test_batch.bin"])]
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w:gz") as tar:
        for name, content in members:
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    (tmp_path / "cifar-10-binary.tar.gz").write_bytes(out.getvalue())
    with pytest.raises(
        ValueError, match=r"cifar-10-binary\.tar\.gz has two files test_batch\.bin: not the archive of this data set"
    ):
        load("cifar10", tmp_path)


def test_an_archive_that_unpacks_to_gigabytes_is_refused(tmp_path: Path) -> None:
    bomb = {"big": bytes(30_000_000), **cifar_files("cifar10", cifar_binary)}
    (tmp_path / "cifar-10-binary.tar.gz").write_bytes(tar_of(bomb, "x"))
    with pytest.raises(ValueError, match="unpacks to more than it should"):
        load("cifar10", tmp_path)


class _Evil:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        import os

        return os.system, ("touch evil",)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (pickle.dumps({"data": _Evil()}, 2), r"asks for the name (posix|nt)\.system, which such a file does not need: refused"),
        (b"\x80\x02cbuiltins\neval\nX\x03\x00\x00\x001+1\x85R.", r"asks for the name builtins\.eval"),
        (b"\x80\x02cnumpy\nload\n.", r"asks for the name numpy\.load"),
        (pickle.dumps(bytearray(5), 5), r"asks for the instruction FRAME"),
        (b"\x96" + b"\xff" * 7 + b"\x7f.", r"asks for the instruction BYTEARRAY8"),
        (b"\xff", r"asks for the instruction 0xff"),
        (b"cnumpy\nndarray\nN}b.", r"asks for the state of something else than an array"),
        (b"]" * 100_000, r"asks for more instructions than its records need"),
        (b"}r\xff\xff\xff\x7f0.", r"asks for the instruction POP"),
        (b"", "is damaged"),
        (b"\x80\x02}q\x01", "is damaged"),
        (b"].", "expected a pickled dict, got list"),
        (b"}.", r"expected an array 'data' in its dict, got \[\]"),
        (
            pickle.dumps({"data": np.zeros((2, 3072), np.int16)}, 2),
            r"expected 'data' to be bytes .* got 'i2' of shape \(2, 3072\)",
        ),
        (pickle.dumps({"data": np.zeros((3, 3072), np.uint8)}, 2), r"got 'u1' of shape \(3, 3072\)"),
        (pickle.dumps({"data": np.zeros((3072, 2), np.uint8)}, 2), r"expected 'data' to be bytes of shape \(2, 3072\), got 'u1'"),
    ],
)
def test_pickles_that_are_refused(content: bytes, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match=message):
        cifar_pickle.read_batch(content, 2, 3072)
    assert list(tmp_path.iterdir()) == []


def test_arrays_stored_column_by_column() -> None:
    pixels = cifar_batch("cifar10", "data_batch_1")[0]
    content = pickle.dumps({"data": np.asfortranarray(pixels)}, 2)
    assert np.array_equal(cifar_pickle.read_batch(content, 2, 3072)[0], pixels)


def test_large_memo_numbers_cost_nothing() -> None:
    # the reader in C would allocate gigabytes here
    content = cifar_python("cifar10", "data_batch_1").replace(b"q\x01", b"r\xff\xff\xff\x3f")
    pixels, entries = cifar_pickle.read_batch(content, 2, 3072)
    assert np.array_equal(pixels, cifar_batch("cifar10", "data_batch_1")[0])
    assert sorted(entries) == ["batch_label", "filenames", "labels"]


@pytest.mark.parametrize("labels", [[1], [1, 10], [1, -1], [1, 2**70], [1, "2"], [1, True], "ab", None])
def test_labels_of_pickles_are_checked(labels: object, tmp_path: Path) -> None:
    files = cifar_files("cifar10", cifar_python)
    files["data_batch_2"] = pickle.dumps({"data": np.zeros((2, 3072), np.uint8), "labels": labels}, 2)
    put(tmp_path, files)
    with pytest.raises(ValueError, match=r"data_batch_2: expected (a list 'labels' of 2 whole numbers|labels 0 to 9), got"):
        load("cifar10", tmp_path)
