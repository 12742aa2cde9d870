"""ghost_skip_add: exact tables, the reference's gradients, and the compiled kernel against a float64 reference."""

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch._dynamo.testing import CompileCounterWithBackend
from torch.utils._python_dispatch import TorchDispatchMode

import tost_kernels as tk
from tests.tost_kernels.ops import tail_contract
from tests.tost_kernels.ops.tails import CASES, PARTS, SHAPES_IN_LAYOUTS, Case, close, make
from tost_kernels import backend
from tost_kernels.layout import as_layout, layout_of
from tost_kernels.register import op

needs_cpu = pytest.mark.skipif(backend.why_not("ghost_skip_add", "cpu") is not None, reason="the compiled library is absent")
NATIVE = [pytest.param("cpu", marks=needs_cpu), "reference"]
NAN = float("nan")


# ---- tables


@pytest.mark.parametrize("name", NATIVE)
def test_sum_by_hand(name: str) -> None:
    u = torch.tensor([[1.0, -4.0], [3.0, 2.0]])
    ghost, shortcut = torch.tensor([[2.0, 2.0], [-8.0, 0.0]]), torch.tensor([[0.5, 1.0], [0.0, -3.0]])
    with tk.use_backend(name):
        out, stats = tk.ghost_skip_add(u, ghost, 0.5, shortcut)
        assert out.tolist() == [[2.5, -2.0], [-1.0, -1.0]]
        assert tk.ghost_skip_add(u, ghost, 0.5, shortcut, act="relu").out.tolist() == [[2.5, 0.0], [0.0, 0.0]]
    assert stats.tolist() == torch.zeros(3, 2, 2).tolist()


@pytest.mark.parametrize("name", NATIVE)
def test_norms_by_hand(name: str) -> None:
    u = torch.tensor([[1.0], [3.0], [1.0], [3.0]])  # mean 2, variance 1
    weight, bias = torch.tensor([4.0]), torch.tensor([10.0])
    with tk.use_backend(name):
        out, stats = tk.ghost_skip_add(u, norm=tk.Norm(weight, bias, eps=3.0, batch_stats=True))
        assert out.flatten().tolist() == [8.0, 12.0, 8.0, 12.0]
        assert stats[:, :, 0].tolist() == [[2.0, 1.0], [0.0, 0.0], [0.0, 0.0]]
        running = tk.Norm(None, bias, torch.tensor([1.0]), torch.tensor([4.0]), eps=0.0)
        out, stats = tk.ghost_skip_add(u, norm=running)
        assert out.flatten().tolist() == [10.0, 11.0, 10.0, 11.0]
        assert not stats.any()


@pytest.mark.parametrize("name", NATIVE)
def test_gradients_by_hand(name: str) -> None:
    u, ghost = torch.tensor([[1.0], [-5.0]]), torch.tensor([[2.0], [4.0]])
    case = Case({"u": u, "ghost": ghost, "alpha": torch.tensor(0.5)}, "relu")
    got = case.results(torch.tensor([[3.0], [7.0]]), name)
    assert got["out"].flatten().tolist() == [2.0, 0.0]
    assert got["u"].flatten().tolist() == [3.0, 0.0]
    assert got["ghost"].flatten().tolist() == [1.5, 0.0]
    assert got["alpha"].item() == 6.0


@pytest.mark.parametrize("name", NATIVE)
def test_a_large_mean_does_not_drown_the_variance(name: str) -> None:
    u = torch.randn(64, 2, 8, 8) + 3000.0
    with tk.use_backend(name):
        out, stats = tk.ghost_skip_add(u, norm=tk.Norm(batch_stats=True))
    var, mean = torch.var_mean(u.double(), (0, 2, 3), correction=0)
    assert torch.allclose(stats[0].double(), torch.stack((mean, var)), rtol=1e-6 if name == "cpu" else 1e-3)
    want = (u.double() - mean[:, None, None]) / (var[:, None, None] + 1e-5).sqrt()
    assert (out.double() - want).abs().max() < (1e-5 if name == "cpu" else 1e-3)


def test_equals_torch_batch_norm() -> None:
    case = make((6, 3, 4, 4), "a plain tail").to(torch.float64)
    t = case.tensors
    want = F.relu(F.batch_norm(t["u"], None, None, t["u_weight"], t["u_bias"], True, 0.0, 1e-3) + t["shortcut"])
    torch.testing.assert_close(case.call().out, want)


# ---- gradients of the reference


@pytest.mark.parametrize("alpha", [0.6, 0.0])
@pytest.mark.parametrize("kind", ["all batch", "all running", "no norm"])
def test_reference_gradients_of_first_and_second_order(kind: str, alpha: float) -> None:
    case = make((3, 2, 2), kind, alpha=alpha).to(torch.float64)
    names = [k for k in case.tensors if not k.endswith(("_mean", "_var"))]
    leaves = tuple(case.tensors[k].requires_grad_() for k in names)

    def function(*tensors: Tensor) -> Tensor:
        merged = case.tensors | dict(zip(names, tensors, strict=True))
        return Case(merged, case.act, case.batch_stats, case.normed).call().out

    assert torch.autograd.gradcheck(function, leaves)
    assert torch.autograd.gradgradcheck(function, leaves)


# ---- the kernel against the reference


@needs_cpu
@pytest.mark.parametrize("layout", ["contiguous", "channels_last", "batch_last"])
@pytest.mark.parametrize("kind", CASES)
def test_kernel_is_accurate(kind: str, layout: str) -> None:
    shape = (5, 4, 7, 6)
    case, dy = make(shape, kind, layout), torch.randn(shape)
    got = case.results(dy, "cpu")
    close(got, case.to(torch.float64).results(dy.double(), "reference"), dy)
    assert {layout_of(got[k]) for k in ("out", *PARTS) if k in got} == {layout}


@needs_cpu
@pytest.mark.parametrize(("shape", "layout"), SHAPES_IN_LAYOUTS)
def test_odd_shapes(shape: tuple[int, ...], layout: str) -> None:
    case, dy = make(shape, "all batch", layout, beta_per_channel=True), torch.randn(shape)
    got = case.results(dy, "cpu")
    close(got, case.to(torch.float64).results(dy.double(), "reference"), dy)
    assert layout_of(got["out"]) == layout_of(got["u"]) == layout_of(case.tensors["u"])
    assert layout_of(got["ghost"]) == layout_of(case.tensors["ghost"])


@needs_cpu
def test_features_batch_last() -> None:
    case = make((9, 6), "all batch", "batch_last")
    dy = torch.randn(9, 6)
    got = case.results(dy, "cpu")
    close(got, case.to(torch.float64).results(dy.double(), "reference"), dy)
    assert layout_of(got["out"]) == "batch_last"


@needs_cpu
@pytest.mark.parametrize("u_layout", ["contiguous", "channels_last", "batch_last"])
def test_mixed_layouts_and_strides(u_layout: str) -> None:
    shape = (4, 3, 6, 2)
    case = make(shape)
    case.tensors["u"] = as_layout(case.tensors["u"], u_layout)
    case.tensors["ghost"] = as_layout(case.tensors["ghost"], "batch_last")
    case.tensors["shortcut"] = torch.randn(8, 3, 6, 5)[::2, :, :, 1::2]
    for dy in (torch.ones(()).expand(shape), torch.randn(2, 6, 3, 4).permute(3, 2, 1, 0), torch.randn(4, 1, 6, 2).expand(shape)):
        got = case.results(dy, "cpu")
        close(got, case.to(torch.float64).results(dy.double(), "reference"), dy)
        layouts = [layout_of(got[k]) for k in ("out", *PARTS)]
        assert layouts == [u_layout, u_layout, "batch_last", "contiguous"]


@needs_cpu
@pytest.mark.parametrize("kind", ["all batch", "all running"])
def test_bfloat16_is_as_good_as_torch(kind: str) -> None:
    shape = (8, 4, 6, 6)
    case, dy = make(shape, kind).to(torch.bfloat16, torch.float32), torch.randn(shape).bfloat16()
    exact = case.to(torch.float64).results(dy.double(), "reference")
    got = case.results(dy, "cpu")

    t = {k: v.detach().requires_grad_() for k, v in case.tensors.items()}
    parts = []
    for part in PARTS:
        batch = case.batch_stats[part]
        mean, var = (None, None) if batch else (t[f"{part}_mean"].detach(), t[f"{part}_var"].detach())
        weight, bias = t[f"{part}_weight"], t[f"{part}_bias"]
        parts.append(F.batch_norm(t[part], mean, var, weight, bias, batch, 0.0, 1e-3))
    z = parts[0] + t["alpha"].bfloat16() * parts[1] + parts[2]
    out = z * torch.sigmoid(t["beta"].bfloat16() * z)
    names = [k for k in got if k not in ("out", "stats")]
    torch_own = dict(zip(names, torch.autograd.grad(out, [t[k] for k in names], dy), strict=True)) | {"out": out}
    assert got["out"].dtype == got["u"].dtype == torch.bfloat16
    for key, other in torch_own.items():
        want = exact[key]
        mine, theirs = (got[key].double() - want).abs().max(), (other.double() - want).abs().max()
        assert mine <= 2 * theirs + 2e-3 * want.abs().max(), key


@pytest.mark.parametrize("dtype", [torch.float16, torch.float64])
def test_other_dtypes_run_through_the_reference(dtype: torch.dtype) -> None:
    case = make((4, 3, 5, 5))
    out, stats = case.to(dtype, torch.float32).call()
    assert out.dtype == dtype
    assert stats.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    torch.testing.assert_close(out.float(), case.call().out, rtol=1e-2, atol=1e-2)


# ---- alpha == 0


@pytest.mark.parametrize("name", NATIVE)
@pytest.mark.parametrize("bad", [NAN, float("inf")])
@pytest.mark.parametrize("kind", ["all batch", "all running", "no norm"])
def test_a_ghost_switched_off_reaches_nothing(kind: str, bad: float, name: str) -> None:
    case, dy = make((4, 3, 2, 2), kind, alpha=0.0), torch.randn(4, 3, 2, 2)
    want = case.without_ghost().results(dy, name)
    case.tensors["ghost"][1, 1] = bad
    if kind == "all running":
        case.tensors["ghost_mean"][2] = bad
    got = case.results(dy, name)
    for key, value in want.items():
        torch.testing.assert_close(got[key], value, rtol=1e-6, atol=1e-6)
    assert not got["ghost"].any()
    assert not any(got[k].any() for k in got if k in ("ghost_weight", "ghost_bias"))
    assert got["alpha"].isfinite()


@pytest.mark.parametrize("kind", ["all batch", "all running", "no norm"])
@needs_cpu
def test_the_gradient_of_alpha_at_zero(kind: str) -> None:
    case, dy = make((4, 3, 5, 5), kind, "batch_last", alpha=0.0), torch.randn(4, 3, 5, 5)
    got = case.results(dy, "cpu")
    near = make((4, 3, 5, 5), kind)
    near.tensors = case.tensors | {"alpha": torch.tensor(1e-12)}
    want = near.to(torch.float64).results(dy.double(), "reference")
    assert got["alpha"].item() == pytest.approx(want["alpha"].item(), rel=1e-4)
    case.tensors["ghost"][0, 1] = NAN  # only finite values count
    reference = case.to(torch.float64).results(dy.double(), "reference")
    assert case.results(dy, "cpu")["alpha"].item() == pytest.approx(reference["alpha"].item(), rel=1e-4)


# ---- dispatch, compile


@needs_cpu
@pytest.mark.parametrize("layout", ["contiguous", "channels_last", "batch_last"])
@pytest.mark.parametrize("kind", ["all batch", "mixed"])
def test_opcheck(kind: str, layout: str) -> None:
    case = make((3, 4, 2, 5), kind, layout, beta_per_channel=True)
    for key, t in case.tensors.items():
        t.requires_grad_(not key.endswith(("_mean", "_var")))
    args = case.op_arguments()
    torch.library.opcheck(op("ghost_skip_add", "cpu"), args)
    if layout == "contiguous":
        torch.library.opcheck(op("ghost_skip_add", "reference"), args)
    args = tuple(a.detach() if isinstance(a, Tensor) else a for a in args)
    out, stats = op("ghost_skip_add", "cpu")(*args)
    torch.library.opcheck(op("ghost_skip_add_backward", "cpu"), (torch.randn(out.shape), *args, stats))


@pytest.mark.parametrize("name", NATIVE)
def test_compile_sees_alpha_and_beta_move(name: str) -> None:
    counter = CompileCounterWithBackend("aot_eager")
    case = make((4, 3, 2, 2), layout="batch_last")
    case.tensors["u"].requires_grad_()

    def step(u: Tensor, alpha: Tensor, beta: Tensor) -> tuple[Tensor, Tensor]:
        t = case.tensors
        return tk.ghost_skip_add(
            u,
            t["ghost"],
            alpha,
            norm=tk.Norm(t["u_weight"], t["u_bias"], batch_stats=True),
            ghost_norm=tk.Norm(batch_stats=True),
            act="pswish",
            beta=beta,
        )

    compiled = torch.compile(step, fullgraph=True, backend=counter)
    u, alpha, beta = case.tensors["u"], torch.tensor(1.0), torch.tensor(1.0)
    with tk.use_backend(name):
        for strength in (1.0, 0.25, 0.0):
            alpha.fill_(strength)
            beta.fill_(2.0 - strength)
            got, want = compiled(u, alpha, beta), step(u, alpha, beta)
            for a, b in zip(got, want, strict=True):
                torch.testing.assert_close(a, b)
            grads = [torch.autograd.grad(o[0].square().sum(), u)[0] for o in (got, want)]
            torch.testing.assert_close(*grads)
    assert counter.frame_count == 1


@pytest.mark.parametrize("name", NATIVE)
def test_torch_func_grad(name: str) -> None:
    u, ghost = torch.randn(5, 3), torch.randn(5, 3)
    with tk.use_backend(name):
        got = torch.func.grad(lambda a: tk.ghost_skip_add(u, ghost, a).out.square().sum())(torch.tensor(0.5))
    torch.testing.assert_close(got, (2 * (u + 0.5 * ghost) * ghost).sum())


def test_mixed_dtypes_promote_and_autocast_changes_nothing() -> None:
    u, ghost = torch.randn(4, 3).bfloat16(), torch.randn(4, 3)
    assert tk.ghost_skip_add(u, ghost, 1.0).out.dtype == torch.float32
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert tk.ghost_skip_add(u, ghost, 1.0).out.dtype == torch.float32
        assert tk.ghost_skip_add(u).out.dtype == torch.bfloat16


# ---- errors

U = torch.zeros(4, 3, 2, 2)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"u": [1.0]}, TypeError, "u to be a Tensor, got list"),
        ({"u": torch.zeros(3)}, ValueError, r"u of shape \(N, C, ...\), got \(3,\)"),
        ({"u": U.int()}, TypeError, "u of float16.*got torch.int32"),
        ({"u": U, "act": "gelu"}, ValueError, "act to be one of .*got 'gelu'"),
        ({"u": U, "act": "pswish"}, ValueError, "expected beta with act='pswish'"),
        ({"u": U, "beta": 1.0}, ValueError, "beta with act='pswish' and only then"),
        ({"u": U, "ghost": U}, ValueError, "ghost and alpha together, got alpha=None"),
        ({"u": U, "alpha": 1.0}, ValueError, "ghost and alpha together, got ghost=None"),
        ({"u": U, "ghost": U, "alpha": torch.ones(3)}, ValueError, r"alpha of shape \(\).*got \(3,\)"),
        ({"u": U, "ghost": U[:2], "alpha": 1.0}, ValueError, r"ghost of the shape of u, \(4, 3, 2, 2\), got \(2,"),
        ({"u": U, "shortcut": U.to("meta")}, ValueError, "shortcut on the device of u, cpu, got meta"),
        ({"u": U, "ghost_norm": tk.Norm()}, ValueError, "ghost_norm only with ghost"),
        ({"u": U, "norm": "batch"}, TypeError, "norm to be a tost_kernels.Norm or None, got str"),
        ({"u": U, "norm": tk.Norm()}, ValueError, "norm to have mean and var"),
        ({"u": U, "norm": tk.Norm(weight=torch.ones(2))}, ValueError, r"norm.weight of shape \(3,\), got \(2,\)"),
        ({"u": U, "norm": tk.Norm(bias=3.0)}, TypeError, "norm.bias to be a floating Tensor or None, got float"),
        ({"u": U, "norm": tk.Norm(mean=torch.ones(3, device="meta"))}, ValueError, "norm.mean on cpu, got meta"),
        ({"u": U, "norm": tk.Norm(eps=-1.0)}, ValueError, "norm.eps >= 0, got -1.0"),
        ({"u": U[:1, :, :1, :1], "norm": tk.Norm(batch_stats=True)}, ValueError, "more than one value per channel"),
    ],
)
def test_bad_arguments(arguments: dict[str, object], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        tk.ghost_skip_add(**arguments)


@needs_cpu
def test_the_raw_op_names_what_is_wrong() -> None:
    tail_contract.the_raw_op_names_what_is_wrong("cpu")


CHILD = """
import torch, tost_kernels as tk
torch.manual_seed(0)
parts = [torch.randn(3, 5, 7, 3, requires_grad=True) for _ in range(3)]
alpha, beta = torch.tensor(0.5, requires_grad=True), torch.tensor(1.3, requires_grad=True)
batch = tk.Norm(batch_stats=True)
def run(u, g, s, a, b):
    out = tk.ghost_skip_add(u, g, a, s, norm=batch, ghost_norm=batch, act="pswish", beta=b).out
    return out, *torch.autograd.grad(out.square().sum(), (u, g, s, a, b))
leaves = (*parts, alpha, beta)
got, want = run(*leaves), run(*(t.detach().double().requires_grad_() for t in leaves))
for x, y in zip(got, want):
    assert ((x.double() - y).abs().max() / y.abs().max()).item() < 1e-5
"""


@needs_cpu
@pytest.mark.parametrize("isa", ["portable", "avx2"])
def test_lower_instruction_sets(isa: str, run_on: Callable[[str, str], None]) -> None:
    run_on(isa, CHILD)


@needs_cpu
def test_compiles_with_one_tensor_in_two_places() -> None:
    x, alpha = torch.randn(8, 3, 4, 4, requires_grad=True), torch.tensor(0.5)

    def function(x: Tensor) -> Tensor:
        return tk.ghost_skip_add(x, x, alpha, x, act="pswish", beta=alpha).out

    want = torch.autograd.grad(function(x).sum(), x)[0]
    got = torch.autograd.grad(torch.compile(function, fullgraph=True, backend="aot_eager")(x).sum(), x)[0]
    torch.testing.assert_close(got, want)


@needs_cpu
def test_channels_larger_than_the_cache() -> None:
    """Their statistics are taken while the channel before is computed: the same numbers, and bits, whoever computes which."""
    u, ghost, shortcut = (tk.to_batch_last(torch.randn(16, 5, 60, 61) * s + s) for s in (1.0, 2.0, 3.0))
    norm = tk.Norm(torch.rand(5) + 0.5, torch.randn(5), batch_stats=True)
    results = []
    threads = torch.get_num_threads()
    try:
        for count in (1, 2, 4):
            torch.set_num_threads(count)
            with tk.use_backend("cpu"):
                args = u, ghost, torch.tensor(0.7), shortcut
                results.append(tk.ghost_skip_add(*args, norm=norm, ghost_norm=norm, act="pswish", beta=1.5))
    finally:
        torch.set_num_threads(threads)
    wide = tk.Norm(norm.weight.double(), norm.bias.double(), batch_stats=True)
    args = u.double(), ghost.double(), torch.tensor(0.7).double(), shortcut.double()
    want = tk.ghost_skip_add(*args, norm=wide, ghost_norm=wide, act="pswish", beta=1.5)
    for got in results:
        assert torch.equal(got.out, results[0].out)
        assert torch.equal(got.stats, results[0].stats)
    torch.testing.assert_close(results[0].out.double(), want.out, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(results[0].stats.double(), want.stats, rtol=1e-5, atol=1e-6)


class Names(TorchDispatchMode):
    """Those of the operators called inside."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.found.append(func._schema.name)
        return func(*args, **(kwargs or {}))


@needs_cpu
def test_backward_makes_no_gradient_of_the_statistics() -> None:
    u = torch.randn(4, 3, requires_grad=True)
    with tk.use_backend("cpu"):
        out = tk.ghost_skip_add(u, norm=tk.Norm(batch_stats=True), act="relu").out
    with Names() as names:
        torch.autograd.grad(out, u, torch.ones_like(out))
    assert "tost::ghost_skip_add_backward_cpu" in names.found
    assert not {"aten::zeros", "aten::zero_", "aten::fill_"} & set(names.found)


class Cut(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x: Tensor) -> Tensor:
        return x.clone()

    @staticmethod
    def backward(ctx, grad_output: Tensor) -> None:
        return None


@needs_cpu
def test_an_output_without_a_gradient_gives_none() -> None:
    u = torch.randn(4, 3, requires_grad=True)
    with tk.use_backend("cpu"):
        out = Cut.apply(tk.ghost_skip_add(u, act="relu").out)
    assert torch.autograd.grad(out.sum(), u, allow_unused=True) == (None,)
