"""Activations near zero: by hand, and the same whatever form a network has."""

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import tost_kernels as tk
from tests.tost.analysis.short_runs import short_run, small_world
from tost import Masks, Recipe
from tost.analysis import Activations, analyze_activations
from tost.analysis.activations import LayerActivations, activations_of
from tost.analysis.networks import network_of
from tost.data import Dataset
from tost.ghosts import add_ghosts, set_strength
from tost.models.resnet import ResNet


def test_two_units_by_hand() -> None:
    net = nn.Sequential(nn.Linear(2, 2, bias=False), nn.ReLU())
    with torch.no_grad():
        net[0].weight.copy_(torch.eye(2))  # type: ignore[operator, union-attr]
    first, second = torch.tensor([[0.5, -1.0], [0.009, 0.02]]), torch.tensor([[0.0, 3.0]])
    # behind ReLU: 0.5, 0, 0.009, 0.02, then 0, 3
    assert activations_of(net, [first, second]) == (LayerActivations("1", "relu", 3, 6),)
    assert activations_of(net, [first], threshold=0.02) == (LayerActivations("1", "relu", 3, 4),)
    assert activations_of(net, [first])[0].fraction == 0.5


def test_a_fused_swish_by_hand() -> None:
    net = nn.Sequential(nn.Conv2d(1, 1, 1, bias=False), nn.ReLU()).eval()
    nn.init.ones_(net[0].weight)  # type: ignore[arg-type]
    images = torch.linspace(-8, 8, 65).view(1, 1, 5, 13)
    for beta in (1.0, 3.0):
        ghosted = add_ghosts(net, Recipe(ghost_skip=False))
        set_strength(ghosted, 0.0, beta)
        near_zero = int(
            (images * torch.sigmoid(beta * images) <= 0.01).logical_and(images * torch.sigmoid(beta * images) >= -0.01).sum()
        )
        assert 1 < near_zero < 33
        assert activations_of(ghosted, [images]) == (LayerActivations("0", "pswish", near_zero, 65),)
    mish = add_ghosts(net, Recipe(ghost_skip=False, permanent=True, swish="mish"))
    assert activations_of(mish, [images]) == (LayerActivations("0", "mish", int((F.mish(images).abs() <= 0.01).sum()), 65),)
    assert activations_of(net, [images]) == (LayerActivations("0", "relu", 33, 65),)  # up to 0


def by_hooks(net: nn.Module, images: Tensor) -> list[int]:
    """What nn.ReLU modules of a plain network return near zero, in the order of the calls."""
    found: list[int] = []
    hooks = [
        module.register_forward_hook(lambda module, inputs, out: found.append(int((out.abs() <= 0.01).sum())))
        for module in net.modules()
        if isinstance(module, nn.ReLU)
    ]
    with torch.no_grad():
        net(images)
    for hook in hooks:
        hook.remove()
    return found


def test_every_form_of_a_network_gives_the_same() -> None:
    net = ResNet((1, 1), (4, 8), in_channels=1).eval()
    masks = Masks({name: torch.rand(m.weight.shape) < 0.3 for name, m in net.named_modules() if isinstance(m, nn.Conv2d)})
    plain = masks.apply_to(net, form="zeros")
    images = torch.randn(4, 1, 8, 8)
    expected = by_hooks(plain, images)
    forms = {
        "plain": plain,
        "masked dense": masks.apply_to(net),
        "sparse": tk.sparsify(net, masks),
        "fused": add_ghosts(tk.sparsify(net, masks), Recipe.vanilla()),
        "ghosts at their end": add_ghosts(masks.apply_to(net), Recipe()),
    }
    set_strength(forms["ghosts at their end"], 0.0, torch.inf)
    names = ["conv1", "layer1.0.conv1", "layer1.0.conv2", "layer2.0.conv1", "layer2.0.conv2"]
    for form in forms.values():
        found = activations_of(form.eval(), [images])
        assert [layer.near_zero for layer in found] == expected
        assert {layer.function for layer in found} == {"relu"}
        if form is not forms["fused"]:  # that one shows some by the ReLU's own name
            assert [layer.name for layer in found] == names


class Functions(nn.Module):
    """ReLU as a function, one module called twice, and other activations; a branch on data cannot be traced."""

    def __init__(self, traceable: bool) -> None:
        super().__init__()
        self.act, self.smooth, self.traceable = nn.ReLU(inplace=True), nn.SiLU(), traceable

    def forward(self, x: Tensor) -> Tensor:
        if not self.traceable and x.sum() > 1e9:
            return x
        x = self.act(F.relu(x - 1) - 1) + 1
        return self.smooth(self.act(x) - 1) + torch.relu(x).relu_() + F.gelu(x)


@pytest.mark.parametrize("traceable", [True, False])
def test_functions_and_modules_that_are_called_twice(traceable: bool) -> None:
    net, x = Functions(traceable).eval(), torch.linspace(-4, 4, 81)
    found = activations_of(net, [x.view(1, 81), x.view(1, 81)])
    first = F.relu(x - 1)
    second = F.relu(first - 1) + 1
    results = [first, F.relu(first - 1), F.relu(second), F.silu(second - 1), F.relu(second), F.relu(second), F.gelu(second)]
    assert [layer.near_zero for layer in found] == [2 * int((result.abs() <= 0.01).sum()) for result in results]
    assert all(layer.count == 162 for layer in found)
    assert [layer.function for layer in found] == ["relu", "relu", "relu", "swish", "relu", "relu", "gelu"]
    if not traceable:
        names = ["the root", "act", "act (2)", "smooth", "the root (2)", "the root (3)", "the root (4)"]
        assert [layer.name for layer in found] == names
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in net.modules())


@pytest.mark.parametrize("backend", ["sparse", "masked-dense", "dense"])
def test_runs_of_any_backend(backend: str, tmp_path: Path, toy_images: Dataset) -> None:
    with small_world(toy_images):
        run = short_run(tmp_path, "tost", backend=backend)
        found = analyze_activations([run], (1, 4))
        assert [(one.origin.epoch, one.origin.form, one.functions) for one in found.networks] == [
            (1, "training", "pswish"),
            (1, "finalized", "relu"),
            (4, "finalized", "relu"),
        ]
        images = toy_images.normalised(toy_images.test.pixels)
        for one, epoch in zip(found.networks[1:], (1, None), strict=True):
            assert [layer.near_zero for layer in one.layers] == by_hooks(network_of(run.run_dir, epoch).net, images)
    last = found.networks[-1]
    assert last.overall == sum(layer.near_zero for layer in last.layers) / (20 * (4 + 4 + 4 + 2 + 2) * 64)
    assert last.mean == pytest.approx(sum(layer.near_zero / layer.count for layer in last.layers) / 5)
    assert found.images == 20
    assert Activations.from_dict(found.as_dict()) == found


def test_a_permanent_mish_by_hand(tmp_path: Path, toy_images: Dataset) -> None:
    with small_world(toy_images):
        run = short_run(tmp_path, "mish")
        (found,) = analyze_activations([run]).networks
        net = network_of(run.run_dir).net
    assert (found.functions, found.origin.form, len(found.layers)) == ("mish", "finalized", 5)
    with torch.no_grad():
        first = F.mish(net.bn1(net.conv1(toy_images.normalised(toy_images.test.pixels))))  # type: ignore[attr-defined, operator]
    assert found.layers[0] == LayerActivations("conv1", "mish", int((first.abs() <= 0.01).sum()), first.numel())


def test_errors(tmp_path: Path, toy_images: Dataset, monkeypatch: pytest.MonkeyPatch) -> None:
    with small_world(toy_images):
        run = short_run(tmp_path, "vanilla")
        with pytest.raises(ValueError, match="threshold: expected a number >= 0, got -1"):
            analyze_activations([run], threshold=-1)
    assert activations_of(nn.Linear(2, 2), [torch.zeros(1, 2)]) == ()
