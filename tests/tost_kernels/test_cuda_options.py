"""Plan strings of cuda: what they may say, what the static rule adds, which index they need."""

from collections.abc import Iterator

import pytest
import torch

import tost_kernels as tk
from tost_kernels.cuda_options import GRAMMAR, Options, complete, of_pass, parse, resolve
from tost_kernels.ops.masked import index_and_options
from tost_kernels.plan import Plan
from tost_kernels.plan_options import PASSES

GEOMETRY = (1, 1, 1, 1, 1, 1, 1)
F32, BF16 = torch.float32, torch.bfloat16


@pytest.fixture(autouse=True)
def torchs_settings() -> Iterator[None]:
    """TF32 for convolutions, IEEE for linear layers; whatever was set before is back after the test."""
    conv, matmul = torch.backends.cudnn.conv, torch.backends.cuda.matmul
    before = conv.fp32_precision, matmul.fp32_precision
    conv.fp32_precision, matmul.fp32_precision = "tf32", "ieee"
    yield
    conv.fp32_precision, matmul.fp32_precision = before


def pattern_of(density: float, *shape: int) -> tk.Pattern:
    return tk.Pattern(torch.rand(shape or (128, 128, 3, 3)) < density)


def images(channels: int = 128, batch: int = 256, side: int = 16, dtype: torch.dtype = F32) -> torch.Tensor:
    return torch.empty(1, dtype=dtype).expand(batch, channels, side, side)


def plans(
    plan: str, x: torch.Tensor, pattern: tk.Pattern, geometry: tuple[int, ...] = GEOMETRY, op: str = "masked_conv2d"
) -> list[Options]:
    """The options of the three passes."""
    done = complete(op, plan, x, pattern, geometry)
    assert complete(op, done, x, pattern, geometry) == done, "a complete plan completes to itself"
    return [of_pass(done, which) for which in PASSES]


@pytest.mark.parametrize(
    ("plan", "words"),
    [
        ("bn=64", "cuda plan: expected key=value with a key of .*'algo', 'rows', 'chunk'"),
        ("backward.warps=4", "expected key=value with a key of"),
        ("algo=tiles", r"expected algo to be one of \('direct', 'gather'\), got 'tiles'"),
        ("rows=8", "expected rows to be one of .* got '8'"),
        ("warps=4,warps=8", "expected each key once, got 'warps' again"),
        ("stages=4", "expected stages to be 1 to 3, got '4'"),
        ("split=0", "expected split to be 1 to 256, got '0'"),
        ("forward.chunk=8", "expected one chunk for all passes"),
    ],
)
def test_what_parse_refuses(plan: str, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        parse(plan)


@pytest.mark.parametrize(
    ("plan", "dtype", "words"),
    [
        ("algo=gather,rows=4", F32, "expected rows=16 or rows=32 with algo=gather, got rows=4"),
        ("algo=direct,precision=tf32", F32, "expected precision=tf32 with algo=gather alone"),
        ("algo=gather,precision=ieee", F32, "expected precision=tf32 with forward.algo=gather for torch.float32, got ieee"),
        ("input_grad.algo=gather,algo=direct,precision=ieee", F32, "precision=tf32 with input_grad.algo=gather"),
        ("algo=gather,precision=tf32", BF16, "expected precision=ieee with forward.algo=gather for torch.bfloat16, got tf32"),
    ],
)
def test_what_no_kernel_runs(plan: str, dtype: torch.dtype, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        complete("masked_conv2d", plan, images(dtype=dtype), pattern_of(0.05), GEOMETRY)


def test_the_empty_plan_needs_the_base_index_alone() -> None:
    assert {of_pass("", which) for which in PASSES} == {Options()}
    assert Options()[:2] == ("direct", 1)


@pytest.mark.parametrize("dtype", [F32, BF16])
@pytest.mark.parametrize(
    "asked", ["algo=gather", "algo=direct,rows=4", "rows=32,chunk=8,input_grad.algo=direct,split=3", "warps=16"]
)
def test_what_is_asked_for_is_kept(asked: str, dtype: torch.dtype) -> None:
    passes = dict(zip(PASSES, plans(asked, images(dtype=dtype), pattern_of(0.05)), strict=True))
    for (which, key), value in parse(asked).items():
        for name in [which] if which else [name for name in PASSES if (name, key) not in parse(asked)]:
            assert getattr(passes[name], key) == value


def test_gather_where_tensor_cores_and_shared_columns_pay() -> None:
    thin = pattern_of(0.05)
    for dtype, precision in ((F32, "tf32"), (BF16, "ieee")):
        assert {(o.algo, o.rows, o.precision) for o in plans("", images(dtype=dtype), thin)} == {("gather", 16, precision)}
    assert {o.rows for o in plans("", images(), pattern_of(0.2))} == {32}, "32 rows keep hardly more columns than 16"
    for x, pattern in (
        (images(), pattern_of(0.002)),  # 16 rows share too little
        (images(), pattern_of(0)),
        (images(batch=8), thin),
        (images(32), pattern_of(0.05, 128, 32, 3, 3)),
        (images(256), pattern_of(0.004, 256, 256, 1, 1)),  # mostly padding
    ):
        assert {(o.algo, o.rows, o.precision) for o in plans("", x, pattern)} == {("direct", 1, "ieee")}
    grouped = (1, 1, 1, 1, 1, 1, 8)
    assert {o.algo for o in plans("", images(), pattern_of(0.05, 128, 16, 3, 3), grouped)} == {"direct"}
    torch.backends.cudnn.conv.fp32_precision = "ieee"
    assert {o.algo for o in plans("", images(), thin)} == {"direct"}, "tensor cores have no IEEE products"
    assert {o.algo for o in plans("precision=tf32", images(), thin)} == {"gather"}


def test_dead_filters_do_not_count_against_gather() -> None:
    mask = torch.rand(512, 128, 3, 3) < 0.05
    mask[32:] = False
    assert plans("", images(), tk.Pattern(mask))[0].algo == "gather"
    assert plans("", images(), pattern_of(0.05 / 16, 512, 128, 3, 3))[0].algo == "direct"


def test_the_input_gradient_of_a_strided_convolution_has_fewer_columns_a_segment() -> None:
    geometry = (2, 2, 0, 0, 1, 1, 1)
    forward, input_grad, values_grad = plans("", images(dtype=BF16), pattern_of(0.03, 128, 128, 3, 3), geometry)
    assert [o.algo for o in (forward, input_grad, values_grad)] == ["gather", "direct", "gather"]
    assert input_grad.rows == forward.rows == 16


def test_the_rest_follows_from_the_shape() -> None:
    def first(x: torch.Tensor, *shape: int, geometry: tuple[int, ...] = GEOMETRY) -> Options:
        return plans("", x, pattern_of(0.05, *shape), geometry)[0]

    assert first(images()) == Options("gather", 16, 32, precision="tf32")
    assert first(images(256), 256, 256, 1, 1).chunk == 64
    assert first(images(), 128, 128, 1, 1).chunk == 32, "of 64 there would be two"
    assert first(images(), 128, 128, 5, 5).chunk == 16
    assert first(images(), 128, 128, 3, 3, geometry=(2, 2, 1, 1, 1, 1, 1)).chunk == 32
    assert first(images(256, side=8), 256, 256, 3, 3)[2:4] == (32, 8), "128 blocks of 8 pixels fill 132 SMs"
    assert first(images(512, side=4), 512, 512, 3, 3)[2:4] == (32, 4), "64 do not"
    assert first(images(8, side=32), 8, 8, 3, 3)[2:6] == (8, 8, 8, 1), "one chunk is all there is"
    assert first(images(batch=32, side=4)).pixels == 4, "there are more SMs than blocks of 8"
    assert first(images(side=4, batch=4096)).pixels == 8


def test_chunks_are_small_where_an_sm_runs_two_blocks() -> None:
    def chunk(plan: str, x: torch.Tensor, *shape: int) -> int:
        return plans(plan, x, pattern_of(0.05, *shape))[0].chunk

    assert chunk("", images(64, side=32), 64, 64, 3, 3) == 16, "four warps: there are registers for two blocks"
    assert chunk("", images(96, side=32, dtype=BF16), 96, 96, 3, 3) == 32
    assert chunk("", images(64, side=32, dtype=BF16), 64, 64, 3, 3) == 16, "of 32 there would be two"
    assert chunk("values_grad.algo=direct", images()) == 16
    assert chunk("algo=direct", images()) == 16
    assert chunk("chunk=8", images()) == 8


@pytest.mark.parametrize(
    ("plan", "depth"), [("algo=gather,rows=16,chunk=8", 0), ("algo=direct,rows=2,chunk=16", 1), ("algo=direct", None)]
)
@pytest.mark.parametrize("dtype", [F32, BF16])
def test_which_index(plan: str, depth: int | None, dtype: torch.dtype) -> None:
    pattern, geometry = pattern_of(0.05, 64, 32, 3, 3), (2, 1, 1, 1, 1, 3, 2)
    asked = Plan("cuda", plan)
    index, done = index_and_options(asked, "masked_conv2d", images(64, dtype=dtype), pattern, geometry)
    o = of_pass(done, "forward")
    if depth is None:
        assert index is pattern.index
        return
    assert index is pattern.gathered(o.rows, o.chunk, depth or (8 if dtype == F32 else 16), 2, (2, 1), (1, 3))


def test_a_linear_layer() -> None:
    pattern = pattern_of(0.1, 256, 128)
    x = torch.empty(512, 128)
    index, plan = resolve("masked_linear", "algo=gather,precision=tf32", x, pattern, ())
    o = of_pass(plan, "forward")
    assert index is pattern.gathered(o.rows, o.chunk, 8)
    assert plans("", x, pattern, (), "masked_linear")[0].algo == "direct", "torch multiplies these in IEEE float32"
    assert plans("", x.bfloat16(), pattern, (), "masked_linear")[0].algo == "gather"


def test_a_plan_whose_passes_all_chose_direct_needs_no_groups() -> None:
    """As tune writes it: a frame, and every pass left it."""
    chosen = "algo=gather,rows=16,chunk=16," + ",".join(f"{which}.algo=direct" for which in PASSES)
    assert {(o.algo, o.rows, o.precision) for o in plans(chosen, images(), pattern_of(0.05))} == {("direct", 1, "ieee")}


def test_a_plan_is_read_once(monkeypatch: pytest.MonkeyPatch) -> None:
    x, pattern = images(), pattern_of(0.05)
    first = resolve("masked_conv2d", "algo=gather", x, pattern, GEOMETRY)
    monkeypatch.setattr(GRAMMAR, "parse", None)
    again = resolve("masked_conv2d", "algo=gather", x, pattern, GEOMETRY)
    assert again[0] is first[0]
    assert again[1] == first[1]


@pytest.mark.parametrize("plan", ["", "algo=direct,rows=2"])
def test_compiles_as_a_constant(plan: str) -> None:
    pattern = pattern_of(0.05, 64, 64, 3, 3)

    def function(x: torch.Tensor) -> torch.Tensor:
        index, options = resolve("masked_conv2d", plan, x, pattern, GEOMETRY)
        return x[0, 0, 0, 0].long() + index.sum() + len(options)

    x = torch.zeros(16, 64, 2, 2)
    assert torch.compile(function, fullgraph=True, backend="eager")(x) == function(x)


def test_a_direct_pass_has_8_pixels_or_more() -> None:
    few = images(batch=1)  # so few blocks that gather would take 4
    assert {o.pixels for o in plans("algo=direct", few, pattern_of(0.05))} == {8}
    with pytest.raises(ValueError, match=r"expected forward.pixels=8 or forward.pixels=16 with algo=direct, got 4"):
        plans("algo=direct,pixels=4", few, pattern_of(0.05))
