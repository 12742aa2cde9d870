"""masked_linear by Triton: a 1x1 convolution on images of one pixel, in both layouts of its input."""

import pytest
import torch
import torch.nn.functional as F

import tost_kernels as tk
from tost_kernels.backend import why_not
from tost_kernels.layout import as_layout, layout_of
from tost_kernels.ops.masked import index_and_options
from tost_kernels.plan import Plan
from tost_kernels.register import op

pytestmark = pytest.mark.skipif(why_not("masked_linear", "triton") is not None, reason="needs triton, on a GPU or interpreted")

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
TILES = "algo=tiles,rows=16,bn=16,bk=32,precision=ieee"
BLOCKS = "algo=blocks,rows=16,bn=16,block=16,precision=ieee"
DIRECT = "algo=direct,bn=16"


def tensors(batch: int, outputs: int, inputs: int, density: float) -> tuple[torch.Tensor, torch.Tensor, tk.Pattern, torch.Tensor]:
    mask = torch.rand(outputs, inputs) < density
    mask[0] = False
    pattern = tk.Pattern(mask.to(DEVICE))
    values = torch.randn(pattern.nnz, device=DEVICE)
    return torch.randn(batch, inputs, device=DEVICE), values, pattern, torch.randn(outputs, device=DEVICE)


@pytest.mark.parametrize("layout", ["contiguous", "batch_last"])
@pytest.mark.parametrize("plan", [TILES, BLOCKS, DIRECT])
@pytest.mark.parametrize(
    ("batch", "outputs", "inputs", "density"),
    [(17, 20, 37, 0.2), (1, 5, 9, 0.5), (3, 33, 40, 1.0), (40, 10, 64, 0.05), (4, 6, 8, 0.0), (0, 6, 8, 0.5)],
)
def test_float32(batch: int, outputs: int, inputs: int, density: float, plan: str, layout: str) -> None:
    x, values, pattern, bias = tensors(batch, outputs, inputs, density)
    got = [as_layout(x, layout).requires_grad_(), values.requires_grad_(), bias.requires_grad_()]
    want = [t.detach().double().requires_grad_() for t in got]
    out = tk.masked_linear(got[0], got[1], pattern, got[2], plan=Plan("triton", plan))
    exact = F.linear(want[0], pattern.scatter(want[1]), want[2])
    assert layout_of(out) == layout_of(got[0]) or min(out.shape) <= 1
    grad = torch.randn(out.shape, device=DEVICE)
    out.backward(grad)
    exact.backward(grad.double())
    assert layout_of(got[0].grad) == layout_of(got[0])
    for one, other in zip([out, *(t.grad for t in got)], [exact, *(t.grad for t in want)], strict=True):
        torch.testing.assert_close(one.double(), other, rtol=2e-5, atol=2e-5)


def test_bfloat16() -> None:
    x, values, pattern, bias = (t.bfloat16() if isinstance(t, torch.Tensor) else t for t in tensors(17, 20, 40, 0.3))
    want = F.linear(x.double(), pattern.scatter(values.double()), bias.double())
    scale = want.abs().max()
    own = (F.linear(x, pattern.scatter(values), bias) - want).abs().max() / scale
    for plan in (TILES, BLOCKS, DIRECT):
        out = tk.masked_linear(x, values, pattern, bias, plan=Plan("triton", plan))
        assert out.dtype == torch.bfloat16
        assert (out - want).abs().max() / scale <= 2 * own + 2**-9, plan


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf:UserWarning")  # opcheck's own reading
@pytest.mark.parametrize("plan", [TILES, BLOCKS])
def test_opcheck(plan: str) -> None:
    x, values, pattern, bias = tensors(3, 4, 5, 0.5)
    index, options = index_and_options(Plan("triton", plan), "masked_linear", x, pattern, ())
    leaves = x.requires_grad_(), values.requires_grad_(), bias.requires_grad_()
    results = torch.library.opcheck(op("masked_linear", "triton"), (*leaves, index, [4, 5], options))
    assert list(results.values()) == ["SUCCESS"] * 4


def test_forced_backend_more_dimensions_and_compiled() -> None:
    x, values, pattern, bias = tensors(20, 16, 18, 0.5)
    want = F.linear(x, pattern.scatter(values), bias)

    @torch.compile(fullgraph=True, backend="aot_eager")
    def function(x: torch.Tensor) -> torch.Tensor:
        return tk.masked_linear(x, values, pattern, bias)

    with tk.use_backend("triton"):
        out = tk.masked_linear(x.view(2, 10, 18), values, pattern, bias)
        compiled = function(x)
    torch.testing.assert_close(out, want.view(2, 10, 16), rtol=1e-2, atol=1e-2)  # by torch's settings perhaps in TF32
    torch.testing.assert_close(compiled, want, rtol=1e-2, atol=1e-2)
