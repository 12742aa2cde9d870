"""Masked, sparse and saved networks: the mask shrinks with the layer, and the file holds all that is needed."""

from __future__ import annotations

import copy
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import tost
import tost_kernels as tk
from tests.tost.shrinking.dead_filters import assert_same, randomised, shrunk
from tost.files import DamagedFile
from tost.masks import Masks
from tost_kernels.nn import SparseConv2d, SparseLinear

X = torch.randn(3, 2, 6, 6, generator=torch.Generator().manual_seed(5))


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem, self.norm = nn.Conv2d(2, 6, 3, padding=1), nn.BatchNorm2d(6)
        self.depth, self.point = nn.Conv2d(6, 6, 3, groups=6, bias=False), nn.Conv2d(6, 8, 1, bias=False)
        self.fc = nn.Linear(32, 3)
        self.pool = nn.MaxPool2d(2)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.norm(self.stem(x)))
        x = self.pool(torch.sigmoid(self.point(self.depth(x))))
        return self.fc(x.flatten(1))


def masks() -> dict[str, Tensor]:
    random = torch.Generator().manual_seed(1)
    modules = dict(Net().named_modules())
    found = {}
    for name, dead in (("stem", [0, 3]), ("depth", [1]), ("point", [2, 3, 7]), ("fc", [])):
        found[name] = torch.rand(modules[name].weight.shape, generator=random) < 0.7
        found[name][dead] = False
    return found


def net() -> Net:
    torch.manual_seed(0)
    built = randomised(Net())
    with torch.no_grad():
        built.norm.running_mean[:] = 0
        built.stem.bias[:] = 0
        built.norm.bias[[0, 3]] = -0.5
    return built  # type: ignore[return-value]


def masked(form: str) -> nn.Module:
    return tk.sparsify(net(), masks()) if form == "sparse" else Masks(masks()).apply_to(net(), form=form)


FORMS = ["zeros", "prune", "parametrization", "sparse"]


@pytest.mark.parametrize("form", FORMS)
def test_every_form_keeps_its_mask(form: str) -> None:
    plain = shrunk(masked("zeros"), X)
    result = shrunk(masked(form), X)
    assert result.cuts == plain.cuts
    assert set(result.cuts) == {"stem", "norm", "depth", "point", "fc"}
    small = Masks.from_model(result.model)
    assert small == Masks.from_model(plain.model)
    for name, cut in result.cuts.items():
        if name != "norm":
            mask = masks()[name][list(cut.outputs)]
            assert torch.equal(small[name], mask if name == "depth" else mask[:, list(cut.inputs)])
    assert isinstance(result.model.point, SparseConv2d) is (form == "sparse")
    assert isinstance(result.model.fc, SparseLinear) is (form == "sparse")


@pytest.mark.parametrize("form", FORMS)
def test_constants_are_zeroed_in_every_form(form: str) -> None:
    model = masked(form)
    with torch.no_grad():
        model.norm.bias[:] = 0.5
    result = shrunk(model, X, zero_constants=True)
    assert result.report.zeroed == {}  # no padding behind it
    model.depth.padding = (1, 1)
    model.fc = nn.Linear(72, 3)
    result = shrunk(model, X, zero_constants=True)
    assert result.report.zeroed == {"norm": (0, 3)}
    assert result.model.stem.out_channels == 3


def test_shrink_and_sparsify_in_both_orders() -> None:
    first = tost.shrink(tk.sparsify(net(), masks()), input_shape=(2, 6, 6)).model
    small = tost.shrink(Masks(masks()).apply_to(net()), input_shape=(2, 6, 6)).model
    second = tk.sparsify(small, Masks.from_model(small))
    assert {name: type(module) for name, module in first.named_modules()} == {
        name: type(module) for name, module in second.named_modules()
    }
    state, other = first.state_dict(), second.state_dict()
    assert state.keys() == other.keys()
    assert all(torch.equal(state[name], other[name]) for name in state)
    assert torch.equal(first(X), second(X))


@pytest.mark.parametrize("form", FORMS)
def test_training_goes_on(form: str) -> None:
    small = tost.shrink(masked(form), input_shape=(2, 6, 6)).model.train()
    before = Masks.from_model(small)
    optimizer = torch.optim.SGD(small.parameters(), lr=0.1)
    small(X).square().sum().backward()
    assert all(parameter.grad is not None for parameter in small.parameters())
    optimizer.step()
    small(X)
    assert form == "zeros" or Masks.from_model(small) == before


def test_flags_and_other_parts_stay() -> None:
    model = net().train()
    model.stem.weight.requires_grad_(False)
    model.depth.eval()
    Masks(masks()).apply_to(model, inplace=True, form="zeros")
    result = tost.shrink(model, input_shape=(2, 6, 6), inplace=True)
    assert result.model is model
    assert model.training
    assert not model.depth.training
    assert not model.stem.weight.requires_grad
    assert model.point.bias is None or model.point.bias.requires_grad
    assert type(copy.deepcopy(model)) is Net


@pytest.mark.parametrize("form", FORMS)
def test_saved_and_loaded(form: str, tmp_path: Path) -> None:
    result = tost.shrink(masked(form), input_shape=(2, 6, 6))
    path = tmp_path / "small.safetensors"
    result.save(path)
    with pytest.raises(RuntimeError, match="size mismatch"):
        Net().load_state_dict(result.model.state_dict(), strict=False)
    for original in (Net, Net(), masked("sparse"), masked("prune")):
        loaded = tost.load_shrunk(original, path).eval()
        assert type(loaded) is Net
        assert loaded.state_dict().keys() == result.model.state_dict().keys()
        assert_same(result.model, loaded, X, 0.0)
    assert isinstance(loaded.fc, SparseLinear) is (form == "sparse")


def test_a_file_for_another_architecture(tmp_path: Path) -> None:
    path = tmp_path / "small.safetensors"
    tost.shrink(masked("sparse"), input_shape=(2, 6, 6)).save(path)
    with pytest.raises(ValueError, match=r"small.safetensors: expected a network with a layer 'stem', got Sequential without"):
        tost.load_shrunk(nn.Sequential(nn.Conv2d(2, 6, 3)), path)
    other = Net()
    other.stem = nn.Conv2d(2, 7, 3)
    with pytest.raises(ValueError, match=r"expected 2 inputs and 6 outputs at 'stem', got \(2, 7\)"):
        tost.load_shrunk(other, path)
    with pytest.raises(TypeError, match=r"load_shrunk: model: expected a torch.nn.Module or a function that makes one, got int"):
        tost.load_shrunk(3, path)  # type: ignore[arg-type]
    with pytest.raises(FileNotFoundError, match="no such shrunk network"):
        tost.load_shrunk(Net, tmp_path / "none.safetensors")
    result = tost.shrink(masked("sparse"), input_shape=(2, 6, 6))
    torn = {**result.cuts, "depth": replace(result.cuts["depth"], groups=2)}
    replace(result, cuts=torn).save(path)
    with pytest.raises(ValueError, match="expected what is left of 'depth' to be whole groups of channels"):
        tost.load_shrunk(Net, path)
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    with pytest.raises(DamagedFile, match="does not match its checksum"):
        tost.load_shrunk(Net, path)
    Masks(masks()).save(path)
    with pytest.raises(DamagedFile, match="expected a shrunk network"):
        tost.load_shrunk(Net, path)


def test_times_are_of_both_networks() -> None:
    from tost.shrinking import time_forward

    model = net().train()
    times = time_forward(model, tost.shrink(model, input_shape=(2, 6, 6)).model, X, passes=2, warmup=0)
    assert times.passes == 2
    assert times.before > 0 < times.after
    assert model.training
    with pytest.raises(ValueError, match="passes: expected a whole number of at least 1, got 0"):
        time_forward(model, model, X, passes=0)
