"""Which implementation of an op runs: what is usable here, and what the caller forced."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor

from tost_kernels import library

BACKENDS = ("reference", "cpu", "cuda", "triton", "dense")
COMPILED = ("cpu", "cuda", "triton")
# Where an elementwise op looks for its kernel: `tune` does not choose it. A GPU has CUDA's and Triton's. CUDA's come first: they
# are compiled ahead, where Triton's take seconds when a training first meets them, and a call of them takes the host less time.
# `python -m benchmarks.gpu --only fused` measures the ones beside the others.
PREFERRED = (*COMPILED, "reference")
OPS = ("masked_conv2d", "masked_linear", "pswish", "ghost_skip_add", "max_pool2d", "avg_pool2d")

_DTYPES = (torch.float32, torch.bfloat16)


class _Forced(threading.local):
    """The backend forced in this thread (a ContextVar would break torch.compile(fullgraph=True))."""

    name: str | None = None


_FORCED = _Forced()
_ABSENT: dict[tuple[str, str], str | None] = {}


def survey() -> None:
    """Find out, once, which (op, backend) pairs have a kernel in this process."""
    for op in OPS:
        for backend in BACKENDS:
            _ABSENT[op, backend] = _why_absent(op, backend)


def has_native_conversion() -> bool:
    """Whether the compiled CPU library, and with it the native batch-last transpose, is loaded."""
    return _ABSENT["masked_conv2d", "cpu"] is None


def _devices(backend: str) -> tuple[str, ...]:
    """The devices whose tensors a backend takes."""
    if backend == "cpu":
        return ("cpu",)
    return ("cuda", "cpu") if only_when_forced(backend) else ("cuda",)


def has_kernel(op: str, backend: str) -> bool:
    """Whether code for `op` on `backend` is loaded in this process."""
    if backend not in COMPILED:
        return True
    has = torch._C._dispatch_has_kernel_for_dispatch_key
    return _is_defined(op, backend) and any(has(f"tost::{op}_{backend}", device.upper()) for device in _devices(backend))


def _is_defined(op: str, backend: str) -> bool:
    """Whether this version has such a kernel, loaded here or not."""
    return hasattr(torch.ops.tost, f"{op}_{backend}")


def only_when_forced(backend: str) -> bool:
    """Whether `backend` runs for nobody who does not ask for it by name: interpreted and emulated kernels are for tests."""
    return library.INTERPRETED if backend == "triton" else backend == "cuda" and library.EMULATED


def _why_absent(op: str, backend: str) -> str | None:
    if backend not in COMPILED:
        return None
    if not has_kernel(op, backend):
        absent = library.reason(backend) if _is_defined(op, backend) else None
        return absent or f"this version has no {backend} kernel for {op}"
    if "cpu" not in _devices(backend) and not torch.cuda.is_available():
        return "no CUDA device is available"
    return None


def why_not(op: str, backend: str) -> str | None:
    """None if `backend` can run `op` here, else the reason why it cannot.

    Raises ValueError for an unknown op or backend.
    """
    if (op, backend) not in _ABSENT:
        raise ValueError(f"expected an op of {OPS} and a backend of {BACKENDS}, got {op!r} and {backend!r}")
    return _ABSENT[op, backend]


def why_not_for(op: str, backend: str, x: Tensor) -> str | None:
    """None if `backend` can run `op` on a tensor like `x`, else the reason why it cannot."""
    reason = why_not(op, backend)
    if reason is not None or backend not in COMPILED:
        return reason
    if x.device.type not in _devices(backend):
        return f"it needs a tensor on {' or '.join(map(repr, _devices(backend)))}, got one on {x.device.type!r}"
    if x.dtype not in _DTYPES:
        return f"it computes in float32 and bfloat16, got {x.dtype}"
    return None


def forced() -> str | None:
    """The backend forced by `use_backend` in this thread, or None."""
    return _FORCED.name


@contextmanager
def use_backend(name: str) -> Iterator[None]:
    """Force one backend for every op called in this thread inside the block.

    name: "reference" (plain torch, the specification), "cpu" (compiled), "cuda", "triton", or "dense" (torch's own
    dense ops on the scattered weight). Ops that a backend does not have raise RuntimeError when called, with the reason.
    The backward pass uses what the forward pass chose, wherever it runs.
    """
    if name not in BACKENDS:
        raise ValueError(f"use_backend: expected name to be one of {BACKENDS}, got {name!r}")
    before = _FORCED.name
    _FORCED.name = name
    try:
        yield
    finally:
        _FORCED.name = before


def pick(op: str, candidates: Sequence[str], x: Tensor) -> str:
    """The forced backend, or else the first of `candidates` that can run `op` on a tensor like `x`.

    Raises RuntimeError, with the reason, if the forced backend cannot.
    """
    name = _FORCED.name
    if name is not None:
        reason = why_not_for(op, name, x)
        if reason is not None:
            raise RuntimeError(f"{op}: the backend {name!r} cannot be used: {reason}")
        return name
    for name in candidates:
        if not only_when_forced(name) and why_not_for(op, name, x) is None:
            return name
    raise RuntimeError(f"{op}: none of the backends {tuple(candidates)} can be used for {x.dtype} on {x.device}")
