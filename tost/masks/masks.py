"""`Masks`: the kept weights of a network, layer by layer; validated once, immutable afterwards."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple, TypeVar

import numpy as np
import torch
from torch import Tensor, nn

from tost.checks import integer
from tost.files import DamagedFile
from tost.masks import mask_file, npz_file
from tost.masks.effective import InputShape, Paths
from tost.masks.of_model import apply_masks, read_masks
from tost.masks.of_state import masks_in_state, named_by_module
from tost.masks.repair import keep_alive
from tost.seeds import generator

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

    # ---- files -------------------------------------------------------------------------------------------------------

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write a file that any reader of its format opens, by the suffix of `path`.

        .npz: numpy's archive, one bool array a layer under the module's name. .safetensors: one BOOL tensor a layer. Both hold
        the fingerprint, the archive as its comment. Any other suffix is a ValueError.

        The file appears whole or not at all (written beside `path`, then moved onto it), so a killed process leaves the
        old file. Raises OSError where the file system refuses.
        """
        check_suffix(path)
        _format(path).save(path, self._tensors, self.fingerprint)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Masks:
        """Read what `save` wrote, bit-exact, the layers in the same order; or the masks of another program.

        Those are, by the suffix of `path`, an .npz archive of arrays (never unpickled) or a safetensors file. In either each
        entry is a mask, bool or numbers that are all exactly 0 or 1, under the name "layer" or "layer.weight"; or there are
        entries "layer.weight_mask" (torch.nn.utils.prune), and they alone are the masks. One-dimensional masks that keep
        everything, as those of biases, are left out.

        Raises:
            FileNotFoundError: there is no such file.
            DamagedFile: (a ValueError) the file is damaged, of no such format, or holds something else than masks.
        """
        tensors, fingerprint = _format(path).load(path)
        try:
            masks = cls(tensors if fingerprint is not None else named_by_module(tensors))
        except (TypeError, ValueError) as error:
            what, remedy = ("damaged", "") if fingerprint is not None else ("no masks", f"; {mask_file.OTHERWISE}")
            raise DamagedFile(path, f"{what}: {error}{remedy}") from error
        if fingerprint is not None and masks.fingerprint != fingerprint:
            raise DamagedFile(path, "damaged: its masks do not match the fingerprint saved with them")
        return masks

    # ---- models ------------------------------------------------------------------------------------------------------

    @classmethod
    def from_model(
        cls, model: nn.Module, include: str | Sequence[str] | None = None, exclude: str | Sequence[str] | None = None
    ) -> Masks:
        """The masks a network already carries, for each of its Conv2d, Linear, SparseConv2d and SparseLinear layers.

        Per layer, the first that is there: the mask of a sparse layer; the `weight_mask` of torch.nn.utils.prune; the
        `mask` of a parametrization of the weight; else the nonzeros of the dense weight. Masks of biases are not read.

        Args:
            model: the network; it is only read.
            include, exclude: fnmatch patterns on module names, as in `tost.prune`.

        Raises:
            TypeError: `model` is no module.
            ValueError: no layer is left; or torch.nn.utils.prune has pruned another kind of layer (a Conv1d), whose mask would
                be lost.
        """
        return cls(read_masks(model, include, exclude))

    @classmethod
    def from_state_dict(
        cls,
        state: Mapping[str, Tensor],
        include: str | Sequence[str] | None = None,
        exclude: str | Sequence[str] | None = None,
    ) -> Masks:
        """The masks in a state_dict, of a dense, pruned, parametrized or sparse network.

        Per layer, the first that is there: `weight_mask` (torch.nn.utils.prune, and our sparse layers); the `mask` of a
        parametrization of the weight; else the nonzeros of `weight`, if it has two or four dimensions. A state_dict does not
        say what its layers are: leave out embeddings and transposed convolutions by `exclude`.

        Args:
            state: names as `model.state_dict()` gives them -> tensors.
            include, exclude: fnmatch patterns on module names, as in `tost.prune`.
        """
        return cls(masks_in_state(state, include, exclude))

    def apply_to(self, model: ModelT, inplace: bool = False, form: str = "prune") -> ModelT:
        """A dense network with these masks on its layers.

        Args:
            model: has a Conv2d or Linear with a plain `weight` of the mask's shape under each name.
            inplace: change `model` itself instead of a deep copy.
            form: "prune": torch.nn.utils.prune; the layers then hold the parameter `weight_orig` and the buffer `weight_mask`,
                and multiply them at every forward. "parametrization": the same through torch.nn.utils.parametrize. "zeros":
                plain weights, those that are not kept set to 0; nothing keeps them there when they are trained.

        Returns:
            The network. copy.deepcopy refuses one of the form "prune" once it has run with gradients;
            `tost_kernels.nn.surgery.duplicate` copies it. `from_model` reads the masks of any form.

        Raises:
            TypeError, ValueError: a name, layer or shape does not fit. The model is then unchanged.
        """
        return apply_masks(model, self._tensors, inplace, form)

    # ---- other masks -------------------------------------------------------------------------------------------------

    def shuffled(self, seed: int) -> Masks:
        """As many weights in each layer, at random places: the sanity check of a method of pruning.

        Where training comes out the same with them, what the method found is how many weights each layer needs, not which:
        so it is for SNIP, GraSP and SynFlow (https://arxiv.org/abs/2009.08576, https://arxiv.org/abs/2009.11094).

        Args:
            seed: decides the places, those of each layer independently of what other layers there are.
        """
        seed = integer("seed", seed, least=0)
        shuffled = {}
        for name, mask in self._tensors.items():
            order = torch.randperm(mask.numel(), generator=generator("shuffled mask", seed, name))
            shuffled[name] = mask.flatten()[order].reshape(mask.shape)
        return Masks(shuffled)

    def effective(self, model: nn.Module, input_shape: InputShape | None = None, inputs: Any = None) -> Masks:
        """Those of the kept weights that lie on a path from an input to an output of `model`.

        The others, behind a unit that nothing reaches or before one that nobody reads, compute nothing: at high sparsity the
        effective density, `masks.effective(...).density`, may be far below the nominal one (https://arxiv.org/abs/2107.02306).
        Weights of a convolution that only ever meet padding are on no path, so the size of the input has a part in it. Exact, for
        networks of any depth.

        Args:
            model: the network, dense, masked or sparse; its weights do not matter, and it is left as it is. Layers without
                a mask count as dense.
            input_shape: of one sample, such as (3, 32, 32); a tuple or mapping of shapes for several inputs.
            inputs: a batch of examples in its place, for networks that read something else than floating-point numbers.

        Raises:
            TypeError: an argument has the wrong type.
            ValueError: a mask fits no layer; the model fails on such an input; what it does depends on values, or it holds
                an operation whose paths are not known.
        """
        return Masks(Paths(model, list(self._tensors), input_shape, inputs).through(self._tensors))

    def kept_alive(
        self,
        model: nn.Module,
        input_shape: InputShape | None = None,
        inputs: Any = None,
        scores: Mapping[str, Tensor] | None = None,
    ) -> Masks:
        """As many weights, but in each layer at least one on a path from an input to an output of `model`.

        Layers that have none get the best weights that give them one, as few as possible; as many others go, the worst of
        those that no layer needs. The masks themselves where nothing is wrong. A layer that the model does not use is left
        as it is.

        Args:
            model, input_shape, inputs: as for `effective`; the model is dense.
            scores: layer name -> tensor of the weight's shape, larger is better; the larger |weight| among equals. Default:
                |weight| alone.

        Raises:
            TypeError, ValueError: as `effective`; or there are too few weights.
        """
        paths = Paths(model, list(self._tensors), input_shape, inputs)
        return Masks(keep_alive(paths, self._tensors, _ranks(model, self._tensors, scores)))

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


def as_masks(argument: str, masks: Mapping[str, Tensor]) -> Masks:
    """`masks` as `Masks`; what is wrong with them is said of the argument."""
    if isinstance(masks, Masks):
        return masks
    try:
        return Masks(masks)
    except TypeError as error:
        raise TypeError(f"{argument}: {error}") from error
    except ValueError as error:
        raise ValueError(f"{argument}: {error}") from error


# of pickles, and of formats that hold no names
_FOREIGN_SUFFIXES = {".pt", ".pth", ".bin", ".ckpt", ".pkl", ".pickle", ".npy", ".h5"}


def check_suffix(path: str | os.PathLike[str]) -> None:
    """Raises ValueError unless the name of a mask file promises a format that `Masks.save` writes."""
    suffix = Path(path).suffix.lower()
    if suffix not in (".safetensors", ".npz"):
        raise ValueError(f"{path}: expected a mask file, .safetensors or .npz, got {suffix or 'a name without suffix'}")


def _format(path: str | os.PathLike[str]) -> ModuleType:
    """What reads and writes the file of this name; safetensors unless the name says otherwise."""
    suffix = Path(path).suffix.lower()
    if suffix in _FOREIGN_SUFFIXES:
        raise ValueError(
            f"{path}: expected a mask file, .safetensors or .npz, got {suffix}, which is never read or written here; load it in "
            "a way you trust and use Masks(...) or Masks.from_state_dict(...)"
        )
    return npz_file if suffix == ".npz" else mask_file


def _ranks(model: nn.Module, masks: Mapping[str, Tensor], scores: Mapping[str, Tensor] | None) -> dict[str, tuple[Tensor, ...]]:
    """Layer -> what its weights are compared by: their scores, and then |weight|."""
    ranks: dict[str, tuple[Tensor, ...]] = {}
    for name, mask in masks.items():
        weight = model.get_submodule(name).weight
        assert isinstance(weight, Tensor)
        rank: tuple[Tensor, ...] = (weight.detach().abs().cpu().double(),)
        if scores is not None:
            score = scores.get(name)
            if not isinstance(score, Tensor) or score.shape != mask.shape:
                got = f"shape {tuple(score.shape)}" if isinstance(score, Tensor) else type(score).__name__
                raise ValueError(f"scores[{name!r}]: expected a tensor of shape {tuple(mask.shape)}, got {got}")
            if score.isnan().any():
                raise ValueError(f"scores[{name!r}]: expected numbers, got NaN")
            rank = (score.detach().cpu().double(), *rank)
        ranks[name] = rank
    return ranks


def _checked_name(name: object) -> str:
    if not isinstance(name, str):
        raise TypeError(f"masks: expected module names as strings, got {name!r} of type {type(name).__name__}")
    if not name:
        raise ValueError("masks: expected non-empty module names, got ''; put a lone layer into an nn.Sequential")
    return name


def _checked_mask(name: str, mask: object) -> Tensor:
    """A private, contiguous bool copy of `mask` on the CPU."""
    what = f"masks[{name!r}]"
    if isinstance(mask, np.ma.MaskedArray):
        raise TypeError(f"{what}: expected a plain array, got a masked one, of which some values do not count")
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
