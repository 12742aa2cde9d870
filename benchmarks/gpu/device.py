"""All that the suite asks of CUDA itself: events, graphs, a stream, memory. The stand-in runs the same callables on the CPU."""

from __future__ import annotations

import gc
import platform
import re
import resource
import subprocess
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor

from benchmarks.timing import by_clock
from tost.graphed import CudaGraphs, Recorder
from tost_kernels.graph_capture import undone_if_it_fails

# How float32 is multiplied -> whether TensorFloat-32 may be used; bf16 tensors are multiplied as they are.
PRECISIONS = {"fp32": False, "tf32": True, "bf16": True}
DTYPES = {"fp32": torch.float32, "tf32": torch.float32, "bf16": torch.bfloat16}


@contextmanager
def precision(name: str) -> Iterator[None]:
    """Inside, float32 convolutions and products are computed as `name` (a key of PRECISIONS) says: both, unlike torch's defaults.

    The old switches: with the new ones alone, Inductor's look at the old ones raises (torch 2.9 to 2.11).
    """
    before = torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32
    _allow_tf32(PRECISIONS[name], PRECISIONS[name])
    try:
        yield
    finally:
        _allow_tf32(*before)


def _allow_tf32(convolutions: bool, products: bool) -> None:
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*TF32.*")  # that there are new switches
        torch.backends.cudnn.allow_tf32 = convolutions
        torch.backends.cuda.matmul.allow_tf32 = products


class StandIn:
    """The CPU in the place of a GPU: for a dry run. Times are those of the wall clock and mean nothing."""

    name = "cpu"
    l2_bytes = 0
    is_gpu = False

    def about(self) -> dict[str, Any]:
        """What the figures were measured on."""
        return {"gpu": "none: a dry run", "processor": platform.processor() or platform.machine()}

    def stream(self) -> AbstractContextManager[object]:
        """Everything is built and measured inside: graphs cannot be captured on the default stream."""
        return nullcontext()

    def synchronize(self) -> None:
        """Wait until everything launched has ended. Raises what a kernel left behind."""

    def capture(self, run: Callable[[], object]) -> Callable[[], object]:
        """Run it to warm up, and once more to record it: what comes back replays that. (Here: runs it.)"""
        return run

    def recorder(self) -> Recorder:
        """What tost records training steps with."""
        return _StandInRecorder()

    def measure(self, call: Callable[[], object], repeats: int) -> float:
        """Milliseconds a call on the device, without the time its launch takes."""
        return by_clock(time.perf_counter)(call, repeats)

    def wall(self, call: Callable[[], object], repeats: int) -> float:
        """Milliseconds a call as its caller sees it, launches included."""
        self.synchronize()

        def whole() -> None:
            for _ in range(repeats):
                call()
            self.synchronize()

        return by_clock(time.perf_counter)(whole, 1) / repeats

    def release(self) -> None:
        """Free what nobody refers to any more, the pools of dropped graphs too."""
        gc.collect()

    def reset_peak(self) -> None:
        """The peak starts anew from here."""

    def peak_bytes(self) -> int:
        """The most that tensors held since `reset_peak`."""
        return 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss

    def allocated_bytes(self) -> int:
        """What tensors hold now."""
        return 0


class _StandInRecorder:
    """Replays by doing the work again."""

    def rehearse(self, work: Callable[[], Tensor]) -> None:
        work()

    def record(self, work: Callable[[], Tensor]) -> tuple[Tensor, Callable[[], None]]:
        result = work()

        def replay() -> None:
            result.copy_(work())

        return result, replay


class Cuda(StandIn):
    """The current CUDA device. Its settings (clocks, power) are measured as they are found."""

    name = "cuda"
    is_gpu = True

    def __init__(self) -> None:
        self._properties = torch.cuda.get_device_properties()
        self.l2_bytes = self._properties.L2_cache_size
        self._stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]
        torch.backends.cudnn.benchmark = True  # cuDNN tries its algorithms: what a baseline is entitled to

    def about(self) -> dict[str, Any]:
        p = self._properties
        return {
            "gpu": p.name,
            "capability": f"{p.major}.{p.minor}",
            "multiprocessors": p.multi_processor_count,
            "memory_gib": round(p.total_memory / 2**30, 1),
            "l2_mib": p.L2_cache_size / 2**20,
            "driver": _driver(),
            "cuda": torch.version.cuda,
            "cudnn": torch.backends.cudnn.version(),  # type: ignore[no-untyped-call]
        }

    def stream(self) -> AbstractContextManager[object]:
        return torch.cuda.stream(self._stream)

    def synchronize(self) -> None:
        torch.cuda.synchronize()

    def capture(self, run: Callable[[], object]) -> Callable[[], object]:
        for _ in range(2):
            run()
        torch.cuda.synchronize()
        graph, pool = torch.cuda.CUDAGraph(), torch.cuda.graph_pool_handle()
        with undone_if_it_fails(pool, torch.cuda.current_device()):
            graph.capture_begin(pool)  # not torch.cuda.graph(), which empties the allocator's cache each time
            try:
                kept = run()
            finally:
                graph.capture_end()
        graph.replay()
        torch.cuda.synchronize()

        def replay(kept: object = kept) -> None:  # the results stay: dropped, each call would write where the last one did
            graph.replay()

        return replay

    def measure(self, call: Callable[[], object], repeats: int) -> float:
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call]
        # The device sleeps while the host queues the work: no launch gap is measured.
        torch.cuda._sleep(200_000 + 20_000 * repeats)  # type: ignore[no-untyped-call]
        start.record()
        for _ in range(repeats):
            call()
        end.record()
        end.synchronize()
        return float(start.elapsed_time(end)) / repeats

    def recorder(self) -> Recorder:
        return CudaGraphs(torch.device("cuda"))

    def release(self) -> None:
        gc.collect()
        torch.cuda.empty_cache()

    def reset_peak(self) -> None:
        torch.cuda.reset_peak_memory_stats()

    def peak_bytes(self) -> int:
        return torch.cuda.max_memory_allocated()

    def allocated_bytes(self) -> int:
        return torch.cuda.memory_allocated()


def _driver() -> str:
    try:
        text = subprocess.run(["nvidia-smi"], capture_output=True, text=True, timeout=20, check=True).stdout
    except (OSError, subprocess.SubprocessError):
        return "nvidia-smi does not say"
    found = re.search(r"Driver Version: (\S+)", text)
    return found[1] if found else "nvidia-smi does not say"
