"""Every op where it is to run: its CUDA and Triton kernels, and torch's dense ops, on a CUDA device, against float64 on the CPU.

Each test runs on "cuda" (marked gpu), and, tiny, on "cpu" under Triton's interpreter and the shim of tests/cuda_host, so that no
line runs for the first time on a GPU. What the CPU lacks (streams, graphs, compilation) is stood in for by the plain call.
"""

from __future__ import annotations

import contextlib
import fcntl
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import tost_kernels as tk
from tost_kernels import backend as backends
from tost_kernels.layout import as_layout, layout_of
from tost_kernels.ops import ghost_skip_add as gsa
from tost_kernels.ops import pswish as pswish_op
from tost_kernels.plan import Plan

LAYOUTS = ["batch_last", "channels_last", "contiguous"]
# How products of float32 are computed -> the error that is rounding, against the largest number of the result; on top of twice
# what torch's own op errs by at the same precision.
FLOORS = {"ieee": 1e-5, "tf32": 2e-3, "bfloat16": 1e-2}


@pytest.fixture(params=["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def device(request: pytest.FixtureRequest) -> str:
    if request.param == "cpu" and torch.cuda.is_available():
        pytest.skip("the kernels are compiled in this process: nothing interprets them")
    return str(request.param)


@pytest.fixture(params=["triton", "cuda"])
def kernels(request: pytest.FixtureRequest, device: str) -> str:
    """The backend whose kernels are tested."""
    if (device, request.param) == ("cpu", "cuda"):
        request.getfixturevalue("emulated_cuda")
    return str(request.param)


@pytest.fixture
def precision(request: pytest.FixtureRequest) -> Iterator[str]:
    """The precision of matrix products, by torch's own settings: "ieee" and "tf32" for float32, and "bfloat16"."""
    settings = torch.backends.cudnn.conv, torch.backends.cuda.matmul
    before = [setting.fp32_precision for setting in settings]
    for setting in settings:
        setting.fp32_precision = "tf32" if request.param == "tf32" else "ieee"
    yield request.param
    for setting, value in zip(settings, before, strict=True):
        setting.fp32_precision = value


# The interpreter multiplies exactly: tf32 would be ieee again.
PRODUCTS = [pytest.param("cpu", p) for p in ("ieee", "bfloat16")]
PRODUCTS += [pytest.param("cuda", p, marks=pytest.mark.gpu) for p in FLOORS]
products = pytest.mark.parametrize(("device", "precision"), PRODUCTS, indirect=True)


def needs(op: str, kernels: str) -> None:
    if reason := backends.why_not(op, kernels):
        pytest.skip(reason)


def dtype_of(precision: str) -> torch.dtype:
    return torch.bfloat16 if precision == "bfloat16" else torch.float32


def random(*shape: int, device: str = "cpu", dtype: torch.dtype = torch.float32, layout: str = "contiguous") -> Tensor:
    """Drawn on the CPU, so that every device sees the same numbers."""
    return as_layout(torch.randn(shape).to(dtype).to(device), layout)


def differentiated(function: Callable[..., Tensor], *leaves: Tensor) -> list[Tensor]:
    """Output and the gradients of all leaves, for a gradient of the output that depends on nothing but its shape."""
    own = [t.detach().clone(memory_format=torch.preserve_format).requires_grad_() for t in leaves]
    out = function(*own)
    wave = (torch.sin(torch.arange(out.numel(), dtype=torch.float64)) + 0.5).view(out.shape)
    return [out.detach(), *torch.autograd.grad(out, own, wave.to(out))]


def error(got: Tensor, want: Tensor) -> float:
    assert got.shape == want.shape
    assert got.isfinite().all()
    return float((got.cpu().double() - want).abs().max() / want.abs().max().clamp_min(1e-9))


def close(got: list[Tensor], want: list[Tensor], torchs: list[Tensor], precision: str) -> None:
    """`got` errs at most twice as much as `torchs`, beyond rounding."""
    for i, (mine, true, theirs) in enumerate(zip(got, want, torchs, strict=True)):
        allowed = 2 * error(theirs, true) + FLOORS[precision]
        assert error(mine, true) <= allowed, f"{'gradient ' + str(i) if i else 'output'}: {error(mine, true)} > {allowed}"


class Conv(NamedTuple):
    x: tuple[int, int, int, int]
    weight: tuple[int, int, int, int]
    density: float
    stride: int = 1
    padding: int = 1
    groups: int = 1


CONVS = {
    "cpu": {"3x3": Conv((3, 3, 3, 2), (4, 3, 3, 3), 0.3), "strided": Conv((2, 4, 3, 3), (4, 2, 3, 3), 0.4, 2, 1, 2)},
    "cuda": {
        "3x3": Conv((130, 72, 9, 7), (70, 72, 3, 3), 0.1),
        "strided": Conv((128, 64, 16, 16), (128, 32, 3, 3), 0.2, 2, 1, 2),
    },
}
PLANS = {
    "triton": ["", "algo=tiles", "algo=direct", "algo=blocks"],
    "cuda": ["", "algo=direct,rows=1", "algo=direct,rows=4", "algo=gather,rows=16", "algo=gather,rows=32"],
}


def conv_problem(name: str, device: str, dtype: torch.dtype) -> tuple[Conv, tk.Pattern, Tensor, Tensor, Tensor]:
    case = CONVS[device][name]
    mask = torch.rand(case.weight) < case.density
    mask[0, 0, 0, 0], mask[-1] = True, False
    values = random(int(mask.sum()), device=device, dtype=dtype)
    x, bias = random(*case.x, device=device, dtype=dtype), random(case.weight[0], device=device, dtype=dtype)
    return case, tk.Pattern(mask).to(device), x, values, bias


@pytest.mark.parametrize(
    ("device", "precision", "kernels", "options"),
    [
        pytest.param(*products.values, name, options, marks=products.marks)
        for products in PRODUCTS
        for name, plans in PLANS.items()
        for options in plans
        if "gather" not in options or "ieee" not in products.values  # tensor cores have no such products
    ],
    indirect=["device", "precision", "kernels"],
)
@pytest.mark.parametrize("name", CONVS["cpu"])
def test_masked_conv2d(device: str, precision: str, name: str, kernels: str, options: str) -> None:
    needs("masked_conv2d", kernels)
    case, pattern, x, values, bias = conv_problem(name, device, dtype_of(precision))
    mask = pattern.mask().cpu()

    def dense(x: Tensor, values: Tensor, bias: Tensor) -> Tensor:
        weight = torch.zeros(case.weight, dtype=values.dtype, device=values.device)
        weight = weight.masked_scatter(mask.to(values.device), values)
        return F.conv2d(x, weight, bias, case.stride, case.padding, 1, case.groups)

    def run(plan: Plan) -> Callable[..., Tensor]:
        return lambda x, v, b: tk.masked_conv2d(x, v, pattern, b, case.stride, case.padding, 1, case.groups, plan=plan)

    want = differentiated(dense, *(t.cpu().double() for t in (x, values, bias)))
    torchs = differentiated(dense, x, values, bias)
    for layout in LAYOUTS if device == "cuda" else [LAYOUTS[PLANS[kernels].index(options) % 3]]:
        there = as_layout(x, layout)
        got = differentiated(run(Plan(kernels, options)), there, values, bias)
        close(got, want, torchs, precision)
        assert [layout_of(got[0]), layout_of(got[1])] == [layout, layout]
        close(differentiated(run(Plan("dense")), there, values, bias), want, torchs, precision)


@products
@pytest.mark.parametrize("layout", ["batch_last", "contiguous"])
def test_masked_linear(device: str, precision: str, layout: str, kernels: str) -> None:
    needs("masked_linear", kernels)
    batch, inputs, outputs = (5, 7, 9) if device == "cpu" else (130, 500, 300)
    dtype = dtype_of(precision)
    mask = torch.rand(outputs, inputs) < 0.2
    mask[0, 0] = True
    pattern = tk.Pattern(mask).to(device)
    x = random(batch, inputs, device=device, dtype=dtype, layout=layout)
    values, bias = random(pattern.nnz, device=device, dtype=dtype), random(outputs, device=device, dtype=dtype)

    def dense(x: Tensor, values: Tensor, bias: Tensor) -> Tensor:
        weight = torch.zeros(outputs, inputs, dtype=values.dtype, device=values.device)
        return F.linear(x, weight.masked_scatter(mask.to(values.device), values), bias)

    want = differentiated(dense, *(t.cpu().double() for t in (x, values, bias)))
    torchs = differentiated(dense, x, values, bias)
    for name in (kernels, "dense"):
        with tk.use_backend(name):
            got = differentiated(lambda x, v, b: tk.masked_linear(x, v, pattern, b), x, values, bias)
        close(got, want, torchs, precision)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
@pytest.mark.parametrize("shared", [True, False], ids=["one beta", "a beta a channel"])
def test_pswish(device: str, dtype: torch.dtype, layout: str, shared: bool, kernels: str) -> None:
    needs("pswish", kernels)
    shape = (3, 4, 3, 2) if device == "cpu" else (67, 33, 17, 9)
    x = random(*shape, device=device, dtype=dtype, layout=layout)
    beta = (torch.tensor(1.5) if shared else torch.linspace(0.5, 3, shape[1])).to(device)
    want = differentiated(lambda x, b: pswish_op.reference(x, b, ""), x.cpu().double(), beta.cpu().double())
    torchs = differentiated(lambda x, b: pswish_op.reference(x, b, ""), x, beta)
    with tk.use_backend(kernels):
        got = differentiated(tk.pswish, x, beta)
    close(got, want, torchs, "ieee" if dtype == torch.float32 else "bfloat16")
    assert layout_of(got[0]) == layout


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
@pytest.mark.parametrize("alpha", [0.0, 0.7])
def test_ghost_skip_add(device: str, dtype: torch.dtype, layout: str, alpha: float, kernels: str) -> None:
    needs("ghost_skip_add", kernels)
    shape = (4, 3, 3, 2) if device == "cpu" else (67, 33, 17, 9)
    u, ghost, shortcut = (random(*shape, device=device, dtype=dtype, layout=layout) for _ in range(3))
    weight, bias = random(shape[1], device=device), random(shape[1], device=device)
    strength, beta = torch.tensor(alpha, device=device), torch.tensor(1.3, device=device)

    def run(u: Tensor, g: Tensor, s: Tensor, w: Tensor, b: Tensor, alpha: Tensor, beta: Tensor) -> Tensor:
        norm = gsa.Norm(w, b, batch_stats=True)
        return tk.ghost_skip_add(u, g, alpha, s, norm=norm, ghost_norm=norm, act="pswish", beta=beta).out

    leaves = u, ghost, shortcut, weight, bias, strength, beta
    with tk.use_backend("reference"):
        want = differentiated(run, *(t.cpu().double() for t in leaves))
        torchs = differentiated(run, *leaves)
    with tk.use_backend(kernels):
        got = differentiated(run, *leaves)
    close(got, want, torchs, "ieee" if dtype == torch.float32 else "bfloat16")
    assert layout_of(got[0]) == layout


def test_batch_last(device: str) -> None:
    x = random(5, 3, 4, 2, device=device) if device == "cpu" else random(70, 65, 33, 31, device=device)
    there = tk.to_batch_last(x)
    assert tk.is_batch_last(there)
    assert torch.equal(there, x)
    for layout in LAYOUTS:
        assert torch.equal(as_layout(there, layout), x)
        assert layout_of(as_layout(there, layout)) == layout


# What a layer of a network is: a sparse convolution, its normalisation, a ghost of its input, an activation.


class Block(nn.Module):
    def __init__(self, channels: int, device: str) -> None:
        super().__init__()
        mask = torch.rand(channels, channels, 3, 3) < 0.3
        mask[0, 0, 0, 0] = True
        self.conv = tk.SparseConv2d(channels, channels, 3, padding=1, bias=False, mask=mask)
        self.norm, self.ghost_norm = nn.BatchNorm2d(channels), nn.BatchNorm2d(channels)
        self.tail = tk.GhostSkipAdd("pswish", alpha=0.5, beta=2.0, trainable_beta=True)
        self.to(device)

    def forward(self, x: Tensor) -> Tensor:
        return self.tail(self.conv(x), self.norm, x, self.ghost_norm)

    def step(self, x: Tensor) -> list[Tensor]:
        """Output and all gradients of a forward and backward pass."""
        leaves = x, *self.parameters()
        out = self(x)
        return [out.detach(), *torch.autograd.grad(out.sum() + (out * out).sum(), leaves)]


def small_block(device: str, kernels: str) -> tuple[Block, Tensor]:
    needs("masked_conv2d", kernels)
    needs("ghost_skip_add", kernels)
    shape = (3, 2, 2, 2) if device == "cpu" else (64, 32, 8, 8)
    block = Block(shape[1], device)
    return block, random(*shape, device=device, layout="batch_last").requires_grad_()


def captured(function: Callable[[], list[Tensor]], device: str) -> tuple[list[Tensor], Callable[[], None]]:
    """What `function` returns, and what refreshes it: the replay of a CUDA graph, or where there is none the call itself."""
    if device == "cpu":
        static = function()

        def again() -> None:
            for old, new in zip(static, function(), strict=True):
                old.copy_(new)

        return static, again
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(2):
            function()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        static = function()
    return static, graph.replay


def test_a_captured_block_follows_what_changes(device: str, kernels: str) -> None:
    block, x = small_block(device, kernels)
    with tk.use_backend(kernels):
        static, replay = captured(lambda: block.step(x), device)
        for alpha in (0.9, 0.0):  # at 0 the ghost is not even read
            with torch.no_grad():
                x.copy_(torch.randn(x.shape))
                block.conv.values.copy_(torch.randn(block.conv.values.shape))
                block.tail.alpha.fill_(alpha)
            buffers = {name: buffer.clone() for name, buffer in block.named_buffers()}
            replay()
            got, moved = [t.clone() for t in static], {name: b.clone() for name, b in block.named_buffers()}
            with torch.no_grad():
                for name, buffer in block.named_buffers():
                    buffer.copy_(buffers[name])
            for mine, eager in zip(got, block.step(x), strict=True):
                assert torch.equal(mine, eager)  # the same kernels, sums in the same order
            for name, buffer in block.named_buffers():
                assert torch.equal(moved[name], buffer), name


def test_sums_come_out_the_same_every_time(device: str, kernels: str) -> None:
    block, x = small_block(device, kernels)
    with tk.use_backend(kernels):
        first = block.step(x)
        for _ in range(1 if device == "cpu" else 5):
            assert all(torch.equal(a, b) for a, b in zip(first, block.step(x), strict=True))


def test_another_stream(device: str, kernels: str) -> None:
    """What is computed on a stream of one's own waits for what was put there before, and for nothing else to come right."""
    block, x = small_block(device, kernels)
    with tk.use_backend(kernels):
        want = block.step(x)
        stream = torch.cuda.Stream() if device == "cuda" else None
        if stream is not None:
            stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream) if stream is not None else contextlib.nullcontext():
            late = torch.full_like(x, torch.nan)
            if stream is not None:
                torch.cuda._sleep(50_000_000)  # some 30 ms: a kernel on the wrong stream would read NaN
            late.copy_(x.detach())
            got = block.step(late.requires_grad_())
        if stream is not None:
            torch.cuda.current_stream().wait_stream(stream)
    for mine, true in zip(got, want, strict=True):
        assert torch.equal(mine, true)


@pytest.mark.parametrize("kernels", ["triton"], indirect=True)
def test_a_second_call_compiles_nothing(device: str, kernels: str, monkeypatch: pytest.MonkeyPatch) -> None:
    block, x = small_block(device, kernels)
    triton = pytest.importorskip("triton")
    compiled: list[Any] = []
    with tk.use_backend(kernels):
        monkeypatch.setattr(triton.knobs.runtime, "jit_cache_hook", lambda **what: compiled.append(what["repr"]))
        block.step(x)
        assert compiled or device == "cpu"
        del compiled[:]
        with torch.no_grad():
            block.tail.alpha.fill_(0.25)
        block.step(torch.randn_like(x).requires_grad_())
    assert compiled == []


# Sizes past 2^31 elements: a small problem repeated along the batch. Outputs and gradients of activations then repeat the small
# one's, the gradients of parameters are so many times its own.


@pytest.fixture
def alone(device: str) -> Iterator[None]:
    """On a GPU these tests wait for each other, where several processes share them out: two at a time would not fit."""
    if device == "cpu":
        yield
        return
    with Path(tempfile.gettempdir(), "tost-large-tests-on-a-gpu.lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
        torch.cuda.empty_cache()  # torch would keep it from the other processes


large = pytest.mark.usefixtures("alone")


def repetitions(device: str, elements: int, tensors: int) -> int:
    """How often to repeat `elements` to pass 2^31, where `tensors` such tensors of bfloat16 fit; 3 times on the CPU."""
    if device == "cpu":
        return 3
    times = 2**31 // elements + 1
    wanted, free = tensors * times * elements * 2, torch.cuda.mem_get_info()[0]
    if free < wanted:
        pytest.skip(f"needs {wanted / 2**30:.0f} GiB of GPU memory, {free / 2**30:.0f} are free")
    return times


def repeated(small: Tensor, times: int) -> Tensor:
    """`small` (N, ...) so often along the batch, in its layout."""
    if layout_of(small) == "batch_last":
        return torch.movedim(torch.movedim(small, 0, -1).repeat(*[1] * (small.dim() - 1), times), -1, 0)
    return as_layout(small.repeat(times, *[1] * (small.dim() - 1)), layout_of(small))


def check_large(
    kernels: str, function: Callable[..., Tensor], activations: list[Tensor], parameters: list[Tensor], times: int
) -> None:
    """`function(*activations, *parameters)` on the repeated activations against itself on the small ones, in float64."""
    small = [*activations, *parameters]
    with tk.use_backend("reference"):
        true = [t.cpu().double().requires_grad_() for t in small]
        out = function(*true)
        wave = torch.sin(torch.arange(out.numel(), dtype=torch.float64)).view(out.shape) + 0.5
        want = [out.detach(), *torch.autograd.grad(out, true, wave)]
    n = out.shape[0]
    layout = layout_of(activations[0])
    large = [repeated(a, times).requires_grad_() for a in activations] + [p.requires_grad_() for p in parameters]
    with tk.use_backend(kernels):
        result = function(*large)
        grads = torch.autograd.grad(result, large, repeated(as_layout(wave.to(result), layout), times))
    tolerance = 2e-2  # of bfloat16
    for got, expected in zip((result.detach(), *grads[: len(activations)]), want, strict=False):
        assert got.shape == (n * times, *expected.shape[1:])
        for part in (got[:n], got[-n:], got[n * (times // 2) :][:n]):
            assert error(part, expected) < tolerance
    for got, expected in zip(grads[len(activations) :], want[1 + len(activations) :], strict=True):
        assert error(got / times, expected) < tolerance


@large
@pytest.mark.parametrize("layout", LAYOUTS)
def test_masked_conv2d_past_int32(device: str, layout: str, kernels: str) -> None:
    needs("masked_conv2d", kernels)
    batch, channels, side = (2, 3, 2) if device == "cpu" else (32, 16, 3)
    times = repetitions(device, batch * channels * side * side, tensors=10)
    mask = torch.rand(channels, channels, 3, 3) < 0.3
    mask[0, 0, 1, 1] = mask[-1, -1, 1, 1] = True
    patterns = {kind: tk.Pattern(mask).to(kind) for kind in {device, "cpu"}}
    x = random(batch, channels, side, side, device=device, dtype=torch.bfloat16, layout=layout)
    values = random(patterns[device].nnz, device=device, dtype=torch.bfloat16)
    check_large(kernels, lambda x, v: tk.masked_conv2d(x, v, patterns[x.device.type], padding=1), [x], [values], times)


@large
@pytest.mark.parametrize("layout", ["batch_last", "contiguous"])
def test_masked_linear_past_int32(device: str, layout: str, kernels: str) -> None:
    needs("masked_linear", kernels)
    batch, width = (4, 6) if device == "cpu" else (32, 64)
    times = repetitions(device, batch * width, tensors=10)
    mask = torch.rand(width, width) < 0.2
    mask[0, 0] = mask[-1, -1] = True
    patterns = {kind: tk.Pattern(mask).to(kind) for kind in {device, "cpu"}}
    x = random(batch, width, device=device, dtype=torch.bfloat16, layout=layout)
    values = random(patterns[device].nnz, device=device, dtype=torch.bfloat16)
    check_large(kernels, lambda x, v: tk.masked_linear(x, v, patterns[x.device.type]), [x], [values], times)


@large
@pytest.mark.parametrize("layout", LAYOUTS)
def test_pswish_past_int32(device: str, layout: str, kernels: str) -> None:
    needs("pswish", kernels)
    batch = 2 if device == "cpu" else 32
    x = random(batch, 8, 4, 4, device=device, dtype=torch.bfloat16, layout=layout)
    beta = torch.linspace(0.5, 2, 8, device=device)
    check_large(kernels, tk.pswish, [x], [beta], repetitions(device, x.numel(), tensors=8))


@large
@pytest.mark.parametrize("layout", LAYOUTS)
def test_ghost_skip_add_past_int32(device: str, layout: str, kernels: str) -> None:
    needs("ghost_skip_add", kernels)
    batch = 2 if device == "cpu" else 32
    u, ghost = (random(batch, 8, 4, 4, device=device, dtype=torch.bfloat16, layout=layout) for _ in range(2))
    weight, alpha = torch.linspace(0.5, 2, 8, device=device), torch.tensor(0.6, device=device)

    def run(u: Tensor, ghost: Tensor, weight: Tensor, alpha: Tensor) -> Tensor:
        norm = gsa.Norm(weight, batch_stats=True)
        return tk.ghost_skip_add(u, ghost, alpha, norm=norm, ghost_norm=norm, act="relu").out

    check_large(kernels, run, [u, ghost], [weight, alpha], repetitions(device, u.numel(), tensors=12))


@large
def test_batch_last_past_int32(device: str) -> None:
    batch = 2 if device == "cpu" else 32
    small = random(batch, 8, 4, 4, device=device, dtype=torch.bfloat16)
    times = repetitions(device, small.numel(), tensors=4)
    there = tk.to_batch_last(repeated(small, times))
    assert tk.is_batch_last(there)
    for part in (there[:batch], there[-batch:], there[batch * (times // 2) :][:batch]):
        assert torch.equal(part, small)
    assert torch.equal(as_layout(there, "contiguous")[-batch:], small)
