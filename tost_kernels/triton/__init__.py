"""Triton kernels for NVIDIA GPUs: a file an op, each headed by its design.

Importing this package imports triton and registers every kernel; `tost_kernels.library` does so where there is a CUDA device,
and where TRITON_INTERPRET=1 asks for the interpreter, which runs the same kernels on CPU tensors: slow, for tests.
"""

import triton

from tost_kernels.library import INTERPRETED

OLDEST = (3, 6)  # what torch 2.11 brings

if tuple(int(part) for part in triton.__version__.split(".")[:2]) < OLDEST:
    raise ImportError(f"expected triton {'.'.join(map(str, OLDEST))} or newer, got {triton.__version__}")

if INTERPRETED:
    from tost_kernels.triton.interpreter import mend

    mend()

from tost_kernels.triton import (  # noqa: E402, F401  (each registers its kernels)
    batch_last,
    ghost_skip_add,
    masked_conv2d,
    masked_linear,
    pswish,
    running_stats,
)
