"""The packed index against a table worked out by hand, the compiled compiler against the numpy one, and Pattern's promises."""

import copy
import pickle

import hypothesis
import hypothesis.extra.numpy as hnp
import numpy as np
import pytest
import torch
from hypothesis import strategies as st

from tost_kernels import pattern as module
from tost_kernels.packed_index import compile_reference
from tost_kernels.pattern import Pattern


def test_index_by_hand() -> None:
    # two output channels, two input channels, 1 x 2 taps:  o0: i0 (1 0), i1 (0 1);  o1: i0 (1 1), i1 (0 0)
    mask = torch.tensor([[[[1, 0]], [[0, 1]]], [[[1, 1]], [[0, 0]]]])
    header = [1, 2, 2, 1, 2, 4, 8, 1, 1, 16, 19, 23, 26, 30, 34, 0]
    ptr, col = [0, 2, 4], [0, 3, 0, 1]  # col = i * 2 + dx
    t_ptr, t_col, t_perm = [0, 3, 4], [0, 2, 3, 1], [0, 2, 3, 1]  # t_col = o * 2 + dx
    index = Pattern(mask).index.tolist()
    assert index[15] != Pattern(mask).index[15], "an identity of its own"
    assert [*index[:15], 0, *index[16:]] == header + ptr + col + t_ptr + t_col + t_perm


def test_blocks_of_channels() -> None:
    mask = torch.zeros(1, 20, dtype=torch.bool)
    mask[0, [0, 7, 8, 19]] = True
    index = Pattern(mask).index.tolist()
    assert index[6:8] == [8, 3]  # blocks of 8: channels 0-7, 8-15, 16-19
    assert index[16:20] == [0, 2, 3, 4]


@hypothesis.settings(max_examples=60, deadline=None)
@hypothesis.given(hnp.arrays(bool, hnp.array_shapes(min_dims=4, max_dims=4, min_side=1, max_side=11)), st.integers(1, 9))
def test_compiled_equals_numpy(mask: np.ndarray, block: int) -> None:
    native = pytest.importorskip("tost_kernels._pattern", reason="built without a compiler")
    assert native.compile_mask(mask, block).tolist() == compile_reference(mask, block).tolist()


@pytest.mark.parametrize("compiler", ["native", "numpy"])
def test_transposed_view_is_the_transposed_weight(compiler: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if compiler == "numpy":
        monkeypatch.setattr(module, "compile_mask", compile_reference)
    mask = torch.rand(13, 9, 3, 2) < 0.3
    pattern = Pattern(mask)
    index, values = pattern.index, torch.arange(pattern.nnz)
    at_t_ptr, at_col, at_perm, end = (int(index[k]) for k in (11, 12, 13, 14))
    dense = torch.full(mask.shape, -1)
    dense[mask] = values
    blocks = int(index[8])
    for i in range(9):
        start, stop = (int(index[at_t_ptr + row * blocks]) for row in (i, i + 1))
        column = index[at_col + start : at_col + stop].long()
        o, dy, dx = column // 6, column // 2 % 3, column % 2
        assert index[at_perm + start : at_perm + stop].tolist() == dense[o, i, dy, dx].tolist()
        assert column.tolist() == sorted(column.tolist())
    assert end == len(index)


@pytest.mark.parametrize("kept", [0, 24])
def test_density_zero_and_one(kept: int) -> None:
    mask = torch.full((4, 6), kept > 0)
    pattern = Pattern(mask)
    assert pattern.nnz == kept
    assert torch.equal(pattern.mask(), mask)
    assert pattern.scatter(torch.ones(kept)).sum() == kept


def test_scatter_and_gather_are_inverse_and_differentiable() -> None:
    pattern = Pattern(torch.rand(5, 4, 3, 3) < 0.4)
    values = torch.randn(pattern.nnz, dtype=torch.double, requires_grad=True)
    assert torch.equal(pattern.gather(pattern.scatter(values)), values)
    assert torch.equal(pattern.scatter(values)[pattern.mask()], values)
    assert torch.autograd.gradgradcheck(lambda v: pattern.scatter(v**3), values)


def test_copies_are_the_object_itself_and_pickles_are_equal() -> None:
    pattern = Pattern(torch.rand(3, 7) < 0.5)
    assert copy.copy(pattern) is pattern
    assert copy.deepcopy({"p": pattern})["p"] is pattern
    loaded = pickle.loads(pickle.dumps(pattern))
    assert loaded == pattern
    assert hash(loaded) == hash(pattern)
    assert torch.equal(loaded.index[16:], pattern.index[16:])
    assert pattern != Pattern(~pattern.mask())
    assert pattern.to("cpu") is pattern


def test_same_bits_in_another_shape_is_another_pattern() -> None:
    assert Pattern(torch.ones(2, 8)) != Pattern(torch.ones(4, 4))


@pytest.mark.parametrize(
    ("mask", "error", "message"),
    [
        ([[1]], TypeError, "mask: expected a torch.Tensor, got list"),
        (torch.ones(3), ValueError, r"mask: expected shape \(O, I\)"),
        (torch.ones(0, 3), ValueError, "no dimension of size 0"),
        (torch.ones(2, 2) * 0.5, ValueError, r"expected only 0 and 1, got 0.5 \(4 such entries\)"),
        (torch.full((1, 1), float("nan")), ValueError, "expected only 0 and 1, got nan"),
        (torch.ones(2, 2, device="meta"), ValueError, "on 'meta'"),
    ],
)
def test_bad_masks(mask: object, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        Pattern(mask)  # type: ignore[arg-type]


@pytest.mark.parametrize("compiler", ["native", "numpy"])
@pytest.mark.parametrize("shape", [(1, 1, 65536, 32769), (65536, 1, 1, 32769), (1, 65536, 32769, 1)])
def test_columns_are_32_bits(compiler: str, shape: tuple[int, ...]) -> None:
    if compiler == "native":
        compile_mask = pytest.importorskip("tost_kernels._pattern", reason="built without a compiler").compile_mask
    else:
        compile_mask = compile_reference
    mask = np.zeros(shape, bool)  # 2 GB of addresses, of which none is touched
    with pytest.raises(ValueError, match=r"mask: expected max\(O, I\) \* kh \* kw below 2\*\*31, got 2147549184"):
        compile_mask(mask, 8)


def test_bad_values_and_dense() -> None:
    pattern = Pattern(torch.eye(3))
    with pytest.raises(ValueError, match=r"values: expected shape \(3,\)"):
        pattern.scatter(torch.ones(4))
    with pytest.raises(ValueError, match=r"dense: expected shape \(3, 3\)"):
        pattern.gather(torch.ones(3, 4))
    with pytest.raises(ValueError, match="meta"):
        pattern.to("meta")
