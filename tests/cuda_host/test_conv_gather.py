"""Row groups on tensor cores, forward and input gradient, run by the shim on the CPU: odd shapes against float64.

The operands are numbers that TF32 and bfloat16 hold, so the only rounding is that of the sums.
"""

import functools
from dataclasses import replace

import pytest
import torch
from torch import Tensor

pytest.importorskip("triton")  # whose tests' odd shapes these are

from tests.cuda_host.build import build_program, run_program
from tests.cuda_host.conv_ops import forward, gather_plan, gathered, input_grad, tf32_problem
from tests.tost_kernels.triton.cases import CASES, Case, Problem, assert_close, problem

pytestmark = pytest.mark.usefixtures("emulated_cuda")

MORE = {
    "linear": Case((70, 17, 1, 1), (40, 17, 1, 1), density=0.2),
    "five_by_three": Case((33, 5, 5, 7), (17, 5, 5, 3), padding=(2, 1), density=0.1),
    "strided_and_dilated": Case((4, 9, 9, 8), (6, 9, 3, 2), stride=(2, 2), padding=(2, 1), dilation=(3, 2)),
    "groups_across_row_groups": Case((5, 15, 4, 3), (21, 5, 3, 3), stride=(2, 1), padding=(1, 1), groups=3),
    "several_of_all": Case((36, 40, 3, 5), (72, 40, 3, 3), padding=(1, 1), density=0.03),
}


def run(p: Problem, rows: int = 16, chunk: int = 8, **options: int) -> list[Tensor]:
    """Output and input gradient."""
    index, plan = gathered(p, rows, chunk), gather_plan(p, rows, chunk, **options)
    return [forward(p, index, plan), input_grad(p, index, plan)]


def check(p: Problem, rows: int = 16, chunk: int = 8, **options: int) -> list[Tensor]:
    got = run(p, rows, chunk, **options)
    assert_close(got[0], p.out)
    assert_close(got[1], p.input_grad)
    return got


@pytest.mark.parametrize("name", CASES | MORE)
def test_odd_shapes_match_float64(name: str) -> None:
    check(tf32_problem((CASES | MORE)[name]))


@pytest.mark.parametrize("name", ["one_sample", "linear", "strided_uneven", "several_of_all"])
@pytest.mark.parametrize("rows", [16, 32])
def test_bfloat16_is_summed_in_float32(name: str, rows: int) -> None:
    got = check(problem((CASES | MORE)[name], torch.bfloat16), rows, pixels=4)
    assert got[0].dtype == got[1].dtype == torch.bfloat16


@functools.cache
def plain(device: str) -> list[tuple[Problem, list[Tensor]]]:
    """Two problems on `device`, the one of the fixture emulated_cuda, and what the default options make of them."""
    case = replace(MORE["several_of_all"], x=(36, 24, 2, 5), weight=(40, 24, 3, 3), density=0.05)
    return [(p, run(p)) for p in (tf32_problem(case), problem(case, torch.bfloat16))]


@pytest.mark.parametrize(
    "options",
    [{"stages": 1}, {"stages": 3, "pixels": 4}, {"pixels": 16, "warps": 8}, {"warps": 16}, {"rows": 32, "stages": 3}],
    ids=str,
)
def test_options_change_no_bit(options: dict[str, int], emulated_cuda: str) -> None:
    for p, want in plain(emulated_cuda):
        got = check(p, **options)
        if "rows" not in options:  # with others, zeros are added in other places
            assert all(torch.equal(a, b) for a, b in zip(got, want, strict=True))


def test_tf32_rounds_products_and_not_sums() -> None:
    """Weights to nearest, half a unit of the 11th bit; images are cut, a whole one."""
    p = problem(CASES["plain"], torch.float32)
    for got, want in zip(run(p), (p.out, p.input_grad), strict=True):
        assert 1e-5 < (got - want).abs().max() / want.abs().max() < 1.5 * 2**-10


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_memory_off_16_bytes(dtype: torch.dtype) -> None:
    case = replace(CASES["plain"], x=(8, 9, 3, 3))
    p = tf32_problem(case) if dtype == torch.float32 else problem(case, dtype)

    def moved(t: Tensor) -> Tensor:
        room = torch.empty(t.numel() + 1, dtype=dtype)[1:].view(t.permute(1, 2, 3, 0).shape)
        return room.copy_(t.permute(1, 2, 3, 0)).permute(3, 0, 1, 2)

    check(replace(p, x=moved(p.x), grad=moved(p.grad)))


def test_a_kernel_too_large_for_shared_memory_is_refused() -> None:
    p = tf32_problem(Case((2, 1, 40, 40), (1, 1, 33, 33), padding=(16, 16), density=0.01))
    with pytest.raises(RuntimeError, match=r"masked_conv2d_cuda: plan: expected chunk=8 to fit into shared memory, but 4 pixels"):
        forward(p, gathered(p), gather_plan(p))


def test_shared_memory_is_counted_to_the_last_byte() -> None:
    """Two stages of 113 pixels leave 48 bytes of a block's 227 KB: too few for what else it has there."""
    p = tf32_problem(Case((2, 2, 1, 113), (3, 2, 1, 110), density=0.1))
    assert_close(forward(p, gathered(p), gather_plan(p, pixels=4, stages=2)), p.out)


def test_no_bank_conflicts() -> None:
    done = run_program(build_program("banks"))
    assert (done.returncode, done.stdout) == (0, ""), done.stderr
