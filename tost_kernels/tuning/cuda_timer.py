"""The timer of CUDA trials: each is recorded into a CUDA graph of many calls, whose replay is timed by events on the device.

Launched one by one, short kernels wait for Python: what would be timed is the gaps between them. Training runs under graphs,
and so do trials. Within a graph the calls take turns on inputs that together exceed the L2 cache twice (`inputs_past_cache`),
since a layer in a network finds its input there only by luck; outputs reuse one memory and may stay in the cache. Recording
needs a first run outside, in which Triton compiles, cuDNN searches (`searching`) and the allocator grows.
"""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch

from tost_kernels.graph_capture import undone_if_it_fails
from tost_kernels.tuning.trial import Trial

_WARM_UPS = 2  # the first compiles and searches; the second tells how long a call takes
_MILLISECONDS = 1.0  # a graph takes about so long: events resolve 0.5 us, launching the graph costs some us
_MOST_CALLS = 50
_MOST_INPUTS = 32


class GraphTimer:
    """Calling it with (trials, rounds) gives the median milliseconds of each, one replay of each a round.

    cuda: the module that drives the device, torch.cuda; tests pass a stand-in.
    """

    def __init__(self, cuda: Any = torch.cuda) -> None:
        self._cuda = cuda

    def __call__(self, trials: Sequence[Trial], rounds: int) -> list[float]:
        # One pool for all: a replay may overwrite another graph's results, which nobody reads. Memory of a pool is used again on
        # the stream it was used on.
        pool, stream = self._cuda.graph_pool_handle(), self._cuda.Stream()
        graphs = [self._record(trial, pool, stream) for trial in trials]
        for graph, _ in graphs:
            graph.replay()
        spans: list[list[tuple[Any, Any]]] = [[] for _ in trials]
        for _ in range(rounds):
            for (graph, _), taken in zip(graphs, spans, strict=True):
                taken.append(self._span(graph.replay))
        self._cuda.synchronize()
        return [
            statistics.median(start.elapsed_time(end) for start, end in taken) / calls
            for (_, calls), taken in zip(graphs, spans, strict=True)
        ]

    def _record(self, trial: Trial, pool: Any, stream: Any) -> tuple[Any, int]:
        """The graph, and how many calls it holds."""
        cuda = self._cuda
        stream.wait_stream(cuda.current_stream())
        with cuda.stream(stream):  # capturing is not allowed on the default stream, nor what the first calls do
            for _ in range(_WARM_UPS):
                start, end = self._span(trial.run)
        cuda.current_stream().wait_stream(stream)
        cuda.synchronize()
        wanted = int(_MILLISECONDS / max(start.elapsed_time(end), 1e-6))
        calls = min(max(wanted, trial.inputs, 1), max(_MOST_CALLS, trial.inputs))
        graph = cuda.CUDAGraph()
        with undone_if_it_fails(pool, cuda.current_device(), cuda), cuda.graph(graph, pool=pool, stream=stream):
            for _ in range(calls):
                trial.run()
        return graph, calls

    def _span(self, run: Any) -> tuple[Any, Any]:
        """Events before and after `run` on the current stream."""
        start, end = (self._cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        run()
        end.record()
        return start, end


def inputs_past_cache(size: int, cache: int) -> int:
    """How many inputs of `size` bytes exceed twice a cache of `cache` bytes; at most 32, since tiny ones would be many."""
    return max(1, min(_MOST_INPUTS, -(-2 * cache // max(size, 1))))


def cache_bytes(device: str, cuda: Any = torch.cuda) -> int:
    """The L2 cache of the current CUDA device; 0 for the CPU, whose trials run as they are."""
    return int(cuda.get_device_properties(cuda.current_device()).L2_cache_size) if device == "cuda" else 0


@contextmanager
def searching(device: str) -> Iterator[None]:
    """Inside, cuDNN tries its algorithms and takes the fastest: dense is not to lose for want of a search."""
    if device != "cuda":
        yield
        return
    before = torch.backends.cudnn.benchmark
    torch.backends.cudnn.benchmark = True
    try:
        yield
    finally:
        torch.backends.cudnn.benchmark = before
