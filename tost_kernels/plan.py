"""Plan: which backend, and which of its variants, runs one op on one input shape.

A Pattern is what the mask alone decides; a Plan is the choice on top of it. It reaches an op as a string, so that compiling,
faking and vmapping stay simple, and it is fixed in the forward pass: the backward pass repeats it, in whatever thread.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from tost_kernels import backend
from tost_kernels.layout import is_batch_last
from tost_kernels.pattern import Pattern

# Where the compiled CPU kernels win against the dense library, which needs the input in a layout of its own (measured;
# see docs/notes/cpu-masked-conv2d.md). They do one multiply-add a kept weight, over rows of the batch.
DENSEST = 0.4
FEW_KEPT_PER_OUTPUT = 256  # batch-last inputs at any density: two layout changes cost more than so few multiply-adds
SMALLEST_BATCH = 4


@dataclass(frozen=True)
class Plan:
    """backend: a name of `backend.BACKENDS`. options: the variant within it, e.g. "tile=4x4"; "" = the kernel's own rule."""

    backend: str
    options: str = ""


def static_plan(op: str, x: Tensor, pattern: Pattern) -> Plan:
    """The plan for a masked op on `x` (batch first) when nothing was tuned: the compiled kernel where it pays, else dense.

    A backend forced by `use_backend` is always obeyed.
    """
    return Plan(backend.pick(op, ("cpu", "dense") if _cpu_kernel_pays(x, pattern) else ("dense",), x))


def _cpu_kernel_pays(x: Tensor, pattern: Pattern) -> bool:
    if x.device.type != "cpu":
        return False
    if is_full_pointwise(pattern) and is_batch_last(x):
        return True  # a matrix product of its own, whatever the size (docs/notes/dense-pointwise.md)
    if x.shape[0] < SMALLEST_BATCH:
        return False
    few_kept = pattern.nnz <= FEW_KEPT_PER_OUTPUT * pattern.shape[0]
    return pattern.density <= DENSEST or (few_kept and is_batch_last(x))


def is_full_pointwise(pattern: Pattern) -> bool:
    """Whether it is the pattern of a dense 1x1 convolution, as a ghost's."""
    return len(pattern.shape) == 4 and pattern.shape[2:] == (1, 1) and pattern.density == 1
