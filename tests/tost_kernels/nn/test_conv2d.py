"""Conv2d on batch-last tensors against torch's own."""

import copy
import pickle

import pytest
import torch
from torch import nn

import tost_kernels as tk
from tost_kernels import backend
from tost_kernels.pattern import full_pattern

needs_kernels = pytest.mark.skipif(not backend.has_native_conversion(), reason="needs the compiled CPU kernels")
pytestmark = pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel")

# 30 and more input channels: more weights an output than the kernels are asked for
CASES = {
    "stem": {"args": (3, 8, 3), "padding": 1, "size": (8, 3, 7, 6)},
    "wide": {"args": (30, 4, 3), "padding": 1, "size": (4, 30, 7, 6)},
    "wide_reflect": {"args": (30, 4, 3), "padding": 1, "padding_mode": "reflect", "size": (4, 30, 7, 6)},
    "wide_same_even": {"args": (30, 4, 4), "padding": "same", "bias": False, "size": (4, 30, 7, 6)},
    "pointwise": {"args": (300, 5, 1), "stride": 2, "bias": False, "size": (8, 300, 5, 5)},
    "depthwise": {"args": (5, 5, 3), "groups": 5, "padding": 1, "size": (3, 5, 6, 4)},
    "grouped": {"args": (6, 9, 3), "groups": 3, "dilation": 2, "padding": 2, "size": (8, 6, 5, 5)},
    "same_even": {"args": (3, 4, (2, 4)), "padding": "same", "size": (5, 3, 5, 6)},
    "circular": {"args": (3, 4, 3), "padding": (1, 2), "padding_mode": "circular", "size": (4, 3, 5, 6)},
    "one_pixel": {"args": (3, 4, 3), "padding": 1, "size": (5, 3, 1, 1)},
}


def pair(name, dtype):
    options = dict(CASES[name])
    args, size = options.pop("args"), options.pop("size")
    torch.manual_seed(0)
    theirs = nn.Conv2d(*args, dtype=dtype, **options)
    torch.manual_seed(0)
    ours = tk.nn.Conv2d(*args, dtype=dtype, **options)
    assert torch.equal(ours.weight, theirs.weight)
    return ours, theirs, torch.randn(size, dtype=dtype)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("name", CASES)
def test_equals_torch_and_keeps_the_layout(name, dtype):
    ours, theirs, plain = pair(name, dtype)
    plain.requires_grad_()
    x = tk.to_batch_last(plain.detach()).requires_grad_()
    got, expected = ours(x), theirs(plain)
    tolerance = {"rtol": 1e-11, "atol": 1e-11} if dtype == torch.float64 else {"rtol": 1e-4, "atol": 1e-5}
    torch.testing.assert_close(got, expected, **tolerance)
    assert tk.is_batch_last(got)
    grad = torch.randn_like(expected)
    got.backward(tk.to_batch_last(grad))
    expected.backward(grad)
    torch.testing.assert_close(x.grad, plain.grad, **tolerance)
    assert tk.is_batch_last(x.grad)
    for mine, right in zip(ours.parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(mine.grad, right.grad, **tolerance)
    assert list(ours.state_dict()) == list(theirs.state_dict())


@pytest.mark.parametrize("name", ["stem", "wide"])
def test_other_inputs_are_torchs_own(name):
    ours, theirs, x = pair(name, torch.float32)
    assert torch.equal(ours(x), theirs(x))
    assert torch.equal(ours(x[0]), theirs(x[0]))
    x = x.contiguous(memory_format=torch.channels_last)
    assert torch.equal(ours(x), theirs(x))
    with pytest.raises(RuntimeError, match="channels"):
        ours(torch.randn(8, 7, 7, 6))


@needs_kernels
def test_only_a_layer_of_few_weights_an_output_asks_for_a_plan(monkeypatch):
    asked = []
    monkeypatch.setattr("tost_kernels.ops.masked_conv2d.plan_for", lambda *args: asked.append(args) or tk.plan.Plan("dense"))
    for name in ("stem", "pointwise", "wide"):
        ours, _, x = pair(name, torch.float32)
        ours(tk.to_batch_last(x))
    assert [args[3].shape for args in asked] == [(8, 3, 3, 3), (5, 300, 1, 1)]


@needs_kernels
@pytest.mark.parametrize("name", ["stem", "wide"])
def test_a_forced_backend_is_obeyed(name):
    ours, theirs, x = pair(name, torch.float32)
    for forced in ("cpu", "reference", "dense"):
        with tk.use_backend(forced):
            got = ours(tk.to_batch_last(x))
        torch.testing.assert_close(got, theirs(x), rtol=1e-4, atol=1e-5)
        assert tk.is_batch_last(got)


@pytest.mark.parametrize("name", ["stem", "wide"])
def test_autocast(name):
    ours, theirs, x = pair(name, torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        got, expected = ours(tk.to_batch_last(x)), theirs(x)
    assert got.dtype == expected.dtype == torch.bfloat16
    torch.testing.assert_close(got.float(), expected.float(), rtol=2e-2, atol=2e-2)
    assert tk.is_batch_last(got)


@pytest.mark.parametrize("name", ["stem", "wide", "circular"])
def test_a_whole_graph_compiles(name):
    ours, _, x = pair(name, torch.float32)
    x = tk.to_batch_last(x)
    compiled = torch.compile(ours, fullgraph=True, backend="aot_eager")
    got = compiled(x)
    torch.testing.assert_close(got, ours(x), rtol=1e-5, atol=1e-5)
    assert tk.is_batch_last(got)
    got.sum().backward()
    assert ours.weight.grad.isfinite().all()


def test_patterns_are_shared_and_no_state():
    first, second = tk.nn.Conv2d(3, 8, 3), tk.nn.Conv2d(3, 8, 3)
    assert set(vars(first)) == set(vars(nn.Conv2d(3, 8, 3)))
    assert full_pattern(first.weight.shape) is full_pattern((8, 3, 3, 3))
    assert full_pattern((8, 3, 3, 3)).density == 1
    for again in (copy.deepcopy(first), pickle.loads(pickle.dumps(second))):
        assert type(again) is tk.nn.Conv2d
        x = tk.to_batch_last(torch.randn(5, 3, 4, 4))
        assert tk.is_batch_last(again(x))


def test_on_meta():
    conv = tk.nn.Conv2d(3, 8, 3, device="meta")
    assert conv(torch.empty(4, 3, 5, 5, device="meta").permute(1, 2, 3, 0).contiguous().permute(3, 0, 1, 2)).shape == (4, 8, 3, 3)
    real = conv.to_empty(device="cpu")
    nn.init.zeros_(real.weight)
    nn.init.ones_(real.bias)
    assert torch.equal(real(tk.to_batch_last(torch.randn(4, 3, 5, 5))), torch.ones(4, 8, 3, 3))


@needs_kernels
def test_tune_meets_it():
    net = tk.sparsify(nn.Sequential(nn.Conv2d(3, 8, 3), nn.Conv2d(8, 8, 3)), {"1": torch.ones(8, 8, 3, 3)})
    report = tk.tune(
        net, tk.to_batch_last(torch.randn(8, 3, 6, 6)), cache=False, timer=lambda trials, rounds: [1.0] * len(trials)
    )
    assert {tuned.layers for tuned in report.cases} == {("0",), ("1",)}
