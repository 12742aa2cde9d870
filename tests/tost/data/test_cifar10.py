"""The binary CIFAR-10 reader, on tiny files of the same layout."""

from pathlib import Path

import numpy as np
import pytest

from tost.data import cifar10, eval_batches, load

RECORD = 3073


def write(path: Path, labels: list[int], seed: int = 0) -> np.ndarray:
    pixels = np.random.default_rng(seed).integers(0, 256, (len(labels), 3072), dtype=np.uint8)
    np.concatenate([np.array(labels, np.uint8)[:, None], pixels], axis=1).tofile(path)
    return pixels


def test_one_file_pixel_by_pixel(tmp_path: Path) -> None:
    pixels = write(tmp_path / "a.bin", [3, 9])
    images, targets = cifar10.read_batch(tmp_path / "a.bin", records=2)
    assert targets.tolist() == [3, 9]
    assert images.shape == (2, 3, 32, 32)
    # plane by plane, row by row
    assert images[1, 2, 31, 4].item() == pixels[1, 2 * 1024 + 31 * 32 + 4]


@pytest.mark.parametrize("nested", [False, True])
def test_whole_data_set(tmp_path: Path, nested: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cifar10.read_batch, "__defaults__", (4,))
    folder = tmp_path / cifar10.FOLDER if nested else tmp_path
    folder.mkdir(exist_ok=True)
    for i, file in enumerate(cifar10.TRAIN_FILES + cifar10.TEST_FILES):
        pixels = write(folder / file, [i, 1, 2, 3], seed=i)
    dataset = load("cifar10", str(tmp_path))
    assert len(dataset.train) == 20
    assert dataset.input_shape == (3, 32, 32)
    assert dataset.train.targets[::4].tolist() == [0, 1, 2, 3, 4]
    ((inputs, targets),) = eval_batches(dataset, 4)
    assert targets.tolist() == [5, 1, 2, 3]
    expected = (pixels[0, 1024] / 255 - 0.4822) / 0.2435  # first pixel of the green plane
    assert inputs[0, 1, 0, 0].item() == pytest.approx(expected, abs=1e-5)


def test_errors_name_the_file(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="data_dir: cifar10 needs the folder"):
        load("cifar10")
    with pytest.raises(FileNotFoundError, match="data_dir: no such folder"):
        load("cifar10", str(tmp_path / "nowhere"))
    with pytest.raises(FileNotFoundError, match=r"data_dir: missing file .*data_batch_1\.bin"):
        load("cifar10", str(tmp_path))
    (tmp_path / "data_batch_1.bin").write_bytes(b"\0" * 5000)
    with pytest.raises(ValueError, match=r"data_batch_1\.bin to have 30730000 bytes .* got 5000: truncated"):
        load("cifar10", str(tmp_path))
    write(tmp_path / "b.bin", [1, 10])
    with pytest.raises(ValueError, match=r"labels 0 to 9 in .*b\.bin, got 10"):
        cifar10.read_batch(tmp_path / "b.bin", records=2)
