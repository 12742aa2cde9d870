"""The values' gradient of row groups on tensor cores, run by the shim on the CPU: odd shapes and every option.

Small integers are exact in TF32 and bfloat16, and so are their sums: an error in any index shows as a difference at all.
"""

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

pytest.importorskip("triton")  # whose tests' odd shapes these are

from tests.cuda_host.conv_ops import gather_plan, gathered, tf32_problem, values_grad
from tests.tost_kernels.triton.cases import CASES, Case, Problem, assert_close, problem

pytestmark = pytest.mark.usefixtures("emulated_cuda")

MORE = {
    "linear": Case((70, 17, 1, 1), (40, 17, 1, 1), density=0.2),
    "strided_and_dilated": Case((4, 9, 9, 8), (6, 9, 3, 2), stride=(2, 2), padding=(2, 1), dilation=(3, 2)),
    "groups_across_row_groups": Case((5, 15, 4, 3), (21, 5, 3, 3), stride=(2, 1), padding=(1, 1), groups=3),
}
LARGER = Case((70, 20, 3, 5), (50, 20, 3, 3), padding=(1, 1), density=0.3)


def run(p: Problem, rows: int = 16, chunk: int = 8, **options: int) -> Tensor:
    return values_grad(p, gathered(p, rows, chunk), gather_plan(p, rows, chunk, **options))


def weight_gradient(p: Problem, x: Tensor, grad: Tensor) -> Tensor:
    """Of the kept weights, in float64."""
    g = p.geometry
    weight = torch.zeros(g.weight_shape, dtype=torch.float64, requires_grad=True)
    out = F.conv2d(x.double(), weight, None, g.stride, g.padding, g.dilation, g.groups)
    (gradient,) = torch.autograd.grad(out, weight, grad.double())
    return gradient[p.pattern.mask()]


def integers(case: Case, dtype: torch.dtype) -> Problem:
    """The problem with integers as x and grad."""
    p = problem(case, dtype)
    x, grad = (torch.randint(-3, 4, t.permute(1, 2, 3, 0).shape).to(dtype).permute(3, 0, 1, 2) for t in (p.x, p.grad))
    return replace(p, x=x, grad=grad, values_grad=weight_gradient(p, x, grad))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("name", CASES | MORE)
def test_integers_are_exact(name: str, dtype: torch.dtype) -> None:
    p = integers((CASES | MORE)[name], dtype)
    assert torch.equal(run(p), p.values_grad.to(dtype))


@pytest.mark.parametrize(
    "options",
    [
        {"rows": 32, "chunk": 16, "split": 2},
        {"warps": 4, "split": 1, "stages": 3},  # more rows than warps
        {"stages": 1, "pixels": 16, "split": 3},
        {"warps": 16, "pixels": 16},  # warps share pixels, and not all evenly
        {"warps": 16, "pixels": 4, "stages": 3, "split": 256},  # fewer tiles than parts
        {"chunk": 32},
    ],
    ids=str,
)
def test_integers_are_exact_with_any_options(options: dict[str, int]) -> None:
    p = integers(LARGER, torch.bfloat16)
    assert torch.equal(run(p, **options), p.values_grad.bfloat16())


@pytest.mark.parametrize("channels", [7, 16, 32])
def test_dense_columns_fill_one_or_several_passes(channels: int) -> None:
    p = integers(Case((33, channels, 3, 3), (17, channels, 3, 3), padding=(1, 1), density=1.0), torch.float32)
    assert torch.equal(run(p, chunk=32, pixels=4), p.values_grad.float())


def test_memory_off_16_bytes() -> None:
    p = integers(CASES["plain"], torch.bfloat16)

    def moved(t: Tensor) -> Tensor:
        room = torch.empty(t.numel() + 1, dtype=t.dtype)[1:].view(t.permute(1, 2, 3, 0).shape)
        return room.copy_(t.permute(1, 2, 3, 0)).permute(3, 0, 1, 2)

    for other in (replace(p, x=moved(p.x)), replace(p, grad=moved(p.grad))):
        assert torch.equal(run(other), p.values_grad.bfloat16())


def test_an_infinite_input_reaches_only_what_reads_it() -> None:
    """Pixels past the output's edge, and images past the batch, are none."""
    p = integers(Case((5, 3, 4, 4), (6, 3, 2, 2), density=0.5), torch.float32)
    p.x[4, 1, 3, 3] = torch.inf
    got, want = run(p), weight_gradient(p, p.x, p.grad).float()
    assert torch.equal(got.isfinite(), want.isfinite())
    assert torch.equal(got[want.isfinite()], want[want.isfinite()])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_sums_are_in_float32_and_have_the_same_bits_every_time(dtype: torch.dtype) -> None:
    p = tf32_problem(LARGER) if dtype == torch.float32 else problem(LARGER, dtype)
    got = run(p)
    assert_close(got, p.values_grad)
    assert torch.equal(got, run(p))


def test_tf32_rounds_products() -> None:
    """The output's gradient to nearest, half a unit of the 11th bit; the input is cut, a whole one."""
    p = problem(CASES["plain"], torch.float32)
    magnitude = weight_gradient(p, p.x.abs(), p.grad.abs())
    error = (run(p) - p.values_grad).abs()
    assert (error <= 1.5 * 2**-10 * magnitude).all()
    assert (error > 1e-5 * magnitude).any()


def test_what_does_not_fit_into_shared_memory_is_refused() -> None:
    p = tf32_problem(Case((2, 1, 40, 40), (1, 1, 33, 33), padding=(16, 16), density=0.01))
    with pytest.raises(RuntimeError, match=r"masked_conv2d_values_grad_cuda: plan: expected chunk=8 to fit into shared memory"):
        run(p)
