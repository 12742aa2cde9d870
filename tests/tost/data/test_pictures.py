"""Pictures in files: framing, determinism whatever the workers, and what happens when one cannot be read."""

import builtins
import io
import os
import signal
import struct
import warnings
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from tests.tost.data.tiny_files import FOLDER_SIZE, FORMATS, TINY_CLASSES, TINY_EACH, TINY_TEST, picture
from tost.data import Dataset, Picks, TrainBatches, eval_batches, image_folders, load_folder
from tost.data.pictures import PictureImages, random_box

# torch's advice on machines with one core
pytestmark = pytest.mark.filterwarnings("ignore:This DataLoader will create")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    FORMATS["imagefolder"].write(tmp_path)
    return tmp_path


def dataset(folder: Path) -> Dataset:
    return load_folder(folder, size=FOLDER_SIZE)


def one(path: Path, content: bytes, size: int = 16, exact: bool = False) -> PictureImages:
    path.write_bytes(content)
    return PictureImages(path.parent, [path.name], torch.tensor([0]), size, exact=exact)


def pixels_of(content: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(content)).convert("RGB")).transpose(2, 0, 1)


def test_folders_become_classes_in_the_order_of_their_names(folder: Path) -> None:
    (folder / "train" / "dog" / "notes.txt").write_text("no picture")
    (folder / "train" / "dog" / "._0.jpeg").write_text("no picture either")
    got = dataset(folder)
    assert got.input_shape == (3, 16, 16)
    assert got.num_classes == 2
    assert got.train.targets.tolist() == [0] * 4 + [1] * 4
    assert got.test.targets.tolist() == [0, 0, 1, 1]
    assert got.crop_padding == 0


def test_val_or_test_or_a_folder_of_its_name(folder: Path, tmp_path: Path) -> None:
    expected = [x for x, _ in eval_batches(dataset(folder), 4)]
    (folder / "val").rename(folder / "test")
    assert torch.equal(next(eval_batches(dataset(folder), 4))[0], expected[0])
    (tmp_path / "imagefolder").mkdir()
    for part in ("train", "test"):
        (folder / part).rename(tmp_path / "imagefolder" / part)
    assert torch.equal(next(eval_batches(dataset(tmp_path), 4))[0], expected[0])


def test_exact_pictures_are_read_as_they_are(tmp_path: Path) -> None:
    content = picture(16, 16)
    assert np.array_equal(one(tmp_path / "a.jpeg", content, exact=True).read(0), pixels_of(content))
    grey = one(tmp_path / "b.jpeg", picture(16, 16, mode="L"), exact=True).read(0)
    assert np.array_equal(grey[0], grey[1])
    assert np.array_equal(grey[0], grey[2])
    with pytest.raises(ValueError, match=r"cannot read the picture .*c\.jpeg: expected 16 x 16 pixels, got 17 x 16"):
        one(tmp_path / "c.jpeg", picture(17, 16), exact=True).read(0)


def test_evaluation_takes_the_middle(tmp_path: Path) -> None:
    # 32 x 64 with a stripe; 7/8 of the shorter side around the middle are rows 18 to 46
    image = np.zeros((64, 32, 3), np.uint8)
    image[18:46] = 200
    image[:, :2] = image[:, 30:] = 0
    out = io.BytesIO()
    Image.fromarray(image).save(out, "PNG")
    assert (one(tmp_path / "a.png", out.getvalue(), size=28).read(0) == 200).all()
    assert not (one(tmp_path / "b.png", out.getvalue(), size=32).read(0)[:, 0] == 0).any()


def test_evaluation_agrees_with_resizing_first(tmp_path: Path) -> None:
    content = picture(96, 64, kind="PNG")
    whole = Image.open(io.BytesIO(content)).resize((48, 32), Image.Resampling.BILINEAR)
    expected = np.asarray(whole.crop((10, 2, 38, 30))).transpose(2, 0, 1).astype(int)
    got = one(tmp_path / "a.png", content, size=28).read(0).astype(int)
    assert np.abs(got - expected).max() <= 1  # rounding


def test_random_boxes() -> None:
    areas, aspects = [], []
    for seed in range(3000):
        left, top, right, bottom = random_box(400, 300, seed)
        assert 0 <= left < right <= 400
        assert 0 <= top < bottom <= 300
        areas.append((right - left) * (bottom - top) / (400 * 300))
        aspects.append((right - left) / (bottom - top))
    assert 0.079 < min(areas) < 0.1
    assert 0.95 < max(areas) <= 1
    assert 0.74 < min(aspects) < 0.76
    assert 1.32 < max(aspects) < 1.35
    # torchvision draws the same distribution: uniform area of 0.08 to 1, less what did not fit
    assert 0.4 < np.mean(areas) < 0.55
    assert random_box(400, 300, 5) == random_box(400, 300, 5)


def test_random_boxes_of_pictures_that_nothing_fits_into() -> None:
    for seed in range(20):
        assert random_box(1, 1, seed) == (0, 0, 1, 1)
        left, top, right, bottom = random_box(1000, 2, seed)
        assert 0 <= left < right <= 1000
        assert (top, bottom - top) in ((0, 2), (0, 1), (1, 1))
    assert random_box(10_000, 3, 0) == (4998, 0, 5002, 3)


def test_training_takes_random_crops_and_evaluation_does_not(folder: Path) -> None:
    data = dataset(folder)
    batches = TrainBatches(data, 8, seed=0)
    (first, _), (second, _) = next(batches.epoch(0)), next(batches.epoch(1))
    assert not torch.equal(first, second)
    (plain, targets), *_ = eval_batches(data, 8, "train")
    index = next(TrainBatches(data, 8, seed=0, augment=False).epoch(0))
    assert torch.equal(index[0].sum((1, 2, 3)).sort().values, plain.sum((1, 2, 3)).sort().values)
    assert targets.tolist() == [0] * 4 + [1] * 4


@pytest.mark.parametrize("workers", [1, 2])
def test_bits_do_not_depend_on_the_workers(folder: Path, workers: int) -> None:
    data = dataset(folder)
    before = torch.get_rng_state()
    alone, shared = TrainBatches(data, 2, seed=1, cutout=4), TrainBatches(data, 2, seed=1, cutout=4, workers=workers)
    for (a, s), (b, t) in zip(alone.epoch(1), shared.epoch(1), strict=True):
        assert torch.equal(a, b)
        assert torch.equal(s, t)
    assert alone.chain == shared.chain
    assert torch.equal(torch.get_rng_state(), before)
    for (a, s), (b, t) in zip(eval_batches(data, 3), eval_batches(data, 3, workers=workers), strict=True):
        assert torch.equal(a, b)
        assert torch.equal(s, t)


def test_an_epoch_goes_on_from_any_batch(folder: Path) -> None:
    data = dataset(folder)
    everything = [x for x, _ in TrainBatches(data, 2, seed=1).epoch(2)]
    for start in range(5):
        rest = [x for x, _ in TrainBatches(data, 2, seed=1, workers=start % 2).epoch(2, start)]
        assert len(rest) == 4 - start
        assert all(torch.equal(a, b) for a, b in zip(everything[start:], rest, strict=True))


def test_shards_decode_their_part(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = dataset(folder)
    whole = list(TrainBatches(data, 4, seed=1).epoch(0))
    decoded: list[int] = []
    read = PictureImages.read
    monkeypatch.setattr(PictureImages, "read", lambda self, i, seed=None: (decoded.append(i), read(self, i, seed))[1])
    for (x, t), (part, target) in zip(whole, TrainBatches(data, 4, seed=1, shard=(1, 2)).epoch(0), strict=True):
        assert torch.equal(x[2:], part)
        assert torch.equal(t[2:], target)
    assert len(decoded) == 4


@pytest.mark.parametrize("workers", [0, 2])
def test_a_damaged_picture_is_named(folder: Path, workers: int) -> None:
    path = folder / "val" / "dog" / "0.jpeg"
    path.write_bytes(path.read_bytes()[:200])
    with pytest.raises(ValueError, match=r"^data_dir: cannot read the picture .*val/dog/0\.jpeg: .*[Tt]runcated") as error:
        list(eval_batches(dataset(folder), 3, workers=workers))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("workers", [0, 2])
def test_a_picture_that_vanished_is_named(folder: Path, workers: int) -> None:
    data = dataset(folder)
    (folder / "val" / "cat" / "0.jpeg").unlink()
    with pytest.raises(FileNotFoundError, match=r"^data_dir: missing file .*val/cat/0\.jpeg$"):
        list(eval_batches(data, 3, workers=workers))


def test_a_worker_that_dies_is_an_error_that_names_the_place(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    main = os.getpid()

    def die(self: PictureImages, index: int, seed: int | None = None) -> np.ndarray:
        assert os.getpid() != main
        os._exit(9)

    monkeypatch.setattr(PictureImages, "read", die)
    with pytest.raises(RuntimeError, match=r"a process that reads pictures died .* begins with .*val/(cat|dog)/") as error:
        list(eval_batches(dataset(folder), 2, workers=1))
    assert "\n" not in str(error.value)


def test_signals_to_the_group_of_the_trainer_do_not_reach_the_workers(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def seen(self: PictureImages, index: int, crop_seed: int | None = None) -> np.ndarray:
        return np.array([os.getpgid(0) == os.getpgid(os.getppid()), signal.getsignal(signal.SIGINT) is not signal.SIG_IGN])

    monkeypatch.setattr(PictureImages, "read", seen)
    monkeypatch.setattr(PictureImages, "shape", (2,))
    images = PictureImages(folder, ["a.png"], torch.zeros(1, dtype=torch.int64), 16)
    (batch,) = images.batches([Picks(torch.zeros(1, dtype=torch.int64))], workers=1)
    assert batch.tolist() == [[0, 0]]


def png_of(width: int, height: int) -> bytes:
    """A few bytes that say they are a picture of that size."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(bytes(1000))) + chunk(b"IEND", b"")


@pytest.mark.parametrize("size", [(20_000, 20_000), (10_001, 10_000)])
def test_huge_pictures_are_refused_before_they_are_unpacked(size: tuple[int, int], tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"a\.png: .*(pixels are more than 100,000,000|decompression bomb)"):
        one(tmp_path / "a.png", png_of(*size)).read(0)


def test_long_pictures_do_not_become_huge(tmp_path: Path) -> None:
    out = io.BytesIO()
    Image.new("RGB", (1, 60_000), (9, 9, 9)).save(out, "PNG")
    images = one(tmp_path / "a.png", out.getvalue(), size=224)
    assert (images.read(0) == 9).all()
    assert (images.read(0, crop_seed=1) == 9).all()


@pytest.mark.parametrize("content", [b"", b"no picture", b"GIF89a" + bytes(30)])
def test_other_files(content: bytes, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"cannot read the picture .*a\.jpg: cannot identify"):
        one(tmp_path / "a.jpg", content).read(0)


@pytest.mark.parametrize("exact", [False, True])
def test_sixteen_bits_a_pixel_are_refused(exact: bool, tmp_path: Path) -> None:
    out = io.BytesIO()
    Image.fromarray(np.full((16, 16), 300, np.uint16)).save(out, "PNG")
    with pytest.raises(
        ValueError, match=r"cannot read the picture .*a\.png: expected 8 bits a channel, got more \(Pillow's mode I"
    ):
        one(tmp_path / "a.png", out.getvalue(), exact=exact).read(0)


def test_a_pipe_or_folder_with_the_name_of_a_picture(folder: Path) -> None:
    odd = folder / "val" / "cat" / "5.jpg"
    for make in (os.mkfifo, os.mkdir):
        make(odd)
        with pytest.raises(
            ValueError, match=r"cannot read the picture .*cat/5\.jpg: expected a file, got a folder, pipe or device"
        ):
            list(eval_batches(dataset(folder), 3))
        odd.unlink() if odd.is_fifo() else odd.rmdir()


def test_too_little_memory_for_a_picture_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise MemoryError

    images = one(tmp_path / "a.jpg", picture(16, 16))
    monkeypatch.setattr(Image.Image, "convert", refuse)
    with pytest.raises(ValueError, match=r"cannot read the picture .*a\.jpg: MemoryError$"):
        images.read(0)


def test_odd_metadata_is_no_error(tmp_path: Path) -> None:
    plain = picture(16, 16)
    exif = b"\xff\xe1\x00\x12Exif\0\0II*\0\x08\0\0\0\xff\xff"  # an entry table that ends before it begins
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        got = one(tmp_path / "a.jpg", plain[:2] + exif + plain[2:], exact=True).read(0)
    assert np.array_equal(got, pixels_of(plain))


def test_missing_folders_say_what_to_put_where(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"no imagefolder in .*: put train/<class>/\* and val/<class>/\* .* there"):
        load_folder(tmp_path)
    with pytest.raises(FileNotFoundError, match=r"no imagenet in .*: put train/<wnid>/\*\.JPEG and val/<wnid>/\*\.JPEG"):
        image_folders.load_imagenet(tmp_path)
    (tmp_path / "train" / "a").mkdir(parents=True)
    (tmp_path / "val").mkdir()
    with pytest.raises(FileNotFoundError, match=r"no class folders in .*val"):
        load_folder(tmp_path)
    (tmp_path / "val" / "b").mkdir()
    with pytest.raises(ValueError, match=r"same class folders in .*train and .*val, but a is in one only"):
        load_folder(tmp_path)
    (tmp_path / "val" / "b").rename(tmp_path / "val" / "a")
    with pytest.raises(FileNotFoundError, match=r"no pictures \(.*\) in .*train/a"):
        load_folder(tmp_path)


def test_imagenet_has_a_thousand_classes(folder: Path) -> None:
    with pytest.raises(ValueError, match="expected 1000 class folders of imagenet, got 2"):
        image_folders.load_imagenet(folder)
    assert image_folders.load_imagenet(folder, classes=2).input_shape == (3, 224, 224)


def test_options_are_checked(folder: Path) -> None:
    with pytest.raises(ValueError, match="size: expected a whole number of at least 1, got 0"):
        load_folder(folder, size=0)
    with pytest.raises(ValueError, match="mean, std: expected three numbers each"):
        load_folder(folder, std=(1.0, 0.0, 1.0))


def test_without_pillow(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    known = builtins.__import__

    def importing(name: str, *rest: object) -> object:
        if name.startswith("PIL"):
            raise ModuleNotFoundError(name)
        return known(name, *rest)  # type: ignore[arg-type]

    monkeypatch.setattr(builtins, "__import__", importing)
    for load in (load_folder, image_folders.load_imagenet, image_folders.load_tinyimagenet):
        with pytest.raises(ModuleNotFoundError, match=r'not installed: run `pip install "tost-sparse\[images\]"`'):
            load(folder)


# ---- TinyImageNet ----------------------------------------------------------------------------------------------------


@pytest.fixture
def tiny(tmp_path: Path) -> Path:
    FORMATS["tinyimagenet"].write(tmp_path)
    return tmp_path


def test_tinyimagenet(tiny: Path) -> None:
    data = FORMATS["tinyimagenet"].load(tiny)
    assert (data.input_shape, data.num_classes) == ((3, 64, 64), len(TINY_CLASSES))
    assert data.train.targets.tolist() == [i for i in range(len(TINY_CLASSES)) for _ in range(TINY_EACH)]
    assert data.test.targets.tolist() == [2, 1, 0, 2]
    assert np.array_equal(data.train.pixels[4], pixels_of(picture(64, 64, 20)))
    assert torch.equal(data.train.pixels[3, 0], data.train.pixels[3, 2])  # the grey one
    assert np.array_equal(data.test.pixels[1], pixels_of(picture(64, 64, 101)))


def test_tinyimagenet_decoded_by_workers(tiny: Path) -> None:
    names = [f"n01/images/n01_{j}.JPEG" for j in range(2)] * 600
    images = PictureImages(tiny / "tiny-imagenet-200" / "train", names, torch.zeros(1200, dtype=torch.int64), 64, exact=True)
    pixels = image_folders._in_memory(images).pixels
    assert pixels.shape == (1200, 3, 64, 64)
    for j in range(2):
        assert (pixels[j::2] == torch.from_numpy(pixels_of(picture(64, 64, j)).copy())).all()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "val_0.JPEG\tn09\t0\n",
            r"txt, line 1: expected a file name and a class folder, got 'val_0\.JPEG\\tn09",
        ),
        ("val_0.JPEG\tn01\n../x.JPEG\tn01\n", r"line 2: expected a file name"),
        ("val_0.JPEG\n", r"line 1: expected a file name"),
        ("val_0.JPEG\tn01\n", r"expected 4 pictures in .*val_annotations\.txt, got 1: incomplete"),
        ("", r"expected 4 pictures in .*val_annotations\.txt, got 0: incomplete"),
    ],
)
def test_damaged_annotations(text: str, message: str, tiny: Path) -> None:
    (tiny / "tiny-imagenet-200" / "val" / "val_annotations.txt").write_text(text)
    with pytest.raises(ValueError, match=message):
        FORMATS["tinyimagenet"].load(tiny)


def test_incomplete_tinyimagenet(tiny: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"run `tost data fetch tinyimagenet --data_dir .*`, or put the unpacked folder"):
        FORMATS["tinyimagenet"].load(tiny / "tiny-imagenet-200" / "val")
    with pytest.raises(ValueError, match=r"expected 200 class folders in .*train, got 3"):
        image_folders.load_tinyimagenet(tiny)
    (tiny / "tiny-imagenet-200" / "train" / "n02" / "images" / "n02_0.JPEG").unlink()
    with pytest.raises(ValueError, match=f"expected {3 * TINY_EACH} training pictures in .*, got 5: incomplete"):
        FORMATS["tinyimagenet"].load(tiny)
    (tiny / "tiny-imagenet-200" / "train" / "n02" / "images" / "n02_0.JPEG").write_bytes(picture(64, 64))
    (tiny / "tiny-imagenet-200" / "val" / "images" / f"val_{TINY_TEST - 1}.JPEG").unlink()
    with pytest.raises(FileNotFoundError, match=r"missing file .*val_3\.JPEG"):
        FORMATS["tinyimagenet"].load(tiny)
