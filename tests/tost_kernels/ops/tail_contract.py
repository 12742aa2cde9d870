"""What every compiled backend of ghost_skip_add has to keep to: `name` is the backend. Its own tests call these."""

import pytest
import torch

import tost_kernels as tk
from tests.tost_kernels.ops.tails import PARTS, close, make
from tost_kernels.layout import as_layout, layout_of
from tost_kernels.register import op

NAN, INF = float("nan"), float("inf")
# where a ghost is switched off
OFF = [("all batch", "batch_last"), ("all running", "contiguous"), ("no norm", "channels_last")]


def a_large_mean_does_not_drown_the_variance(name: str) -> None:
    u = torch.randn(64, 2, 8, 8) + 3000.0
    with tk.use_backend(name):
        out, stats = tk.ghost_skip_add(u, norm=tk.Norm(batch_stats=True))
    var, mean = torch.var_mean(u.double(), (0, 2, 3), correction=0)
    assert torch.allclose(stats[0].double(), torch.stack((mean, var)), rtol=1e-6)
    want = (u.double() - mean[:, None, None]) / (var[:, None, None] + 1e-5).sqrt()
    assert (out.double() - want).abs().max() < 1e-5


def mixed_layouts_and_strides(name: str) -> None:
    shape = (4, 3, 6, 2)
    case = make(shape, layout="channels_last")
    case.tensors["ghost"] = as_layout(case.tensors["ghost"], "batch_last")
    case.tensors["shortcut"] = torch.randn(8, 3, 6, 5)[::2, :, :, 1::2]
    for dy in (torch.ones(()).expand(shape), torch.randn(2, 6, 3, 4).permute(3, 2, 1, 0)):
        got = case.results(dy, name)
        close(got, case.to(torch.float64).results(dy.double(), "reference"), dy)
        assert [layout_of(got[k]) for k in ("out", *PARTS)] == ["channels_last", "channels_last", "batch_last", "contiguous"]


def bfloat16_is_computed_in_float32(name: str, kind: str, layout: str, unit: float) -> None:
    """All that is lost is the last rounding of a stored number, `unit` of it."""
    shape = (6, 4, 5, 6)
    case, dy = make(shape, kind, layout).to(torch.bfloat16, torch.float32), torch.randn(shape).bfloat16()
    got = case.results(dy, name)
    exact = case.to(torch.float64).results(dy.double(), "reference")
    for key in ("out", *PARTS):
        assert got[key].dtype == torch.bfloat16
        want = exact.pop(key)
        got[key] = got.pop(key).double()
        assert ((got[key] - want).abs() <= unit * want.abs() + 1e-5 * want.abs().max()).all(), key
        del got[key]
    close(got, exact, dy)


def a_ghost_switched_off_reaches_nothing(name: str, kind: str, layout: str, bad: float) -> None:
    case, dy = make((4, 3, 2, 2), kind, layout, alpha=0.0), torch.randn(4, 3, 2, 2)
    want = case.without_ghost().results(dy, name)
    case.tensors["ghost"][1, 1] = bad
    if kind == "all running":
        case.tensors["ghost_mean"][2] = bad
    got = case.results(dy, name)
    for key, value in want.items():
        assert torch.equal(got[key], value), key
    assert not got["ghost"].any()
    assert not any(got[k].any() for k in got if k in ("ghost_weight", "ghost_bias"))
    reference = case.to(torch.float64).results(dy.double(), "reference")
    assert got["alpha"].item() == pytest.approx(reference["alpha"].item(), rel=1e-4, abs=1e-5)


def the_gradient_of_alpha_at_zero(name: str, kind: str) -> None:
    case, dy = make((4, 3, 5, 5), kind, "batch_last", alpha=0.0), torch.randn(4, 3, 5, 5)
    reference = case.to(torch.float64).results(dy.double(), "reference")
    assert case.results(dy, name)["alpha"].item() == pytest.approx(reference["alpha"].item(), rel=1e-4)


def nan_and_infinity_go_where_torch_sends_them(name: str) -> None:
    for act in ("none", "relu", "pswish"):
        u = torch.tensor([[1.0, NAN], [INF, -2.0], [-INF, 3.0]])
        beta = 1.5 if act == "pswish" else None
        with tk.use_backend(name):
            got = tk.ghost_skip_add(u, act=act, beta=beta).out
        with tk.use_backend("reference"):
            want = tk.ghost_skip_add(u, act=act, beta=beta).out
        torch.testing.assert_close(got, want, equal_nan=True)


def passes_opcheck(name: str) -> None:
    case = make((3, 4, 2, 3), "mixed", "channels_last")
    for key, t in case.tensors.items():
        t.requires_grad_(not key.endswith(("_mean", "_var")))
    args = case.op_arguments()
    torch.library.opcheck(op("ghost_skip_add", name), args)
    args = tuple(a.detach() if isinstance(a, torch.Tensor) else a for a in args)
    out, stats = op("ghost_skip_add", name)(*args)
    torch.library.opcheck(op("ghost_skip_add_backward", name), (torch.randn(out.shape), *args, stats))


def the_raw_op_names_what_is_wrong(name: str) -> None:
    u = torch.ones(2, 3)
    nothing = [None] * 11

    def call(u: torch.Tensor, weight: torch.Tensor | None = None, norm: int = 0, act: str = "none", count: int = 3) -> None:
        args = (u, weight, None, None, None, *nothing, None, act, [norm] + [0] * (count - 1), [0.0] * 3, "")
        op("ghost_skip_add", name)(*args)

    for arguments, message in (
        ({"u": u.double()}, "u: expected float32 or bfloat16, got float64"),
        ({"u": torch.ones(3)}, r"u: expected shape \(N, C, ...\), got \(3\)"),
        ({"u": u, "weight": torch.ones(2), "norm": 2}, r"u_weight: expected shape \(3\), got \(2\)"),
        ({"u": u, "weight": torch.ones(3).double()}, "u_weight: expected float32, got float64"),
        ({"u": u, "norm": 1}, "u_mean, u_var: expected tensors with norm 1"),
        ({"u": u, "norm": 5}, "norm: expected 0, 1 or 2 for u, got 5"),
        ({"u": u, "act": "mish"}, 'act: expected none, relu or pswish, got "mish"'),
        ({"u": u, "act": "pswish"}, "beta: expected a tensor"),
        ({"u": u, "count": 2}, "norm: expected 3 values, got 2"),
    ):
        with pytest.raises(RuntimeError, match=f"ghost_skip_add_{name}: {message}"):
            call(**arguments)
