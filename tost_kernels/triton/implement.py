"""How a Triton kernel becomes the implementation of an op."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from tost_kernels.library import INTERPRETED as INTERPRETED
from tost_kernels.register import LIBRARY


def implement(name: str, function: Callable[..., Any]) -> None:
    """Register `function` as `tost::<name>_triton` for CUDA tensors, and under the interpreter for CPU tensors too."""
    for key in ("CUDA", *(("CPU",) if INTERPRETED else ())):
        LIBRARY.impl(f"{name}_triton", function, key)
