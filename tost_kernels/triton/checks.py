"""What a raw op refuses before it launches a kernel: a wrong dtype or shape would read out of bounds."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def dtype_name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def check(op: str, condition: bool, message: str) -> None:
    """Raise RuntimeError "<op>_triton: <message>" unless `condition`."""
    if not condition:
        raise RuntimeError(f"{op}_triton: {message}")


def shape_string(shape: Sequence[int]) -> str:
    return f"({', '.join(map(str, shape))})"


def check_activation(op: str, name: str, x: Tensor) -> None:
    """An activation that the kernels compute in: float32 or bfloat16."""
    fits = x.dtype in (torch.float32, torch.bfloat16)
    check(op, fits, f"{name}: expected float32 or bfloat16, got {dtype_name(x.dtype)}")


def check_like(op: str, name: str, x: Tensor, u: Tensor) -> None:
    """A tensor of the shape, dtype and device of another activation, `u`."""
    check(op, x.shape == u.shape, f"{name}: expected shape {shape_string(u.shape)}, got {shape_string(x.shape)}")
    check(op, x.dtype == u.dtype, f"{name}: expected {dtype_name(u.dtype)}, got {dtype_name(x.dtype)}")
    check(op, x.device == u.device, f"{name}: expected a tensor on {u.device}, got one on {x.device}")


def check_parameter(op: str, name: str, x: Tensor, shape: Sequence[int], u: Tensor, dtype: torch.dtype = torch.float32) -> None:
    """A small tensor of `shape`, float32 unless said otherwise, on the device of `u`."""
    check(op, x.dtype == dtype, f"{name}: expected {dtype_name(dtype)}, got {dtype_name(x.dtype)}")
    check(op, tuple(x.shape) == tuple(shape), f"{name}: expected shape {shape_string(shape)}, got {shape_string(x.shape)}")
    check(op, x.device == u.device, f"{name}: expected a tensor on {u.device}, got one on {x.device}")
