"""`Masks`: the kept weights of a network, layer by layer; validated once, immutable afterwards."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple, TypeVar

import numpy as np
import torch
from torch import Tensor, nn

from tost.files import DamagedFile
from tost.masks import mask_file
from tost.masks.of_model import apply_masks, read_masks

ModelT = TypeVar("ModelT", bound=nn.Module)


class LayerCount(NamedTuple):
    """How many weights of one layer are kept."""

    name: str
    shape: tuple[int, ...]
    kept: int
    total: int

    @property
    def density(self) -> float:
        """Fraction kept, in [0, 1]."""
        return self.kept / self.total


class Masks(Mapping[str, Tensor]):
    """An immutable mapping from module name to mask: a bool tensor on the CPU, True where the weight is kept.

    Args:
        masks: maps module names (as in `model.named_modules()`) to tensors or numpy arrays of the weight's shape, `(O, I)` or
            `(O, I/groups, kh, kw)`: bool, or numbers that are all exactly 0 or 1. The values are copied.

    Raises:
        TypeError: `masks` is no mapping, a name is no string, or a mask is no tensor or array of numbers.
        ValueError: there is no mask, a name is empty, a value is neither 0 nor 1, or a shape is not that of a weight.

    `masks[name]` hands out a COPY: writing into it changes nothing here, so that one `Masks` can be shared by several
    networks, hashed, and compared by `fingerprint` between processes. Take a mask once, not once per step.
    `copy` and `deepcopy` return the object itself. Two `Masks` are equal if they hold the same names and masks, in any order.
    """

    _tensors: dict[str, Tensor]
    _counts: tuple[LayerCount, ...]
    _fingerprint: str | None

    def __init__(self, masks: Mapping[str, Tensor | np.ndarray[Any, Any]]) -> None:
        if not isinstance(masks, Mapping):
            raise TypeError(f"masks: expected a mapping of module name to tensor, got {type(masks).__name__}")
        if not masks:
            raise ValueError("masks: expected at least one layer, got an empty mapping")
        tensors = {_checked_name(name): _checked_mask(name, mask) for name, mask in masks.items()}
        counts = (LayerCount(name, tuple(t.shape), int(t.sum()), t.numel()) for name, t in tensors.items())
        object.__setattr__(self, "_tensors", tensors)
        object.__setattr__(self, "_counts", tuple(counts))
        object.__setattr__(self, "_fingerprint", None)

    # ---- the mapping -------------------------------------------------------------------------------------------------

    def __getitem__(self, name: str) -> Tensor:
        try:
            return self._tensors[name].clone()
        except KeyError:
            raise KeyError(f"no mask for {name!r}; there are masks for {', '.join(self._tensors)}") from None

    def __contains__(self, name: object) -> bool:
        return name in self._tensors

    def __iter__(self) -> Iterator[str]:
        return iter(self._tensors)

    def __len__(self) -> int:
        return len(self._tensors)

    # ---- what it says ------------------------------------------------------------------------------------------------

    @property
    def kept(self) -> int:
        """Number of weights kept, in all layers."""
        return sum(layer.kept for layer in self._counts)

    @property
    def total(self) -> int:
        """Number of weights, kept or not, in all layers."""
        return sum(layer.total for layer in self._counts)

    @property
    def density(self) -> float:
        """`kept / total`, in [0, 1]."""
        return self.kept / self.total

    def per_layer(self) -> tuple[LayerCount, ...]:
        """Name, shape, kept and total of each layer, in the order of the network."""
        return self._counts

    def empty_layers(self) -> tuple[str, ...]:
        """Names of the layers that keep no weight at all: nothing but their bias gets through."""
        return tuple(layer.name for layer in self._counts if layer.kept == 0)

    @property
    def fingerprint(self) -> str:
        """SHA-256 (64 hex digits) over names, shapes and bits: equal for equal masks, in any process, on any machine."""
        fingerprint = self._fingerprint
        if fingerprint is None:
            fingerprint = _fingerprint(self._tensors)
            object.__setattr__(self, "_fingerprint", fingerprint)
        return fingerprint

    # ---- files and models --------------------------------------------------------------------------------------------

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write a safetensors file: one BOOL tensor a layer under the module's name, readable by any safetensors reader.

        The file appears whole or not at all (written beside `path`, then moved onto it), so a killed process leaves the
        old file. Raises OSError where the file system refuses.
        """
        mask_file.save(path, self._tensors, self.fingerprint)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Masks:
        """Read what `save` wrote; bit-exact, the layers in the same order.

        Raises:
            FileNotFoundError: there is no such file.
            DamagedFile: (a ValueError) the file is damaged, is no safetensors file, or holds something else than masks. Masks
                of other programs: `Masks(safetensors.torch.load_file(path))`.
        """
        tensors, fingerprint = mask_file.load(path)
        try:
            masks = cls(tensors)
        except ValueError as error:
            raise DamagedFile(path, f"damaged: {error}") from error
        if masks.fingerprint != fingerprint:
            raise DamagedFile(path, "damaged: its masks do not match the fingerprint saved with them")
        return masks

    @classmethod
    def from_model(
        cls, model: nn.Module, include: str | Sequence[str] | None = None, exclude: str | Sequence[str] | None = None
    ) -> Masks:
        """The masks a network already carries, for each of its Conv2d, Linear, SparseConv2d and SparseLinear layers.

        Per layer, the first that is there: the mask of a sparse layer; the `weight_mask` of torch.nn.utils.prune; the
        `mask` of a parametrization of the weight; else the nonzeros of the dense weight.

        Args:
            model: the network; it is only read.
            include, exclude: fnmatch patterns on module names, as in `tost.prune`.
        """
        return cls(read_masks(model, include, exclude))

    def apply_to(self, model: ModelT, inplace: bool = False) -> ModelT:
        """A masked dense network: torch.nn.utils.prune multiplies each named weight by its mask at every forward.

        Args:
            model: has a Conv2d or Linear with a plain `weight` of the mask's shape under each name.
            inplace: change `model` itself instead of a deep copy.

        Returns:
            The network, whose masked layers now hold the parameter `weight_orig` and the buffer `weight_mask`. copy.deepcopy
            refuses such a network once it has run with gradients; `tost_kernels.nn.surgery.duplicate` copies it.

        Raises:
            TypeError, ValueError: a name, layer or shape does not fit. The model is then unchanged.
        """
        return apply_masks(model, self._tensors, inplace)

    # ---- value semantics ---------------------------------------------------------------------------------------------

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Masks):
            return NotImplemented
        return self._tensors.keys() == other._tensors.keys() and all(
            torch.equal(mask, other._tensors[name]) for name, mask in self._tensors.items()
        )

    def __hash__(self) -> int:
        return hash(self.fingerprint)

    def __copy__(self) -> Masks:
        return self

    def __deepcopy__(self, memo: dict[int, object]) -> Masks:
        return self

    def __reduce__(self) -> tuple[type[Masks], tuple[dict[str, Tensor]]]:
        return type(self), (self._tensors,)

    def __setattr__(self, name: str, value: object) -> None:
        raise AttributeError(f"Masks are immutable: cannot set {name!r}")

    def __delattr__(self, name: str) -> None:
        raise AttributeError(f"Masks are immutable: cannot delete {name!r}")

    def __repr__(self) -> str:
        layers = f"{len(self)} layer{'s' if len(self) != 1 else ''}"
        return f"Masks({layers}, {self.kept:,} of {self.total:,} weights kept, density {self.density:.4g})"


def _checked_name(name: object) -> str:
    if not isinstance(name, str):
        raise TypeError(f"masks: expected module names as strings, got {name!r} of type {type(name).__name__}")
    if not name:
        raise ValueError("masks: expected non-empty module names, got ''; put a lone layer into an nn.Sequential")
    return name


def _checked_mask(name: str, mask: object) -> Tensor:
    """A private, contiguous bool copy of `mask` on the CPU."""
    what = f"masks[{name!r}]"
    if isinstance(mask, np.ndarray):
        if mask.dtype != np.bool_ and not np.issubdtype(mask.dtype, np.number):
            raise TypeError(f"{what}: expected bool or numbers, got an array of dtype {mask.dtype}")
        # astype in the one case torch cannot take: another byte order
        mask = torch.from_numpy(np.array(mask, dtype=mask.dtype.newbyteorder("=")))
    if not isinstance(mask, Tensor):
        raise TypeError(f"{what}: expected a tensor or a numpy array, got {type(mask).__name__}")
    if mask.layout is not torch.strided or mask.is_quantized or mask.is_meta:
        raise TypeError(f"{what}: expected a dense tensor with values, got layout {mask.layout} on {mask.device}")
    if mask.dim() not in (2, 4) or mask.numel() == 0:
        raise ValueError(
            f"{what}: expected the shape of a Linear weight (O, I) or a Conv2d weight (O, I/groups, kh, kw), "
            f"got {tuple(mask.shape)}"
        )
    mask = mask.detach().cpu()
    if mask.dtype is torch.bool:
        return mask.clone(memory_format=torch.contiguous_format)
    stray = mask[(mask != 0) & (mask != 1)]  # NaN is different from both
    if stray.numel():
        raise ValueError(f"{what}: expected only 0 and 1, got {stray.numel()} other value(s), such as {stray[0].item()}")
    return (mask != 0).contiguous()


def _fingerprint(tensors: Mapping[str, Tensor]) -> str:
    digest = hashlib.sha256(b"tost.masks/1")
    for name in sorted(tensors):  # equality ignores the order, so the fingerprint must
        mask = tensors[name]
        encoded = name.encode()
        # lengths first: no two different sets of masks give the same bytes
        digest.update(np.array([len(encoded), mask.dim(), *mask.shape], dtype="<i8").tobytes())
        digest.update(encoded)
        digest.update(np.packbits(mask.numpy(), axis=None).tobytes())
    return digest.hexdigest()
