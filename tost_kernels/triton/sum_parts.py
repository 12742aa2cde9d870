"""The second half of a deterministic sum: partial sums, added up in their order.

A sum over images and positions is cut into `split` parts that different programs compute, each of which writes what it has to
a place of its own: no atomics, so the bits do not depend on which program comes first. One program here adds up the parts of
BLOCK results: it reads split * 4 bytes a result and writes one.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from tost_kernels.triton.specimen import Specimen

BLOCK = 256


@triton.jit(do_not_specialize=["at_place", "nnz"])  # else they would compile it anew for one mask in sixteen
def _sum(parts, result, index, at_place, nnz, size, split, GATHER: tl.constexpr, WIDE: tl.constexpr, BLOCK: tl.constexpr):
    j = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    inside = j < nnz
    place = tl.load(index + at_place + j, inside, 0) if GATHER else j
    if WIDE:
        place = place.to(tl.int64)
    total = tl.zeros([BLOCK], tl.float32)
    for part in range(split):
        start = tl.cast(part, tl.int64) * size if WIDE else part * size
        total += tl.load(parts + start + place, inside, 0.0)
    tl.store(result + j, total.to(result.dtype.element_ty), inside)


def sum_parts(parts: Tensor, nnz: int, dtype: torch.dtype, index: Tensor | None = None, at_place: int = 0) -> Tensor:
    """The sum (nnz,) over the rows of `parts` (split, size), float32, rounded once to `dtype`.

    index: int32; result j is then the sum of column index[at_place + j]. Without one it is that of column j.
    """
    result = torch.empty(nnz, dtype=dtype, device=parts.device)
    split, size = parts.shape
    with torch.cuda.device_of(parts):
        _sum[(triton.cdiv(nnz, BLOCK),)](
            parts,
            result,
            parts if index is None else index,
            at_place,
            nnz,
            size,
            split,
            GATHER=index is not None,
            WIDE=parts.numel() >= 2**31,
            BLOCK=BLOCK,
        )
    return result


def specimens() -> list[Specimen]:
    """What `make gpu-check` compiles."""
    signature = {"parts": "*fp32", "result": "*bf16", "index": "*i32"}
    signature |= dict.fromkeys(["at_place", "nnz", "size", "split"], "i32")
    constants = {"GATHER": True, "WIDE": False, "BLOCK": BLOCK}
    return [
        Specimen(
            name="sum_parts.bf16",
            kernel=_sum,
            signature=signature | dict.fromkeys(constants, "constexpr"),
            constexprs=constants,
            num_warps=4,
            num_stages=1,
            attrs={"parts": 16, "result": 16, "index": 16},
        )
    ]
