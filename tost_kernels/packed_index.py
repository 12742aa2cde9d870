"""The packed index: a mask as the one int32 tensor that kernels take, `Pattern.index`.

Its sections, after a header of 16 numbers:

    header   [version, O, I, kh, kw, nnz, block, forward blocks, transposed blocks, five section offsets, length, identity];
             identity: a number no other pattern of the process has, by which kernels may keep what they derive; 0: none
    ptr      O * ceil(I / block) + 1     kept weights of output channel o whose input channel lies in block b are the
                                         positions ptr[o * blocks + b] up to ptr[o * blocks + b + 1] of `values`
    col      nnz                         (i * kh + dy) * kw + dx of each kept weight
    t_ptr    I * ceil(O / block) + 1     the same for the transposed weight: rows are input channels, blocks are of output
    t_col    nnz                         channels; (o * kh + dy) * kw + dx, sorted by (i, o, dy, dx)
    t_perm   nnz                         the position in `values` of each transposed entry

Input channels count within their group: groups belong to the convolution, not to the mask. The weight gradient runs on the
forward view. Since input channels ascend inside a row, any multiple of `block` channels is a contiguous run of a row too, so a
plan may choose its channel block without the pattern being compiled again.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt

VERSION = 1
HEADER = 16
BLOCK = 8

_Function = TypeVar("_Function", bound=Callable[..., Any])


def packed_length(shape: Sequence[int], nnz: int) -> int:
    """How many numbers the packed index of a weight of `shape`, (O, I) or (O, I / groups, kh, kw), has."""
    outputs, inputs = shape[:2]
    return HEADER + outputs * -(-inputs // BLOCK) + 1 + inputs * -(-outputs // BLOCK) + 1 + 3 * nnz


def compile_reference(mask: npt.NDArray[np.bool_], block: int) -> npt.NDArray[np.int32]:
    """The packed index of `mask` (O, I, kh, kw), in numpy: the specification of the compiled one, and its stand-in."""
    outputs, inputs, kh, kw = mask.shape
    columns = max(outputs, inputs) * kh * kw
    if columns > np.iinfo(np.int32).max:
        raise ValueError(f"mask: expected max(O, I) * kh * kw below 2**31, got {columns} for its index's columns")

    def view(m: npt.NDArray[np.bool_]) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
        rows, channels = m.shape[:2]
        blocks = -(-channels // block)
        row, channel, dy, dx = np.nonzero(m)
        run_lengths = np.bincount(row * blocks + channel // block, minlength=rows * blocks)
        ptr = np.concatenate([[0], np.cumsum(run_lengths)])
        return ptr, (channel * kh + dy) * kw + dx

    ptr, col = view(mask)
    t_ptr, t_col = view(mask.transpose(1, 0, 2, 3))
    position = np.cumsum(mask.ravel()).reshape(mask.shape) - 1
    t_mask = mask.transpose(1, 0, 2, 3)
    t_perm = position.transpose(1, 0, 2, 3)[t_mask]
    sections = [ptr, col, t_ptr, t_col, t_perm]
    offsets = HEADER + np.concatenate([[0], np.cumsum([len(s) for s in sections])])
    if offsets[-1] > np.iinfo(np.int32).max:
        raise ValueError(f"mask: its index would have {offsets[-1]} entries, expected fewer than 2**31")
    blocks = [-(-inputs // block), -(-outputs // block)]
    header = [VERSION, outputs, inputs, kh, kw, len(col), block, *blocks, *offsets, 0]
    return np.concatenate([np.asarray(header), *sections]).astype(np.int32)


def compiled(name: str, stand_in: _Function) -> _Function:
    """The function of the compiled module with this name, or `stand_in` where the package was built without a compiler."""
    try:
        from tost_kernels import _pattern  # type: ignore[attr-defined,unused-ignore]
    except ImportError:
        return stand_in
    return getattr(_pattern, name)  # type: ignore[no-any-return,unused-ignore]


compile_mask = compiled("compile_mask", compile_reference)
