"""The CUDA timer on a stand-in of torch.cuda: a device whose clock says what its trials cost. That of a real one: gpu tests."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

import pytest
import torch

import tost_kernels as tk
from tost_kernels.plan import Plan
from tost_kernels.tuning.cuda_timer import GraphTimer, cache_bytes, inputs_past_cache, searching
from tost_kernels.tuning.trial import Trial

GAP = 5.0  # milliseconds that the host needs to launch anything


class FakeCuda:
    """Work is a cost in milliseconds of the device; launched, it waits for the host; under capture it is only recorded."""

    def __init__(self) -> None:
        self.now = 0.0
        self.recording: list[float] | None = None
        self.log: list[str] = []
        self.in_stream = False
        generator = SimpleNamespace(clone_state=lambda: "before", graphsafe_set_state=self.log.append)
        self.default_generators = [generator]

    def work(self, milliseconds: float) -> None:
        if self.recording is not None:
            self.recording.append(milliseconds)
            return
        assert self.in_stream, "warming up belongs on a stream of its own"
        self.now += GAP + milliseconds

    def Stream(self) -> Any:
        self.log.append("stream")
        return self.current_stream()

    def current_stream(self, device: int = 0) -> Any:
        return SimpleNamespace(wait_stream=lambda other: self.log.append("wait"))

    @contextmanager
    def stream(self, stream: Any) -> Iterator[None]:
        self.in_stream = True
        try:
            yield
        finally:
            self.in_stream = False

    def synchronize(self) -> None:
        self.log.append("synchronize")

    def graph_pool_handle(self) -> str:
        self.log.append("pool")
        return "pool"

    def CUDAGraph(self) -> Any:
        graph = SimpleNamespace(costs=[])

        def replay() -> None:
            assert graph.costs, "replayed before it was recorded"
            self.log.append("replay")
            self.now += sum(graph.costs)

        graph.replay = replay
        return graph

    @contextmanager
    def graph(self, graph: Any, *, pool: str, stream: Any) -> Iterator[None]:
        assert pool == "pool"
        self.log.append("capture")
        self.recording = graph.costs
        try:
            yield
        finally:
            self.recording = None

    def Event(self, *, enable_timing: bool) -> Any:
        assert enable_timing
        event = SimpleNamespace(at=None)

        def record() -> None:
            assert self.recording is None
            event.at = self.now

        def elapsed_time(end: Any) -> float:
            assert self.log[-1] == "synchronize", "read before the device was done"
            return float(end.at - event.at)

        event.record, event.elapsed_time = record, elapsed_time
        return event

    def current_device(self) -> int:
        return 0

    def get_device_properties(self, device: int) -> Any:
        return SimpleNamespace(L2_cache_size=50 * 2**20)


def trial(run: Callable[[], object], inputs: int = 1) -> Trial:
    return Trial("forward", Plan("triton"), run, inputs)


@pytest.mark.parametrize("rounds", [1, 5])
def test_the_time_is_that_of_the_device_without_the_gaps(rounds: int) -> None:
    cuda = FakeCuda()
    times = GraphTimer(cuda)([trial(lambda: cuda.work(0.25)), trial(lambda: cuda.work(3.0))], rounds)
    assert times == pytest.approx([0.25, 3.0])
    assert cuda.log.count("capture") == 2
    assert cuda.log.count("pool") == cuda.log.count("stream") == 1  # the graphs share their memory
    assert cuda.log.count("replay") == 2 * (1 + rounds)  # one of each is not timed


def test_the_median_counts_and_trials_take_turns() -> None:
    cuda = FakeCuda()
    names: list[str] = []
    slow = iter([0.0, 0.0, 90.0, 0.0, 0.0, 0.0])  # one replay is disturbed

    def disturbed(name: str, graph: Any, replay: Callable[[], None]) -> Callable[[], None]:
        def run() -> None:
            names.append(name)
            replay()
            cuda.now += next(slow) if name == "a" else 0.0

        return run

    original = cuda.CUDAGraph

    def make() -> Any:
        graph = original()
        graph.replay = disturbed("ab"[len(made)], graph, graph.replay)
        made.append(graph)
        return graph

    made: list[Any] = []
    cuda.CUDAGraph = make  # type: ignore[method-assign]
    assert GraphTimer(cuda)([trial(lambda: cuda.work(2.0)), trial(lambda: cuda.work(4.0))], 5) == pytest.approx([2.0, 4.0])
    assert names == ["a", "b"] * 6


def test_every_input_takes_its_turn_in_a_graph() -> None:
    cuda = FakeCuda()
    calls: list[bool] = []

    def run() -> None:
        calls.append(cuda.recording is not None)
        cuda.work(8.0)

    GraphTimer(cuda)([trial(run, inputs=7)], 1)
    assert calls == [False, False] + [True] * 7


def test_a_capture_that_fails_is_undone(monkeypatch: pytest.MonkeyPatch) -> None:
    cuda = FakeCuda()
    monkeypatch.setattr(torch._C, "_cuda_endAllocateToPool", lambda device, pool: cuda.log.append(f"{pool} is done"))

    def run() -> None:
        if cuda.recording is not None:
            raise RuntimeError("waits for the device")
        cuda.work(1.0)

    with pytest.raises(RuntimeError, match="waits"):
        GraphTimer(cuda)([trial(run)], 1)
    assert cuda.log[-3:] == ["capture", "before", "pool is done"]
    assert not cuda.in_stream


def test_how_many_inputs_are_past_the_cache() -> None:
    cache = cache_bytes("cuda", FakeCuda())
    assert cache == 50 * 2**20
    assert [inputs_past_cache(size * 2**20, cache) for size in (200, 60, 50, 10)] == [1, 2, 2, 10]
    assert inputs_past_cache(1000, cache) == 32
    assert inputs_past_cache(0, cache) == 32  # an empty batch
    assert cache_bytes("cpu", None) == 0
    assert inputs_past_cache(1000, 0) == 1


def test_a_bench_takes_equal_inputs_in_turn(monkeypatch: pytest.MonkeyPatch) -> None:
    """With a cache as large as two inputs; what they are computed to shows that they are equal."""
    from tost_kernels.tuning import bench

    layer = tk.SparseConv2d(4, 4, 3, mask=torch.ones(4, 4, 3, 3))
    x, met = torch.randn(2, 4, 6, 6), []
    with tk.plan.watching(lambda case, pattern: met.append(case)):
        layer(x)
    monkeypatch.setattr(bench, "cache_bytes", lambda device: 4 * 2 * 4 * 4 * 4)  # of the output, which is the smaller
    seen: list[int] = []
    convolve = bench.masked_conv2d
    monkeypatch.setattr(
        bench, "masked_conv2d", lambda x, *rest, **named: seen.append(x.data_ptr()) or convolve(x, *rest, **named)
    )
    made = bench.Bench(met[0], layer.pattern).whole(Plan("dense"))
    grads = [made.run()[0] for _ in range(4)]
    assert made.inputs == 2
    assert seen[0] == seen[2] != seen[1] == seen[3]
    assert all(torch.equal(grad, grads[0]) for grad in grads)


def test_cudnn_searches_while_dense_is_timed() -> None:
    assert not torch.backends.cudnn.benchmark
    found = []

    def fail() -> None:
        with searching("cuda"):
            found.append(torch.backends.cudnn.benchmark)
            raise KeyError

    with pytest.raises(KeyError):
        fail()
    assert found == [True]
    assert not torch.backends.cudnn.benchmark
    with searching("cpu"):
        assert not torch.backends.cudnn.benchmark


@pytest.mark.gpu
def test_on_a_gpu() -> None:
    """A network tuned for real: every case is timed, and nothing was dropped for another reason than room."""
    torch.use_deterministic_algorithms(False)
    net = tk.SparseConv2d(64, 64, 3, padding=1, mask=torch.rand(64, 64, 3, 3) < 0.1, device="cuda")
    report = tk.tune(net, torch.randn(64, 64, 16, 16, device="cuda", requires_grad=True), cache=False)
    assert all(timing.milliseconds > 0 for tuned in report.cases for timing in tuned.candidates)
    assert all(each.reason.startswith("OutOfResources") for tuned in report.cases for each in tuned.dropped)
    assert tk.best_layout(net, torch.randn(64, 64, 16, 16, device="cuda"), cache=False) in ("batch_last", "channels_last")
