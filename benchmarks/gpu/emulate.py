"""The CUDA kernels in a dry run: compiled for the CPU by the tests' shim (tests/cuda_host), where there is a compiler."""

from __future__ import annotations

import os
import shutil
import tempfile
from pathlib import Path

import torch

from tost_kernels import backend, library

_BUILT = "TOST_EMULATED_CUDA"  # the library, for the processes that a dry run starts


def emulate_cuda() -> str | None:
    """Load the kernels for CPU tensors; None, or the reason why that cannot be done. Built once, for child processes too."""
    if library.EMULATED:
        return None
    if library.reason("cuda") is None:
        return "the CUDA kernels themselves are loaded"
    file = os.environ.get(_BUILT)
    if file is None:
        from tests.cuda_host.build import COMPILER, build_library

        if shutil.which(COMPILER[0]) is None:
            return f"the compiler {COMPILER[0]!r} is not there"
        file = str(build_library(Path(tempfile.mkdtemp(prefix="tost-emulated-cuda-"))))
        os.environ[_BUILT] = file
    torch.ops.load_library(file)  # type: ignore[no-untyped-call]
    library.EMULATED = True
    backend.survey()
    return None
