"""Where a triton kernel is registered."""

import os
from collections.abc import Callable
from typing import Any

from tost_kernels.register import LIBRARY

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"  # triton then runs its kernels on CPU tensors


def implement(name: str, function: Callable[..., Any]) -> None:
    """Register `function` as `tost::<name>_triton`."""
    for key in ("CUDA", *(("CPU",) if INTERPRETED else ())):
        LIBRARY.impl(f"{name}_triton", function, key)
