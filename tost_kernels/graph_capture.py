"""CUDA graph captures that fail, and leave torch as it was all the same."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

import torch


@contextmanager
def undone_if_it_fails(pool: Any, device: int, cuda: Any = torch.cuda) -> Iterator[None]:
    """Around a capture on the device of that index, into the memory `pool` (of `torch.cuda.graph_pool_handle`).

    Where work cannot be captured, torch raises as soon as the capture is to end, and leaves undone what would come after that:
    the capture's stream stays the current one, the generator refuses to draw outside of a capture, and torch 2.11's allocator
    believes that the capture goes on, so that `torch.cuda.empty_cache`, which the next capture begins with, dies of an assertion.

    cuda: the module that drives the device, torch.cuda; tests pass a stand-in.
    """
    generator = cuda.default_generators[device]
    before = generator.clone_state()
    with cuda.stream(cuda.current_stream(device)):  # its end makes this one the current stream again
        try:
            yield
        except BaseException:
            generator.graphsafe_set_state(before)
            with suppress(RuntimeError):  # newer versions have told the allocator
                torch._C._cuda_endAllocateToPool(device, pool)
            raise
