"""MNIST's files: headers, lengths, and which of the two sets they are."""

import gzip
import struct
from pathlib import Path

import pytest
import torch

from tests.tost.data.tiny_files import FORMATS, MNIST_TEST, MNIST_TRAIN, idx_files, random_pixels
from tost.data import Dataset, idx


def load(place: Path, name: str = "mnist") -> Dataset:
    return idx.load(name, place, train=MNIST_TRAIN, test=MNIST_TEST)


def test_by_hand(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(bytes([0, 0, 8, 2, 0, 0, 0, 2, 0, 0, 0, 3, 1, 2, 3, 4, 5, 6]))
    assert idx.read_idx(tmp_path / "a", (2, 3)).tolist() == [[1, 2, 3], [4, 5, 6]]
    (tmp_path / "b.gz").write_bytes(gzip.compress((tmp_path / "a").read_bytes()))
    assert torch.equal(idx.read_idx(tmp_path / "b", (2, 3)), idx.read_idx(tmp_path / "a", (2, 3)))


@pytest.mark.parametrize("nested", [False, True])
@pytest.mark.parametrize("packed", [False, True])
def test_whole_data_set(nested: bool, packed: bool, tmp_path: Path) -> None:
    folder = tmp_path / "mnist" if nested else tmp_path
    folder.mkdir(exist_ok=True)
    FORMATS["fashionmnist gz" if packed else "mnist"].write(folder)
    dataset = load(tmp_path)
    assert dataset.input_shape == (1, 28, 28)
    assert (len(dataset.train), len(dataset.test)) == (MNIST_TRAIN, MNIST_TEST)
    assert dataset.test.targets.tolist() == [i % 10 for i in range(MNIST_TEST)]
    assert dataset.train.pixels[3, 0, 27, 5].item() == random_pixels(MNIST_TRAIN, 784, MNIST_TRAIN)[3, 27 * 28 + 5]
    assert (dataset.flip, load(folder, "fashionmnist").flip) == (False, True)


def test_the_other_data_set_is_noticed(tmp_path: Path) -> None:
    files = idx_files()
    for name, first in (("mnist", "7210414959"), ("fashionmnist", "9211614657")):
        labels = struct.pack(">4BI", 0, 0, 8, 1, MNIST_TEST) + bytes(map(int, first + "0"))
        for file, content in {**files, "t10k-labels-idx1-ubyte": labels}.items():
            (tmp_path / file).write_bytes(content)
        other = "mnist" if name == "fashionmnist" else "fashionmnist"
        assert len(load(tmp_path, name).test) == MNIST_TEST
        with pytest.raises(ValueError, match=f"data_dir: expected {other}, but .* holds {name}"):
            load(tmp_path, other)


def test_missing_files_say_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(
        FileNotFoundError, match=r"run `tost data fetch mnist --data_dir .*`, or put train-images-idx3-ubyte, .* there"
    ):
        load(tmp_path)
    FORMATS["mnist"].write(tmp_path)
    (tmp_path / "train-labels-idx1-ubyte").unlink()
    with pytest.raises(FileNotFoundError, match=r"data_dir: missing file .*train-labels-idx1-ubyte\.gz"):
        load(tmp_path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "got nothing: damaged, or another file"),
        (
            bytes(20),
            r"expected .*images-idx3-ubyte to begin with 00000803 0000000c 0000001c 0000001c \(idx, bytes, \(12, 28, 28\)\)",
        ),
        (struct.pack(">4B3I", 0, 0, 8, 3, 2**32 - 1, 28, 28), "got 00000803 ffffffff 0000001c 0000001c: damaged"),
        (idx_files()["train-images-idx3-ubyte"][:-1], r"to hold 16 \+ 9408 bytes, but it is cut short after 9423 bytes"),
        (idx_files()["train-images-idx3-ubyte"] + b"1", "but it is longer"),
    ],
)
def test_damaged_files_are_named(content: bytes, message: str, tmp_path: Path) -> None:
    FORMATS["mnist"].write(tmp_path)
    (tmp_path / "train-images-idx3-ubyte").write_bytes(content)
    with pytest.raises(ValueError, match=message):
        load(tmp_path)


def test_labels_above_nine(tmp_path: Path) -> None:
    FORMATS["mnist"].write(tmp_path)
    path = tmp_path / "t10k-labels-idx1-ubyte"
    path.write_bytes(path.read_bytes()[:-1] + b"\x0a")
    with pytest.raises(ValueError, match=r"expected labels 0 to 9 in .*t10k-labels-idx1-ubyte, got 10"):
        load(tmp_path)


def test_damaged_gz(tmp_path: Path) -> None:
    FORMATS["fashionmnist gz"].write(tmp_path)
    path = tmp_path / "train-images-idx3-ubyte.gz"
    whole = path.read_bytes()
    for content in (whole[:-10], b"not gzip", whole[:100] + b"xxxxxxxx" + whole[108:]):
        path.write_bytes(content)
        with pytest.raises(ValueError, match=r"train-images-idx3-ubyte\.gz is damaged or cut short"):
            load(tmp_path, "fashionmnist")
    # 100 MB of zeros after the pixels: no more is unpacked than is asked for
    path.write_bytes(gzip.compress(idx_files()["train-images-idx3-ubyte"] + bytes(100_000_000), 1))
    with pytest.raises(ValueError, match="but it is longer"):
        load(tmp_path, "fashionmnist")
