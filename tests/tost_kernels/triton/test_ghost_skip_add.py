"""ghost_skip_add by Triton, interpreted: the cases of the op's own tests, and what only its kernels can get wrong."""

import pytest
import torch

from tests.tost_kernels.ops import tail_contract
from tests.tost_kernels.ops.tails import CASES, PARTS, SHAPES, SHAPES_IN_LAYOUTS, close, make
from tost_kernels import backend
from tost_kernels.layout import layout_of

needs_triton = pytest.mark.skipif(backend.why_not("ghost_skip_add", "triton") is not None, reason="Triton is not installed")
# The interpreter is numpy, which warns of arithmetic with NaN and infinities that a GPU just does.
pytestmark = [needs_triton, pytest.mark.filterwarnings("ignore:.*encountered in:RuntimeWarning")]
LAYOUTS = ["contiguous", "channels_last", "batch_last"]
# The ordinary ones, with layouts that take turns; then every odd shape, whose layouts differ in nothing but addresses.
KINDS_IN_LAYOUTS = [(kind, LAYOUTS[i % 3]) for i, kind in enumerate(CASES)] + [("all batch", layout) for layout in LAYOUTS]
SMALL = [p for p in SHAPES_IN_LAYOUTS if p.values[0] != SHAPES["several blocks"]]


@pytest.mark.parametrize(("kind", "layout"), KINDS_IN_LAYOUTS)
def test_kernel_is_accurate(kind: str, layout: str) -> None:
    shape = (5, 4, 7, 6)
    case, dy = make(shape, kind, layout), torch.randn(shape)
    got = case.results(dy, "triton")
    close(got, case.to(torch.float64).results(dy.double(), "reference"), dy)
    assert {layout_of(got[k]) for k in ("out", *PARTS) if k in got} == {layout}


@pytest.mark.parametrize(("shape", "layout"), SMALL)
def test_odd_shapes(shape: tuple[int, ...], layout: str) -> None:
    case, dy = make(shape, "all batch", layout, beta_per_channel=True), torch.randn(shape)
    got = case.results(dy, "triton")
    close(got, case.to(torch.float64).results(dy.double(), "reference"), dy)
    assert layout_of(got["out"]) == layout_of(got["u"]) == layout_of(case.tensors["u"])
    assert layout_of(got["ghost"]) == layout_of(case.tensors["ghost"])


@pytest.mark.parametrize(
    ("kind", "layout"), [("all batch", "batch_last"), ("all batch", "channels_last"), ("all running", "contiguous")]
)
def test_channels_of_several_tiles_and_splits(kind: str, layout: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """More tiles than programs, the last of them not full; and programs that take several in the second pass."""
    from tost_kernels.triton import channels

    monkeypatch.setattr(channels, "THREADS", 32)
    monkeypatch.setattr(channels, "PROGRAMS_PER_SM", 1)
    shape = (5, 2, 9, 7) if layout != "channels_last" else (7, 70, 1, 2)  # more channels than a tile has
    case, dy = make(shape, kind, layout), torch.randn(shape)
    view = channels.view_of(case.tensors["u"])
    assert 1 < view.splits(torch.device("cpu")) < view.tiles
    got = case.results(dy, "triton")
    close(got, case.to(torch.float64).results(dy.double(), "reference"), dy)
    monkeypatch.setattr(channels.View, "steps", lambda self, device: 4)
    again = case.results(dy, "triton")
    assert all(torch.equal(again[key], got[key]) for key in got)  # and the same bits every time


def test_offsets_in_64_bits(monkeypatch: pytest.MonkeyPatch) -> None:
    """Small tensors, through the variant of the kernels that is meant for more than 2^31 elements."""
    from tost_kernels.triton import channels

    constants = channels.View.constants
    monkeypatch.setattr(channels.View, "constants", lambda self: constants(self) | {"WIDE": True})
    for layout in LAYOUTS:
        case, dy = make((3, 4, 2, 3), "all batch", layout), torch.randn(3, 4, 2, 3)
        close(case.results(dy, "triton"), case.to(torch.float64).results(dy.double(), "reference"), dy)


def test_which_sizes_need_64_bits() -> None:
    from tost_kernels.triton.channels import tiled

    assert not tiled(1, 64, 1024 * 256, torch.float32).constants()["WIDE"]
    assert tiled(1, 64, 2**25, torch.float32).constants()["WIDE"]
    assert tiled(2**25, 64, 1, torch.bfloat16).constants()["WIDE"]


def test_a_large_mean_does_not_drown_the_variance() -> None:
    tail_contract.a_large_mean_does_not_drown_the_variance("triton")


def test_mixed_layouts_and_strides() -> None:
    tail_contract.mixed_layouts_and_strides("triton")


@pytest.mark.parametrize(("kind", "layout"), [("all batch", "batch_last"), ("all running", "channels_last")])
def test_bfloat16_is_computed_in_float32(kind: str, layout: str) -> None:
    # The interpreter cuts bfloat16 off where a GPU rounds: a whole unit in the last place.
    tail_contract.bfloat16_is_computed_in_float32("triton", kind, layout, 2**-7)


@pytest.mark.parametrize("bad", [tail_contract.NAN, tail_contract.INF])
@pytest.mark.parametrize(("kind", "layout"), tail_contract.OFF)
def test_a_ghost_switched_off_reaches_nothing(kind: str, layout: str, bad: float) -> None:
    tail_contract.a_ghost_switched_off_reaches_nothing("triton", kind, layout, bad)


@pytest.mark.parametrize("kind", ["all batch", "all running", "no norm"])
def test_the_gradient_of_alpha_at_zero(kind: str) -> None:
    tail_contract.the_gradient_of_alpha_at_zero("triton", kind)


def test_nan_and_infinity_go_where_torch_sends_them() -> None:
    tail_contract.nan_and_infinity_go_where_torch_sends_them("triton")


def test_opcheck() -> None:
    tail_contract.passes_opcheck("triton")


def test_the_raw_op_names_what_is_wrong() -> None:
    tail_contract.the_raw_op_names_what_is_wrong("triton")
