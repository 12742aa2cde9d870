"""ghost_skip_add in CUDA C++, run by the shim on the CPU: the op's own cases, and what only its kernels can get wrong."""

import pytest
import torch
from torch import Tensor

from tests.tost_kernels.ops import tail_contract
from tests.tost_kernels.ops.tails import CASES, PARTS, SHAPES_IN_LAYOUTS, Case, close, make, make_mixed
from tost_kernels.layout import layout_of

pytestmark = pytest.mark.usefixtures("emulated_cuda")
LAYOUTS = ["contiguous", "channels_last", "batch_last"]
KINDS_IN_LAYOUTS = [(kind, LAYOUTS[i % 3]) for i, kind in enumerate(CASES)]


def check(case: Case, dy: Tensor) -> dict[str, Tensor]:
    got = case.results(dy, "cuda")
    close(got, case.to(torch.float64).results(dy.double(), "reference"), dy)
    return got


@pytest.mark.parametrize(("kind", "layout"), KINDS_IN_LAYOUTS)
def test_kernel_is_accurate(kind: str, layout: str) -> None:
    shape = (5, 4, 7, 6)
    got = check(make(shape, kind, layout), torch.randn(shape))
    assert {layout_of(got[k]) for k in ("out", *PARTS) if k in got} == {layout}


@pytest.mark.parametrize(("shape", "layout"), SHAPES_IN_LAYOUTS)
def test_odd_shapes(shape: tuple[int, ...], layout: str) -> None:
    case = make(shape, "all batch", layout, beta_per_channel=True)
    got = check(case, torch.randn(shape))
    assert layout_of(got["out"]) == layout_of(got["u"]) == layout_of(case.tensors["u"])
    assert layout_of(got["ghost"]) == layout_of(case.tensors["ghost"])


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("kind", ["all batch", "all running"])
def test_moves_of_16_bytes_several_blocks_a_channel_and_the_same_bits(kind: str, layout: str) -> None:
    shape = (8, 40, 6, 6) if layout == "channels_last" else (40, 4, 10, 12)
    case, dy = make(shape, kind, layout), torch.randn(shape)
    got = check(case, dy)
    again = case.results(dy, "cuda")
    assert all(torch.equal(again[key], got[key]) for key in got)


@pytest.mark.parametrize("kind", ["all batch", "all running"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_unaligned_memory_is_moved_element_by_element(kind: str, dtype: torch.dtype) -> None:
    shape = (4, 3, 4, 8)
    case, dy = make(shape, kind).to(dtype, torch.float32), torch.randn(shape).to(dtype)
    aligned = case.results(dy, "cuda")
    case.tensors["ghost"] = torch.cat((case.tensors["ghost"].flatten()[:1], case.tensors["ghost"].flatten()))[1:].reshape(shape)
    got = case.results(dy, "cuda")
    for key, value in aligned.items():  # sums are taken in another order
        assert torch.allclose(got[key].float(), value.float(), rtol=2**-7 if dtype == torch.bfloat16 else 1e-5, atol=1e-4), key


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("alpha", [0.6, 0.0])
def test_bfloat16_in_moves_of_16_bytes(layout: str, alpha: float) -> None:
    shape = (16, 24, 2, 4)
    case, dy = make(shape, "all batch", layout, alpha=alpha).to(torch.bfloat16, torch.float32), torch.randn(shape).bfloat16()
    got = case.results(dy, "cuda")
    exact = case.to(torch.float64).results(dy.double(), "reference")
    for key, want in exact.items():
        size = want.abs().max() + (dy.double().abs().sum() / shape[1] if want.dim() < 2 else 1.0)
        assert (got[key].double() - want).abs().max() <= 2**-8 * size, key


@pytest.mark.parametrize("act", ["none", "relu", "pswish"])
@pytest.mark.parametrize("present", [("u",), ("u", "ghost"), ("u", "shortcut"), ("u", "ghost", "shortcut")])
def test_every_combination_of_parts_and_activations(present: tuple[str, ...], act: str) -> None:
    """With norms that take turns, so that each part has each kind, live and switched off."""
    shape, norms = (2, 4, 2, 4), ("none", "running", "batch")
    for turn in range(3):
        kinds = {part: norms[(turn + i) % 3] for i, part in enumerate(PARTS)}
        case = make_mixed(shape, {part: kinds[part] for part in present}, act, LAYOUTS[turn], alpha=0.5 if turn else 0.0)
        check(case, torch.randn(shape))


def test_an_infinite_input_spoils_its_own_gradient_at_most() -> None:
    case, dy = make((2, 4, 2, 2), "all running"), torch.rand(2, 4, 2, 2)
    case.act = "none"
    del case.tensors["beta"]
    case.tensors["u"][0, 0, 0, 0] = float("inf")
    got = case.results(dy, "cuda")
    assert all(got[part].isfinite().all() for part in PARTS)


def test_a_large_mean_does_not_drown_the_variance() -> None:
    tail_contract.a_large_mean_does_not_drown_the_variance("cuda")


def test_mixed_layouts_and_strides() -> None:
    tail_contract.mixed_layouts_and_strides("cuda")


@pytest.mark.parametrize(("kind", "layout"), [("all batch", "batch_last"), ("all running", "channels_last")])
def test_bfloat16_is_computed_in_float32(kind: str, layout: str) -> None:
    tail_contract.bfloat16_is_computed_in_float32("cuda", kind, layout, 2**-8)


@pytest.mark.parametrize("bad", [tail_contract.NAN, tail_contract.INF])
@pytest.mark.parametrize(("kind", "layout"), tail_contract.OFF)
def test_a_ghost_switched_off_reaches_nothing(kind: str, layout: str, bad: float) -> None:
    tail_contract.a_ghost_switched_off_reaches_nothing("cuda", kind, layout, bad)


@pytest.mark.parametrize("kind", ["all batch", "all running", "no norm"])
def test_the_gradient_of_alpha_at_zero(kind: str) -> None:
    tail_contract.the_gradient_of_alpha_at_zero("cuda", kind)


def test_nan_and_infinity_go_where_torch_sends_them() -> None:
    tail_contract.nan_and_infinity_go_where_torch_sends_them("cuda")


def test_opcheck() -> None:
    tail_contract.passes_opcheck("cuda")


def test_the_raw_op_names_what_is_wrong() -> None:
    tail_contract.the_raw_op_names_what_is_wrong("cuda")
