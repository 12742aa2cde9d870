"""Arguments of the elementwise ops: numbers that become tensors, and the dtype that is computed in."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


def compute_dtype(x: Tensor) -> torch.dtype:
    """The dtype to compute in for an input like `x`: float64 for float64, else float32."""
    return torch.float64 if x.dtype == torch.float64 else torch.float32


def per_channel(t: Tensor, x: Tensor) -> Tensor:
    """A 0-dim or (C,) tensor, seen so that it broadcasts against `x` (N, C, ...) in the dtype that x is computed in."""
    t = t.to(compute_dtype(x))
    return t if t.dim() == 0 else t.reshape(-1, *[1] * (x.dim() - 2))


def scalar(name: str, value: Tensor | float, like: Tensor, *, channels: bool, op_name: str) -> Tensor:
    """`value`, a number or a tensor, as the tensor an op takes: 0-dim or, where `channels`, also (C,), C = like.shape[1].

    A number is convenient for a call by hand; training passes tensors, whose changes a compiled graph sees.
    Raises TypeError / ValueError naming `name`.
    """
    dtype = compute_dtype(like)
    if not isinstance(value, Tensor):
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise TypeError(f"{op_name}: expected {name} to be a number or a Tensor, got {type(value).__name__}")
        return torch.full((), value, dtype=dtype, device=like.device)
    wanted = "of shape () or (C,)" if channels else "of shape ()"
    fits = value.dim() == 0 or (channels and value.dim() == 1 and like.dim() >= 2 and value.shape[0] == like.shape[1])
    if not fits:
        raise ValueError(
            f"{op_name}: expected {name} {wanted} for an input of shape {tuple(like.shape)}, got {tuple(value.shape)}"
        )
    if not value.is_floating_point():
        raise TypeError(f"{op_name}: expected {name} of a floating dtype, got {value.dtype}")
    if value.device != like.device:
        raise ValueError(f"{op_name}: expected {name} on {like.device}, got {value.device}")
    return value.to(dtype)


def check_floating(name: str, x: Any, op_name: str) -> None:
    """Raise TypeError unless `x` is a tensor of float16, bfloat16, float32 or float64."""
    if not isinstance(x, Tensor):
        raise TypeError(f"{op_name}: expected {name} to be a Tensor, got {type(x).__name__}")
    if x.dtype not in (torch.float16, torch.bfloat16, torch.float32, torch.float64):
        raise TypeError(f"{op_name}: expected {name} of float16, bfloat16, float32 or float64, got {x.dtype}")
