"""The CUDA-core convolution and its gradients, interpreted, on a dozen odd shapes against float64."""

import pytest
import torch

pytest.importorskip("triton")

from tests.tost_kernels.triton.cases import CASES, Case, assert_close, problem
from tost_kernels.layout import is_batch_last
from tost_kernels.triton import conv_direct
from tost_kernels.triton.implement import INTERPRETED
from tost_kernels.triton.options import Options

pytestmark = pytest.mark.skipif(not INTERPRETED, reason="these tensors are on the CPU: for the interpreter")
OPTIONS = Options(bn=16, bk=16, warps=2, split=2)


@pytest.mark.parametrize("name", CASES)
def test_odd_shapes_match_float64(name: str) -> None:
    p = problem(CASES[name], torch.float32)
    assert_close(conv_direct.forward(p.x, p.values, p.bias, p.pattern.index, p.geometry, OPTIONS), p.out)
    grad = conv_direct.input_grad(p.grad, p.values, p.pattern.index, p.x.shape, p.geometry, OPTIONS)
    assert_close(grad, p.input_grad)
    assert_close(conv_direct.values_grad(p.grad, p.x, p.pattern.index, p.pattern.nnz, p.geometry, OPTIONS), p.values_grad)


@pytest.mark.parametrize("name", ["strided_uneven", "groups", "one_pixel"])
def test_bfloat16_is_summed_in_float32(name: str) -> None:
    p = problem(CASES[name], torch.bfloat16)
    out = conv_direct.forward(p.x, p.values, p.bias, p.pattern.index, p.geometry, OPTIONS)
    grad = conv_direct.input_grad(p.grad, p.values, p.pattern.index, p.x.shape, p.geometry, OPTIONS)
    values_grad = conv_direct.values_grad(p.grad, p.x, p.pattern.index, p.pattern.nnz, p.geometry, OPTIONS)
    for got, want in ((out, p.out), (grad, p.input_grad), (values_grad, p.values_grad)):
        assert got.dtype == torch.bfloat16
        assert_close(got, want)


def test_another_layout_is_converted_and_the_results_are_batch_last() -> None:
    p = problem(Case((4, 3, 3, 3), (2, 3, 2, 2)), torch.float32)
    out = conv_direct.forward(p.x.contiguous(), p.values, p.bias, p.pattern.index, p.geometry, OPTIONS)
    assert is_batch_last(out)
    assert_close(out, p.out)


def test_values_gradient_has_the_same_bits_every_time_and_any_split_is_close() -> None:
    p = problem(Case((5, 3, 3, 3), (3, 3, 2, 2), density=0.5), torch.float32)
    results = [
        conv_direct.values_grad(p.grad, p.x, p.pattern.index, p.pattern.nnz, p.geometry, OPTIONS._replace(split=split))
        for split in (3, 3, 1, 0)
    ]
    assert torch.equal(results[0], results[1])
    for result in results[1:]:
        assert_close(result, p.values_grad)


def test_padding_never_multiplies_what_lies_outside() -> None:
    """The rows that a tap in the padding would read hold NaN or infinity."""
    p = problem(Case((2, 2, 3, 3), (2, 2, 1, 1), stride=(2, 2), padding=(1, 1), density=1.0), torch.float32)
    reads = torch.zeros(3, 3, dtype=torch.bool)
    reads[1, 1] = True
    x = torch.where(reads, p.x, torch.tensor(float("nan")))
    assert_close(conv_direct.forward(x, p.values, p.bias, p.pattern.index, p.geometry, OPTIONS), p.out)


def test_sections_are_where_the_index_says() -> None:
    p = problem(CASES["groups"], torch.float32)
    at = conv_direct.sections(p.pattern.shape, p.pattern.nnz)
    header = p.pattern.index[:16].tolist()
    assert (at.blocks, at.t_blocks) == tuple(header[7:9])
    assert [at.ptr, at.col, at.t_ptr, at.t_col, at.t_perm] == header[9:14]


@pytest.mark.parametrize(("bn", "align", "itemsize", "rows"), [(128, 16, 4, 4), (32, 16, 4, 16), (256, 16, 2, 4), (16, 1, 4, 8)])
def test_a_sum_never_leaves_its_thread(bn: int, align: int, itemsize: int, rows: int) -> None:
    """A warp's 32 lanes, of 16 bytes where the batch allows it, are whole rows of the batch."""
    assert conv_direct._rows_at_once(128, bn, align, 4, itemsize) == rows
