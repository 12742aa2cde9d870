"""The tiled index against a table worked out by hand, against the mask it stands for, and the compiled one against numpy's."""

import numpy as np
import pytest
import torch

from tost_kernels.pattern import Pattern
from tost_kernels.tiles import TileSections, offsets, tile_reference


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


SHAPES = {
    "1x1": ((40, 33, 1, 1), 1),
    "3x3": ((20, 24, 3, 3), 1),
    "5x5": ((17, 3, 5, 5), 1),
    "2x3": ((33, 5, 2, 3), 1),
    "linear": ((50, 70), 1),
    "one row": ((1, 1), 1),
    "groups": ((36, 5, 3, 3), 3),
    "depthwise": ((37, 1, 3, 3), 37),
    "depthwise, two filters a channel": ((40, 1, 3, 1), 20),
}
MASKS = {
    "empty": lambda size: torch.zeros(size, dtype=torch.bool),
    "full": lambda size: torch.ones(size, dtype=torch.bool),
    "random": lambda size: torch.rand(size) < 0.2,
    "empty rows": lambda size: (torch.rand(size) < 0.3) & (torch.rand(size[0], *[1] * (len(size) - 1)) < 0.5),
    "one weight": lambda size: torch.arange(int(np.prod(size))).view(size) == int(np.prod(size)) // 2,
}


@pytest.mark.parametrize("mask", MASKS)
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize(("rows", "block"), [(16, 1), (32, 1), (16, 16), (16, 32)])
def test_every_value_has_its_place(shape: str, mask: str, rows: int, block: int) -> None:
    size, groups = SHAPES[shape]
    pattern = Pattern(MASKS[mask](size))
    check(pattern, rows, groups, block, pattern.tiled(rows, groups, block))
    check(pattern, rows, groups, block, torch.from_numpy(tile_reference(pattern.index.numpy(), rows, groups, block)))
