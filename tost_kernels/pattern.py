"""Pattern: everything that the mask alone decides, compiled once for a mask: its packed index (tost_kernels/packed_index.py), and
on demand its tiles (tost_kernels/tiles.py) and its gathered index (tost_kernels/gather.py).
"""

from __future__ import annotations

import hashlib
import itertools
import secrets
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from tost_kernels.compact import Compact, compact, live_parts
from tost_kernels.gather import check_gathering, gather
from tost_kernels.packed_index import BLOCK, HEADER, compile_mask
from tost_kernels.row_groups import Index, row_orders
from tost_kernels.tiles import check_tiling, tile

# From a random start: an index that came from another process must not pass for one of this process.
_identities = itertools.count(secrets.randbelow(2**30) + 1)


class Pattern:
    """The kept positions of a weight, compiled for the kernels. Immutable: copies, deep ones too, are the object itself.

    mask: bool tensor, or one holding only 0 and 1; shape (O, I) for a linear layer, (O, I / groups, kh, kw) for a
    convolution; any device but meta. Raises TypeError or ValueError otherwise.
    """

    def __init__(self, mask: Tensor) -> None:
        mask = _checked(mask)
        self._setup(tuple(mask.shape), mask.device, mask.cpu().numpy())

    def _setup(self, shape: tuple[int, ...], device: torch.device, mask: npt.NDArray[np.bool_]) -> None:
        packed = compile_mask(np.ascontiguousarray(mask).reshape(shape if len(shape) == 4 else (*shape, 1, 1)), BLOCK)
        packed[HEADER - 1] = next(_identities) % 2**31
        self._shape = shape
        self._fingerprint = hashlib.sha256(str(shape).encode() + np.packbits(mask).tobytes()).hexdigest()
        self._index = torch.from_numpy(packed).to(device)
        self._positions = torch.from_numpy(np.flatnonzero(mask)).to(device)
        self._grouped: dict[tuple[Any, ...], Tensor] = {}  # ("tiled" or "gathered", *its arguments) -> index
        self._orders: dict[tuple[int, int, int], tuple[Index, Index]] = {}  # rows, groups, block -> of the rows in both views
        # Plain numbers, for torch.compile to see through.
        self._nnz = len(self._positions)
        self._density = self._nnz / mask.size
        filters, channels = live_parts(mask)
        self._live = len(filters), len(channels)
        found = compact(mask)
        self._compact = found and found.to(device)

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the dense weight: (O, I) or (O, I / groups, kh, kw)."""
        return self._shape

    @property
    def nnz(self) -> int:
        """How many weights are kept."""
        return self._nnz

    @property
    def density(self) -> float:
        """The fraction of weights kept."""
        return self._density

    @property
    def device(self) -> torch.device:
        """Where the index tensors are."""
        return self._index.device

    @property
    def index(self) -> Tensor:
        """The packed int32 index that the kernels take. Do not write to it."""
        return self._index

    def tiled(self, rows: int, groups: int = 1, block: int = 1) -> Tensor:
        """The packed index followed by its tiles (tost_kernels/tiles.py); made once, then kept. Do not write to it.

        rows: of a group, a power of two from 16. groups: of the convolution. block: 1, or the channels of a dense tile, a power
        of two from 16. Raises TypeError or ValueError otherwise, or where 32 bits are too few.
        """
        return self._of_groups("tiled", rows, groups, block)

    def gathered(
        self,
        rows: int,
        chunk: int,
        depth: int,
        groups: int = 1,
        stride: tuple[int, int] = (1, 1),
        dilation: tuple[int, int] = (1, 1),
    ) -> Tensor:
        """The packed index followed by its gathered one (tost_kernels/gather.py); made once, then kept. Do not write to it.

        rows: of a group. chunk: source channels of a segment. depth: of which a segment's columns are a multiple. groups, stride,
        dilation: of the convolution. Raises TypeError or ValueError where they cannot be, or where 32 bits are too few.
        """
        return self._of_groups("gathered", rows, chunk, depth, groups, tuple(stride), tuple(dilation))

    def _of_groups(self, kind: str, *arguments: Any) -> Tensor:
        if torch.compiler.is_compiling():
            # What is constant is not guarded on: the arguments that it does not need say whose constant it is.
            return self._constant(self._fingerprint, str(self.device), kind, *arguments)  # type: ignore[no-any-return]
        return self._known(kind, *arguments)

    @torch.compiler.assume_constant_result  # type: ignore[untyped-decorator]
    def _constant(self, _fingerprint: str, _device: str, *key: Any) -> Tensor:
        return self._known(*key)

    def _known(self, *key: Any) -> Tensor:
        if key not in self._grouped:
            # In a thread of its own: the tensor outlives the inference mode, transform or fake mode that its first user is in.
            with ThreadPoolExecutor(1) as thread:
                packed = thread.submit(lambda: self._group(*key))
                self._grouped[key] = thread.submit(lambda: torch.from_numpy(packed.result()).to(self.device)).result()
        return self._grouped[key]

    def _group(self, kind: str, *arguments: Any) -> npt.NDArray[np.int32]:
        rows, groups, block = arguments if kind == "tiled" else (arguments[0], arguments[3], 1)
        check: Callable[..., None] = check_tiling if kind == "tiled" else check_gathering
        make: Callable[..., Index] = tile if kind == "tiled" else gather
        check(self._shape[0], *arguments)
        index = self._index.cpu().numpy()
        if (rows, groups, block) not in self._orders:
            self._orders[rows, groups, block] = row_orders(index, rows, groups, block)
        return make(index, *arguments, *self._orders[rows, groups, block])

    def forget_tiles(self) -> None:
        """Free what `tiled` and `gathered` keep here; who asks again pays again. Each takes several times the memory of the
        values.
        """
        self._grouped.clear()
        self._orders.clear()

    @property
    def positions(self) -> Tensor:
        """Flat positions of the kept weights in the dense weight, ascending: int64 (nnz,). Do not write to it."""
        return self._positions

    @property
    def live(self) -> tuple[int, int]:
        """How many output channels, and how many input channels (of a group), keep a weight."""
        return self._live

    @property
    def compact(self) -> Compact | None:
        """The weight without the dead ones; None where too few are dead to be worth leaving out. Do not write to it."""
        return self._compact

    @property
    def fingerprint(self) -> str:
        """A hash of shape and mask: equal patterns, and only they, have equal fingerprints, in any process."""
        return self._fingerprint

    def mask(self) -> Tensor:
        """The mask, a new bool tensor of `shape`."""
        return self.scatter(torch.ones(self._nnz, dtype=torch.bool, device=self.device))

    def scatter(self, values: Tensor) -> Tensor:
        """The dense weight: `values` (nnz,) at the kept positions, 0 elsewhere. Differentiable to any order."""
        if values.shape != self._positions.shape:
            raise ValueError(f"values: expected shape ({self.nnz},), one a kept weight, got {tuple(values.shape)}")
        return values.new_zeros(self._shape).flatten().index_copy(0, self._positions, values).view(self._shape)

    def gather(self, dense: Tensor) -> Tensor:
        """The kept entries (nnz,) of a dense weight of `shape`. Differentiable to any order."""
        if tuple(dense.shape) != self._shape:
            raise ValueError(f"dense: expected shape {self._shape}, got {tuple(dense.shape)}")
        return dense.reshape(-1).index_select(0, self._positions)

    def to(self, device: torch.device | str | int) -> Pattern:
        """The same pattern with its index tensors on `device`; itself if they are there already."""
        device = torch.device(device)
        if device.type == "meta":
            raise ValueError("device: a pattern cannot move to 'meta': its index would be lost")
        index = self._index.to(device)
        if index.device == self._index.device:
            return self
        moved = object.__new__(Pattern)
        moved.__dict__.update(self.__dict__)
        moved._index, moved._positions = index, self._positions.to(device)
        moved._grouped = {key: grouped.to(device) for key, grouped in self._grouped.items()}
        moved._compact = self._compact and self._compact.to(device)
        return moved

    def __copy__(self) -> Pattern:
        return self

    def __deepcopy__(self, memo: dict[int, Any]) -> Pattern:
        return self

    def __reduce__(self) -> tuple[Any, ...]:
        return _from_bits, (np.packbits(self.mask().cpu().numpy()).tobytes(), self._shape)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Pattern) and self._fingerprint == other._fingerprint

    def __hash__(self) -> int:
        return hash(self._fingerprint)

    def __repr__(self) -> str:
        return f"Pattern(shape={self._shape}, nnz={self.nnz}, density={self.density:.4g}, device='{self.device}')"


# (shape, device) -> the pattern that keeps everything. Dense layers share them, as one costs 20 bytes a weight.
_FULL: dict[tuple[tuple[int, ...], str], Pattern] = {}


def full_pattern(shape: Sequence[int], device: torch.device | str = "cpu") -> Pattern:
    """The pattern of a weight of which everything is kept; compiled once for a shape, and shared."""
    pattern = known_full_pattern(shape, device)
    if pattern is None:
        pattern = _FULL[tuple(shape), str(device)] = Pattern(torch.ones(tuple(shape), dtype=torch.bool)).to(device)
    return pattern


def known_full_pattern(shape: Sequence[int], device: torch.device | str) -> Pattern | None:
    """`full_pattern` if it was compiled before: torch.compile can look at this one, but not make one."""
    return _FULL.get((tuple(shape), str(device)))


def _from_bits(bits: bytes, shape: Sequence[int]) -> Pattern:
    """Unpickle: always on the CPU; `to` moves it, as a module does when it is loaded with a map_location."""
    size = int(np.prod(shape))
    flat = np.unpackbits(np.frombuffer(bits, np.uint8), count=size).astype(bool)
    return Pattern(torch.from_numpy(flat).view(tuple(shape)))


def _checked(mask: Tensor) -> Tensor:
    if not isinstance(mask, Tensor):
        raise TypeError(f"mask: expected a torch.Tensor, got {type(mask).__name__}")
    if mask.dim() not in (2, 4):
        raise ValueError(f"mask: expected shape (O, I) or (O, I / groups, kh, kw), got {tuple(mask.shape)}")
    if mask.numel() == 0:
        raise ValueError(f"mask: expected no dimension of size 0, got {tuple(mask.shape)}")
    if mask.device.type == "meta":
        raise ValueError("mask: expected a tensor with data, got one on 'meta'")
    if mask.dtype != torch.bool:
        wrong = mask[(mask != 0) & (mask != 1)]
        if wrong.numel():
            raise ValueError(f"mask: expected only 0 and 1, got {wrong.flatten()[0].item()} ({wrong.numel()} such entries)")
    return mask.detach().to(torch.bool)
