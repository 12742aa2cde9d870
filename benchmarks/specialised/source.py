"""CUDA code for one mask."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

CONSTANT_BYTES = 65536  # what all __constant__ variables of a compilation unit may take, by the CUDA programming guide


@dataclass(frozen=True)
class Part:
    """The code of some output rows: one .cu file, since the constant bank is that of a file.

    rows: first and one past the last. place: int32 tensor, which of the layer's packed values each weight of the code is.
    """

    rows: tuple[int, int]
    place: Tensor
    text: str


@dataclass(frozen=True)
class Shape:
    """What the code is made for besides the mask. images: of a lane, 1 or 2. tile: target pixels of a block, down and across."""

    side: int
    batch: int
    images: int = 2
    tile: tuple[int, int] = (2, 4)
    chunk: int = 8


def parts(mask: Tensor, shape: Shape, rows: int) -> list[Part]:
    """The code of a bool mask (O, C, k, k), `rows` output rows a part.

    Raises:
        ValueError: the mask or the batch is none that `conv.h` can do, or the weights of `rows` rows pass the constant bank.
    """
    if mask.dtype != torch.bool or mask.dim() != 4 or mask.shape[2] != mask.shape[3] or mask.shape[2] % 2 == 0:
        raise ValueError(f"mask: expected bool of shape (O, C, k, k), k odd, got {mask.dtype} of shape {tuple(mask.shape)}")
    if shape.batch % (32 * shape.images):
        raise ValueError(f"batch: expected a multiple of {32 * shape.images}, got {shape.batch}")
    number = torch.cumsum(mask.flatten(), 0).sub(1).view(mask.shape)  # of each kept weight among the packed values
    return [_part(mask[i : i + rows], number[i : i + rows], shape, i) for i in range(0, len(mask), rows)]


def _part(mask: Tensor, number: Tensor, shape: Shape, first: int) -> Part:
    kept = int(mask.sum())
    if not 0 < 4 * kept <= CONSTANT_BYTES:
        raise ValueError(f"rows: expected 1 to {CONSTANT_BYTES // 4} weights in rows {first} to {first + len(mask)}, got {kept}")
    order = mask.permute(1, 2, 3, 0)  # the code's: by channel, tap, row
    place = number.permute(1, 2, 3, 0)[order].int()
    outputs, channels, kernel, _ = mask.shape
    sizes = ", ".join(map(str, (channels, shape.side, shape.side, shape.batch, shape.images, kernel, *shape.tile, shape.chunk)))
    text = f"""// Made for one mask: {outputs} x {channels} x {kernel} x {kernel}, {kept} weights.
#include "conv.h"

namespace tost {{
namespace {{

using Here = Conv<{sizes}>;
CONSTANT float w[{kept}];

__global__ void __launch_bounds__(Here::kThreads, 1) rows(const float* source, float* target) {{
  SHARED_DYNAMIC(float, shared);
  Here here(source);
  float s[{outputs}][Here::kLane] = {{}};
  here.stage(shared, 0);
#pragma unroll 1
  for (int chunk = 0; chunk < Here::kChunks; ++chunk) {{
    const float* p = here.next(shared, chunk);
    switch (chunk) {{
{"".join(_chunks(order, shape))}    }}
  }}
  if (!here.inside()) return;
  float* to = target + here.target();
#pragma unroll
  for (int r = 0; r < {outputs}; ++r, to += Here::kRow) store(to, s[r]);
}}

}}  // namespace
}}  // namespace tost

extern "C" __attribute__((visibility("default"))) void set_weights(
    const float* values, const int* place, float* scratch, cudaStream_t stream) {{
  tost::set_weights(values, place, scratch, tost::w, stream);
}}

extern "C" __attribute__((visibility("default"))) void multiply(const float* source, float* target, cudaStream_t stream) {{
  tost::launch("specialised", tost::rows, tost::Here::grid(), stream, source, target);
}}
"""
    return Part((first, first + outputs), place, text)


def _chunks(order: Tensor, shape: Shape) -> Iterator[str]:
    """A case for each chunk of the channels. order: bool, (C, k, k, rows)."""
    channels, kernel = order.shape[:2]
    across = shape.tile[1] + kernel - 1
    patch = (shape.tile[0] + kernel - 1) * across
    weight = 0
    for chunk, begin in enumerate(range(0, channels, shape.chunk)):
        yield f"      case {chunk}: {{\n"
        for c, dy, dx in order[begin : begin + shape.chunk].any(3).nonzero().tolist():
            rows = order[begin + c, dy, dx].nonzero().flatten().tolist()
            terms = [f"add(s[{row}], v, w[{weight + i}]);" for i, row in enumerate(rows)]
            weight += len(rows)
            at = (c * patch + dy * across + dx) * 32 * shape.images
            yield f"        {{ const auto v = load<{shape.images}>(p + {at}); {' '.join(terms)} }}\n"
        yield "        break;\n      }\n"
