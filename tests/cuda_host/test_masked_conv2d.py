"""The ops masked_conv2d and its gradients in CUDA C++, run by the shim on the CPU: their contract, and what they refuse."""

from typing import Any

import pytest
import torch
from torch import Tensor

pytest.importorskip("triton")  # whose tests' odd shapes these are

import tost_kernels as tk
from tests.cuda_host.conv_ops import forward, gather_plan, gathered, geometry, input_grad, tf32_problem
from tests.tost_kernels.triton.cases import CASES, Case, Problem, assert_close
from tost_kernels.layout import as_layout, layout_of
from tost_kernels.plan import Plan
from tost_kernels.register import op

pytestmark = pytest.mark.usefixtures("emulated_cuda")

SMALL = Case((3, 2, 1, 2), (3, 2, 1, 3), padding=(0, 1))


def plans(p: Problem) -> list[tuple[Tensor, str]]:
    """An index and a plan of each algorithm."""
    return [(p.pattern.index, ""), (gathered(p), gather_plan(p))]


@pytest.mark.parametrize("layout", ["contiguous", "channels_last", "batch_last"])
def test_layout_of_the_input_is_that_of_output_and_gradient(layout: str) -> None:
    p = tf32_problem(CASES["plain"])
    for index, plan in plans(p):
        arguments = p.values, p.bias, index, *geometry(p), plan
        out = op("masked_conv2d", "cuda")(as_layout(p.x, layout), *arguments)
        grad = input_grad(p, index, plan, layout)
        assert layout_of(out) == layout_of(grad) == layout
        assert_close(out, p.out)
        assert_close(grad, p.input_grad)


@pytest.mark.parametrize("plan", ["", "algo=gather,precision=tf32", "algo=gather,values_grad.algo=direct,precision=tf32"])
def test_plans_are_completed_and_kept_for_the_backward_pass(plan: str) -> None:
    p = tf32_problem(CASES["strided_uneven"])
    x, values = p.x.detach().requires_grad_(), p.values.detach().requires_grad_()
    out = tk.masked_conv2d(x, values, p.pattern, p.bias, *p.geometry[1:], plan=Plan("cuda", plan))
    gradients = torch.autograd.grad(out, (x, values), p.grad)
    for got, want in zip((out, *gradients), (p.out, p.input_grad, p.values_grad), strict=True):
        assert_close(got, want)


def test_any_strides_of_values_and_bias() -> None:
    p = tf32_problem(CASES["plain"])
    values, bias = (torch.stack([t, t], 1)[:, 0] for t in (p.values, p.bias))
    for index, plan in plans(p):
        assert_close(op("masked_conv2d", "cuda")(p.x, values, bias, index, *geometry(p), plan), p.out)


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf:UserWarning")  # opcheck's own reading
def test_opcheck() -> None:
    p = tf32_problem(SMALL)
    for index, plan in plans(p):
        leaves = (t.detach().requires_grad_() for t in (p.x, p.values, p.bias))
        results = torch.library.opcheck(op("masked_conv2d", "cuda"), (*leaves, index, *geometry(p), plan))
        assert list(results.values()) == ["SUCCESS"] * 4
        arguments = (p.grad, p.values, index, list(p.x.shape), "batch_last", *geometry(p), plan)
        torch.library.opcheck(op("masked_conv2d_input_grad", "cuda"), arguments)
        arguments = (p.grad, p.x, index, p.pattern.nnz, *geometry(p), plan)
        torch.library.opcheck(op("masked_conv2d_values_grad", "cuda"), arguments)


@pytest.mark.parametrize(
    ("plan", "message"),
    [
        ("algo=tiles", 'expected algo to be direct or gather, got "tiles"'),
        ("algo=gather,rows=8", 'expected rows to be one of 1, 2, 4, 16, 32, got "8"'),
        ("algo=gather", 'expected rows=16 or rows=32 with algo=gather, got "rows=1"'),
        ("chunk=12", 'expected chunk to be one of 8, 16, 32, 64, got "12"'),
        ("chunk=0016", 'expected chunk to be one of 8, 16, 32, 64, got "0016"'),
        ("forward.chunk=16", 'expected one chunk for all passes, got "forward.chunk=16"'),
        ("chunk=99999999999", 'expected chunk to be one of 8, 16, 32, 64, got "99999999999"'),
        ("values_grad.split=007", 'expected split to be a number from 1 to 256, got "007"'),
        ("values_grad.pixels=4", 'expected pixels=8 or pixels=16 with algo=direct, got "pixels=4"'),
        ("values_grad.split=257", 'expected split to be a number from 1 to 256, got "257"'),
        ("split=", 'expected split to be a number from 1 to 256, got ""'),
        ("stages=2,stages=2", 'expected each key once, got "stages=2"'),
        ("stages=2,", 'expected no comma at the end, got "stages=2,"'),
        ("backward.stages=2", 'expected key=value with algo, rows, .*got "backward.stages=2"'),
        ("stages", 'expected key=value with algo, rows, .*got "stages"'),
        ("precision=tf32", "expected algo=gather with precision=tf32"),
        ("precision=half", 'expected precision to be ieee or tf32, got "half"'),
        ("input_grad.algo=gather", "expected rows=16 or rows=32"),  # checked at every pass
        ("algo=gather,rows=16", "expected precision=tf32 with algo=gather for float32"),
    ],
)
def test_a_plan_that_cannot_be_is_refused(plan: str, message: str) -> None:
    p = tf32_problem(SMALL)
    with pytest.raises(RuntimeError, match="masked_conv2d_cuda: plan: " + message):
        forward(p, gathered(p, chunk=16), plan)


def test_bfloat16_has_no_tf32() -> None:
    p = tf32_problem(SMALL)
    index, plan = gathered(p), gather_plan(p)
    half = [t.bfloat16() for t in (p.x, p.values, p.bias)]
    with pytest.raises(RuntimeError, match="plan: expected precision=ieee with algo=gather for bfloat16"):
        op("masked_conv2d", "cuda")(*half, index, *geometry(p), plan)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"input": torch.ones(3, 2, 1)}, r"input: expected 4 dimensions, got shape \(3, 2, 1\)"),
        ({"input": torch.ones(3, 2, 1, 2).double()}, "input: expected float32 or bfloat16, got float64"),
        ({"input": torch.ones(3, 4, 1, 2)}, r"input: expected 2 channels \(2 a group, groups 1\), got shape \(3, 4, 1, 2\)"),
        ({"values": torch.ones(2).bfloat16()}, r"values: expected the dtype of input \(float32\), got bfloat16"),
        ({"values": torch.ones(1, 2)}, r"values: expected 1 dimensions, got shape \(1, 2\)"),
        ({"bias": torch.ones(2)}, r"bias: expected shape \(3\), got \(2\)"),
        ({"index": torch.ones(9, dtype=torch.int64)}, "index: expected int32, got int64"),
        ({"index": torch.ones(9, dtype=torch.int32)}, r"index: expected .*got 9"),
        ({"weight_shape": [3, 2, 1]}, r"weight_shape: expected 4 sizes, got \(3, 2, 1\)"),
        ({"weight_shape": [3, 2, 1, 0]}, r"weight_shape: expected 4 sizes, got \(3, 2, 1, 0\)"),
        ({"weight_shape": [3, 2, 1 << 20, 1 << 20]}, r"weight_shape: expected max\(O, I\) \* kh \* kw below 2\^31"),
        ({"stride": [0, 1]}, r"stride: expected two numbers, each at least 1 and below 2\^31, got \(0, 1\)"),
        ({"padding": [0, -1]}, r"padding: expected two numbers, each at least 0 and below 2\^31, got \(0, -1\)"),
        ({"padding": [1 << 30, 1]}, r"input: expected stride \* dilation, and height and width .* below 2\^30"),
        ({"dilation": [1, 3]}, "input: expected it to be large enough for a 1x3 kernel"),
        ({"stride": [1 << 16, 1 << 15]}, r"stride: expected a product below 2\^31, got \(65536, 32768\)"),
        ({"weight_shape": [1 << 16, 1 << 15, 1, 1], "groups": 1 << 16}, r"weight_shape: expected I .* below 2\^31, got"),
        ({"groups": 2}, "groups: expected a divisor of the 3 output channels, got 2"),
    ],
    ids=str,
)
def test_bad_arguments(change: dict[str, Any], message: str, emulated_cuda: str) -> None:
    p = tf32_problem(SMALL)
    change = {name: value.to(emulated_cuda) if isinstance(value, Tensor) else value for name, value in change.items()}
    shape, stride, padding, dilation, groups = geometry(p)
    for index, plan in plans(p):
        arguments: dict[str, Any] = {"input": p.x, "values": p.values, "bias": p.bias, "index": index, "weight_shape": shape}
        arguments |= {"stride": stride, "padding": padding, "dilation": dilation, "groups": groups, "plan": plan}
        with pytest.raises(RuntimeError, match="masked_conv2d_cuda: " + message):
            op("masked_conv2d", "cuda")(*(arguments | change).values())


def test_bad_arguments_of_the_gradients() -> None:
    p = tf32_problem(SMALL)
    index, plan = gathered(p), gather_plan(p)
    gradient, geometries = op("masked_conv2d_input_grad", "cuda"), geometry(p)
    with pytest.raises(RuntimeError, match=r"masked_conv2d_input_grad_cuda: input_shape: expected four sizes, got \(3, 2\)"):
        gradient(p.grad, p.values, index, [3, 2], "batch_last", *geometries, plan)
    with pytest.raises(RuntimeError, match=r"grad_output: expected shape \(3, 3, 1, 3\), got \(3, 3, 1, 2\)"):
        gradient(p.grad, p.values, index, [3, 2, 1, 3], "batch_last", *geometries, plan)
    with pytest.raises(RuntimeError, match='input_layout: expected batch_last, channels_last or contiguous, got "nhwc"'):
        gradient(p.grad, p.values, index, list(p.x.shape), "nhwc", *geometries, plan)
    values_grad = op("masked_conv2d_values_grad", "cuda")
    with pytest.raises(RuntimeError, match=r"grad_output: expected shape \(3, 3, 1, 2\), got \(3, 3, 2, 1\)"):
        values_grad(p.grad.reshape(3, 3, 2, 1), p.x, index, p.pattern.nnz, *geometries, plan)
    with pytest.raises(RuntimeError, match="grad_output: expected the dtype of input"):
        values_grad(p.grad.bfloat16(), p.x, index, p.pattern.nnz, *geometries, plan)
    with pytest.raises(RuntimeError, match="nnz: expected a number of kept weights, got -1"):
        values_grad(p.grad, p.x, index, -1, *geometries, plan)


def test_an_index_of_another_plan_is_refused() -> None:
    p = tf32_problem(CASES["many_channels"])
    for index, plan in ((p.pattern.index, gather_plan(p)), (gathered(p, 32), gather_plan(p))):
        with pytest.raises(RuntimeError, match="index: expected one of this weight for rows=16 and chunk=8, got"):
            forward(p, index, plan)
