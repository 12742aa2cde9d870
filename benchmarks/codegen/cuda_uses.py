"""How the CUDA kernels are launched, and what their machine code must hold."""

from __future__ import annotations

from typing import NamedTuple


class Use(NamedTuple):
    """kernels: a regular expression for whole names. threads: of a block; 0: as many as the kernel's __launch_bounds__.
    dynamic_shared: bytes, of the largest launch by the static rules. matrix: tensor-core instructions must be there. wide: kinds
    of `sass.MOVES` that must be there with 16 bytes a thread.
    """

    kernels: str
    threads: int = 0
    dynamic_shared: int = 0
    matrix: bool = False
    wide: tuple[str, ...] = ()


# The first that fits a kernel's name counts. A kernel that none fits is an error.
USES = (
    Use(r"pswish_(forward|backward)<(float, 4|bf16, 8), \w+>", wide=("LDG", "STG")),
    Use(r"pswish_(forward|backward)<\w+, 1, \w+>"),  # sizes that 16 bytes do not divide
    Use(r"sum_splits"),
)
