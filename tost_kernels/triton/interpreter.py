"""What Triton's interpreter gets wrong, and the kernels need.

Under NumPy 2.4 Triton 3.6 makes ints of arrays of one element, which NumPy no longer does: loops whose bounds are known on the
device alone, `range(begin, end)`, need it. Triton 3.7 mended it.

NumPy has no bfloat16, so that the interpreter keeps such tensors as uint16: tl.dot multiplies these integers. And a float32
becomes a bfloat16 by cutting bits off, where the hardware takes the nearest.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
import triton
import triton.language as tl
from triton.runtime import interpreter


def mend() -> None:
    """Let interpreted kernels loop up to a loaded number, and compute with bfloat16 as the hardware does."""
    _mend_bfloat16()
    if tuple(int(part) for part in triton.__version__.split(".")[:2]) >= (3, 7):
        return
    original = interpreter._patch_lang_tensor

    def patch(tensor: Any, scope: Any) -> None:
        original(tensor, scope)
        scope.set_attr(tensor, "__index__", lambda self: self.handle.data.item())

    interpreter._patch_lang_tensor = patch


def _mend_bfloat16() -> None:
    """Products and sums of a tl.dot in float32; rounding to the nearest, to even."""
    builder: Any = interpreter.InterpreterBuilder
    dot, cast = builder.create_dot, builder.cast_impl

    def create_dot(self: Any, a: Any, b: Any, d: Any, *settings: Any) -> Any:
        a, b = (cast(self, t, tl.float32) if t.dtype.scalar == tl.bfloat16 else t for t in (a, b))
        return dot(self, a, b, d, *settings)

    def cast_impl(self: Any, source: Any, wanted: Any) -> Any:
        if source.dtype.scalar != tl.float32 or wanted.scalar != tl.bfloat16:
            return cast(self, source, wanted)
        rounded = torch.from_numpy(np.ascontiguousarray(source.data)).bfloat16().view(torch.uint16).numpy()
        return interpreter.TensorHandle(rounded, tl.bfloat16)

    builder.create_dot, builder.cast_impl = create_dot, cast_impl
