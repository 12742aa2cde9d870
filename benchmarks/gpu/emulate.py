"""The CUDA kernels in a dry run: compiled for the CPU by the tests' shim (tests/cuda_host), where there is a compiler."""

from __future__ import annotations

import shutil

import torch

from tost_kernels import backend, library


def emulate_cuda() -> str | None:
    """Load the kernels for CPU tensors; None, or the reason why that cannot be done."""
    if library.EMULATED:
        return None
    if library.reason("cuda") is None and torch.cuda.is_available():
        return "the kernels themselves are loaded"
    from tests.cuda_host.build import COMPILER, shared_library

    if shutil.which(COMPILER[0]) is None:
        return f"the compiler {COMPILER[0]!r} is not there"
    torch.ops.load_library(str(shared_library()))  # type: ignore[no-untyped-call]
    library.EMULATED = True
    backend.survey()
    return None
