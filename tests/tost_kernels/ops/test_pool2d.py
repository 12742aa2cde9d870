"""Pooling: hand-made tables, then the compiled kernels against torch's own, values and gradients."""

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

import tost_kernels as tk
from tost_kernels import backend
from tost_kernels.layout import as_layout, layout_of
from tost_kernels.ops.pool2d import max_reference
from tost_kernels.register import op

pytestmark = pytest.mark.skipif(backend.why_not("max_pool2d", "cpu") is not None, reason="the compiled library is absent")

NAN, INF = float("nan"), float("inf")
# kernel, stride, padding, ceil_mode
WINDOWS = {
    "2x2": ([2, 2], [2, 2], [0, 0], False),
    "2x2, rounded up": ([2, 2], [2, 2], [0, 0], True),
    "3x3, stride 2, padded": ([3, 3], [2, 2], [1, 1], False),
    "3x3, stride 2, padded, rounded up": ([3, 3], [2, 2], [1, 1], True),
    "3x3, stride 1": ([3, 3], [1, 1], [1, 1], False),
    "1x1, stride 3: pixels without a window": ([1, 1], [3, 3], [0, 0], False),
    "odd": ([2, 3], [3, 1], [1, 0], True),
    "16x1, wide": ([5, 1], [1, 4], [2, 0], False),
}
SHAPES = {
    "ordinary": (16, 3, 7, 8),
    "many vectors, and an odd one": (77, 2, 6, 5),
    "less than a vector": (5, 3, 5, 9),
    "several strips": (48, 1, 5, 70),
    "more than a strip": (1100, 1, 4, 4),
    "streamed": (64, 9, 24, 25),
}


def both(function, x: Tensor, grad: Tensor) -> tuple[Tensor, Tensor]:
    x = x.detach().requires_grad_()
    out = function(x)
    return out.detach(), torch.autograd.grad(out, x, grad.to(out.dtype))[0]


def test_maxima_by_hand() -> None:
    """The first of equal ones, the last NaN, and -inf where there is nothing else."""
    rows = [[1.0, 3.0, 2.0, 2.0], [3.0, 0.0, 2.0, 2.0], [NAN, 1.0, -INF, -INF], [NAN, 5.0, -INF, -INF]]
    x = tk.to_batch_last(torch.tensor(rows).expand(16, 2, 4, 4))
    out, taps = op("max_pool2d", "cpu")(x, *WINDOWS["2x2"])
    for channel in (0, 1):
        assert out[3, channel].nan_to_num(nan=99).tolist() == [[3.0, 2.0], [99.0, torch.finfo().min]]
        assert taps[3, channel].tolist() == [[1, 0], [2, 0]]
    _, dx = both(
        lambda x: op("max_pool2d", "cpu")(x, *WINDOWS["2x2"])[0], x, torch.tensor([[1.0, 2.0], [3.0, 4.0]]).expand_as(out)
    )
    assert dx[15, 1].tolist() == [[0, 1, 2, 0], [0, 0, 0, 0], [0, 0, 4, 0], [3, 0, 0, 0]]


def test_averages_by_hand() -> None:
    x = tk.to_batch_last(torch.arange(9.0).reshape(1, 1, 3, 3).expand(16, 2, 3, 3))
    windows = WINDOWS["2x2, rounded up"]
    average = op("avg_pool2d", "cpu")
    assert average(x, *windows, True, 0)[7, 1].tolist() == [[2.0, 3.5], [6.5, 8.0]]
    assert average(x, *windows, True, 8)[7, 1].tolist() == [[1.0, 0.875], [1.625, 1.0]]
    padded = [2, 2], [2, 2], [1, 1], False
    assert average(x, *padded, True, 0)[7, 1].tolist() == [[0.0, 0.75], [2.25, 6.0]]
    assert average(x, *padded, False, 0)[7, 1].tolist() == [[0.0, 1.5], [4.5, 6.0]]
    _, dx = both(lambda x: average(x, *windows, True, 0), x, torch.tensor([[4.0, 2.0], [2.0, 1.0]]).expand(16, 2, 2, 2))
    assert dx[0, 0].tolist() == [[1, 1, 1], [1, 1, 1], [1, 1, 1]]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
@pytest.mark.parametrize("windows", WINDOWS.values(), ids=WINDOWS)
def test_maxima_are_torchs(windows, shape: tuple[int, ...], dtype: torch.dtype) -> None:
    """Exactly, of values with many ties; the gradients of windows that overlap are sums in another dtype for bfloat16."""
    x = torch.randint(-9, 9, shape).to(dtype)
    kernel, stride, padding, ceil_mode = windows
    want = F.max_pool2d(x, kernel, stride, padding, 1, ceil_mode)
    grad = torch.randint(-9, 9, want.shape).float()  # small whole numbers: sums are exact
    want, want_dx = both(lambda x: F.max_pool2d(x, kernel, stride, padding, 1, ceil_mode), x, grad)
    got, got_dx = both(lambda x: op("max_pool2d", "cpu")(x, *windows)[0], tk.to_batch_last(x), grad)
    assert torch.equal(got, want)
    assert torch.equal(got_dx, want_dx)
    taps = op("max_pool2d", "cpu")(tk.to_batch_last(x), *windows)[1]
    assert torch.equal(taps, max_reference(x, *windows)[1])


@pytest.mark.parametrize("counting", [(True, 0), (False, 0), (True, 7)], ids=["padded", "unpadded", "divisor"])
@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
@pytest.mark.parametrize("windows", WINDOWS.values(), ids=WINDOWS)
def test_averages_are_torchs(windows, shape: tuple[int, ...], counting: tuple[bool, int]) -> None:
    x = torch.randn(shape)
    grad = torch.randn(op("avg_pool2d", "reference")(x, *windows, *counting).shape)
    want = both(lambda x: op("avg_pool2d", "reference")(x, *windows, *counting), x.double(), grad)
    for dtype, tolerance in ((torch.float32, 1e-6), (torch.bfloat16, 1e-2)):
        low = tk.to_batch_last(x.to(dtype))
        got = both(lambda x: op("avg_pool2d", "cpu")(x, *windows, *counting), low, grad)
        for mine, exact in zip(got, want, strict=True):
            assert mine.dtype == dtype
            assert layout_of(mine) == layout_of(low) or mine.is_contiguous()
            torch.testing.assert_close(mine.double(), exact, rtol=tolerance, atol=2 * tolerance)


@pytest.mark.parametrize("layout", ["contiguous", "channels_last", "batch_last"])
def test_opcheck(layout: str) -> None:
    x = as_layout(torch.randn(3, 4, 5, 6), layout).requires_grad_()
    windows = WINDOWS["3x3, stride 2, padded, rounded up"]
    torch.library.opcheck(op("max_pool2d", "cpu"), (x, *windows))
    torch.library.opcheck(op("avg_pool2d", "cpu"), (x, *windows, False, 0))
    out, taps = op("max_pool2d", "cpu")(x.detach(), *windows)
    assert layout_of(out) == layout_of(taps) == layout
    back = list(x.shape), layout, *windows
    torch.library.opcheck(op("max_pool2d_backward", "cpu"), (torch.randn(out.shape), taps, *back))
    torch.library.opcheck(op("avg_pool2d_backward", "cpu"), (torch.randn(out.shape), *back, False, 0))
    if layout == "contiguous":
        torch.library.opcheck(op("max_pool2d", "reference"), (x, *windows))
        torch.library.opcheck(op("avg_pool2d", "reference"), (x, *windows, False, 0))


class Calls(TorchDispatchMode):
    """The names of the ops of this package that run."""

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func.namespace == "tost":
            self.names.append(func.overloadpacket.__name__)
        return func(*args, **(kwargs or {}))


def calls(module: nn.Module, x: Tensor) -> list[str]:
    with Calls() as seen:
        module(x)
    return seen.names


def test_who_runs() -> None:
    x = tk.to_batch_last(torch.randn(16, 3, 6, 6))
    assert calls(tk.nn.MaxPool2d(2), x) == ["max_pool2d_cpu"]
    assert calls(tk.nn.AvgPool2d(2), x) == ["avg_pool2d_cpu"]
    assert calls(tk.nn.MaxPool2d((4, 2), stride=1, padding=(2, 0)), x.bfloat16()) == ["max_pool2d_cpu"]
    for module in (tk.nn.MaxPool2d(2, dilation=2), tk.nn.MaxPool2d(2, return_indices=True)):
        assert calls(module, x) == []
    for other in (x.contiguous(), x.double(), tk.to_batch_last(x[:15].contiguous())):
        assert calls(tk.nn.MaxPool2d(2), other) == calls(tk.nn.AvgPool2d(2), other) == []
    large = tk.to_batch_last(torch.randn(16, 2, 17, 17))
    assert calls(tk.nn.MaxPool2d(17), large) == calls(tk.nn.AvgPool2d(17), large) == []
    for name in ("reference", "dense"):
        with tk.use_backend(name):
            assert calls(tk.nn.MaxPool2d(2), x) == []


def test_what_torch_refuses_torch_refuses() -> None:
    x = tk.to_batch_last(torch.randn(16, 3, 6, 6))
    for ours, theirs in ((tk.nn.MaxPool2d, nn.MaxPool2d), (tk.nn.AvgPool2d, nn.AvgPool2d)):
        for options in ({"kernel_size": 2, "padding": 2}, {"kernel_size": 7}, {"kernel_size": 2, "stride": -1}):
            with pytest.raises(RuntimeError) as torchs:
                theirs(**options)(x)
            with pytest.raises(RuntimeError, match="^" + str(torchs.value)[:12]):
                ours(**options)(x)
    with pytest.raises(RuntimeError, match="divisor must be not zero"):
        tk.nn.AvgPool2d(2, divisor_override=0)(x)


def test_a_second_derivative_is_refused() -> None:
    x = tk.to_batch_last(torch.randn(16, 3, 6, 6)).requires_grad_()
    for module in (tk.nn.MaxPool2d(2), tk.nn.AvgPool2d(2)):
        (dx,) = torch.autograd.grad(module(x).square().sum(), x, create_graph=True)
        with pytest.raises(RuntimeError, match="once_differentiable"):
            dx.sum().backward()


def test_compiles_with_its_gradient() -> None:
    net = nn.Sequential(tk.nn.MaxPool2d(3, 2, 1), tk.nn.AvgPool2d(2, ceil_mode=True))
    x = tk.to_batch_last(torch.randn(16, 3, 9, 9)).requires_grad_()
    compiled = torch.compile(net, fullgraph=True, backend="aot_eager")
    got, want = (torch.autograd.grad(f(x).square().sum(), x)[0] for f in (compiled, net))
    assert torch.equal(got, want)
    assert tk.is_batch_last(got)


def test_autocast_keeps_the_dtype() -> None:
    x = tk.to_batch_last(torch.randn(16, 3, 6, 6))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert tk.nn.MaxPool2d(2)(x).dtype == nn.MaxPool2d(2)(x).dtype == torch.float32
        assert tk.nn.AvgPool2d(2)(x).dtype == nn.AvgPool2d(2)(x).dtype == torch.float32


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"input": torch.ones(2, 3, 4)}, r"input: expected shape \(N, C, H, W\), got \(2, 3, 4\)"),
        ({"input": torch.ones(2, 3, 4, 4).double()}, "input: expected float32 or bfloat16, got float64"),
        ({"kernel": [2]}, "expected 2 values each, got 1"),
        ({"kernel": [5, 5]}, "expected at least one window of 5, got a side of 4 with padding 0"),
        ({"kernel": [17, 17], "padding": [8, 8]}, "expected at most 256 taps, got 289"),
        ({"stride": [0, 1]}, "expected positive numbers, got 2 and 0"),
        ({"padding": [2, 0]}, r"padding: expected 0 to half of the kernel \(2\), got 2"),
    ],
)
def test_the_raw_op_names_what_is_wrong(change, message: str) -> None:
    good = {"input": torch.ones(2, 3, 4, 4), "kernel": [2, 2], "stride": [2, 2], "padding": [0, 0], "ceil_mode": False}
    with pytest.raises(RuntimeError, match=f"max_pool2d_cpu: .*{message}"):
        op("max_pool2d", "cpu")(*(good | change).values())


def test_gradients_are_checked_too() -> None:
    windows = WINDOWS["2x2"]
    taps = torch.zeros(2, 3, 2, 2, dtype=torch.uint8)
    with pytest.raises(RuntimeError, match=r"grad_output: expected shape \(2, 3, 2, 2\), got \(2, 3, 2, 1\)"):
        op("max_pool2d_backward", "cpu")(torch.ones(2, 3, 2, 1), taps, [2, 3, 4, 4], "contiguous", *windows)
    with pytest.raises(RuntimeError, match="taps: expected uint8, got int32"):
        op("max_pool2d_backward", "cpu")(torch.ones(2, 3, 2, 2), taps.int(), [2, 3, 4, 4], "contiguous", *windows)
    with pytest.raises(RuntimeError, match="layout: expected batch_last"):
        op("avg_pool2d_backward", "cpu")(torch.ones(2, 3, 2, 2), [2, 3, 4, 4], "sideways", *windows, True, 0)


CHILD = """
import torch, test_pool2d as t
torch.manual_seed(0)
t.test_maxima_by_hand(); t.test_averages_by_hand()
for windows in t.WINDOWS.values():
    for shape in ((16, 3, 7, 8), (77, 2, 6, 5), (5, 3, 5, 9)):
        t.test_maxima_are_torchs(windows, shape, torch.bfloat16)
        t.test_averages_are_torchs(windows, shape, (False, 0))
"""


@pytest.mark.parametrize("isa", ["portable", "avx2"])
def test_lower_instruction_sets(isa: str, run_on: Callable[[str, str], None]) -> None:
    run_on(isa, CHILD)
