"""The values' gradient by matrix products on row groups, interpreted, on a dozen odd shapes against float64."""

import pytest
import torch

pytest.importorskip("triton")

from tests.tost_kernels.triton.cases import CASES, Case, assert_close, problem
from tost_kernels.triton import conv_values_grad
from tost_kernels.triton.implement import INTERPRETED
from tost_kernels.triton.options import Options

pytestmark = pytest.mark.skipif(not INTERPRETED, reason="these tensors are on the CPU: for the interpreter")
OPTIONS = Options(algo="tiles", rows=16, bn=16, bk=32, split=2)


@pytest.mark.parametrize("name", CASES)
def test_odd_shapes_match_float64(name: str) -> None:
    p = problem(CASES[name], torch.float32)
    index = p.pattern.tiled(16, p.geometry.groups)
    assert_close(conv_values_grad.values_grad(p.grad, p.x, index, p.pattern.nnz, p.geometry, OPTIONS), p.values_grad)


@pytest.mark.parametrize("name", ["strided_uneven", "groups"])
def test_bfloat16_is_summed_in_float32(name: str) -> None:
    p = problem(CASES[name], torch.bfloat16)
    index = p.pattern.tiled(32, p.geometry.groups)
    options = OPTIONS._replace(rows=32, bk=16)
    got = conv_values_grad.values_grad(p.grad, p.x, index, p.pattern.nnz, p.geometry, options)
    assert got.dtype == torch.bfloat16
    assert_close(got, p.values_grad)


def test_dense_tiles_have_channels_that_do_not_exist() -> None:
    p = problem(Case((4, 18, 2, 2), (20, 18, 1, 1)), torch.float32)
    index = p.pattern.tiled(16, 1, 16)
    options = OPTIONS._replace(algo="blocks", block=16)
    assert_close(conv_values_grad.values_grad(p.grad, p.x, index, p.pattern.nnz, p.geometry, options), p.values_grad)


def test_same_bits_every_time_and_any_split_is_close() -> None:
    p = problem(Case((17, 6, 3, 3), (5, 6, 2, 2), density=0.5), torch.float32)
    index = p.pattern.tiled(16)
    results = [
        conv_values_grad.values_grad(p.grad, p.x, index, p.pattern.nnz, p.geometry, OPTIONS._replace(split=split))
        for split in (3, 3, 1, 0)
    ]
    assert torch.equal(results[0], results[1])
    for result in results[1:]:
        assert_close(result, p.values_grad)
