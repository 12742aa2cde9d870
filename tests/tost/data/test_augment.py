"""Batched crops and mirrors against one image at a time."""

import torch

from tost.data.augment import Moves, apply_moves, draw_moves


def slow(image: torch.Tensor, dy: int, dx: int, flip: bool, padding: int, fill: torch.Tensor) -> torch.Tensor:
    channels, height, width = image.shape
    out = fill[:, None, None].expand(channels, height, width).clone()
    for y in range(height):
        for x in range(width):
            sy, sx = y + dy - padding, x + dx - padding
            if 0 <= sy < height and 0 <= sx < width:
                out[:, y, x] = image[:, sy, sx]
    return out.flip(2) if flip else out


def test_equals_one_image_at_a_time() -> None:
    random = torch.Generator().manual_seed(0)
    images, fill = torch.randn(12, 3, 7, 5, generator=random), torch.tensor([-1.0, -2.0, -3.0])
    moves = draw_moves(12, 2, True, random)
    got = apply_moves(images, moves, 2, fill)
    assert got.is_contiguous()
    for i in range(12):
        expected = slow(images[i], int(moves.dy[i]), int(moves.dx[i]), bool(moves.flip[i]), 2, fill)
        assert torch.equal(got[i], expected)


def test_the_middle_leaves_the_image() -> None:
    images = torch.randn(2, 1, 4, 4)
    still = Moves(torch.full((2,), 3), torch.full((2,), 3), torch.zeros(2, dtype=torch.bool))
    assert torch.equal(apply_moves(images, still, 3, torch.zeros(1)), images)


def test_moves_cover_their_range() -> None:
    random = torch.Generator().manual_seed(0)
    moves = draw_moves(2000, 2, True, random)
    assert sorted(set(moves.dy.tolist())) == sorted(set(moves.dx.tolist())) == [0, 1, 2, 3, 4]
    assert 800 < int(moves.flip.sum()) < 1200
    assert not draw_moves(100, 2, False, random).flip.any()
