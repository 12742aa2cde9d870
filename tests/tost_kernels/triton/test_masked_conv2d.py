"""masked_conv2d by Triton: every algorithm on odd shapes, in all layouts, against float64; the op contract; bad plans.

Without a GPU the interpreter runs the kernels: shapes are tiny, a program costs milliseconds.
"""

from dataclasses import dataclass
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import tost_kernels as tk
from tost_kernels.backend import why_not
from tost_kernels.layout import as_layout, layout_of
from tost_kernels.ops.masked import index_and_options
from tost_kernels.plan import Plan
from tost_kernels.register import op

pytestmark = pytest.mark.skipif(why_not("masked_conv2d", "triton") is not None, reason="needs triton, on a GPU or interpreted")

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
TILES = "algo=tiles,rows=16,bn=32,bk=64,precision=ieee"
BLOCKS = "algo=blocks,rows=16,bn=32,block=16,precision=ieee"


@dataclass(frozen=True)
class Case:
    x: tuple[int, int, int, int]
    weight: tuple[int, int, int, int]
    stride: Any = 1
    padding: Any = 0
    dilation: Any = 1
    groups: int = 1
    density: float = 0.3
    bias: bool = True


CASES = {
    "rows_left_over": Case((17, 20, 2, 3), (21, 20, 3, 3), padding=1, density=0.1),
    "one_sample": Case((1, 3, 3, 4), (4, 3, 3, 3), padding=1),
    "batch_beyond_a_tile": Case((40, 5, 2, 2), (4, 5, 2, 2), padding=1),
    "one_pixel": Case((33, 20, 1, 1), (7, 20, 1, 1), density=0.5),
    "pointwise_strided": Case((16, 9, 4, 4), (5, 9, 1, 1), stride=2),
    "strided": Case((3, 6, 5, 4), (6, 6, 3, 3), stride=2, padding=1),
    "strided_uneven": Case((3, 6, 7, 4), (6, 6, 3, 3), stride=(2, 3), padding=(1, 0)),
    "strided_and_dilated": Case((3, 4, 5, 4), (6, 4, 3, 3), stride=2, padding=(1, 2), dilation=(2, 1)),
    "dilated": Case((3, 5, 5, 4), (4, 5, 3, 3), padding=(2, 1), dilation=(2, 1)),
    "five_by_five": Case((3, 4, 3, 4), (6, 4, 5, 5), padding=2),
    "same_even": Case((3, 7, 3, 4), (5, 7, 2, 4), padding="same"),
    "rectangular": Case((5, 7, 4, 3), (9, 7, 3, 1), padding=(1, 0)),
    "groups": Case((3, 12, 3, 3), (9, 4, 3, 3), padding=1, groups=3),
    "depthwise": Case((3, 18, 3, 3), (18, 1, 3, 3), padding=1, groups=18, density=0.6),
    "wide_padding": Case((4, 3, 2, 2), (4, 3, 3, 3), padding=3),
    "empty": Case((3, 4, 3, 3), (6, 4, 3, 3), padding=1, density=0.0),
    "full": Case((3, 4, 2, 2), (6, 4, 3, 3), padding=1, density=1.0, bias=False),
    "no_samples": Case((0, 4, 3, 3), (6, 4, 3, 3), padding=1),
}

WITH_VALUES = ("strided_and_dilated", "groups", "empty", "full", "no_samples")  # whose values' gradient is looked at here


def tensors(case: Case, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor, tk.Pattern, Tensor | None]:
    mask = torch.rand(case.weight) < case.density
    if 0 < case.density < 1:
        mask[-1] = False  # an output channel without weights
        mask[0, 0, 0, 0] = True
    pattern = tk.Pattern(mask.to(DEVICE))
    x, values = torch.randn(case.x, device=DEVICE), torch.randn(pattern.nnz, device=DEVICE)
    bias = torch.randn(case.weight[0], device=DEVICE).to(dtype) if case.bias else None
    return x.to(dtype), values.to(dtype), pattern, bias


def run(function: Any, x: Tensor, values: Tensor, bias: Tensor | None) -> dict[str, Tensor]:
    """Output and gradients of `function(x, values, bias)`; that of the values where they require one."""
    x = x.detach().clone(memory_format=torch.preserve_format).requires_grad_()
    v = values.detach().clone().requires_grad_(values.requires_grad)
    b = None if bias is None else bias.detach().clone().requires_grad_()
    out = function(x, v, b)
    grad = torch.sin(torch.arange(out.numel(), device=out.device)).view(out.shape) + 0.5  # sums that do not cancel to nothing
    out.backward(grad.to(out.dtype))
    grads = {"x.grad": x.grad, "values.grad": v.grad, "bias.grad": None if b is None else b.grad}
    return {"out": out.detach()} | {key: grad for key, grad in grads.items() if grad is not None}


def by_triton(case: Case, plan: str, x: Tensor, values: Tensor, pattern: tk.Pattern, bias: Tensor | None) -> dict[str, Tensor]:
    def function(x: Tensor, values: Tensor, bias: Tensor | None) -> Tensor:
        geometry = case.stride, case.padding, case.dilation, case.groups
        return tk.masked_conv2d(x, values, pattern, bias, *geometry, plan=Plan("triton", plan))

    return run(function, x, values, bias)


def by_torch(case: Case, x: Tensor, values: Tensor, pattern: tk.Pattern, bias: Tensor | None) -> dict[str, Tensor]:
    def function(x: Tensor, values: Tensor, bias: Tensor | None) -> Tensor:
        weight = pattern.scatter(values)
        return F.conv2d(x, weight, bias, case.stride, case.padding, case.dilation, case.groups)

    return run(function, x, values, bias)


def oracle(case: Case, x: Tensor, values: Tensor, pattern: tk.Pattern, bias: Tensor | None) -> dict[str, Tensor]:
    return by_torch(case, x.double(), values.double(), pattern, None if bias is None else bias.double())


def relative_error(got: Tensor, want: Tensor) -> float:
    assert got.shape == want.shape
    if want.numel() == 0:
        return 0.0
    error = (got.double() - want).abs().max().item()
    assert error == error, "NaN"
    return error / (want.abs().max().item() or 1.0)


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("plan", [TILES, BLOCKS])
@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel:UserWarning")  # torch's own, of the oracle
def test_float32(plan: str, name: str) -> None:
    case = CASES[name]
    arguments = tensors(case)
    arguments[1].requires_grad_(name in WITH_VALUES)
    x = as_layout(arguments[0], "batch_last" if plan == TILES else "channels_last")
    want = oracle(case, *arguments)
    got = by_triton(case, plan, x, *arguments[1:])
    for key, tensor in got.items():
        assert relative_error(tensor, want[key]) < 2e-6, key


@pytest.mark.parametrize("layout", ["contiguous", "batch_last", "channels_last"])
@pytest.mark.parametrize("plan", [TILES, BLOCKS])
def test_layout_of_the_input_is_that_of_output_and_gradient(plan: str, layout: str) -> None:
    case = CASES["rectangular"]
    x, *others = tensors(case)
    got = by_triton(case, plan, as_layout(x, layout), *others)
    want = oracle(case, x, *others)
    assert layout_of(got["out"]) == layout_of(got["x.grad"]) == layout
    for key, tensor in got.items():
        assert relative_error(tensor, want[key]) < 2e-6, key


@pytest.mark.parametrize("kind", ["expanded", "sliced"])
@pytest.mark.parametrize("plan", [TILES, BLOCKS, "algo=direct"])
def test_any_strides_of_values_and_bias(plan: str, kind: str) -> None:
    case = CASES["pointwise_strided"]
    x, values, pattern, bias = tensors(case)
    assert bias is not None

    def strided(t: Tensor) -> Tensor:
        return t[:1].expand(t.shape) if kind == "expanded" else torch.stack([t, t], 1)[:, 0]

    values, bias = strided(values), strided(bias)
    x.requires_grad_()
    geometry = case.stride, case.padding, case.dilation, case.groups
    out = tk.masked_conv2d(x, values, pattern, bias, *geometry, plan=Plan("triton", plan))
    (grad,) = torch.autograd.grad(out, x, torch.ones_like(out))
    want = oracle(case, x, values, pattern, bias)["out"]
    assert relative_error(out, want) < 2e-6
    weight = pattern.scatter(values.contiguous()).double()
    want = torch.nn.grad.conv2d_input(x.shape, weight, torch.ones_like(want), case.stride)
    assert relative_error(grad, want) < 2e-6


@pytest.mark.parametrize("name", ["rectangular", "strided_and_dilated"])
@pytest.mark.parametrize("plan", [TILES, BLOCKS])
def test_bfloat16_at_most_twice_torchs_error(plan: str, name: str) -> None:
    case = CASES[name]
    arguments = tensors(case, torch.bfloat16)
    arguments[1].requires_grad_(name in WITH_VALUES)
    want, own = oracle(case, *arguments), by_torch(case, *arguments)
    got = by_triton(case, plan, *arguments)
    for key, tensor in got.items():
        assert tensor.dtype == torch.bfloat16
        assert relative_error(tensor, want[key]) <= 2 * relative_error(own[key], want[key]) + 2**-9, key


@pytest.mark.parametrize("plan", [TILES, BLOCKS])
def test_tf32_cuts_off_bits_that_ieee_keeps(plan: str) -> None:
    """Half a unit of the 11th bit for the weight, a whole one for the image, in every product."""
    case = CASES["rectangular"]
    arguments = tensors(case)
    want = oracle(case, *arguments)
    got = by_triton(case, plan.replace("ieee", "tf32"), *arguments)
    for key in ("out", "x.grad"):
        assert 1e-5 < relative_error(got[key], want[key]) < 1.5 * 2**-10, key
    whole = [t.round() if t is not None and t.is_floating_point() else t for t in (arguments[0], arguments[1])]
    got = by_triton(case, plan.replace("ieee", "tf32"), *whole, arguments[2], None)
    assert relative_error(got["out"], oracle(case, *whole, arguments[2], None)["out"]) < 1e-6  # whole numbers fit TF32


def test_a_value_that_is_nan_stays_nan_in_tf32() -> None:
    pattern = tk.Pattern(torch.ones(1, 1, 1, 1, device=DEVICE))
    nan = torch.tensor([0x7FFFFFFF], dtype=torch.int32, device=DEVICE).view(torch.float32)  # the one that GPUs make
    x = torch.ones(1, 1, 1, 1, device=DEVICE)
    out = tk.masked_conv2d(x, nan, pattern, plan=Plan("triton", TILES.replace("ieee", "tf32")))
    assert out.isnan().all()
    out = tk.masked_conv2d(nan.view(1, 1, 1, 1), torch.ones_like(nan), pattern, plan=Plan("triton", "algo=tiles,precision=tf32"))
    assert out.isnan().all()


@pytest.mark.parametrize("name", ["rows_left_over", "groups"])
def test_forced_backend_and_its_own_rule(name: str) -> None:
    case = CASES[name]
    x, values, pattern, bias = tensors(case)
    with tk.use_backend("triton"):
        out = tk.masked_conv2d(x, values, pattern, bias, case.stride, case.padding, case.dilation, case.groups)
    assert relative_error(out, oracle(case, x, values, pattern, bias)["out"]) < 2e-3  # torch's default is TF32


def test_wide_numbers_of_columns(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tensors of 2**31 elements take 64-bit offsets: here small ones do."""
    monkeypatch.setattr("tost_kernels.triton.conv_tiles._INT32_ELEMENTS", 1)
    case = CASES["strided_and_dilated"]
    arguments = tensors(case)
    want = oracle(case, *arguments)
    for plan in (TILES, BLOCKS):
        for key, tensor in by_triton(case, plan, *arguments).items():
            assert relative_error(tensor, want[key]) < 2e-6, key


def call(case: Case, plan: str) -> tuple[Tensor, Tensor, Tensor | None, Tensor, list[Any]]:
    """What the op takes; its geometry apart."""
    x, values, pattern, bias = tensors(case)
    pairs = [[v, v] if isinstance(v, int) else list(v) for v in (case.stride, case.padding, case.dilation)]
    numbers = (*pairs[0], *pairs[1], *pairs[2], case.groups)
    index, options = index_and_options(Plan("triton", plan), "masked_conv2d", x, pattern, numbers)
    return x, values, bias, index, [list(case.weight), *pairs, case.groups, options]


@pytest.mark.parametrize("plan", [TILES, BLOCKS])
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf:UserWarning")  # opcheck's own reading
def test_opcheck(plan: str) -> None:
    case = Case((3, 2, 1, 2), (3, 2, 1, 3), padding=(0, 1))
    x, values, bias, index, geometry = call(case, plan)
    leaves = x.requires_grad_(), values.requires_grad_(), bias.requires_grad_()
    results = torch.library.opcheck(op("masked_conv2d", "triton"), (*leaves, index, *geometry))
    assert list(results.values()) == ["SUCCESS"] * 4
    grad = torch.randn(3, 3, 1, 2, device=DEVICE)
    x, values = x.detach(), values.detach()
    for layout in ("batch_last", "channels_last", "contiguous"):
        arguments = (grad, values, index, list(x.shape), layout, *geometry)
        torch.library.opcheck(op("masked_conv2d_input_grad", "triton"), arguments)
    arguments = (grad, x, index, values.shape[0], *geometry)
    torch.library.opcheck(op("masked_conv2d_values_grad", "triton"), arguments)


@pytest.mark.parametrize("plan", [TILES, BLOCKS, ""])
@pytest.mark.parametrize("compiler", ["eager", "aot_eager"])
def test_compiles_whole(compiler: str, plan: str) -> None:
    case = Case((17, 16, 1, 2), (16, 16, 1, 3), padding=(0, 1))
    x, values, pattern, bias = tensors(case)

    def function(x: Tensor, values: Tensor, bias: Tensor | None) -> Tensor:
        return tk.masked_conv2d(x, values, pattern, bias, padding=(0, 1), plan=Plan("triton", plan)).relu()

    want = run(function, x, values, bias)
    for batch_last in (True, False):
        x = as_layout(x, "batch_last" if batch_last else "contiguous")
        torch._dynamo.reset()
        got = run(torch.compile(function, fullgraph=True, backend=compiler), x, values, bias)
        for key, tensor in got.items():
            assert relative_error(tensor, want[key].double()) < 2e-3, key
        assert layout_of(got["out"]) == layout_of(x)


def test_functional_gradient() -> None:
    case = Case((3, 5, 2, 2), (4, 5, 2, 2))
    x, values, pattern, _ = tensors(case)

    def loss(v: Tensor) -> Tensor:
        return tk.masked_conv2d(x, v, pattern, plan=Plan("triton", TILES)).square().sum()

    want = torch.autograd.grad(F.conv2d(x, pattern.scatter(values.requires_grad_())).square().sum(), values)[0]
    torch.testing.assert_close(torch.func.grad(loss)(values.detach()), want, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("plan", "words"),
    [
        ("algo=tile", "expected algo to be one of .*got 'tile'"),
        ("forward.rows=16", "expected one rows for all passes"),
        ("algo=tiles,forward.algo=blocks", "expected tiles or blocks, not both"),
    ],
)
def test_a_plan_that_cannot_be_is_refused(plan: str, words: str) -> None:
    x, values, pattern, bias = tensors(CASES["full"])
    with pytest.raises(ValueError, match=words):
        tk.masked_conv2d(x, values, pattern, bias, padding=1, plan=Plan("triton", plan))
    with pytest.raises(RuntimeError, match="triton plan: expected"):
        op("masked_conv2d", "triton")(x, values, bias, pattern.index, [6, 4, 3, 3], [1, 1], [1, 1], [1, 1], 1, plan)


def test_an_index_that_is_not_the_plans_is_refused() -> None:
    x, values, pattern, bias = tensors(CASES["full"])
    with pytest.raises((RuntimeError, ValueError), match="index"):
        op("masked_conv2d", "triton")(x, values, bias, pattern.index, [6, 4, 3, 3], [1, 1], [1, 1], [1, 1], 1, TILES)
