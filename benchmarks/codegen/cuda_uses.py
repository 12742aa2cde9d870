"""How the CUDA kernels are launched, and what their machine code must hold."""

from __future__ import annotations

from typing import NamedTuple


class Use(NamedTuple):
    """kernels: a regular expression for whole names. threads: of a block; 0: as many as the kernel's __launch_bounds__.
    dynamic_shared: bytes, of the largest launch by the static rules; least_shared: where that is more than a block may have.
    matrix: tensor-core instructions must be there. wide: kinds of `sass.MOVES` that must be there with 16 bytes a thread.
    """

    kernels: str
    threads: int = 0
    dynamic_shared: int = 0
    least_shared: int = 0
    matrix: bool = False
    wide: tuple[str, ...] = ()


# What the static rule of tost_kernels/cuda_options.py asks for in a 3x3 layer: 8 pixels, whose patch is 4 x 6 rows of 128 bytes;
# 16 channels at once, or 32 where all passes are gather, with 32 bytes between one and the next (bfloat16: 16); two stages, a
# table of 4 bytes a pixel; 8 warps. Where a block may not have that much shared memory, the launch makes do with one stage.
_PATCH, _LARGE_PATCH = (2 * chunk * (4 * 6 * 128 + 32) + 4 * 6 * 4 for chunk in (16, 32))
_THREADS = 256
_GATHER = (_THREADS, _LARGE_PATCH, _LARGE_PATCH // 2)

# The first that fits a kernel's name counts. A kernel that none fits is an error.
USES = (
    Use(r"gather_kernel<Tf32Product, .*>", *_GATHER, matrix=True, wide=("LDG", "STG", "LDGSTS", "LDS")),
    Use(r"gather_kernel<Bf16Product, .*>", *_GATHER, matrix=True, wide=("LDG", "STG", "LDGSTS", "LDSM")),
    Use(r"values_grad_kernel<.*>", *_GATHER, matrix=True, wide=("LDG", "LDGSTS", "LDS")),
    Use(r"multiply<\w+, \d+>", _THREADS, _PATCH, wide=("STG", "LDGSTS", "LDS")),
    Use(r"correlate<\w+>", _THREADS, _PATCH, wide=("LDG", "LDGSTS", "LDS")),
    Use(r"(clear_and_tabulate|put_values|place_weights|decode_kept|decode_columns|add_parts)<.*>"),  # a few weights or sums each
    # Elementwise: <type, elements a move, channels of a move>.
    Use(r"\w+_kernel<\w+, 1, 1>"),  # sizes that 16 bytes do not divide
    Use(r"ghost_moments_kernel<(float, 4|bf16, 8), \d>", wide=("LDG",)),
    Use(r"(pswish|ghost)_\w+_kernel<(float, 4|bf16, 8), \d>", wide=("LDG", "STG")),
    Use(r"running_stats_kernel"),
)
