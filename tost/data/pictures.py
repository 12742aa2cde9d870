"""Picture files: decoded with Pillow, framed to one size, in worker processes; the same bits whatever their number."""

from __future__ import annotations

import math
import os
import random
import signal
import stat
import warnings
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from tost.data.dataset import Picks

if TYPE_CHECKING:
    from PIL import Image

ENDINGS = (".jpeg", ".jpg", ".png", ".bmp", ".webp")
_FORMATS = ("JPEG", "PNG", "BMP", "WEBP")  # by content; no other decoder is handed a file
_MOST_PIXELS = 100_000_000  # a few kB can unpack to more memory than there is; ImageNet's largest has 20 million
_LEAST_AREA, _MOST_ASPECT, _TRIES = 0.08, 4 / 3, 10  # of random-resized crops (Szegedy et al., arXiv 1409.4842)
_MIDDLE = 7 / 8  # of the shorter side, for evaluation: 224 of 256


def require_pillow() -> None:
    """Raises ModuleNotFoundError, with what to install, where there is no Pillow."""
    try:
        import PIL.Image  # noqa: F401
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            'pictures are decoded with Pillow, which is not installed: run `pip install "tost-sparse[images]"`'
        ) from error


class PictureImages:
    """Images in files of any size (or, if `exact`, of size x size), read as size x size RGB.

    With a crop seed an image is a random-resized crop: 8 to 100% of its area, aspect ratio 3/4 to 4/3. Without one it is
    the middle, 7/8 of the shorter side (of 256 pixels: 224). Grey pictures become RGB; those of 16 bits a pixel are refused.

    Args:
        root: the folder that `files` are relative to.
        files: a file name for each image.
        targets: int64 (N,), classes from 0.
        size: pixels of each side.
        exact: the pictures must be of that size: they are read as they are.
    """

    def __init__(self, root: Path, files: Sequence[str], targets: Tensor, size: int, *, exact: bool = False) -> None:
        self._root = root
        # one array, not a million strings: workers that are forked would copy those as they count references
        self._files = np.array([os.fsencode(file) for file in files])
        self.targets = targets
        self._size = size
        self._exact = exact

    @property
    def shape(self) -> tuple[int, int, int]:
        """(3, size, size)."""
        return 3, self._size, self._size

    @property
    def takes_crop_seeds(self) -> bool:
        """See `Images`."""
        return not self._exact

    def __len__(self) -> int:
        return len(self._files)

    def path(self, index: int) -> Path:
        """The file of one image."""
        return self._root / os.fsdecode(self._files[index])

    def read(self, index: int, crop_seed: int | None = None) -> NDArray[np.uint8]:
        """uint8 (3, size, size).

        Raises:
            FileNotFoundError, ValueError: the file is missing, no picture, damaged, or of a wrong size; named.
        """
        from PIL import Image

        path = self.path(index)
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # Pillow's, on odd metadata of pictures that are fine
                if not stat.S_ISREG(path.stat().st_mode):
                    raise ValueError("expected a file, got a folder, pipe or device")  # to open a pipe would wait for its writer
                with Image.open(path, formats=_FORMATS) as image:
                    if self._exact and image.size != (self._size, self._size):
                        raise ValueError(f"expected {self._size} x {self._size} pixels, got {image.width} x {image.height}")
                    if image.width * image.height > _MOST_PIXELS:
                        raise ValueError(f"{image.width} x {image.height} pixels are more than {_MOST_PIXELS:,}")
                    if image.mode[0] in "IF":  # Pillow would make all of it white
                        raise ValueError(f"expected 8 bits a channel, got more (Pillow's mode {image.mode})")
                    colours = image.convert("RGB")
                pixels: NDArray[np.uint8] = np.asarray(self._framed(colours, crop_seed)).transpose(2, 0, 1)
        except FileNotFoundError:
            raise FileNotFoundError(f"data_dir: missing file {path}") from None
        except PermissionError:
            raise
        except Exception as error:  # Pillow's decoders fail in many ways
            reason = " ".join(str(error).split()) or type(error).__name__  # a MemoryError says nothing
            raise ValueError(f"data_dir: cannot read the picture {path}: {reason}") from error
        return pixels

    def _framed(self, image: Image.Image, crop_seed: int | None) -> Image.Image:
        from PIL.Image import Resampling

        if self._exact:
            return image
        if crop_seed is not None:
            box: tuple[float, float, float, float] = random_box(image.width, image.height, crop_seed)
        else:
            # what is left of resizing and cropping to the middle; a picture of 1 x 10^6 pixels would first become a huge one
            side = min(image.size) * _MIDDLE
            left, top = (image.width - side) / 2, (image.height - side) / 2
            box = left, top, left + side, top + side
        return image.resize(self.shape[1:], Resampling.BILINEAR, box=box)

    def batches(self, picks: Iterable[Picks], workers: int = 0) -> Iterator[Tensor]:
        """See `Images`."""
        require_pillow()
        waiting: deque[int] = deque()  # first image of each batch that was asked for

        def requests() -> Iterator[_Request]:
            for pick in picks:
                waiting.append(int(pick.index[0]))
                yield pick.index.tolist(), None if pick.crop_seeds is None else pick.crop_seeds.tolist()

        loader: DataLoader[Tensor | Exception] = DataLoader(
            _Batches(self),
            batch_size=None,  # a request is a whole batch
            sampler=requests(),
            num_workers=workers,
            collate_fn=_as_it_is,
            worker_init_fn=_leave_signals_to_the_main_process,
            generator=torch.Generator(),  # else it would draw from torch's global one
        )
        with warnings.catch_warnings():
            # torch's threads; the workers only run Pillow and numpy
            warnings.filterwarnings("ignore", "This process .* is multi-threaded", DeprecationWarning)
            read = iter(loader)
        while True:
            try:
                batch = next(read)
            except StopIteration:
                return
            except RuntimeError as error:
                if not workers or not waiting:
                    raise
                raise RuntimeError(
                    "a process that reads pictures died (killed, or out of memory or of shared memory?) at about the batch that "
                    f"begins with {self.path(waiting[0])}: {str(error).splitlines()[0]}"
                ) from error
            if isinstance(batch, Exception):
                raise batch
            waiting.popleft()
            yield batch


_Request = tuple[list[int], list[int] | None]


class _Batches(Dataset["Tensor | Exception"]):
    """What a worker does: a request in, a batch out, or what went wrong (raised there it would lose its type and message)."""

    def __init__(self, images: PictureImages) -> None:
        self._images = images

    def __getitem__(self, request: _Request) -> Tensor | Exception:
        index, seeds = request
        batch = np.empty((len(index), *self._images.shape), np.uint8)
        try:
            for place, image in enumerate(index):
                batch[place] = self._images.read(image, None if seeds is None else seeds[place])
        except (OSError, ValueError) as error:
            return error
        return torch.from_numpy(batch)


def _as_it_is(batch: Any) -> Any:
    return batch


def _leave_signals_to_the_main_process(worker: int) -> None:
    # Ctrl-C, and the SIGTERM of torchrun, go to a whole group of processes; the trainer still wants its last batch, and to save.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if hasattr(os, "setpgid"):
        os.setpgid(0, 0)  # SIGTERM is not ignored: that is how the trainer ends a worker


def random_box(width: int, height: int, seed: int) -> tuple[int, int, int, int]:
    """(left, top, right, bottom) of a random-resized crop: the same for a seed in every version of Python.

    Ten tries for a box that fits; then the middle, as much of it as the aspect ratio allows.
    """
    draw = random.Random(seed).random
    for _ in range(_TRIES):
        area = width * height * (_LEAST_AREA + draw() * (1 - _LEAST_AREA))
        aspect = math.exp((2 * draw() - 1) * math.log(_MOST_ASPECT))
        w, h = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
        if 0 < w <= width and 0 < h <= height:
            left, top = int(draw() * (width - w + 1)), int(draw() * (height - h + 1))
            return left, top, left + w, top + h
    w, h = min(width, round(height * _MOST_ASPECT)), min(height, round(width * _MOST_ASPECT))
    left, top = (width - w) // 2, (height - h) // 2
    return left, top, left + w, top + h
