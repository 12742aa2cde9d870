"""Plan strings of triton: what they may say, what the static rule adds, and torch's settings of precision."""

from collections.abc import Iterator

import pytest
import torch

import tost_kernels as tk
from tost_kernels.layout import as_layout
from tost_kernels.triton.options import GRAMMAR, PASSES, Options, complete, of_pass, parse, resolve

GEOMETRY = (1, 1, 1, 1, 1, 1, 1)


def pattern_of(density: float, shape: tuple[int, ...] = (64, 64, 3, 3)) -> tk.Pattern:
    return tk.Pattern(torch.rand(shape) < density)


def options_of(plan: str, x: torch.Tensor, pattern: tk.Pattern, which: str = "forward") -> Options:
    return of_pass(complete("masked_conv2d", plan, x, pattern, GEOMETRY), which)


@pytest.mark.parametrize(
    ("plan", "words"),
    [
        ("algo", "expected key=value"),
        ("tile=4x4", "expected key=value with a key of"),
        ("backward.bn=64", "expected key=value with a key of"),
        (".bn=64", "expected key=value with a key of"),
        ("bn=64,", "expected key=value"),
        ("algo=dense", "expected algo to be one of .* got 'dense'"),
        ("bn=48", "expected bn to be one of .* got '48'"),
        ("stages=9", "expected stages to be 1 to 8, got '9'"),
        ("bn=64,bn=32", "expected each key once, got 'bn' again"),
        ("input_grad.rows=16", "expected one rows for all passes"),
        ("forward.precision=tf32", "expected one precision for all passes"),
    ],
)
def test_what_parse_refuses(plan: str, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        parse(plan)
    for which in PASSES:  # each pass reads the whole plan
        with pytest.raises(ValueError, match=words):
            of_pass(plan, which)


@pytest.mark.parametrize(
    ("plan", "words"),
    [
        ("algo=tiles", r"expected rows \(and block\)"),
        ("algo=blocks,rows=16", r"expected rows \(and block\)"),
        ("algo=tiles,rows=16,bk=8", "forward.bk of at least 16"),
        ("algo=blocks,rows=16,block=16,bk=32", "expected forward.bk to be the block, 16"),
        ("algo=tiles,rows=16,block=16,bk=16,input_grad.algo=blocks", "tiles or blocks, not both"),
    ],
)
def test_what_no_kernel_runs(plan: str, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        of_pass(plan, "forward")


def test_the_empty_plan_needs_the_base_index_alone() -> None:
    assert {of_pass("", which) for which in PASSES} == {Options()}
    assert Options().algo == "direct"


def test_one_pass_may_differ() -> None:
    x, pattern = torch.empty(32, 64, 4, 4), pattern_of(0.1)
    plan = complete(
        "masked_conv2d", "algo=tiles,bn=64,input_grad.bn=16,values_grad.algo=direct,values_grad.bk=4", x, pattern, GEOMETRY
    )
    assert (of_pass(plan, "forward").bn, of_pass(plan, "input_grad").bn) == (64, 16)
    assert (of_pass(plan, "values_grad").algo, of_pass(plan, "values_grad").bk) == ("direct", 4)
    index, _ = resolve("masked_conv2d", plan, x, pattern, GEOMETRY)
    assert index is pattern.tiled(of_pass(plan, "forward").rows)


@pytest.mark.parametrize("asked", ["", "algo=tiles", "algo=blocks,block=16", "algo=direct,bn=32", "algo=tiles,rows=32,split=3"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_complete_plan_completes_to_itself(asked: str, dtype: torch.dtype) -> None:
    x, pattern = torch.empty(32, 64, 4, 4, dtype=dtype), pattern_of(0.1)
    plan = complete("masked_conv2d", asked, x, pattern, GEOMETRY)
    assert complete("masked_conv2d", plan, x, pattern, GEOMETRY) == plan
    for (which, key), value in parse(asked).items():
        assert getattr(of_pass(plan, which or "forward"), key) == value


def test_static_rule() -> None:
    batch_last = as_layout(torch.empty(128, 64, 4, 4), "batch_last")
    channels_last = as_layout(torch.empty(128, 64, 4, 4), "channels_last")
    dense, thin, bare = pattern_of(0.5), pattern_of(0.03), pattern_of(0.001)
    assert options_of("", batch_last, thin)[:2] == ("tiles", 64)
    assert options_of("", channels_last, thin).algo == "tiles"
    assert options_of("", channels_last, dense).algo == "blocks"
    assert options_of("", batch_last, bare).algo == "direct"
    assert options_of("", batch_last[:4], dense).algo == "direct"
    assert options_of("", batch_last, pattern_of(0.5, (64, 1, 3, 3))).algo == "direct"
    assert options_of("", batch_last, pattern_of(0.5, (200, 64, 3, 3))).rows == 128
    assert options_of("", batch_last[:, :20], pattern_of(0.5, (20, 20, 3, 3))).rows == 32


@pytest.fixture
def settings() -> Iterator[None]:
    """torch's settings of precision, restored after the test."""
    conv, matmul = torch.backends.cudnn.conv, torch.backends.cuda.matmul
    before = conv.fp32_precision, matmul.fp32_precision
    yield
    conv.fp32_precision, matmul.fp32_precision = before


def precisions(dtype: torch.dtype = torch.float32) -> tuple[str, str]:
    """Of a convolution and of a linear layer."""
    x, pattern = torch.empty(32, 64, 4, 4, dtype=dtype), pattern_of(0.1)
    linear = pattern_of(0.1, (64, 64))
    conv = complete("masked_conv2d", "algo=tiles", x, pattern, GEOMETRY)
    return of_pass(conv, "forward").precision, of_pass(
        complete("masked_linear", "algo=tiles", x[:, :, 0, 0], linear, ()), "forward"
    ).precision


@pytest.mark.usefixtures("settings")
def test_precision_is_torchs_own() -> None:
    conv, matmul = torch.backends.cudnn.conv, torch.backends.cuda.matmul
    for wanted in (("tf32", "ieee"), ("ieee", "tf32")):
        conv.fp32_precision, matmul.fp32_precision = wanted
        assert precisions() == wanted
    assert precisions(torch.bfloat16) == ("ieee", "ieee")  # nothing to choose


@pytest.mark.usefixtures("settings")
def test_precision_by_the_older_switches() -> None:
    torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32 = True, True
    assert precisions() == ("tf32", "tf32")
    torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32 = False, False
    assert precisions() == ("ieee", "ieee")
    torch.set_float32_matmul_precision("high")
    assert precisions() == ("ieee", "tf32")
    torch.set_float32_matmul_precision("highest")
    torch.backends.cudnn.allow_tf32 = True
    assert precisions() == ("tf32", "ieee")


def test_an_explicit_precision_holds_in_every_pass() -> None:
    x, pattern = torch.empty(32, 64, 4, 4), pattern_of(0.1)
    for which in PASSES:
        assert options_of("algo=tiles,precision=tf32x3", x, pattern, which).precision == "tf32x3"


def test_a_plan_is_read_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Reading takes longer than a small layer, and every op asks for its pass."""
    x, pattern = torch.randn(16, 64, 2, 2), pattern_of(0.1)
    geometry = (1, 1, 1, 1, 1, 1, 1)
    index, plan = resolve("masked_conv2d", "algo=tiles,rows=16", x, pattern, geometry)
    monkeypatch.setattr(GRAMMAR, "parse", None)
    again, same = resolve("masked_conv2d", "algo=tiles,rows=16", x, pattern, geometry)
    assert again is index
    assert same == plan
    assert [of_pass(plan, which).rows for which in PASSES] == [16, 16, 16]
