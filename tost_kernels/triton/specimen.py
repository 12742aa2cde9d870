"""What `make gpu-check` compiles: a kernel with the types and constants of one real use."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Specimen:
    """One variant of a kernel: an op, a pass, a dtype, a tile.

    name: unique, e.g. "masked_conv2d.tiles.forward.bf16.64x128"; the key of its budget. kernel: the @triton.jit function.
    signature: argument -> "*fp32", "*bf16", "i32", "i64", "fp32", "constexpr", ... for every argument. constexprs: the value of
    each "constexpr". matrix: whether its machine code must hold tensor-core instructions. attrs: argument -> a number that
    divides it, as Triton finds out of real arguments: 16 for pointers and sizes that are aligned.
    """

    name: str
    kernel: Any
    signature: dict[str, str]
    constexprs: dict[str, Any]
    num_warps: int
    num_stages: int
    matrix: bool = False
    attrs: dict[str, int] = field(default_factory=dict)
