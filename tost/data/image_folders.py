"""Data sets of picture files in folders: ImageNet, TinyImageNet, and anybody's own with one folder a class."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import torch

from tost.checks import integer
from tost.data.dataset import Dataset, Images, MemoryImages, Picks
from tost.data.pictures import ENDINGS, PictureImages, require_pillow
from tost.data.places import folders, missing, read_bounded

_IMAGENET_MEAN, _IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
_TINY_MEAN, _TINY_STD = (0.4802, 0.4481, 0.3975), (0.2770, 0.2691, 0.2821)
_TINY_SIDE, TINY_FOLDER, _ANNOTATIONS = 64, "tiny-imagenet-200", "val_annotations.txt"
FOLDER_LAYOUT = "train/<class>/* and val/<class>/* (or test/<class>/*)"
IMAGENET_LAYOUT = "train/<wnid>/*.JPEG and val/<wnid>/*.JPEG (1,000 folders each)"


def load_folder(
    data_dir: str | Path | None = None,
    *,
    name: str = "imagefolder",
    size: int = 224,
    mean: Sequence[float] = _IMAGENET_MEAN,
    std: Sequence[float] = _IMAGENET_STD,
    flip: bool = True,
    layout: str = FOLDER_LAYOUT,
) -> Dataset:
    """Pictures in train/<class>/ and val/<class>/ (or test/<class>/), decoded as they are needed.

    Classes are numbered in the order of their folders' names. Files that do not end like a picture are passed over.

    Args:
        data_dir: the folder of `train` and `val`, or of a folder `name` with them; None: see `tost.data.load`.
        name: of the data set.
        size: side of the images in pixels: training takes random-resized crops, evaluation the middle (see `PictureImages`).
        mean, std: of pixel / 255, for red, green and blue.
        flip: whether mirrored images belong to the same class.
        layout: what the error says is missing.

    Raises:
        FileNotFoundError, ValueError: folders are missing, empty, or not the same classes. ModuleNotFoundError: no Pillow.
    """
    integer("size", size, 1)
    if len(mean) != 3 or len(std) != 3 or not all(value > 0 for value in std):
        raise ValueError(f"mean, std: expected three numbers each, those of std above 0, got {mean}, {std}")
    require_pillow()
    train, test = find_folder(data_dir, name, layout)
    classes = _classes(train)
    others = set(_classes(test)).symmetric_difference(classes)
    if others:
        raise ValueError(
            f"data_dir: expected the same class folders in {train} and {test}, but {min(others)} is in one only"
            " (validation pictures must be sorted into folders of their classes)"
        )

    def images(root: Path) -> Images:
        files = [[f"{label}/{file}" for file in _pictures(root / label)] for label in classes]
        targets = torch.repeat_interleave(torch.arange(len(classes)), torch.tensor([len(names) for names in files]))
        return PictureImages(root, [file for names in files for file in names], targets, size)

    return Dataset(
        name=name,
        train=images(train),
        test=images(test),
        num_classes=len(classes),
        mean=torch.tensor(tuple(mean)),
        std=torch.tensor(tuple(std)),
        crop_padding=0,
        flip=flip,
    )


def find_folder(data_dir: str | Path | None, name: str, layout: str) -> tuple[Path, Path]:
    """The folders of the training and the test classes; a FileNotFoundError, which asks for `layout`, where there are none."""
    places = folders(data_dir, name)
    for place in places:
        for part in ("val", "test"):
            if (place / "train").is_dir() and (place / part).is_dir():
                return place / "train", place / part
    raise missing(name, places, layout, fetch=False)


def load_imagenet(data_dir: str | Path | None = None, classes: int = 1000) -> Dataset:
    """ILSVRC 2012: train/<wnid>/*.JPEG and val/<wnid>/*.JPEG, at 224 x 224; see `load_folder`."""
    dataset = load_folder(data_dir, name="imagenet", layout=IMAGENET_LAYOUT)
    if dataset.num_classes != classes:
        raise ValueError(f"data_dir: expected {classes} class folders of imagenet, got {dataset.num_classes}: incomplete?")
    return dataset


def load_tinyimagenet(data_dir: str | Path | None = None, classes: int = 200, each: int = 500, test: int = 10_000) -> Dataset:
    """TinyImageNet: 64 x 64, decoded once by all cores and held in memory (1.35 GB); its validation images are the test images.

    Args:
        data_dir: folder of `train` and `val`, or of their official folder tiny-imagenet-200, or of a folder tinyimagenet with
            one of these; None: see `tost.data.load`.
        classes, each, test: number of classes, of training images a class, and of test images.

    Raises:
        FileNotFoundError, ValueError: files are missing or damaged. ModuleNotFoundError: no Pillow.
    """
    require_pillow()
    root = find_tinyimagenet(data_dir)
    names = _classes(root / "train")
    if len(names) != classes:
        raise ValueError(f"data_dir: expected {classes} class folders in {root / 'train'}, got {len(names)}")
    files = [f"train/{name}/images/{file}" for name in names for file in _pictures(root / "train" / name / "images")]
    if len(files) != classes * each:
        raise ValueError(f"data_dir: expected {classes * each} training pictures in {root}, got {len(files)}: incomplete")
    targets = torch.arange(classes).repeat_interleave(each)
    held_out = _annotated(root / "val" / _ANNOTATIONS, names, test)
    return Dataset(
        name="tinyimagenet",
        train=_in_memory(PictureImages(root, files, targets, _TINY_SIDE, exact=True)),
        test=_in_memory(
            PictureImages(root / "val" / "images", list(held_out), torch.tensor(list(held_out.values())), _TINY_SIDE, exact=True)
        ),
        num_classes=classes,
        mean=torch.tensor(_TINY_MEAN),
        std=torch.tensor(_TINY_STD),
        crop_padding=4,
        flip=True,
    )


def find_tinyimagenet(data_dir: str | Path | None = None) -> Path:
    """The folder of `train` and `val`; a FileNotFoundError where there is none."""
    places = folders(data_dir, "tinyimagenet")
    for place in places:
        for root in (place / TINY_FOLDER, place):
            if (root / "val" / _ANNOTATIONS).is_file() and (root / "train").is_dir():
                return root
    raise missing("tinyimagenet", places, f"the unpacked folder {TINY_FOLDER}")


def _classes(folder: Path) -> list[str]:
    """The names of the class folders, sorted."""
    with os.scandir(folder) as entries:
        names = sorted(entry.name for entry in entries if entry.is_dir() and not entry.name.startswith("."))
    if not names:
        raise FileNotFoundError(f"data_dir: no class folders in {folder}")
    return names


def _pictures(folder: Path) -> list[str]:
    """The names of the pictures in a folder, sorted."""
    if not folder.is_dir():
        raise FileNotFoundError(f"data_dir: no such folder: {folder}")
    with os.scandir(folder) as entries:
        names = sorted(e.name for e in entries if e.name.lower().endswith(ENDINGS) and not e.name.startswith("."))
    if not names:
        raise FileNotFoundError(f"data_dir: no pictures ({', '.join(ENDINGS)}) in {folder}")
    return names


def _annotated(path: Path, classes: list[str], count: int) -> dict[str, int]:
    """File name -> class of the validation pictures."""
    content = read_bounded(path, 1000 * count)
    number = {name: i for i, name in enumerate(classes)}
    found: dict[str, int] = {}
    for line, text in enumerate(content.decode("latin1").splitlines(), 1):
        words = text.split("\t")
        if len(words) < 2 or words[1] not in number or not words[0] or Path(words[0]).name != words[0] or "\0" in words[0]:
            raise ValueError(f"data_dir: {path}, line {line}: expected a file name and a class folder, got {text[:80]!r}")
        found[words[0]] = number[words[1]]
    if len(found) != count:
        raise ValueError(f"data_dir: expected {count} pictures in {path}, got {len(found)}: incomplete")
    return found


def _in_memory(images: PictureImages) -> MemoryImages:
    """All of `images`, decoded by as many processes as this one may use cores."""
    pixels = torch.empty(len(images), *images.shape, dtype=torch.uint8)
    parts = torch.split(torch.arange(len(images)), 256)
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    workers = min(cores, 16) if len(parts) > 4 else 0  # a few pictures are decoded sooner than processes start
    for part, batch in zip(parts, images.batches((Picks(part) for part in parts), workers), strict=True):
        pixels[part] = batch
    return MemoryImages(pixels, images.targets)
