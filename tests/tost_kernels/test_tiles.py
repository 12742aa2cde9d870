"""The tiled index against a table worked out by hand, against the mask it stands for, and the compiled one against numpy's."""

import hypothesis
import numpy as np
import pytest
import torch
from hypothesis import strategies as st

from tests.tost_kernels.masks import MASKS, SHAPES
from tost_kernels import pattern as pattern_module
from tost_kernels import row_groups
from tost_kernels.packed_index import compile_reference
from tost_kernels.pattern import Pattern
from tost_kernels.tiles import TileSections, offsets, tile_reference

try:
    from tost_kernels._pattern import row_orders, tile_index
except ImportError:
    tile_index = None

compiled = pytest.mark.skipif(tile_index is None, reason="built without a compiler")


def sections(pattern: Pattern, rows: int, groups: int, tiled: torch.Tensor) -> tuple[TileSections, list[list[int]]]:
    """Where the sections are, and each of them: order, ptr, channel, place, and the same transposed."""
    at = offsets(pattern.shape, groups, pattern.nnz, rows, tiled.numel())
    ends = [*at[1:8], tiled.numel()]
    return at, [tiled[start:end].tolist() for start, end in zip(at[:8], ends, strict=True)]


def test_tiles_by_hand() -> None:
    # 17 output channels, 3 input channels, 1 x 2 taps; natural order, so that row 16 is a group of its own
    mask = torch.zeros(17, 3, 1, 2)
    mask[0, 1, 0, 0] = mask[2, 2, 0, 0] = mask[2, 1, 0, 1] = mask[16, 0, 0, 1] = 1
    pattern = Pattern(mask)
    tiled = torch.from_numpy(tile_reference(pattern.index.numpy(), 16))
    at, (order, ptr, channel, place, t_order, t_ptr, t_channel, t_place) = sections(pattern, 16, 1, tiled)
    assert torch.equal(tiled[: at.at_order], pattern.index)
    assert (at.groups_forward, at.groups_transposed, at.columns) == (2, 1, 48)
    assert order == [*range(17), *[-1] * 15]
    assert ptr == [0, 16, 32, 32, 48]  # both taps of the first group, tap 1 of the second
    assert channel == [1, *[2] * 15, *[1] * 16, *[0] * 16]
    # values: (0, 1, tap 0), (2, 1, tap 1), (2, 2, tap 0), (16, 0, tap 1); the groups' matrices have 32 and 16 columns
    assert place == [0, 2 * 32 + 16, 2 * 32 + 1, 16 * 32]
    assert t_order == [0, 1, 2, *[-1] * 13]
    assert t_ptr == [0, 16, 32]
    assert t_channel == [0, *[2] * 15, 2, *[16] * 15, *[0] * 16]
    assert t_place == [1 * 32, 1 * 32 + 16, 2 * 32 + 1, 16 + 1]


def check_view(
    shape: tuple[int, int],
    rows: int,
    taps: int,
    block: int,
    order: list[int],
    ptr: list[int],
    channel: list[int],
    place: list[int],
) -> np.ndarray:
    """Check one view's structure; return (row, tap, channel) of each value. shape: rows and channels of the view."""
    count, channels = shape
    group_count = -(-count // rows)
    assert len(order) == group_count * rows
    assert sorted(order[:count]) == list(range(count)), "each row has a slot"
    assert set(order[count:]) <= {-1}, "and only the last slots are empty"
    assert len(ptr) == group_count * taps + 1
    assert ptr[0] == 0
    assert all(width >= 0 and width % 16 == 0 for width in np.diff(ptr))
    found = []
    for j in place:
        group = max(g for g in range(group_count) if rows * ptr[g * taps] <= j)
        begin, end = ptr[group * taps], ptr[(group + 1) * taps]
        slot, column = divmod(j - rows * begin, end - begin)
        column += begin
        tap = max(t for t in range(group * taps, (group + 1) * taps) if ptr[t] <= column) - group * taps
        found.append((order[group * rows + slot], tap, channel[column]))
    kept: dict[int, set[int]] = {}
    for row, tap, c in found:
        kept.setdefault(order.index(row) // rows * taps + tap, set()).add(c)
    for segment in range(group_count * taps):
        listed = channel[ptr[segment] : ptr[segment + 1]]
        expected = sorted({c // block * block + k for c in kept.get(segment, ()) for k in range(block)})
        padding = expected[-1:] * (-len(expected) % 16)
        assert listed == expected + padding, "what the group keeps at the tap, ascending, and no more"
    assert all(c < channels + block - 1 for c in channel[: ptr[-1]])
    assert not any(channel[ptr[-1] :])
    return np.array(found, dtype=np.int64).reshape(-1, 3)


def check(pattern: Pattern, rows: int, groups: int, block: int, tiled: torch.Tensor) -> None:
    """Every value lies where it belongs, in both views, and there is nothing else."""
    shape = pattern.shape if len(pattern.shape) == 4 else (*pattern.shape, 1, 1)
    taps = shape[2] * shape[3]
    at, (order, ptr, channel, place, *transposed) = sections(pattern, rows, groups, tiled)
    assert torch.equal(tiled[: at.at_order], pattern.index)
    assert at.columns == max(ptr[-1], transposed[1][-1])
    o, i, dy, dx = pattern.mask().view(shape).numpy().nonzero()
    i = i + o // (shape[0] // groups) * shape[1]
    tap = dy * shape[3] + dx
    size = (shape[0], shape[1] * groups)
    assert (check_view(size, rows, taps, block, order, ptr, channel, place) == np.stack([o, tap, i], 1)).all()
    assert (check_view(size[::-1], rows, taps, block, *transposed) == np.stack([i, tap, o], 1)).all()
    for one in (place, transposed[3]):
        assert len(set(one)) == len(one), "no two values share a place"


@pytest.mark.parametrize("mask", MASKS)
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize(("rows", "block"), [(16, 1), (32, 1), (16, 16), (16, 32)])
def test_every_value_has_its_place(shape: str, mask: str, rows: int, block: int) -> None:
    size, groups = SHAPES[shape]
    pattern = Pattern(MASKS[mask](size))
    check(pattern, rows, groups, block, pattern.tiled(rows, groups, block))
    check(pattern, rows, groups, block, torch.from_numpy(tile_reference(pattern.index.numpy(), rows, groups, block)))


@compiled
@hypothesis.settings(max_examples=60, deadline=None)
@hypothesis.given(
    st.tuples(st.integers(1, 80), st.integers(1, 80), st.integers(1, 3), st.integers(1, 3)),
    st.sampled_from([0.01, 0.1, 0.5]),
    st.sampled_from([16, 32]),
    st.sampled_from([1, 16, 32]),
    st.data(),
)
def test_compiled_equals_numpy_and_costs_no_more_than_the_natural_order(
    shape: tuple[int, ...], density: float, rows: int, block: int, data: st.DataObject
) -> None:
    random = np.random.default_rng(data.draw(st.integers(0, 2**32)))
    mask = random.random(shape) < density
    outputs, nnz = mask.shape[0], int(mask.sum())
    groups = data.draw(st.sampled_from([g for g in range(1, outputs + 1) if outputs % g == 0]))
    index = compile_reference(mask, 8)
    order, t_order = row_orders(index, rows, groups, block)
    again = row_orders(index, rows, groups, block)
    assert (order == again[0]).all()
    assert (t_order == again[1]).all(), "the same every time"
    tiled = tile_index(index, rows, groups, block, order, t_order)
    assert (tiled == tile_reference(index, rows, groups, block, order, t_order)).all()
    natural = tile_reference(index, rows, groups, block)
    assert (natural == tile_index(index, rows, groups, block)).all()
    at = offsets(mask.shape, groups, nnz, rows, len(tiled))
    was = offsets(mask.shape, groups, nnz, rows, len(natural))
    for view in ("at_channel", "at_t_channel"):  # the number before is the last of ptr
        assert tiled[getattr(at, view) - 1] <= natural[getattr(was, view) - 1]


@compiled
@pytest.mark.parametrize("block", [1, 16])
@pytest.mark.parametrize("kernel", [1, 3])
def test_rows_that_share_columns_meet(kernel: int, block: int) -> None:
    """Four kinds of rows, shuffled, each with 32 channels of its own: one list of columns a group is possible, and found."""
    kind = torch.randperm(64) % 4
    channel = torch.arange(128)
    mask = (channel // 32 == kind[:, None]).view(64, 128, 1, 1).expand(-1, -1, kernel, kernel)
    pattern = Pattern(mask)
    tiled = pattern.tiled(16, 1, block)
    _, (order, ptr, *_rest) = sections(pattern, 16, 1, tiled)
    assert ptr[-1] == 4 * 32 * kernel**2
    kinds = kind[torch.tensor(order).view(4, 16)]
    assert (kinds == kinds[:, :1]).all()


@compiled
def test_many_rows() -> None:
    """More than are compared with each other: still groups of rows that share columns."""
    kind = torch.randperm(20_000) % 4
    mask = torch.zeros(20_000, 64, dtype=torch.bool)
    mask[torch.arange(20_000), 16 * kind] = True
    tiled = Pattern(mask).tiled(16)
    _, (order, ptr, *_rest) = sections(Pattern(mask), 16, 1, tiled)
    assert sorted(order) == [*range(20_000)]
    assert ptr[-1] == 16 * 20_000 // 16


def test_natural_order_without_a_compiler(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pattern_module, "tile", tile_reference)
    monkeypatch.setattr(pattern_module, "row_orders", row_groups._natural_orders)
    pattern = Pattern(torch.rand(40, 20) < 0.3)
    _, (order, *_rest) = sections(pattern, 16, 1, pattern.tiled(16))
    assert order == [*range(40), *[-1] * 8]


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ((16.0,), TypeError, "rows: expected an int, got float"),
        ((8,), ValueError, "rows: expected a power of two from 16 to 1024, got 8"),
        ((48,), ValueError, "rows: expected a power of two from 16 to 1024, got 48"),
        ((2048,), ValueError, "rows: expected a power of two from 16 to 1024, got 2048"),
        ((16, 3), ValueError, "groups: expected a divisor of the 20 output channels, got 3"),
        ((16, 0), ValueError, "groups: expected a divisor of the 20 output channels, got 0"),
        ((16, 1, 8), ValueError, "block: expected 1 or a power of two from 16 to 1024, got 8"),
    ],
)
def test_bad_arguments(arguments: tuple[int, ...], error: type[Exception], message: str) -> None:
    pattern = Pattern(torch.eye(20))
    with pytest.raises(error, match=message):
        pattern.tiled(*arguments)


def test_a_length_that_no_tiled_index_has() -> None:
    pattern = Pattern(torch.eye(20))
    tiled = pattern.tiled(16)
    with pytest.raises(ValueError, match=r"are no index of weight \(20, 20\) in groups of 16 rows"):
        offsets(pattern.shape, 1, pattern.nnz, 16, tiled.numel() + 2)


@pytest.mark.parametrize("tile", [pytest.param(tile_index, marks=compiled), tile_reference])
def test_places_are_32_bits(tile: object) -> None:
    index = compile_reference(np.ones((1, 1, 46, 46), bool), 8)  # 2116 taps, each a tile of 1024 x 1024
    with pytest.raises(ValueError, match=r"its packed weight below 2\*\*31 numbers, got \d+ and 2218786816"):
        tile(index, 1024, 1, 1024)  # type: ignore[operator]


@compiled
@pytest.mark.parametrize(("at", "value"), [(1, 5), (3, 0), (5, 7), (9, 15), (14, 3), (18, 100), (22, -1), (22, 99)])
def test_a_damaged_index_is_refused(at: int, value: int) -> None:
    index = compile_reference(np.eye(4, dtype=bool).reshape(4, 4, 1, 1), 8)
    tile_index(index, 16, 1, 1)
    index[at] = value
    with pytest.raises(ValueError, match="index: expected the packed index of a pattern"):
        tile_index(index, 16, 1, 1)


@compiled
@pytest.mark.parametrize("order", [[*range(19), 18], [*range(20)], [*range(20), -1, *range(20, 31)], [*range(20), *[0] * 12], []])
def test_what_is_no_order_is_refused(order: list[int]) -> None:
    index = compile_reference(np.eye(20, dtype=bool).reshape(20, 20, 1, 1), 8)
    with pytest.raises(ValueError, match="order: expected each of 20 rows once, in groups of 16, then -1"):
        tile_index(index, 16, 1, 1, np.array(order, np.int32))
