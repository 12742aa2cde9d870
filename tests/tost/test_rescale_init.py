import copy
import random
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import prune
from torch.utils.data import DataLoader, TensorDataset

import tost_kernels as tk
from tost.ghosts import add_ghosts
from tost.init import _half_shared, learn_scales, rescale_init
from tost.models.resnet import cifar_resnet
from tost.recipe import Recipe

Batch = tuple[Tensor, Tensor]
QUICK = Recipe(rescale_iterations=8, rescale_lr=0.05)


class Net(nn.Module):
    """Convolution, BatchNorm, max pooling, linear layer; badly scaled on purpose."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(2, 4, 3, padding=1)
        self.bn = nn.BatchNorm2d(4)
        self.pool = nn.MaxPool2d(2)
        self.fc = nn.Linear(4 * 4 * 4, 3)
        nn.init.normal_(self.fc.weight, std=0.8)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.pool(self.bn(self.conv(x)).relu()).flatten(1))


def batches(count: int = 3, size: int = 8) -> list[Batch]:
    g = torch.Generator().manual_seed(7)
    return [(torch.randn(size, 2, 8, 8, generator=g), torch.randint(0, 3, (size,), generator=g)) for _ in range(count)]


def net_and_masks() -> tuple[Net, dict[str, Tensor]]:
    net = Net()
    return net, {"conv": torch.rand_like(net.conv.weight) < 0.5, "fc": torch.rand_like(net.fc.weight) < 0.3}


def masked_gradient_norm(net: nn.Module, masks: dict[str, Tensor], batch: Batch) -> float:
    """||g|| over the active weights, by torch.nn.utils.prune and plain backward."""
    net = copy.deepcopy(net).train()
    for name, mask in masks.items():
        prune.custom_from_mask(net.get_submodule(name), "weight", mask)
    F.cross_entropy(net(batch[0]), batch[1]).backward()
    return float(torch.cat([p.grad.flatten() for p in net.parameters() if p.grad is not None]).norm())


def test_first_norm_is_that_of_the_masked_network() -> None:
    net, masks = net_and_masks()
    data = batches()
    learned = learn_scales(net, masks, data, QUICK)
    assert learned.grad_norms[0] == pytest.approx(masked_gradient_norm(net, masks, data[0]), rel=1e-5)


def test_lowers_the_gradient_norm() -> None:
    net, masks = net_and_masks()
    data = batches(1)
    recipe = Recipe(rescale_iterations=25, rescale_lr=0.02, rescale_gamma=0.0)
    learned = learn_scales(net, masks, data, recipe)
    assert not any(learned.looked_ahead)
    assert learned.objectives == learned.grad_norms
    new = rescale_init(net, masks, data, recipe)
    assert masked_gradient_norm(new, masks, data[0]) < 0.9 * masked_gradient_norm(net, masks, data[0])


def test_lowers_the_loss_after_the_look_ahead() -> None:
    net, masks = net_and_masks()
    recipe = Recipe(rescale_iterations=25, rescale_lr=0.02, rescale_gamma=1e6)
    learned = learn_scales(net, masks, batches(1), recipe)
    assert all(learned.looked_ahead)
    assert learned.objectives[-1] < 0.9 * learned.objectives[0]


def test_look_ahead_objective_and_its_first_step_by_hand() -> None:
    # One linear layer, two batches, float64: loss(theta - eta g / ||g||) / eta and its derivative by finite differences.
    torch.manual_seed(1)
    net = nn.Sequential(nn.Linear(3, 2, bias=False)).double()
    mask = torch.tensor([[1, 0, 1], [0, 1, 1]], dtype=torch.bool)
    (x, y), (x2, y2) = ((torch.randn(4, 3, dtype=torch.float64), torch.tensor(t)) for t in ([0, 1, 1, 0], [1, 1, 0, 0]))
    ahead_x, ahead_y = torch.cat([x[:2], x2[2:]]), torch.cat([y[:2], y2[2:]])
    weight = net[0].weight.detach() * mask

    def objective(scale: float) -> float:
        w = (scale * weight).requires_grad_()
        (g,) = torch.autograd.grad(F.cross_entropy(x @ w.T, y), [w])
        g = g * mask
        return float(F.cross_entropy(ahead_x @ (w.detach() - 0.1 * g / g.norm()).T, ahead_y)) / 0.1

    recipe = Recipe(rescale_iterations=1, rescale_gamma=1e6, rescale_lr=0.01, rescale_clip=100.0)
    learned = learn_scales(net, {"0": mask}, [(x, y), (x2, y2)], recipe)
    assert learned.objectives[0] == pytest.approx(objective(1.0), rel=1e-9)
    slope = (objective(1.0 + 1e-5) - objective(1.0 - 1e-5)) / 2e-5
    assert abs(slope) > 1e-3
    # the first step of Adam is lr times the sign of the gradient
    assert learned.scales["0.weight"] == pytest.approx(1.0 - 0.01 * (1 if slope > 0 else -1), abs=1e-6)


def test_half_of_the_second_batch_is_shared() -> None:
    x, fresh = torch.arange(5), torch.arange(100, 105)
    inputs, targets = _half_shared((x, x + 10), (fresh, fresh + 10))
    assert inputs.tolist() == [0, 1, 102, 103, 104]
    assert targets.tolist() == [10, 11, 112, 113, 114]
    assert _half_shared((x, x), (x, x))[0].tolist() == [0, 1, 2, 3, 4]
    assert _half_shared((x, x), (fresh[:1], fresh[:1]))[0].tolist() == [0, 1, 100]


def test_only_scales_change_and_nothing_outside() -> None:
    net, masks = net_and_masks()
    net.train()
    net(batches()[0][0])  # BatchNorm statistics that are not the fresh ones
    before = copy.deepcopy(net.state_dict())
    state = torch.get_rng_state()
    learned = learn_scales(net, masks, batches(), QUICK, seed=3)
    new = rescale_init(net, masks, batches(), QUICK, seed=3)
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())
    assert net.training
    assert new.training
    assert all(p.grad is None for p in (*net.parameters(), *new.parameters()))

    assert set(learned.scales) == {"conv.weight", "conv.bias", "bn.weight", "fc.weight", "fc.bias"}  # bn.bias is zero
    assert any(abs(scale - 1.0) > 0.05 for scale in learned.scales.values())
    for name, value in new.state_dict().items():
        expected = before[name]
        if name in learned.scales:
            expected = expected * learned.scales[name]
        if name.removesuffix(".weight") in masks:
            expected = expected * masks[name.removesuffix(".weight")]
        torch.testing.assert_close(value, expected)
    for name, mask in masks.items():
        assert new.get_submodule(name).weight[~mask].count_nonzero() == 0
        assert bool((new.get_submodule(name).weight[mask] != 0).all())


def test_pruned_weights_never_matter() -> None:
    net, masks = net_and_masks()
    other = copy.deepcopy(net)
    with torch.no_grad():
        for name, mask in masks.items():
            other.get_submodule(name).weight[~mask] = 100.0
    assert learn_scales(net, masks, batches(), QUICK) == learn_scales(other, masks, batches(), QUICK)


def test_seed_decides() -> None:
    net = nn.Sequential(nn.Flatten(), nn.Dropout(0.5), nn.Linear(128, 3))
    inputs, targets = (torch.cat(parts) for parts in zip(*batches(), strict=True))
    loader = DataLoader(TensorDataset(inputs, targets), batch_size=8, shuffle=True)
    state = torch.get_rng_state()
    torch.manual_seed(1)
    one = learn_scales(net, {}, loader, QUICK, seed=5)
    torch.manual_seed(2)
    assert learn_scales(net, {}, loader, QUICK, seed=5) == one
    assert learn_scales(net, {}, loader, QUICK, seed=6) != one
    torch.set_rng_state(state)


@pytest.mark.parametrize(
    "around", [torch.no_grad, torch.inference_mode, lambda: torch.autocast("cpu", torch.bfloat16)],
    ids=["no_grad", "inference_mode", "autocast"],
)  # fmt: skip
def test_what_is_around_does_not_matter(around: Callable[[], AbstractContextManager[None]]) -> None:
    net, masks = net_and_masks()
    expected = rescale_init(net, masks, batches(), QUICK).state_dict()
    with around():
        new = rescale_init(net, masks, batches(), QUICK)
    assert all(torch.equal(value, expected[name]) for name, value in new.state_dict().items())
    assert not any(parameter.is_inference() for parameter in new.parameters())
    new(batches()[0][0]).sum().backward()


class Noisy(list[Batch]):
    """Augmentation that draws from every global generator."""

    def __iter__(self) -> Iterator[Batch]:
        for x, y in super().__iter__():
            yield x + torch.rand(1) + random.random() + np.random.random(), y  # noqa: NPY002


def test_every_generator_is_seeded_and_restored() -> None:
    net, masks = net_and_masks()
    data = Noisy(batches())
    one = learn_scales(net, masks, data, QUICK, seed=5)
    state = random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist()  # noqa: NPY002
    assert learn_scales(net, masks, data, QUICK, seed=5) == one
    assert learn_scales(net, masks, data, QUICK, seed=6) != one
    assert state == (random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist())  # noqa: NPY002


def test_floors_and_clip() -> None:
    net, masks = net_and_masks()
    with torch.no_grad():
        net.fc.bias.fill_(5.0)
    recipe = Recipe(rescale_iterations=12, rescale_lr=0.5, rescale_gamma=0.0)
    scales = learn_scales(net, masks, batches(), recipe).scales
    assert all(scale >= (0.0 if name.endswith("bias") else 0.01 - 1e-9) for name, scale in scales.items())
    assert min(scales.values()) <= 0.0101  # at least one floor was reached
    clipped = learn_scales(net, masks, batches(), Recipe(rescale_iterations=4, rescale_clip=1e-4)).scales
    assert clipped != learn_scales(net, masks, batches(), Recipe(rescale_iterations=4)).scales


def test_frozen_and_empty_tensors_are_left_alone() -> None:
    net, masks = net_and_masks()
    net.conv.weight.requires_grad_(False)
    masks["fc"] = torch.zeros_like(masks["fc"])  # everything pruned: norm 0
    learned = learn_scales(net, masks, batches(), QUICK)
    assert "conv.weight" not in learned.scales
    assert "fc.weight" not in learned.scales
    new = rescale_init(net, masks, batches(), QUICK)
    assert torch.equal(new.conv.weight, net.conv.weight * masks["conv"])
    assert not new.conv.weight.requires_grad
    assert new.fc.weight.count_nonzero() == 0


def test_networks_pruned_by_torch() -> None:
    net, masks = net_and_masks()
    pruned = copy.deepcopy(net)
    for name, mask in masks.items():
        prune.custom_from_mask(pruned.get_submodule(name), "weight", mask)
    pruned(batches()[0][0])  # leaves a weight with a graph behind
    new, expected = rescale_init(pruned, masks, batches(), QUICK), rescale_init(net, masks, batches(), QUICK)
    assert torch.equal(new.conv.weight_mask, pruned.conv.weight_mask)
    torch.testing.assert_close(new.conv.weight_orig, expected.conv.weight)
    torch.testing.assert_close(new.conv.weight, expected.conv.weight)  # derived already


def test_own_loss_is_used() -> None:
    net, masks = net_and_masks()
    doubled = learn_scales(net, masks, batches(), QUICK, loss=lambda out, y: 2 * F.cross_entropy(out, y))
    assert doubled.grad_norms[0] == pytest.approx(2 * learn_scales(net, masks, batches(), QUICK).grad_norms[0])


def test_a_resnet_goes_on_to_sparse_layers_and_ghosts() -> None:
    net = cifar_resnet(8)
    masks = {n: torch.rand_like(m.weight) < 0.1 for n, m in net.named_modules() if isinstance(m, nn.Conv2d)}
    data = [(torch.randn(4, 3, 8, 8), torch.tensor([0, 1, 2, 3]))]
    new = rescale_init(net, masks, data, Recipe(rescale_iterations=2))
    sparse = add_ghosts(tk.sparsify(new, masks), Recipe())
    weight = new.layer1[0].conv1.weight
    assert torch.equal(sparse.layer1[0].conv1.values, weight[masks["layer1.0.conv1"]])
    assert bool(sparse(data[0][0]).isfinite().all())


def test_bad_input_is_named() -> None:
    net, masks = net_and_masks()
    data = batches()
    with pytest.raises(ValueError, match=r"iteration 0: expected a finite objective and gradient, got nan"):
        rescale_init(net, masks, [(x * float("nan"), y) for x, y in data], QUICK)
    with pytest.raises(ValueError, match=r"data: expected another batch .* after 0, found none"):
        rescale_init(net, masks, [], QUICK)
    with pytest.raises(ValueError, match="exhausted iterator"):
        rescale_init(net, masks, iter(data), QUICK)
    with pytest.raises(TypeError, match=r"data: expected batches \(inputs, targets\), got Tensor"):
        rescale_init(net, masks, [data[0][0]], QUICK)
    with pytest.raises(TypeError, match="data: expected targets as a tensor, got list"):
        rescale_init(net, masks, [(data[0][0], [0] * 8)], QUICK)
    with pytest.raises(TypeError, match=r"data: expected an iterable .* got NoneType"):
        rescale_init(net, masks, None, QUICK)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="masks: no layer 'conf'"):
        rescale_init(net, {"conf": masks["conv"]}, data, QUICK)
    with pytest.raises(ValueError, match=r"masks\['conv'\]: expected shape \(4, 2, 3, 3\), got \(3, 64\)"):
        rescale_init(net, {"conv": masks["fc"]}, data, QUICK)
    with pytest.raises(TypeError, match=r"masks\['conv'\]: expected a tensor, got list"):
        rescale_init(net, {"conv": [1]}, data, QUICK)  # type: ignore[dict-item]
    with pytest.raises(TypeError, match="masks: expected a mapping"):
        rescale_init(net, None, data, QUICK)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match=r"recipe: expected a tost.Recipe, got str"):
        rescale_init(net, masks, data, "tost")  # type: ignore[arg-type]
    with pytest.raises(TypeError, match=r"model: expected a torch.nn.Module, got int"):
        rescale_init(3, masks, data, QUICK)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match=r"expected a dense network .* got SparseConv2d at 'conv'"):
        rescale_init(tk.sparsify(net, masks), {}, data, QUICK)
    with pytest.raises(ValueError, match="expected a network without ghosts"):
        rescale_init(add_ghosts(cifar_resnet(8), Recipe()), {}, data, QUICK)
    with pytest.raises(ValueError, match="expected a trainable parameter"):
        rescale_init(net.requires_grad_(False), masks, data, QUICK)
