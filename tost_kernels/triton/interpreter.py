"""Triton 3.6's interpreter under NumPy 2.4: it makes ints of arrays of one element, which NumPy no longer does.

Loops whose bounds are known on the device alone, `range(begin, end)`, need it. Triton 3.7 mended it.
"""

from __future__ import annotations

from typing import Any

import triton
from triton.runtime import interpreter


def mend() -> None:
    """Let interpreted kernels loop up to a loaded number."""
    if tuple(int(part) for part in triton.__version__.split(".")[:2]) >= (3, 7):
        return
    original = interpreter._patch_lang_tensor

    def patch(tensor: Any, scope: Any) -> None:
        original(tensor, scope)
        scope.set_attr(tensor, "__index__", lambda self: self.handle.data.item())

    interpreter._patch_lang_tensor = patch
