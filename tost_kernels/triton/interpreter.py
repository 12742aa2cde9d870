"""What Triton's interpreter gets wrong, and the kernels need.

Under NumPy 2.4 Triton 3.6 makes ints of arrays of one element, which NumPy no longer does: loops whose bounds are known on the
device alone, `range(begin, end)`, need it. Triton 3.7 mended it.

NumPy has no bfloat16, so that the interpreter keeps such tensors as uint16, and tl.dot multiplies these integers.
"""

from __future__ import annotations

from typing import Any

import triton
import triton.language as tl
from triton.runtime import interpreter


def mend() -> None:
    """Let interpreted kernels loop up to a loaded number, and multiply matrices of bfloat16."""
    _multiply_bfloat16()
    if tuple(int(part) for part in triton.__version__.split(".")[:2]) >= (3, 7):
        return
    original = interpreter._patch_lang_tensor

    def patch(tensor: Any, scope: Any) -> None:
        original(tensor, scope)
        scope.set_attr(tensor, "__index__", lambda self: self.handle.data.item())

    interpreter._patch_lang_tensor = patch


def _multiply_bfloat16() -> None:
    """As the hardware does: products and sums in float32."""
    builder: Any = interpreter.InterpreterBuilder
    original = builder.create_dot

    def create_dot(self: Any, a: Any, b: Any, d: Any, *settings: Any) -> Any:
        a, b = (self.create_fp_ext(t, tl.float32) if t.dtype.scalar == tl.bfloat16 else t for t in (a, b))
        return original(self, a, b, d, *settings)

    builder.create_dot = create_dot
