"""The gathered index against a table worked out by hand and against the mask it stands for."""

from collections import defaultdict
from collections.abc import Callable
from typing import Any

import hypothesis
import numpy as np
import pytest
import torch
from hypothesis import strategies as st

from tests.tost_kernels.masks import MASKS, SHAPES
from tost_kernels.gather import GatherSections, gather_reference, offsets, read_order
from tost_kernels.packed_index import compile_reference
from tost_kernels.pattern import Pattern

try:
    from tost_kernels._pattern import gather_index, row_orders
except ImportError:
    gather_index = None

compiled = pytest.mark.skipif(gather_index is None, reason="built without a compiler")
both = pytest.mark.parametrize("gather", [pytest.param(gather_index, marks=compiled), gather_reference])


def sections(
    pattern: Pattern, rows: int, chunk: int, groups: int, stride: tuple[int, int], index: torch.Tensor
) -> tuple[GatherSections, list[list[int]]]:
    """Where the sections are, and each of them: order, ptr, column, place, and the same transposed."""
    at = offsets(pattern.shape, groups, pattern.nnz, rows, chunk, stride, index.numel())
    ends = [*at[1:8], index.numel()]
    return at, [index[start:end].tolist() for start, end in zip(at[:8], ends, strict=True)]


def test_by_hand() -> None:
    # 3 output channels, 18 input channels, 1 x 2 taps, stride 2 along x; natural order, so that row 2 is a group of its own
    mask = torch.zeros(3, 18, 1, 2)
    for o, i, tap in [(0, 0, 1), (0, 8, 0), (0, 9, 0), (1, 0, 0), (1, 9, 0), (1, 17, 1), (2, 3, 0)]:
        mask[o, i, 0, tap] = 1
    pattern = Pattern(mask)
    index = torch.from_numpy(gather_reference(pattern.index.numpy(), 2, 16, 2, 1, (1, 2)))
    at, (order, ptr, column, place, t_order, t_ptr, t_column, t_place) = sections(pattern, 2, 16, 1, (1, 2), index)
    assert torch.equal(index[: at.at_order], pattern.index)
    assert (at.groups_forward, at.groups_transposed, at.chunks_forward, at.chunks_transposed) == (2, 9, 2, 1)
    assert at.phases == 2
    assert order == [0, 1, 2, -1]
    assert ptr == [0, 4, 6, 8, 8]  # channels below 16 and from 16, of rows 0 and 1, then of row 2
    # channel 0 at both taps, channels 8 and 9 at the first; then channel 17 at tap 1 and channel 3 at tap 0
    assert column[:8] == [0, 1, 16, 18, 35, 35, 6, 6]
    # values by row: (0, 0, tap 1), (0, 8), (0, 9); (1, 0, tap 0), (1, 9), (1, 17, tap 1); (2, 3)
    assert place == [1 * 2, 2 * 2, 3 * 2, 0 * 2 + 1, 3 * 2 + 1, 4 * 2 + 1, 6 * 2]
    assert t_order == [*range(18)]
    # rows 0 and 1: tap 0 of output 1, tap 1 of output 0; rows 2 and 3: tap 0 of output 2; 8 and 9: tap 0 of outputs 0 and 1;
    # 16 and 17: tap 1 of output 1
    assert np.flatnonzero(np.diff(t_ptr)).tolist() == [0, 1, 2, 8, 17]
    assert set(np.diff(t_ptr).tolist()) == {0, 2}
    assert t_column == [2, 2, 1, 1, 4, 4, 0, 2, 3, 3]
    assert column[8:] == [0, 0]
    assert t_place == [2 * 2, 6 * 2, 6 * 2 + 1, 0 * 2, 7 * 2 + 1, 8 * 2 + 1, 4 * 2 + 1]


@pytest.mark.parametrize(
    ("bank", "banks", "order"),
    [
        ([], 4, []),
        ([0, 0, 0], 1, [0, 1, 2]),
        ([0, 1, 2, 3, 0, 1, 2, 3], 4, [0, 1, 2, 3, 4, 5, 6, 7]),
        ([3, 3, 2, 2, 1, 1, 0, 0], 4, [6, 4, 2, 0, 7, 5, 3, 1]),  # within a read by bank
        ([0, 0, 0, 1, 1, 2, 2, 3], 4, [0, 3, 5, 7, 1, 2, 4, 6]),  # no conflict, then one
        ([0, 0, 0, 0, 1, 2], 4, [0, 1, 4, 5, 2, 3]),  # a bank must give two: the fullest does
    ],
)
def test_read_order_by_hand(bank: list[int], banks: int, order: list[int]) -> None:
    assert read_order(bank, banks) == order


@hypothesis.settings(deadline=None)
@hypothesis.given(st.sampled_from([2, 4, 8]), st.lists(st.integers(0, 7), max_size=60))
def test_a_read_has_one_column_of_each_bank_while_all_have_some(banks: int, chosen: list[int]) -> None:
    bank = [one % banks for one in chosen]
    order = read_order(bank, banks)
    assert sorted(order) == [*range(len(bank))]
    fewest = min(bank.count(one) for one in range(banks))
    reads = [[bank[k] for k in order[start : start + banks]] for start in range(0, len(order), banks)]
    assert reads[:fewest] == [[*range(banks)]] * fewest
    assert all(read == sorted(read) for read in reads)
    most = [max(read.count(one) for one in read) for read in reads]
    assert most[:-1] == sorted(most[:-1]), "conflicts are not made sooner than they must"
    assert sum(most) >= max([bank.count(one) for one in range(banks)])


def check_view(
    shape: tuple[int, int],
    rows: int,
    chunk: int,
    depth: int,
    phase_of_tap: list[int],
    phases: int,
    order: list[int],
    ptr: list[int],
    column: list[int],
    place: list[int],
) -> list[tuple[int, int]]:
    """Check one view's structure; return (row, column) of each value. shape: rows and channels of the view."""
    count, channels = shape
    taps, chunks = len(phase_of_tap), -(-channels // chunk)
    assert len(order) == -(-count // rows) * rows
    assert sorted(order[:count]) == list(range(count)), "each row has a slot"
    assert set(order[count:]) <= {-1}, "and only the last slots are empty"
    assert len(ptr) == len(order) // rows * phases * chunks + 1
    assert ptr[0] == 0
    assert all(width >= 0 and width % depth == 0 for width in np.diff(ptr))
    segment_of = np.repeat(np.arange(len(ptr) - 1), np.diff(ptr)).tolist()
    found = []
    kept: dict[int, set[int]] = defaultdict(set)
    for j in place:
        position, slot = divmod(j, rows)
        group_phase, at_chunk = divmod(segment_of[position], chunks)
        group, phase = divmod(group_phase, phases)
        channel, tap = divmod(column[position], taps)
        assert channel // chunk == at_chunk
        assert phase_of_tap[tap] == phase
        found.append((order[group * rows + slot], column[position]))
        kept[segment_of[position]].add(column[position])
    for segment in range(len(ptr) - 1):
        ascending = sorted(kept[segment])
        banks = max(1, depth // 2)
        expected = [ascending[k] for k in read_order([column // taps % banks for column in ascending], banks)]
        padding = expected[-1:] * (-len(expected) % depth)
        assert column[ptr[segment] : ptr[segment + 1]] == expected + padding, "what the segment keeps, and no more"
    assert not any(column[ptr[-1] :])
    assert len(set(place)) == len(place), "no two values share a place"
    return found


def check(
    pattern: Pattern,
    rows: int,
    chunk: int,
    depth: int,
    groups: int,
    stride: tuple[int, int],
    dilation: tuple[int, int],
    index: torch.Tensor,
) -> None:
    """Every value lies where it belongs, in both views, and there is nothing else."""
    shape = pattern.shape if len(pattern.shape) == 4 else (*pattern.shape, 1, 1)
    taps = shape[2] * shape[3]
    at, (*forward, t_order, t_ptr, t_column, t_place) = sections(pattern, rows, chunk, groups, stride, index)
    assert torch.equal(index[: at.at_order], pattern.index)
    assert at.columns == max(forward[1][-1], t_ptr[-1])
    o, i, dy, dx = pattern.mask().view(shape).numpy().nonzero()
    i = i + o // (shape[0] // groups) * shape[1]
    tap = dy * shape[3] + dx
    size = (shape[0], shape[1] * groups)
    ways = [(row * dilation[0] % stride[0], x * dilation[1] % stride[1]) for row in range(shape[2]) for x in range(shape[3])]
    phase_of_tap = [y * stride[1] + x for y, x in ways]
    assert check_view(size, rows, chunk, depth, [0] * taps, 1, *forward) == [*zip(o, i * taps + tap, strict=True)]
    found = check_view(size[::-1], rows, chunk, depth, phase_of_tap, stride[0] * stride[1], t_order, t_ptr, t_column, t_place)
    assert found == [*zip(i, o * taps + tap, strict=True)]


WAYS = {  # rows, chunk, depth, stride, dilation
    "tf32": (16, 8, 8, (1, 1), (1, 1)),
    "bf16, stride 2": (32, 16, 16, (2, 2), (1, 1)),
    "stride 3x2, dilation 2x3": (16, 32, 8, (3, 2), (2, 3)),
    "one row": (1, 8, 1, (1, 2), (1, 1)),
    "two rows": (2, 64, 2, (2, 1), (3, 1)),
}


@pytest.mark.parametrize("mask", MASKS)
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("way", WAYS)
def test_every_value_has_its_place(shape: str, mask: str, way: str) -> None:
    size, groups = SHAPES[shape]
    rows, chunk, depth, stride, dilation = WAYS[way]
    pattern = Pattern(MASKS[mask](size))
    index = pattern.gathered(rows, chunk, depth, groups, stride, dilation)
    check(pattern, rows, chunk, depth, groups, stride, dilation, index)


@pytest.mark.parametrize("depth", [8, 16])
def test_what_is_read_at_once_lies_in_different_banks_where_that_is_possible(depth: int) -> None:
    pattern = Pattern(torch.ones(16, 32, 3, 3))
    _, (_, ptr, column, _, *_) = sections(pattern, 16, 16, 1, (1, 1), pattern.gathered(16, 16, depth))
    assert ptr == [0, 144, 288]
    banks = depth // 2
    channels = torch.tensor(column).view(-1, banks) // 9
    assert (channels % banks == torch.arange(banks)).all()


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ((16.0, 8, 8), TypeError, "rows: expected an int, got float"),
        ((16, True, 8), TypeError, "chunk: expected an int, got bool"),
        ((0, 8, 8), ValueError, "rows: expected a power of two from 1 to 128, got 0"),
        ((256, 8, 8), ValueError, "rows: expected a power of two from 1 to 128, got 256"),
        ((16, 4, 8), ValueError, "chunk: expected a power of two from 8 to 128, got 4"),
        ((16, 24, 8), ValueError, "chunk: expected a power of two from 8 to 128, got 24"),
        ((16, 8, 32), ValueError, "depth: expected a power of two from 1 to 16, got 32"),
        ((16, 8, 8, 3), ValueError, "groups: expected a divisor of the 20 output channels, got 3"),
        ((16, 8, 8, 1, (1,)), ValueError, r"stride: expected two ints from 1 to 2..31 - 1, got \(1,\)"),
        ((16, 8, 8, 1, (1, 1), (0, 1)), ValueError, r"dilation: expected two ints from 1 to 2..31 - 1, got \(0, 1\)"),
    ],
)
def test_bad_arguments(arguments: tuple[Any, ...], error: type[Exception], message: str) -> None:
    pattern = Pattern(torch.eye(20))
    with pytest.raises(error, match=message):
        pattern.gathered(*arguments)


def test_a_length_that_no_gathered_index_has() -> None:
    pattern = Pattern(torch.eye(20))
    length = pattern.gathered(16, 8, 8).numel()
    for wrong in (length + 1, pattern.index.numel()):
        with pytest.raises(
            ValueError, match=r"no gathered index of weight \(20, 20\) in groups of 16 rows and chunks of 8 channels"
        ):
            offsets(pattern.shape, 1, pattern.nnz, 16, 8, (1, 1), wrong)


@both
@pytest.mark.parametrize(
    ("shape", "groups", "stride", "message"),
    [
        ((1, 1, 1, 1), 1, (2**16, 2**16), "fewer than 2..31 segments .* got 1 row groups x 4294967296 phases x 1 chunks"),
        ((2**13, 9, 1, 1), 1, (2**11, 2**10), "fewer than 2..31 segments .* got 1 row groups x 2097152 phases x 1024 chunks"),
        ((2**15, 1, 1, 2**16), 2**15, (1, 1), "input channels . kh . kw below 2..31, got 2147483648"),
    ],
)
def test_indices_are_32_bits(
    shape: tuple[int, ...], groups: int, stride: tuple[int, int], message: str, gather: Callable[..., Any]
) -> None:
    outputs, inputs, kh, kw = shape
    blocks, t_blocks = -(-inputs // 8), -(-outputs // 8)
    at = 16 + outputs * blocks + 1
    length = at + inputs * t_blocks + 1
    index = np.zeros(length, np.int32)  # of an empty mask
    index[:15] = [1, outputs, inputs, kh, kw, 0, 8, blocks, t_blocks, 16, at, at, length, length, length]
    with pytest.raises(ValueError, match=message):
        gather(index, 16, 8, 8, groups, stride, (1, 1))


@compiled
def test_places_are_32_bits() -> None:
    index = compile_reference(np.ones((1, 1, 1024, 1025), bool), 8)  # each weight in a phase of its own: 16 columns each
    with pytest.raises(ValueError, match=r"its packed weight below 2\*\*31 numbers, got \d+ and 2149580800"):
        gather_index(index, 128, 8, 16, 1, (1024, 1025), (1, 1))


@compiled
@hypothesis.settings(max_examples=40, deadline=None)
@hypothesis.given(
    st.tuples(st.integers(1, 50), st.integers(1, 50), st.integers(1, 3), st.integers(1, 3)),
    st.sampled_from([0.01, 0.1, 0.5]),
    st.sampled_from([1, 2, 16, 32]),
    st.sampled_from([8, 16, 64]),
    st.sampled_from([1, 8, 16]),
    st.tuples(st.integers(1, 3), st.integers(1, 3)),
    st.tuples(st.integers(1, 3), st.integers(1, 3)),
    st.data(),
)
def test_compiled_equals_numpy(
    shape: tuple[int, ...],
    density: float,
    rows: int,
    chunk: int,
    depth: int,
    stride: tuple[int, int],
    dilation: tuple[int, int],
    data: st.DataObject,
) -> None:
    mask = np.random.default_rng(data.draw(st.integers(0, 2**32))).random(shape) < density
    groups = data.draw(st.sampled_from([g for g in range(1, shape[0] + 1) if shape[0] % g == 0]))
    index = compile_reference(mask, 8)
    arguments = (index, rows, chunk, depth, groups, stride, dilation)
    for orders in ((), row_orders(index, rows, groups, 1)):
        assert (gather_index(*arguments, *orders) == gather_reference(*arguments, *orders)).all()


@compiled
@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"rows": 0}, "rows: expected 1 to"),
        ({"chunk": 0}, "chunk: expected 1 to"),
        ({"stride": (1, 2**31)}, "stride: expected 1 to"),
        ({"groups": 3}, "groups: expected a divisor of the 4 output channels, got 3"),
        ({"order": np.array([0, 1, 1, 3], np.int32)}, "order: expected each of 4 rows once"),
        ({"t_order": np.arange(3, dtype=np.int32)}, "order: expected each of 4 rows once"),
    ],
)
def test_the_compiled_one_checks_its_arguments(change: dict[str, Any], message: str) -> None:
    index = compile_reference(np.eye(4, dtype=bool).reshape(4, 4, 1, 1), 8)
    arguments = {"rows": 2, "chunk": 8, "depth": 8, "groups": 1, "stride": (1, 1), "dilation": (1, 1)}
    gather_index(index, **arguments)
    with pytest.raises(ValueError, match=message):
        gather_index(index, **arguments | change)
