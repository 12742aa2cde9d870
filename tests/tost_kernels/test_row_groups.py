"""What Pattern.tiled and Pattern.gathered share: made once, kept, moved, a constant of compiled graphs."""

from typing import Any

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from tost_kernels.pattern import Pattern
from tost_kernels.row_groups import row_orders

# method -> arguments that it can do with, others
CALLS: dict[str, tuple[tuple[Any, ...], tuple[tuple[Any, ...], ...]]] = {
    "tiled": ((16,), ((32,), (16, 2), (16, 1, 16))),
    "gathered": (
        (16, 8, 8),
        ((32, 8, 8), (16, 16, 8), (16, 8, 1), (16, 8, 8, 2), (16, 8, 8, 1, (2, 1)), (16, 8, 8, 1, (2, 1), (2, 1))),
    ),
}


@pytest.mark.parametrize("method", CALLS)
def test_made_once_and_moves_with_the_pattern(method: str) -> None:
    arguments, others = CALLS[method]

    def of(pattern: Pattern, arguments: tuple[Any, ...]) -> torch.Tensor:
        return getattr(pattern, method)(*arguments)

    pattern = Pattern(torch.rand(20, 30) < 0.5)
    first = of(pattern, arguments)
    assert of(pattern, arguments) is first
    assert of(pattern, (*arguments, 1)) is first, "one group is the default"
    assert all(of(pattern, other) is not first for other in others)
    assert of(Pattern(torch.rand(20, 30) < 0.5), arguments) is not first
    moved = pattern.to("cpu")
    assert of(moved, arguments) is first
    pattern.forget_tiles()
    again = of(pattern, arguments)
    assert again is not first
    assert torch.equal(again, first)


@pytest.mark.parametrize("method", CALLS)
def test_usable_anywhere_wherever_it_was_made(method: str) -> None:
    pattern = Pattern(torch.rand(20, 30) < 0.5)
    arguments, (other, *_) = CALLS[method]
    with torch.inference_mode():
        assert not getattr(pattern, method)(*arguments).is_inference()
    with FakeTensorMode():
        assert type(getattr(pattern, method)(*other)) is torch.Tensor


@pytest.mark.parametrize("method", CALLS)
def test_compiles_as_a_constant_of_its_pattern(method: str) -> None:
    class Layer(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.pattern = Pattern(torch.eye(20, 30))
            self.arguments, (*_, self.others) = CALLS[method]

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            make = getattr(self.pattern, method)
            return x * make(*self.arguments).sum() - make(*self.others).sum()

    layer = Layer()
    one = torch.ones((), dtype=torch.int64)
    run = torch.compile(layer, fullgraph=True, backend="eager")
    for mask in (torch.eye(20, 30), torch.eye(20, 30).flip(0)):  # as many weights, in other places
        layer.pattern = Pattern(mask)
        make = getattr(layer.pattern, method)
        assert run(one) == layer(one) == make(*layer.arguments).sum() - make(*layer.others).sum()


def test_the_order_of_the_rows_is_searched_for_once(monkeypatch: pytest.MonkeyPatch) -> None:
    searches = []

    def search(*arguments: Any) -> Any:
        searches.append(arguments[1:])
        return row_orders(*arguments)

    monkeypatch.setattr("tost_kernels.pattern.row_orders", search)
    pattern = Pattern(torch.rand(40, 30) < 0.3)
    tiled = pattern.tiled(16)
    gathered = [pattern.gathered(16, 8, 8), pattern.gathered(16, 16, 16, 1, (2, 2))]
    assert searches == [(16, 1, 1)]
    start = pattern.index.numel()
    assert all(torch.equal(tiled[start : start + 48], other[start : start + 48]) for other in gathered)
    pattern.gathered(16, 8, 8, 2)
    assert searches == [(16, 1, 1), (16, 2, 1)]
