import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import prune
from torch.utils.flop_counter import FlopCounterMode

import tost_kernels as tk
from tost.ghosts import add_ghosts, finalize, set_strength
from tost.macs import LayerMacs, Macs, count_macs
from tost.models.mobilenet import SeparableBlock
from tost.models.resnet import BasicBlock, Bottleneck, ResNet
from tost.recipe import Recipe


def net() -> ResNet:
    return ResNet((1, 1), (4, 8), num_classes=3)


def random_masks(model: nn.Module) -> dict[str, Tensor]:
    return {n: torch.rand_like(m.weight) < 0.2 for n, m in model.named_modules() if isinstance(m, nn.Conv2d | nn.Linear)}


def test_hand_counts() -> None:
    conv = nn.Conv2d(4, 6, (3, 1), stride=2, padding=1, groups=2)
    linear = nn.Linear(6 * 4 * 5, 7)
    with torch.no_grad():
        linear.weight[:5] = 0
    counts = count_macs(nn.Sequential(conv, nn.Flatten(), linear), (4, 7, 8))  # 4 x 5 pixels
    assert counts.layers == (
        LayerMacs("0", 6 * 2 * 3 * 20, 6 * 2 * 3 * 20, False),
        LayerMacs("2", 120 * 2, 120 * 7, False),
    )
    assert (counts.kept, counts.dense, counts.ghosts) == (720 + 240, 720 + 840, 0)
    # Linear on rows: every leading dimension counts
    assert count_macs(nn.Linear(3, 2), (5, 4, 3)).dense == 6 * 20
    assert count_macs(nn.ReLU(), (5,)) == Macs(0, 0, 0, ())


@pytest.mark.parametrize(
    "model",
    [
        ResNet((1, 2), (4, 8), 3, 2, BasicBlock, "imagenet"),
        ResNet((2, 1), (4, 8), 3, 2, Bottleneck),
        nn.Sequential(SeparableBlock(2, 6, stride=2), nn.Conv2d(6, 3, 3, padding="same", dilation=2), nn.Linear(8, 4)),
    ],
    ids=["basic", "bottleneck", "separable"],
)
def test_agrees_with_torchs_own_counter(model: nn.Module) -> None:
    model.eval()
    with FlopCounterMode(display=False) as flops, torch.no_grad():
        model(torch.zeros(1, 2, 16, 16))
    assert 2 * count_macs(model, (2, 16, 16)).dense == flops.get_total_flops()


def test_all_forms_of_a_network_agree() -> None:
    model = net()
    masks = random_masks(model)
    dense = count_macs(model, (3, 9, 8))
    assert dense.kept == dense.dense
    kept = {layer.name: layer.dense // masks[layer.name].numel() * int(masks[layer.name].sum()) for layer in dense.layers}
    sparse = tk.sparsify(model, masks)
    for name, mask in masks.items():
        prune.custom_from_mask(model.get_submodule(name), "weight", mask)
    for form in (sparse, model, tk.densify(sparse)):
        counts = count_macs(form, (3, 9, 8))
        assert {layer.name: layer.kept for layer in counts.layers} == kept
        assert counts == Macs(sum(kept.values()), dense.dense, 0, counts.layers)


@pytest.mark.parametrize("sparse", [False, True])
def test_ghosts_are_counted_apart_and_only_while_they_live(sparse: bool) -> None:
    model = net()
    plain: nn.Module = tk.sparsify(model, random_masks(model)) if sparse else model
    before = count_macs(plain, (3, 8, 8))
    ghosted = add_ghosts(plain, Recipe())
    counts = count_macs(ghosted, (3, 8, 8))
    # 1x1: 4 -> 4 twice at 8x8; 4 -> 8 and 8 -> 8 at 4x4
    assert counts.ghosts == 2 * 16 * 64 + (32 + 64) * 16
    assert (counts.kept, counts.dense) == (before.kept, before.dense)
    assert sum(layer.dense for layer in counts.layers if layer.ghost) == counts.ghosts
    set_strength(ghosted, 0.0, 10.0)
    assert count_macs(ghosted, (3, 8, 8)).ghosts == 0
    assert count_macs(finalize(ghosted), (3, 8, 8)) == before


def test_a_layer_called_twice_costs_twice_and_one_never_called_nothing() -> None:
    class Odd(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.used = nn.Linear(3, 3)
            self.unused = nn.Linear(3, 3)

        def forward(self, x: Tensor) -> Tensor:
            out: Tensor = self.used(self.used(x))
            return out

    assert count_macs(Odd(), (3,)).layers == (LayerMacs("used", 18, 18, False), LayerMacs("unused", 0, 0, False))


def test_leaves_no_trace() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Dropout(0.5), nn.Flatten(), nn.Linear(16, 2)).train()
    model[1].eval()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    random = torch.get_rng_state()
    count_macs(model, (3, 4, 4))
    assert torch.equal(torch.get_rng_state(), random)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert [m.training for m in model] == [True, False, True, True, True]
    assert not any(m._forward_hooks for m in model.modules())
    assert all(p.grad is None for p in model.parameters())


def test_runs_in_the_networks_own_precision() -> None:
    assert count_macs(net().double(), (3, 8, 8)).dense == count_macs(net(), (3, 8, 8)).dense


def test_errors() -> None:
    with pytest.raises(TypeError, match=r"count_macs: net: expected a torch.nn.Module, got dict"):
        count_macs({}, (3, 8, 8))  # type: ignore[arg-type]
    with pytest.raises(TypeError, match=r"input_shape: expected the shape of one sample, such as \(3, 32, 32\), got 8"):
        count_macs(net(), 8)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"input_shape: expected positive integers, got \(3, 0, 8\)"):
        count_macs(net(), (3, 0, 8))
    with pytest.raises(ValueError, match=r"input_shape: the network failed on one input of shape \(4, 8, 8\): .*channels"):
        count_macs(net(), (4, 8, 8))
