"""Plan: which backend, and which of its variants, runs one op on one input shape.

A Pattern is what the mask alone decides; a Plan is the choice on top of it. It reaches an op as a string, so that compiling,
faking and vmapping stay simple, and it is fixed in the forward pass: the backward pass repeats it, in whatever thread.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from tost_kernels import backend

# Above this density, or below this batch, the dense library wins on a CPU: the kernels vectorise over the batch and do
# one multiply-add a kept weight. See docs/notes/cpu-masked-conv2d.md.
DENSEST = 0.4
SMALLEST_BATCH = 4


@dataclass(frozen=True)
class Plan:
    """backend: a name of `backend.BACKENDS`. options: the variant within it, e.g. "tile=4x4"; "" = the kernel's own rule."""

    backend: str
    options: str = ""


def static_plan(op: str, x: Tensor, density: float) -> Plan:
    """The plan for a masked op on `x` (batch first) when nothing was tuned: the compiled kernel where it pays, else dense.

    A backend forced by `use_backend` is always obeyed.
    """
    sparse_pays = density <= DENSEST and x.shape[0] >= SMALLEST_BATCH
    candidates = ("cpu", "dense") if sparse_pays and x.device.type == "cpu" else ("dense",)
    return Plan(backend.pick(op, candidates, x))
