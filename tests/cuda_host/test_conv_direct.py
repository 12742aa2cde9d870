"""The direct convolution in CUDA C++, run by the shim on the CPU: odd shapes against float64."""

import pytest
import torch
from torch import Tensor

from tests.tost_kernels.triton.cases import CASES, Case, Problem, assert_close, problem
from tost_kernels.layout import as_layout
from tost_kernels.register import op

pytestmark = pytest.mark.usefixtures("emulated_cuda")

MORE = {
    "linear": Case((70, 17, 1, 1), (40, 17, 1, 1), density=0.2),
    "five_by_three": Case((33, 5, 5, 7), (17, 5, 5, 3), padding=(2, 1), density=0.1),
    "groups_of_uneven_size": Case((5, 15, 4, 3), (21, 5, 3, 3), padding=(1, 1), stride=(2, 1), groups=3),
    "strided_and_dilated": Case((4, 9, 9, 8), (6, 9, 3, 2), padding=(2, 1), stride=(2, 2), dilation=(3, 2)),
    "several_tiles": Case((68, 18, 3, 5), (35, 18, 3, 3), padding=(1, 1), density=0.1),
}


def geometry(p: Problem) -> tuple[list[int], ...]:
    g = p.geometry
    return list(g.weight_shape), list(g.stride), list(g.padding), list(g.dilation), g.groups  # type: ignore[return-value]


def index_of(p: Problem, rows: int, chunk: int) -> Tensor:
    if rows == 1:
        return p.pattern.index
    g = p.geometry
    stride, dilation = (g.stride[0], g.stride[1]), (g.dilation[0], g.dilation[1])
    return p.pattern.gathered(rows, chunk, 1, groups=g.groups, stride=stride, dilation=dilation)


def run(p: Problem, index: Tensor, plan: str) -> list[Tensor]:
    out = op("masked_conv2d", "cuda")(p.x, p.values, p.bias, index, *geometry(p), plan)
    grad = op("masked_conv2d_input_grad", "cuda")(p.grad, p.values, index, list(p.x.shape), "batch_last", *geometry(p), plan)
    if "rows=4" in plan:  # the same as with rows=2
        return [out, grad]
    return [out, grad, op("masked_conv2d_values_grad", "cuda")(p.grad, p.x, index, p.pattern.nnz, *geometry(p), plan)]


def check(p: Problem, rows: int = 1, chunk: int = 16, plan: str = "") -> list[Tensor]:
    plan = f"algo=direct,rows={rows},chunk={chunk}{plan}"
    got = run(p, index_of(p, rows, chunk), plan)
    for mine, exact in zip(got, (p.out, p.input_grad, p.values_grad), strict=False):
        assert_close(mine, exact)
    return got


@pytest.mark.parametrize("rows", [1, 2, 4])
@pytest.mark.parametrize("name", CASES | MORE)
def test_odd_shapes_match_float64(name: str, rows: int) -> None:
    stages = {1: 3, 2: 2, 4: 1}[rows]  # more than there are chunks, sometimes
    check(problem((CASES | MORE)[name], torch.float32), rows, 16 if rows == 2 else 8, f",warps=4,stages={stages}")


@pytest.mark.parametrize("rows", [1, 2, 4])
@pytest.mark.parametrize("name", ["strided_uneven", "groups", "one_pixel", "several_tiles"])
def test_bfloat16_is_summed_in_float32(name: str, rows: int) -> None:
    p = problem((CASES | MORE)[name], torch.bfloat16)
    for got in check(p, rows, 8, ",warps=4"):
        assert got.dtype == torch.bfloat16


@pytest.mark.parametrize("plan", [",stages=1", ",stages=3", ",pixels=16,warps=8,stages=2", ",split=1", ",split=3,warps=16"])
def test_every_option(plan: str) -> None:
    check(problem(MORE["several_tiles"], torch.float32), plan=plan)


@pytest.mark.parametrize("rows", [1, 4])
def test_the_same_bits_every_time(rows: int) -> None:
    p = problem(CASES["plain"], torch.float32)
    assert all(torch.equal(a, b) for a, b in zip(check(p, rows), check(p, rows), strict=True))


def test_other_layouts_are_converted() -> None:
    p = problem(CASES["plain"], torch.float32)
    for layout in ("contiguous", "channels_last"):
        x = as_layout(p.x, layout)
        assert_close(op("masked_conv2d", "cuda")(x, p.values, p.bias, p.pattern.index, *geometry(p), ""), p.out)


def test_what_lies_outside_of_the_image_is_never_read() -> None:
    p = problem(Case((2, 2, 3, 3), (2, 2, 1, 1), stride=(2, 2), padding=(1, 1), density=1.0), torch.float32)
    reads = torch.zeros(3, 3, dtype=torch.bool)
    reads[1, 1] = True
    x = as_layout(torch.where(reads, p.x, torch.tensor(float("nan"))), "batch_last")
    assert_close(op("masked_conv2d", "cuda")(x, p.values, p.bias, p.pattern.index, *geometry(p), ""), p.out)


def test_an_infinite_input_reaches_only_what_reads_it() -> None:
    """Pixels past the output's edge, and images past the batch, are none."""
    p = problem(Case((5, 3, 4, 4), (6, 3, 2, 2), density=0.5), torch.float32)
    p.x[4, 1, 3, 3] = torch.inf
    values_grad = run(p, p.pattern.index, "")[2]
    reads = (p.pattern.mask().nonzero()[:, 1:] == torch.tensor([1, 1, 1])).all(1)
    assert torch.equal(values_grad.isfinite(), ~reads)
    assert_close(values_grad[~reads], p.values_grad[~reads])


def test_a_kernel_that_fits_only_in_smaller_chunks() -> None:
    check(problem(Case((3, 3, 9, 9), (3, 3, 19, 19), padding=(9, 9), density=0.05), torch.float32), chunk=64)


@pytest.mark.parametrize(
    ("plan", "message"),
    [
        ("algo=direct,pixels=4", 'plan: expected pixels=8 or pixels=16 with algo=direct, got "pixels=4"'),
        ("algo=direct,rows=2", "index: expected one of this weight for rows=2"),
    ],
)
def test_bad_plans(plan: str, message: str) -> None:
    p = problem(CASES["plain"], torch.float32)
    with pytest.raises(RuntimeError, match=message):
        run(p, p.pattern.index, plan)
