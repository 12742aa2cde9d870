"""Batched crops, mirrors and holes against one image at a time."""

import torch

from tost.data.augment import Moves, apply_moves, cut_out, draw_moves


def slow(image: torch.Tensor, dy: int, dx: int, flip: bool, padding: int) -> torch.Tensor:
    channels, height, width = image.shape
    out = torch.zeros(channels, height, width, dtype=image.dtype)
    for y in range(height):
        for x in range(width):
            sy, sx = y + dy - padding, x + dx - padding
            if 0 <= sy < height and 0 <= sx < width:
                out[:, y, x] = image[:, sy, sx]
    return out.flip(2) if flip else out


def test_equals_one_image_at_a_time() -> None:
    random = torch.Generator().manual_seed(0)
    for padding in (2, 0):
        images = torch.randint(1, 256, (12, 3, 7, 5), generator=random, dtype=torch.uint8)
        moves = draw_moves(12, padding, True, random)
        got = apply_moves(images, moves, padding)
        assert got.is_contiguous()
        assert got.dtype == torch.uint8
        for i in range(12):
            expected = slow(images[i], int(moves.dy[i]), int(moves.dx[i]), bool(moves.flip[i]), padding)
            assert torch.equal(got[i], expected)


def test_the_middle_leaves_the_image() -> None:
    images = torch.randint(0, 256, (2, 1, 4, 4), dtype=torch.uint8)
    still = Moves(torch.full((2,), 3), torch.full((2,), 3), torch.zeros(2, dtype=torch.bool))
    assert torch.equal(apply_moves(images, still, 3), images)


def test_moves_cover_their_range() -> None:
    random = torch.Generator().manual_seed(0)
    moves = draw_moves(2000, 2, True, random, hole_in=(3, 4), crop_seeds=True)
    assert sorted(set(moves.dy.tolist())) == sorted(set(moves.dx.tolist())) == [0, 1, 2, 3, 4]
    assert 800 < int(moves.flip.sum()) < 1200
    assert sorted(set(moves.hole_y.tolist())) == [0, 1, 2]
    assert sorted(set(moves.hole_x.tolist())) == [0, 1, 2, 3]
    assert len(set(moves.crop_seeds.tolist())) == 2000
    assert not draw_moves(100, 2, False, random).flip.any()


def test_what_is_not_asked_for_is_not_drawn() -> None:
    plain, more = (torch.Generator().manual_seed(0) for _ in range(2))
    first, second = draw_moves(4, 2, True, plain), draw_moves(4, 2, True, more, hole_in=(8, 8), crop_seeds=True)
    assert first.hole_y is first.hole_x is first.crop_seeds is None
    assert torch.equal(first.dy, second.dy)
    assert torch.equal(first.flip, second.flip)
    assert plain.get_state().ne(more.get_state()).any()


def test_holes_by_hand() -> None:
    inputs = torch.ones(3, 2, 4, 5)
    none = torch.zeros(3, dtype=torch.int64)
    moves = Moves(none, none, none.bool(), torch.tensor([0, 2, 3]), torch.tensor([0, 2, 4]))
    got = cut_out(inputs.clone(), moves, 2)
    assert torch.equal(got[:, 0], got[:, 1])
    table = [
        [[0, 1, 1, 1, 1], [1, 1, 1, 1, 1], [1, 1, 1, 1, 1], [1, 1, 1, 1, 1]],  # clipped to one pixel
        [[1, 1, 1, 1, 1], [1, 0, 0, 1, 1], [1, 0, 0, 1, 1], [1, 1, 1, 1, 1]],
        [[1, 1, 1, 1, 1], [1, 1, 1, 1, 1], [1, 1, 1, 0, 0], [1, 1, 1, 0, 0]],
    ]
    assert torch.equal(got[:, 0], torch.tensor(table).float())
    odd = cut_out(inputs.clone(), moves, 3)
    assert (odd[1, 0] == 0).sum() == 9
    assert odd[1, 0, 1:4, 1:4].sum() == 0


def test_moves_of_a_part_and_their_bytes() -> None:
    random = torch.Generator().manual_seed(0)
    moves = draw_moves(6, 2, True, random, hole_in=(8, 8), crop_seeds=True)
    part = moves.of(slice(2, 4))
    assert torch.equal(part.dy, moves.dy[2:4])
    assert torch.equal(part.hole_x, moves.hole_x[2:4])
    assert torch.equal(part.crop_seeds, moves.crop_seeds[2:4])
    assert len(moves.tobytes()) == 6 * (5 * 8 + 1)
    assert len(draw_moves(6, 2, True, random).tobytes()) == 6 * (2 * 8 + 1)
