"""The solution path on disk: for each epoch a small file with the support and the filters' norms; masks from any point of it."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from tost import tensor_file
from tost.checks import integer, number
from tost.files import DamagedFile, remove_stale
from tost.masks import Masks
from tost.optim.read_out import PathPoint
from tost.optim.split_lbi import SplitLBI

__all__ = ["SolutionPath"]

FORMAT = "tost.solution_path"
VERSION = 1
_NAME = re.compile(r"epoch-(\d{6,})\.safetensors")
_NEVER = np.iinfo(np.int32).max


class SolutionPath:
    """What SplitLBI found, epoch by epoch, in the files epoch-000001.safetensors, ... of a folder.

    `record` writes one, whole or not at all: after a kill at any moment the folder holds the epochs recorded before, and a run
    that goes on from its checkpoint records on. The files are read when they are asked for; several may read while one writes.

    Args:
        folder: made if it is not there. One process writes into it (under DDP: rank 0).
    """

    def __init__(self, folder: str | os.PathLike[str]) -> None:
        self.folder = Path(folder)
        self.folder.mkdir(parents=True, exist_ok=True)
        self._cleaned = False

    @classmethod
    def load(cls, folder: str | os.PathLike[str]) -> SolutionPath:
        """The path in `folder`. Raises FileNotFoundError if no epoch is recorded there."""
        if not (Path(folder).is_dir() and _epochs(Path(folder))):
            raise FileNotFoundError(f"{folder}: expected the folder of a solution path, found no epoch-*.safetensors")
        return cls(folder)

    def record(self, epoch: int, model: nn.Module, optimizer: SplitLBI) -> PathPoint:
        """Write where the path is after `epoch` (0: before the first) and return it.

        Later epochs that are there go first: a resumed run walks them again. (Killed in between, it finds the earlier ones, and
        the later ones as far as they are not gone.)

        Raises TypeError, ValueError: an argument is wrong, see `SplitLBI.supports`. OSError: the file cannot be written.
        """
        epoch = integer("epoch", epoch, least=0)
        if not isinstance(optimizer, SplitLBI):
            raise TypeError(f"optimizer: expected a SplitLBI, got {type(optimizer).__name__}")
        point = optimizer.path_point(model)
        if not self._cleaned:
            remove_stale(self.folder)
            self._cleaned = True
        for later in reversed([recorded for recorded in self.epochs if recorded > epoch]):
            self._file(later).unlink()
        tensors = {f"{layer}/norms": norms for layer, norms in point.norms.items()}
        tensors |= {f"{layer}/support": torch.from_numpy(np.packbits(mask.numpy())) for layer, mask in point.masks.items()}
        shapes = json.dumps({layer: list(mask.shape) for layer, mask in point.masks.items()})
        about = {"format": FORMAT, "version": str(VERSION), "epoch": str(epoch), "shapes": shapes}
        tensor_file.write(self._file(epoch), tensors, about)
        return point

    @property
    def epochs(self) -> tuple[int, ...]:
        """The recorded epochs, in order."""
        return _epochs(self.folder)

    def point(self, epoch: int) -> PathPoint:
        """What was recorded after `epoch`.

        Raises ValueError if nothing was; DamagedFile if its file is damaged.
        """
        epoch = integer("epoch", epoch, least=0)
        if epoch not in self.epochs:
            raise ValueError(f"epoch: expected a recorded one of {self.folder}, {_ranges(self.epochs)}, got {epoch}")
        path = self._file(epoch)
        tensors, about = tensor_file.read(path, "point of a solution path", FORMAT, VERSION)
        try:
            masks, norms = {}, {}
            for layer, shape in json.loads(about["shapes"]).items():
                bits = np.unpackbits(tensors[f"{layer}/support"].numpy(), count=int(np.prod(shape)))
                masks[layer] = torch.from_numpy(bits).reshape(shape).bool()
                norms[layer] = tensors[f"{layer}/norms"].reshape(shape[0])
        except (KeyError, TypeError, ValueError, RuntimeError, AttributeError) as error:
            raise DamagedFile(path, f"damaged: {error}") from error
        return PathPoint(masks, norms)

    def densities(self) -> dict[int, float]:
        """Epoch -> fraction of the weights in the support, of all recorded layers together."""
        return {epoch: point.density for epoch, point in self.points()}

    def norms(self, layer: str) -> Tensor:
        """||W_o|| of the filters (or units) of a layer along the path: (epochs, O), float32."""
        return torch.stack([_of(layer, point.norms) for _, point in self.points()])

    def in_support(self, layer: str) -> Tensor:
        """Which filters have a weight in the support, along the path: (epochs, O), bool."""
        return torch.stack([_of(layer, point.masks).flatten(1).any(dim=1) for _, point in self.points()])

    def entry_epochs(self, layer: str) -> Tensor:
        """The first recorded epoch at which a filter has a weight in the support: (O,), int64; -1: never."""
        inside = self.in_support(layer)
        first = torch.tensor(self.epochs)[inside.int().argmax(dim=0)]
        return torch.where(inside.any(dim=0), first, -1)

    def masks(self, *, epoch: int | None = None, density: float | None = None, exact: bool = False) -> Masks:
        """The masks of a point of the path.

        Args:
            epoch: a recorded one: its support.
            density: in its place, a fraction of the weights of the recorded layers, in (0, 1]: the support of the last epoch
                that has at most so many, and some.
            exact: keep exactly round(density * weights): those that entered the support first; of those that entered at the
                epoch where they become too many, the ones of the filters with the largest ||W_o|| at the last epoch (so at most
                one filter with a Gamma by groups is cut).

        Raises:
            TypeError, ValueError: neither or both of `epoch` and `density`; no such epoch; no epoch with so few weights, or,
                `exact`, fewer ever entered. DamagedFile: a file is damaged.
        """
        if (epoch is None) == (density is None):
            raise TypeError(f"epoch, density: expected one of them, got epoch={epoch}, density={density}")
        if density is None:
            if exact:
                raise TypeError("exact: expected it with a density, got an epoch")
            return Masks(self.point(0 if epoch is None else epoch).masks)
        density = number("density", density, above=0, most=1)
        if exact:
            return self._first_entered(density)
        filled = {recorded: fraction for recorded, fraction in self.densities().items() if fraction > 0}
        sparse = [recorded for recorded, fraction in filled.items() if fraction <= density]
        if not sparse:
            least = f"{min(filled.values()):.4g} (or exact=True)" if filled else "none of which has a weight"
            raise ValueError(f"density: expected at least that of a recorded epoch, {least}, got {density:g}")
        return Masks(self.point(sparse[-1]).masks)

    def _first_entered(self, density: float) -> Masks:
        entered: dict[str, NDArray[np.int32]] = {}  # layer -> for each weight the first epoch
        for epoch, point in self.points():
            for layer, mask in point.masks.items():
                entry = entered.setdefault(layer, np.full(mask.numel(), _NEVER, np.int32))
                entry[(entry == _NEVER) & mask.flatten().numpy()] = epoch
        entry = np.concatenate(list(entered.values()))
        count = round(density * entry.size)
        epochs, entries = np.unique(entry[entry != _NEVER], return_counts=True)
        if count > entries.sum():
            raise ValueError(
                f"density: expected at most {entries.sum() / entry.size:.4g}, the weights that ever entered, got {density:g}"
            )
        enough = epochs[np.searchsorted(np.cumsum(entries), count)] if count else -1  # the epoch at which so many had entered
        kept = entry < enough
        ties = np.flatnonzero(entry == enough)
        norms = [np.repeat(point.norms[layer].numpy(), e.size // len(point.norms[layer])) for layer, e in entered.items()]
        largest = np.argsort(-np.concatenate(norms)[ties], kind="stable")  # weights of a filter stay together
        kept[ties[largest[: count - int(kept.sum())]]] = True
        parts = np.split(kept, np.cumsum([e.size for e in entered.values()])[:-1])
        return Masks({layer: part.reshape(point.masks[layer].shape) for layer, part in zip(entered, parts, strict=True)})

    def points(self) -> Iterator[tuple[int, PathPoint]]:
        """Every epoch and its point. Raises ValueError if there is none, DamagedFile if one is of other layers than the first."""
        shapes = None
        if not self.epochs:
            raise ValueError(f"{self.folder}: expected a recorded epoch, found none")
        for epoch in self.epochs:
            point = self.point(epoch)
            found = {layer: mask.shape for layer, mask in point.masks.items()}
            if found != (shapes := shapes or found):
                raise DamagedFile(self._file(epoch), f"of other layers than epoch {self.epochs[0]}: another network's")
            yield epoch, point

    def _file(self, epoch: int) -> Path:
        return self.folder / f"epoch-{epoch:06d}.safetensors"


def _epochs(folder: Path) -> tuple[int, ...]:
    return tuple(sorted(int(found[1]) for path in folder.iterdir() if (found := _NAME.fullmatch(path.name))))


def _of(layer: str, tensors: Mapping[str, Tensor]) -> Tensor:
    if layer not in tensors:
        raise ValueError(f"layer: expected one of {', '.join(tensors)}, got {layer!r}")
    return tensors[layer]


def _ranges(epochs: tuple[int, ...]) -> str:
    return f"of {len(epochs)} from {epochs[0]} to {epochs[-1]}" if epochs else "of which there is none"
