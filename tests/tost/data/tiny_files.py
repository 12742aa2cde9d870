"""A tiny valid file set of every format, and how to load it.

    for name, files in FORMATS.items():
        files.write(folder)           # a few kB
        files.load(folder)            # a Dataset, or ValueError or FileNotFoundError if the files are damaged

Loading reads every byte of pictures too, so that a damaged one is met.
"""

import gzip
import io
import pickle
import struct
import tarfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from tost.data import Dataset, cifar, eval_batches, idx, image_folders


@dataclass(frozen=True)
class Files:
    """How to write a data set's files into an empty folder and how to load them from there."""

    write: Callable[[Path], None]
    load: Callable[[Path], Dataset]


def random_pixels(count: int, size: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (count, size), dtype=np.uint8)


# ---- CIFAR -----------------------------------------------------------------------------------------------------------

CIFAR_FOLDERS = {
    ("cifar10", "bin"): "cifar-10-batches-bin",
    ("cifar10", "py"): "cifar-10-batches-py",
    ("cifar100", "bin"): "cifar-100-binary",
    ("cifar100", "py"): "cifar-100-python",
}
CIFAR_TRAIN, CIFAR_TEST = 10, 2  # images


def cifar_batch(name: str, stem: str) -> tuple[np.ndarray, list[int]]:
    """Pixels (N, 3072) and classes of one file."""
    count = CIFAR_TEST if stem.startswith("test") else CIFAR_TRAIN // (5 if name == "cifar10" else 1)
    seed = sum(stem.encode())
    return random_pixels(count, 3072, seed), [(seed + 7 * i) % (10 if name == "cifar10" else 100) for i in range(count)]


def cifar_binary(name: str, stem: str) -> bytes:
    pixels, labels = cifar_batch(name, stem)
    classes = np.array(labels, np.uint8)[:, None]
    coarse = [classes // 5] if name == "cifar100" else []
    return np.concatenate([*coarse, classes, pixels], axis=1).tobytes()


def cifar_python(name: str, stem: str) -> bytes:
    """The pickle of Python 2, instruction for instruction as in the official archives."""
    pixels, labels = cifar_batch(name, stem)

    def text(value: str) -> bytes:
        return b"U" + bytes([len(value)]) + value.encode()

    def numbers(values: list[int]) -> bytes:
        return b"](" + b"".join(b"K" + bytes([value]) for value in values) + b"e"

    raw = pixels.tobytes()
    array = (
        b"cnumpy.core.multiarray\n_reconstruct\n" + b"cnumpy\nndarray\n" + b"K\x00\x85" + text("b") + b"\x87R"
        b"(K\x01" + b"M" + struct.pack("<H", len(pixels)) + b"M" + struct.pack("<H", 3072) + b"\x86"
        b"cnumpy\ndtype\n"
        + text("u1")
        + b"K\x00K\x01\x87R"
        + b"(K\x03"
        + text("|")
        + b"NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb"
        b"\x89" + b"T" + struct.pack("<i", len(raw)) + raw + b"tb"
    )
    entries = text("batch_label") + text("a batch") + text("data") + b"q\x01" + array
    if name == "cifar10":
        entries += text("labels") + b"q\x02" + numbers(labels)
    else:
        entries += text("fine_labels") + numbers(labels) + text("coarse_labels") + numbers([label // 5 for label in labels])
    entries += text("filenames") + b"](" + b"".join(text(f"{i}.png") for i in range(len(labels))) + b"e"
    return b"\x80\x02}(" + entries + b"u."


def cifar_python3(name: str, stem: str, protocol: int = 2) -> bytes:
    """The same, saved again by Python 3: the keys are strings."""
    pixels, labels = cifar_batch(name, stem)
    return pickle.dumps({"data": pixels, "labels" if name == "cifar10" else "fine_labels": labels}, protocol=protocol)


def cifar_files(name: str, content: Callable[[str, str], bytes]) -> dict[str, bytes]:
    stems = [f"data_batch_{i}" for i in range(1, 6)] + ["test_batch"] if name == "cifar10" else ["train", "test"]
    ending = ".bin" if content is cifar_binary else ""
    return {f"{stem}{ending}": content(name, stem) for stem in stems}


def tar_of(files: dict[str, bytes], folder: str) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w:gz", compresslevel=1) as tar:
        for name, content in files.items():
            member = tarfile.TarInfo(f"{folder}/{name}")
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    return out.getvalue()


def _cifar(name: str, version: str, packed: bool) -> Files:
    folder = CIFAR_FOLDERS[name, version]
    files = cifar_files(name, cifar_binary if version == "bin" else cifar_python)

    def write(place: Path) -> None:
        if packed:
            archive = f"{'cifar-10' if name == 'cifar10' else 'cifar-100'}-{'binary' if version == 'bin' else 'python'}.tar.gz"
            (place / archive).write_bytes(tar_of(files, folder))
        else:
            (place / folder).mkdir()
            for file, content in files.items():
                (place / folder / file).write_bytes(content)

    return Files(write, lambda place: cifar.load(name, place, train=CIFAR_TRAIN, test=CIFAR_TEST))


# ---- MNIST -----------------------------------------------------------------------------------------------------------

MNIST_TRAIN, MNIST_TEST = 12, 11  # images


def idx_files() -> dict[str, bytes]:
    files = {}
    for part, count in (("train", MNIST_TRAIN), ("t10k", MNIST_TEST)):
        pixels = random_pixels(count, 784, seed=count)
        files[f"{part}-images-idx3-ubyte"] = struct.pack(">4B3I", 0, 0, 8, 3, count, 28, 28) + pixels.tobytes()
        files[f"{part}-labels-idx1-ubyte"] = struct.pack(">4BI", 0, 0, 8, 1, count) + bytes(i % 10 for i in range(count))
    return files


def _idx(name: str, packed: bool) -> Files:
    def write(place: Path) -> None:
        for file, content in idx_files().items():
            (place / f"{file}{'.gz' if packed else ''}").write_bytes(gzip.compress(content, 1) if packed else content)

    return Files(write, lambda place: idx.load(name, place, train=MNIST_TRAIN, test=MNIST_TEST))


# ---- pictures --------------------------------------------------------------------------------------------------------

TINY_CLASSES, TINY_EACH, TINY_TEST = ("n01", "n02", "n03"), 2, 4
FOLDER_SIZE = 16  # pixels of a side


def picture(width: int, height: int, seed: int = 0, mode: str = "RGB", kind: str = "JPEG") -> bytes:
    """A picture with soft colours (noise would not survive JPEG)."""
    random = np.random.default_rng(seed)
    small = Image.fromarray(random.integers(0, 256, (4, 4, 3), dtype=np.uint8))
    out = io.BytesIO()
    small.resize((width, height), Image.Resampling.BICUBIC).convert(mode).save(out, kind)
    return out.getvalue()


def _write_tinyimagenet(place: Path) -> None:
    root = place / "tiny-imagenet-200"
    for i, name in enumerate(TINY_CLASSES):
        (root / "train" / name / "images").mkdir(parents=True)
        for j in range(TINY_EACH):
            mode = "L" if (i, j) == (1, 1) else "RGB"
            (root / "train" / name / "images" / f"{name}_{j}.JPEG").write_bytes(picture(64, 64, 10 * i + j, mode))
    (root / "val" / "images").mkdir(parents=True)
    lines = []
    for i in range(TINY_TEST):
        (root / "val" / "images" / f"val_{i}.JPEG").write_bytes(picture(64, 64, 100 + i))
        lines.append(f"val_{i}.JPEG\t{TINY_CLASSES[2 - i % 3]}\t0\t0\t62\t62\n")
    (root / "val" / "val_annotations.txt").write_text("".join(lines))


def _load_tinyimagenet(place: Path) -> Dataset:
    return image_folders.load_tinyimagenet(place, classes=len(TINY_CLASSES), each=TINY_EACH, test=TINY_TEST)


def _write_folder(place: Path) -> None:
    sizes = [(20, 30), (40, 17), (16, 16), (33, 25)]
    for part, count in (("train", 4), ("val", 2)):
        for i, name in enumerate(("cat", "dog")):
            (place / part / name).mkdir(parents=True)
            for j in range(count):
                kind = "PNG" if j == 1 else "JPEG"
                content = picture(*sizes[(i + j) % 4], 10 * i + j, kind=kind)
                (place / part / name / f"{j}.{kind.lower()}").write_bytes(content)


def _load_folder(place: Path) -> Dataset:
    dataset = image_folders.load_folder(place, size=FOLDER_SIZE)
    for part in ("train", "test"):
        for _ in eval_batches(dataset, 3, part):
            pass  # decode everything: these files are read when they are needed
    return dataset


FORMATS: dict[str, Files] = {
    **{
        f"{name} {version}{' tar' if packed else ''}": _cifar(name, version, packed)
        for name in ("cifar10", "cifar100")
        for version in ("bin", "py")
        for packed in (False, True)
    },
    "mnist": _idx("mnist", packed=False),
    "fashionmnist gz": _idx("fashionmnist", packed=True),
    "tinyimagenet": Files(_write_tinyimagenet, _load_tinyimagenet),
    "imagefolder": Files(_write_folder, _load_folder),
}
