"""Triton kernels for NVIDIA GPUs: a file an op, each headed by its design.

Importing this package imports triton and registers every kernel; `tost_kernels.library` does so where there is a CUDA device,
and where TRITON_INTERPRET=1 asks for the interpreter, which runs the same kernels on CPU tensors: slow, for tests.
"""

import importlib
import importlib.util

import triton

from tost_kernels.library import INTERPRETED

OLDEST = (3, 6)  # what torch 2.11 brings

if tuple(int(part) for part in triton.__version__.split(".")[:2]) < OLDEST:
    raise ImportError(f"expected triton {'.'.join(map(str, OLDEST))} or newer, got {triton.__version__}")

if INTERPRETED:
    importlib.import_module(f"{__name__}.interpreter").mend()

for _name in ("masked_conv2d", "masked_linear", "pswish", "ghost_skip_add", "running_stats", "batch_last"):
    if importlib.util.find_spec(f"{__name__}.{_name}"):
        importlib.import_module(f"{__name__}.{_name}")
