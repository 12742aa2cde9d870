"""One update: accumulation, clipping, mixed precision, what is skipped."""

import math
from contextlib import nullcontext
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import tost_kernels as tk
from tost.config import Config
from tost.isolation import isolated
from tost.update import Update, optimizer_of

CPU = torch.device("cpu")


def loss_of(outputs: Tensor, inputs: Tensor, targets: Tensor) -> Tensor:
    return F.cross_entropy(outputs, targets)


def network(norm: bool = True) -> nn.Module:
    torch.manual_seed(1)
    layers = [nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4) if norm else nn.Identity(), nn.ReLU(), nn.Flatten(), nn.Linear(144, 3)]
    mask = torch.rand(3, 144) < 0.5
    return tk.sparsify(nn.Sequential(*layers), {"4": mask})


def batch(size: int = 8) -> tuple[Tensor, Tensor]:
    random = torch.Generator().manual_seed(2)
    return torch.randn(size, 1, 8, 8, generator=random), torch.randint(0, 3, (size,), generator=random)


def update_of(net: nn.Module, **changes: Any) -> Update:
    config = Config(**{"batch_size": 8, "lr": 0.1, "recipe": "vanilla", **changes})
    return Update(config, net, optimizer_of(config, net), loss_of, lambda x: x, CPU)


def state(net: nn.Module) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in net.state_dict().items()}


def equal(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


@pytest.mark.parametrize(
    ("changes", "optimizer"),
    [
        ({"momentum": 0.9, "nesterov": True}, lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9, nesterov=True)),
        ({"optimizer": "adam", "betas": (0.8, 0.99)}, lambda p: torch.optim.Adam(p, lr=0.1, betas=(0.8, 0.99))),
        ({"optimizer": "adamw"}, lambda p: torch.optim.AdamW(p, lr=0.1)),
    ],
    ids=["nesterov", "adam", "adamw"],
)
def test_optimizers_are_torchs(changes: dict[str, Any], optimizer: Any) -> None:
    ours, theirs = network(norm=False), network(norm=False)  # behind a BatchNorm a bias has noise for a gradient
    update = update_of(ours, weight_decay=0.01, **changes)
    plain = optimizer(tk.param_groups(theirs, 0.01))
    for _ in range(3):
        loss, stop = update(*batch())
        wanted = loss_of(theirs(batch()[0]), *batch())
        plain.zero_grad()
        wanted.backward()
        plain.step()
        assert (loss, stop) == (pytest.approx(wanted.item(), rel=1e-5), False)
    for name, value in theirs.state_dict().items():
        torch.testing.assert_close(ours.state_dict()[name], value, rtol=1e-4, atol=1e-5)


def test_accumulated_parts_are_one_batch() -> None:
    whole, parts = network(norm=False), network(norm=False)
    losses = [update_of(net, accumulate=n)(*batch())[0] for net, n in ((whole, 1), (parts, 4))]
    assert losses[0] == pytest.approx(losses[1], rel=1e-6)
    for name, value in whole.state_dict().items():
        torch.testing.assert_close(parts.state_dict()[name], value)


def test_the_gradient_is_clipped_to_its_norm() -> None:
    net = network()
    before = torch.cat([p.detach().flatten().clone() for p in net.parameters()])
    update_of(net, lr=1.0, momentum=0.0, weight_decay=0.0, clip_norm=0.25)(*batch())
    after = torch.cat([p.detach().flatten() for p in net.parameters()])
    assert (after - before).norm().item() == pytest.approx(0.25, rel=1e-3)


@pytest.mark.parametrize("changes", [{}, {"accumulate": 4}, {"amp": "fp16"}, {"ema": 0.9}])
def test_a_loss_without_a_number_changes_nothing(changes: dict[str, Any]) -> None:
    net = network()
    update = update_of(net, **changes)
    update(*batch())
    before, moments = state(net), {k: v["momentum_buffer"].clone() for k, v in update.optimizer.state.items()}
    inputs, targets = batch()
    inputs[5] = math.inf
    loss, _ = update(inputs, targets)
    assert not math.isfinite(loss)
    assert equal(before, state(net))
    assert all(torch.equal(update.optimizer.state[k]["momentum_buffer"], v) for k, v in moments.items())
    loss, _ = update(*batch())
    assert math.isfinite(loss)
    assert not equal(before, state(net))


def test_a_gradient_without_a_number_is_skipped_where_it_is_looked_at() -> None:
    net = network()
    update = update_of(net, clip_norm=1.0)
    before = state(net)
    net.get_submodule("4").register_full_backward_hook(lambda module, into, out: (into[0] * math.inf,))
    loss, _ = update(*batch())
    assert math.isnan(loss)
    assert equal(before, state(net))


def test_network_and_loss_meet_the_batch_on_the_networks_device() -> None:
    class Seen(Exception):
        pass

    def loss_of(*tensors: Tensor) -> Tensor:
        assert {tensor.device.type for tensor in tensors} == {"meta"}
        raise Seen

    net = nn.Sequential(nn.Flatten(), nn.Linear(64, 3)).to("meta")
    config = Config(batch_size=8, recipe="vanilla")
    with pytest.raises(Seen):
        Update(config, net, torch.optim.SGD(net.parameters()), loss_of, lambda x: x, torch.device("meta"))(*batch())


@pytest.mark.parametrize("amp", ["bf16", "fp16"])
def test_mixed_precision_is_close_to_single(amp: str) -> None:
    single, mixed = network(), network()
    a, b = update_of(single), update_of(mixed, amp=amp)
    for _ in range(5):
        losses = a(*batch())[0], b(*batch())[0]
        assert losses[0] == pytest.approx(losses[1], abs=0.03)
    assert all(p.dtype == torch.float32 for p in mixed.parameters())
    seen: list[torch.dtype] = []
    mixed.register_forward_hook(lambda module, args, out: seen.append(out.dtype))
    b(*batch())
    assert seen == [torch.bfloat16 if amp == "bf16" else torch.float16]


@pytest.mark.parametrize("amp", ["bf16", "fp16"])
def test_mixed_precision_sees_the_weights_move_inside_isolated_work_too(amp: str) -> None:
    losses = []
    for place in (nullcontext(), isolated(0, devices=())):
        with place:
            update = update_of(network(), amp=amp)
            losses.append([update(*batch())[0] for _ in range(4)])
    assert losses[0] == losses[1]
    assert len(set(losses[0])) == 4


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_the_scaler_skips_and_learns_where_half_precision_overflows(optimizer: str) -> None:
    net = network()
    update = update_of(net, amp="fp16", optimizer=optimizer)
    update.scaler = torch.amp.GradScaler("cpu", init_scale=2.0**40)
    before = {name: p.detach().clone() for name, p in net.named_parameters()}
    loss, _ = update(*batch())
    assert math.isfinite(loss)
    assert all(torch.equal(p, before[name]) for name, p in net.named_parameters())
    assert update.scaler.get_scale() == 2.0**39
    update.scaler = torch.amp.GradScaler("cpu", init_scale=1.0)
    assert math.isfinite(update(*batch())[0])
    assert all(p.isfinite().all() and not torch.equal(p, before[name]) for name, p in net.named_parameters())
