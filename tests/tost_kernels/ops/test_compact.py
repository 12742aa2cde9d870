"""Dense plans with compact=1: dead filters and channels left out of torch's op, exactly, in every layout."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import tost_kernels as tk
from tost_kernels.compact import compact, live_parts
from tost_kernels.layout import as_layout, layout_of
from tost_kernels.ops.channels import put_channels, take_channels
from tost_kernels.plan import Plan

CONV = ["compact=1", "layout=channels_last,compact=1", "layout=contiguous,compact=1"]
# name -> (mask of a 3x3 convolution, live filters, live channels)
KINDS = ("some_dead", "one_alive", "all_dead", "filters_only", "channels_only")


def mask_of(kind: str, shape: tuple[int, ...] = (6, 5, 3, 3)) -> Tensor:
    mask = torch.rand(shape) < 0.6
    mask[0, :] = mask[:, 0] = True
    if kind in ("some_dead", "filters_only"):
        mask[[1, 4]] = False
    if kind in ("some_dead", "channels_only"):
        mask[:, [0, 3]] = False
        mask[0, 1] = True
    if kind in ("one_alive", "all_dead"):
        mask[:] = False
    if kind == "one_alive":
        mask[3, 2] = True
    return mask


def leaves(pattern: tk.Pattern, x: Tensor, dtype: torch.dtype = torch.float64) -> list[Tensor]:
    tensors = x.to(dtype), torch.randn(pattern.nnz, dtype=dtype), torch.randn(pattern.shape[0], dtype=dtype)
    return [t.detach().requires_grad_() for t in tensors]


def outcome(function: Callable[..., Tensor], inputs: list[Tensor], seed: int = 3) -> list[Tensor]:
    out = function(*inputs)
    grad = torch.randn(out.shape, dtype=out.dtype, generator=torch.Generator().manual_seed(seed))
    return [out.detach(), *torch.autograd.grad(out, inputs, grad)]


@pytest.mark.parametrize("layout", ["contiguous", "channels_last", "batch_last"])
@pytest.mark.parametrize("options", CONV)
@pytest.mark.parametrize("kind", KINDS)
def test_a_convolution_equals_the_reference(kind: str, options: str, layout: str) -> None:
    pattern = tk.Pattern(mask_of(kind))
    inputs = leaves(pattern, as_layout(torch.randn(4, 5, 7, 6), layout))

    def run(plan: Plan) -> list[Tensor]:
        return outcome(lambda x, v, b: tk.masked_conv2d(x, v, pattern, b, (2, 1), (1, 2), (1, 2), plan=plan), inputs)

    got, want = run(Plan("dense", options)), run(Plan("reference"))
    for mine, theirs in zip(got, want, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-12, atol=1e-12)
    assert [layout_of(t) for t in got[:2]] == [layout, layout]
    dead = ~pattern.mask().flatten(1).any(1)
    assert torch.equal(got[0][:, dead], inputs[2].detach()[dead].view(1, -1, 1, 1).expand_as(got[0][:, dead]))
    assert not got[1][:, ~pattern.mask().any(0).flatten(1).any(1)].any()


@pytest.mark.parametrize("kind", ["some_dead", "all_dead"])
@pytest.mark.parametrize("layout", ["contiguous", "batch_last"])
def test_a_linear_layer_equals_the_reference(kind: str, layout: str) -> None:
    pattern = tk.Pattern(mask_of(kind, (6, 5)))
    inputs = leaves(pattern, as_layout(torch.randn(9, 5), layout))
    got, want = (
        outcome(lambda x, v, b, plan=plan: tk.masked_linear(x, v, pattern, b, plan=plan), inputs)
        for plan in (Plan("dense", "compact=1"), Plan("reference"))
    )
    for mine, theirs in zip(got, want, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-12, atol=1e-12)
    assert [layout_of(t) for t in got[:2]] == [layout, layout]


@pytest.mark.parametrize("layout", ["contiguous", "channels_last", "batch_last"])
def test_it_differentiates_to_any_order(layout: str) -> None:
    pattern = tk.Pattern(mask_of("some_dead"))
    inputs = leaves(pattern, as_layout(torch.randn(2, 5, 3, 4), layout))

    def convolve(x: Tensor, values: Tensor, bias: Tensor) -> Tensor:
        return tk.masked_conv2d(x, values, pattern, bias, padding=1, plan=Plan("dense", "compact=1"))

    assert torch.autograd.gradcheck(convolve, inputs)
    assert torch.autograd.gradgradcheck(convolve, inputs)


def test_a_linear_layer_differentiates_to_any_order() -> None:
    pattern = tk.Pattern(mask_of("some_dead", (6, 5)))

    def linear(x: Tensor, values: Tensor, bias: Tensor) -> Tensor:
        return tk.masked_linear(x, values, pattern, bias, plan=Plan("dense", "compact=1"))

    assert torch.autograd.gradgradcheck(linear, leaves(pattern, torch.randn(3, 5)))


def test_it_computes_the_live_part_alone() -> None:
    """The weight that reaches torch's convolution has no dead filter or channel."""
    pattern = tk.Pattern(mask_of("some_dead"))
    shapes: list[Any] = []

    def keep(graph: torch.fx.GraphModule, inputs: list[Tensor]) -> torch.fx.GraphModule:
        shapes.extend(node.args[1].meta["example_value"].shape for node in graph.graph.nodes if "conv2d" in str(node.target))
        return graph

    def convolve(x: Tensor, values: Tensor) -> Tensor:
        return tk.masked_conv2d(x, values, pattern, padding=1, plan=Plan("dense", "compact=1"))

    x, values, _ = leaves(pattern, torch.randn(2, 5, 4, 4))
    compiled = torch.compile(convolve, fullgraph=True, backend=keep)
    torch.testing.assert_close(compiled(x, values), convolve(x, values))
    assert shapes == [(4, 3, 3, 3)]


@pytest.mark.filterwarnings("ignore:There is a performance drop:UserWarning")  # vmap runs index_copy in a loop, and says so
def test_functional_transforms() -> None:
    pattern = tk.Pattern(mask_of("some_dead"))
    x, values, bias = (t.detach() for t in leaves(pattern, torch.randn(3, 5, 4, 4)))

    def loss(v: Tensor, sample: Tensor) -> Tensor:
        return tk.masked_conv2d(sample, v, pattern, bias, plan=Plan("dense", "compact=1")).square().sum()

    stacked = torch.func.vmap(torch.func.grad(loss), in_dims=(None, 0))(values, x)
    one_by_one = torch.stack([torch.func.grad(loss)(values, sample) for sample in x])
    torch.testing.assert_close(stacked, one_by_one)


def test_channels_taken_and_put_back() -> None:
    x, index = tk.to_batch_last(torch.arange(8.0).view(2, 2, 1, 2)), torch.tensor([1])
    taken = take_channels(x, index)
    assert taken.tolist() == [[[[2, 3]]], [[[6, 7]]]]
    put = put_channels(taken, index, 2, "batch_last")
    assert put.tolist() == [[[[0, 0]], [[2, 3]]], [[[0, 0]], [[6, 7]]]]
    assert tk.is_batch_last(put)


def test_what_is_live_by_hand() -> None:
    mask = np.array([[1, 0, 0, 1], [0, 0, 0, 0], [0, 0, 0, 1]], bool)
    assert [part.tolist() for part in live_parts(mask)] == [[0, 2], [0, 3]]
    found = compact(mask)
    assert found is not None
    assert (found.filters.tolist(), found.channels.tolist(), found.positions.tolist()) == ([0, 2], [0, 3], [0, 1, 3])
    assert found.shape == (2, 2)
    assert found.scatter(torch.tensor([1.0, 2.0, 3.0])).tolist() == [[1, 2], [0, 3]]
    pattern = tk.Pattern(torch.from_numpy(mask))
    assert pattern.live == (2, 2)
    assert pattern.to("cpu").compact is pattern.compact


@pytest.mark.parametrize(("dead", "worth"), [(1, False), (2, True)])
def test_less_than_a_tenth_is_not_worth_it(dead: int, worth: bool) -> None:
    mask = torch.ones(20, 3, dtype=torch.bool)
    mask[:dead] = False
    pattern = tk.Pattern(mask)
    assert pattern.live == (20 - dead, 3)
    assert (pattern.compact is not None) == worth
    x, values = torch.randn(4, 3), torch.randn(pattern.nnz)
    for options in ("", "compact=1"):
        out = tk.masked_linear(x, values, pattern, plan=Plan("dense", options))
        torch.testing.assert_close(out, x @ pattern.scatter(values).t())


def test_wrong_options() -> None:
    pattern, x = tk.Pattern(torch.ones(4, 2, 1, 1)), torch.randn(2, 4, 3, 3)
    with pytest.raises(ValueError, match="expected groups=1 for a dense plan with compact=1, got groups=2"):
        tk.masked_conv2d(x, torch.ones(8), pattern, groups=2, plan=Plan("dense", "compact=1"))
    with pytest.raises(ValueError, match="masked_linear: expected the options of a dense plan to be one of"):
        tk.masked_linear(torch.ones(1, 2), torch.ones(6), tk.Pattern(torch.ones(3, 2)), plan=Plan("dense", "compact=2"))
