"""Run a piece of work so that nothing of the process is different afterwards."""

from __future__ import annotations

import random
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager

import numpy as np
import torch


@contextmanager
def isolated(seed: int, devices: Iterable[torch.device]) -> Iterator[None]:
    """Seed every global generator with `seed` inside and restore all of them after; gradients on, autocast off inside.

    Dropout, shuffling DataLoaders and augmentations draw from the generators of Python, numpy and torch: seeded, they make
    the work reproducible; restored, the caller's own random stream goes on as if nothing had been drawn.
    """
    accelerators = sorted({(d.type, d.index or 0) for d in devices if d.type in ("cuda", "xpu")})
    python_state = random.getstate()
    numpy_state = np.random.get_state()  # noqa: NPY002 (the global generator is the one to protect)
    try:
        with ExitStack() as stack:
            stack.enter_context(torch.random.fork_rng(devices=[]))
            # Not torch.manual_seed: it would seed, for good, accelerators that have no part in this.
            torch.default_generator.manual_seed(seed)
            for kind, index in accelerators:
                stack.enter_context(torch.random.fork_rng(devices=[index], device_type=kind))
                getattr(torch, kind).default_generators[index].manual_seed(seed)
            random.seed(seed)
            np.random.seed(seed % 2**32)  # noqa: NPY002
            # The caller may be inside no_grad, inference_mode or autocast: the work needs gradients in full precision.
            stack.enter_context(torch.inference_mode(False))
            stack.enter_context(torch.enable_grad())
            # No cache: torch empties that of cast weights behind the outermost autocast only, which this one is, so that an
            # autocast inside would go on with the weights of its first step.
            for kind in sorted({"cpu", *(kind for kind, _ in accelerators)}):
                stack.enter_context(torch.autocast(kind, enabled=False, cache_enabled=False))
            yield
    finally:
        random.setstate(python_state)
        np.random.set_state(numpy_state)  # noqa: NPY002


@contextmanager
def plain_tensors() -> Iterator[None]:
    """Inside, new tensors are float32 on the CPU, whatever the caller's default type and device are."""
    dtype = torch.get_default_dtype()
    torch.set_default_dtype(torch.float32)
    try:
        with torch.device("cpu"):
            yield
    finally:
        torch.set_default_dtype(dtype)


@contextmanager
def one_thread() -> Iterator[None]:
    """Compute with one thread inside: sums of torch's CPU kernels are then rounded the same whatever the number of threads."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)
