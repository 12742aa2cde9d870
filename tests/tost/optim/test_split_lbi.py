"""SplitLBI as a torch optimizer: state, closures, schedules, mixed precision, memory formats, stability."""

import copy
import io
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from tests.tost.optim.small_net import everything, loss_of, same_bits, small_lbi, small_net, train
from tost import checkpoint
from tost.optim import SplitLBI, stable_lr

VARIANTS: list[dict[str, Any]] = [
    {},
    {"nesterov": True, "sqrt_d": True, "lam": 0.0462, "kappa": 2.0},
    {"optimizer": "adam", "momentum": 0.0, "lr": 0.05, "lam": 0.133},
]


def test_filters_enter_one_after_the_other() -> None:
    """What the other tests rely on: a support neither empty nor full."""
    for variant in VARIANTS:
        net = small_net()
        optimizer = small_lbi(net, **variant)
        assert not optimizer.support(net.stem.weight).any()
        train(net, optimizer, 10)
        for weight in (net.stem.weight, net.head.weight):
            assert 0 < optimizer.support(weight).double().mean() < 1
        inside = optimizer.support(net.stem.weight).flatten(1)
        assert (inside.all(dim=1) == inside.any(dim=1)).all()  # whole filters


@pytest.mark.parametrize("variant", VARIANTS)
def test_one_tensor_after_the_other_has_the_same_bits(variant: dict[str, Any]) -> None:
    runs = []
    for foreach in (True, False):
        net = small_net()
        optimizer = small_lbi(net, foreach=foreach, **variant)
        train(net, optimizer, 10)
        runs.append(everything(net, optimizer))
    assert same_bits(*runs)


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("way", ["torch", "tost", "deepcopy"])
def test_a_resumed_run_has_the_bits_of_a_whole_one(variant: dict[str, Any], way: str, tmp_path: Path) -> None:
    net = small_net().to(memory_format=torch.channels_last)
    optimizer = small_lbi(net, **variant)
    train(net, optimizer, 6)
    if way == "deepcopy":
        resumed, second = copy.deepcopy((net, optimizer))
    else:
        resumed = small_net().to(memory_format=torch.channels_last)
        resumed.load_state_dict(net.state_dict())
        second = small_lbi(resumed, lr=9.0)  # the options come with the state
        if way == "torch":
            torch.save(optimizer.state_dict(), stream := io.BytesIO())
            stream.seek(0)
            second.load_state_dict(torch.load(stream))
        else:  # a file that knows no memory formats
            checkpoint.save(tmp_path / "state", optimizer.state_dict())
            second.load_state_dict(checkpoint.load(tmp_path / "state"))
    assert same_bits(everything(net, optimizer), everything(resumed, second))
    train(net, optimizer, 6, first=6)
    train(resumed, second, 6, first=6)
    assert same_bits(everything(net, optimizer), everything(resumed, second))


def test_a_foreign_state_is_refused_and_changes_nothing() -> None:
    net = small_net()
    optimizer = small_lbi(net)
    train(net, optimizer, 3)
    before = everything(net, optimizer)
    groups = [{"params": group["params"]} for group in optimizer.param_groups]
    with pytest.raises(ValueError, match="expected a state of SplitLBI, got a group 0 without 'betas'"):
        optimizer.load_state_dict({"state": {}, "param_groups": [{"params": g["params"]} for g in _packed(groups)]})
    state = copy.deepcopy(optimizer.state_dict())
    state["state"][0]["dual"] = torch.zeros(2, 3)
    with pytest.raises(ValueError, match=r"state_dict: dual: expected shape \(6, 2, 3, 3\), got \(2, 3\)"):
        optimizer.load_state_dict(state)
    state = copy.deepcopy(optimizer.state_dict())
    state["param_groups"][1]["nu"] = 0
    with pytest.raises(ValueError, match="state_dict: nu: expected a number > 0, got 0"):
        optimizer.load_state_dict(state)
    assert same_bits(before, everything(net, optimizer))
    train(net, optimizer, 1)


def _packed(groups: list[dict[str, Any]]) -> list[dict[str, Any]]:
    count = iter(range(100))
    return [{"params": [next(count) for _ in group["params"]]} for group in groups]


def test_a_closure_is_called_with_gradients_and_its_loss_comes_back() -> None:
    net, other = small_net(), small_net()
    optimizer, plain = small_lbi(net), small_lbi(other)

    def closure() -> float:
        optimizer.zero_grad()
        loss = loss_of(net)
        loss.backward()  # type: ignore[no-untyped-call]
        return loss.item()

    expected = loss_of(copy.deepcopy(net)).item()
    assert optimizer.step(closure) == expected
    train(other, plain, 1)
    assert same_bits(everything(net, optimizer), everything(other, plain))


def test_a_schedule_drives_alpha_in_all_three_lines() -> None:
    net, other = small_net(), small_net()
    optimizer, by_hand = small_lbi(net), small_lbi(other)
    schedule = torch.optim.lr_scheduler.MultiStepLR(optimizer, [2, 4], gamma=0.1)
    for step in range(6):
        for group in by_hand.param_groups:
            group["lr"] = 0.1 * (0.1 if step >= 2 else 1) * (0.1 if step >= 4 else 1)
        train(net, optimizer, 1, first=step)
        train(other, by_hand, 1, first=step)
        schedule.step()
    for ours, theirs in zip(everything(net, optimizer), everything(other, by_hand), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=1e-8)


def test_what_has_no_gradient_stays_with_v_and_gamma() -> None:
    net = small_net()
    optimizer = small_lbi(net)
    train(net, optimizer, 8)
    before = [net.stem.weight.detach().clone(), optimizer.dual(net.stem.weight), optimizer.gamma(net.stem.weight)]
    head = net.head.weight.detach().clone()
    net.stem.weight.requires_grad_(False)
    train(net, optimizer, 2)
    net.stem.weight.requires_grad_(True)
    assert same_bits(before, [net.stem.weight.detach(), optimizer.dual(net.stem.weight), optimizer.gamma(net.stem.weight)])
    assert not torch.equal(head, net.head.weight)


def test_maximize_climbs_the_loss_and_couples_as_ever() -> None:
    net, other = small_net(torch.float64), small_net(torch.float64)
    climbing, descending = small_lbi(net, maximize=True, lam=0.1), small_lbi(other, lam=0.1)
    for step in range(8):
        for model, sign in ((net, 1), (other, -1)):
            model.zero_grad()
            (sign * loss_of(model, step)).backward()  # type: ignore[no-untyped-call]
        climbing.step()
        descending.step()
    assert climbing.support(net.stem.weight).any()
    assert same_bits(everything(net, climbing), everything(other, descending))


def test_overflown_gradients_leave_weights_v_and_gamma() -> None:
    net, other = small_net(), small_net()
    optimizer, plain = small_lbi(net, lam=0.15), small_lbi(other, lam=0.15)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10)
    for step in range(10):
        before = everything(net, optimizer)
        optimizer.zero_grad()
        scaler.scale(loss_of(net, step)).backward()
        if step == 7:
            assert net.head.weight.grad is not None
            net.head.weight.grad[0, 0] = torch.inf
        scaler.step(optimizer)
        scaler.update()
        if step == 7:
            assert same_bits(before, everything(net, optimizer))
        else:
            train(other, plain, 1, first=step)
    assert optimizer.support(net.stem.weight).any()
    for ours, theirs in zip(everything(net, optimizer), everything(other, plain), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("prox", ["group", "lasso"])
def test_strides_change_nothing_but_rounding(prox: str) -> None:
    values = torch.randn(5, 4, 3, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    forms = [
        values.clone(),
        values.contiguous(memory_format=torch.channels_last),
        values.permute(3, 1, 0, 2).contiguous().permute(2, 1, 3, 0),
        torch.stack([values, values], dim=-1)[..., 0],
    ]
    results = []
    for form in forms:
        weight = nn.Parameter(form)
        optimizer = SplitLBI([weight], lr=0.1, nu=1.0, lam=0.15 if prox == "lasso" else 1.25, prox=prox, momentum=0.9)
        for _ in range(6):
            weight.grad = weight.detach() ** 3 - 0.1
            optimizer.step()
        assert 0 < optimizer.support(weight).double().mean() < 1
        results.append([weight.detach(), optimizer.dual(weight), optimizer.gamma(weight)])
    for result in results[1:]:
        for ours, expected in zip(result, results[0], strict=True):
            torch.testing.assert_close(ours, expected, rtol=1e-13, atol=1e-14)


@pytest.mark.parametrize("shape", [(1, 1, 1, 1), (7, 1), (1, 9), (3, 2, 5), (2, 3, 2, 2, 2), (0, 4), (4, 0)])
@pytest.mark.parametrize("prox", ["group", "lasso"])
def test_odd_shapes(shape: tuple[int, ...], prox: str) -> None:
    weight = nn.Parameter(torch.ones(shape, dtype=torch.float64))
    optimizer = SplitLBI([weight], lr=1.0, nu=2.0, lam=0.4, prox=prox)
    weight.grad = torch.zeros_like(weight)
    optimizer.step()  # V = 1/2 everywhere
    size = weight[0].numel() if prox == "group" and len(weight) else 1
    expected = 0.5 * max(0.0, 1 - 0.4 / (0.5 * np.sqrt(size))) if size else 0.0
    torch.testing.assert_close(optimizer.gamma(weight), torch.full(shape, expected, dtype=torch.float64))


def test_a_norm_of_exactly_lambda_is_outside_and_zeros_stay_zeros() -> None:
    weight = nn.Parameter(torch.tensor([[3.0, 4.0], [0.0, 0.0], [3.0, 4.5]]))
    optimizer = SplitLBI([weight], lr=0.5, nu=1.0, lam=2.5)
    weight.grad = torch.zeros_like(weight)
    optimizer.step()
    assert optimizer.support(weight).tolist() == [[False, False], [False, False], [True, True]]
    assert torch.isfinite(optimizer.gamma(weight)).all()
    optimizer.param_groups[0]["lam"] = 0.0
    optimizer.step()
    assert optimizer.support(weight).tolist() == [[True, True], [False, False], [True, True]]


def test_each_group_has_its_own_options() -> None:
    first, second, third = (nn.Parameter(torch.full((2, 3), 2.0)) for _ in range(3))
    groups = [
        {"params": [first], "lam": 0.1, "prox": "lasso"},
        {"params": [second], "kappa": 2.0, "nu": 20.0},
        {"params": [third], "prox": None},
    ]
    optimizer = SplitLBI(groups, lr=1.0, nu=10.0, lam=0.05)
    for weight in (first, second, third):
        weight.grad = torch.zeros_like(weight)
    optimizer.step()
    torch.testing.assert_close(optimizer.gamma(first), torch.full((2, 3), 0.1))  # V = 0.2
    scale = 2 * (1 - 0.05 / (0.1 * 3**0.5))  # V = 0.1
    torch.testing.assert_close(optimizer.gamma(second), torch.full((2, 3), 0.1 * scale))
    assert torch.equal(third, torch.full((2, 3), 2.0))
    assert not optimizer.has_gamma(third)


# ---- stability ---------------------------------------------------------------------------------------------------------


def quadratic(lr: float, curvature: float, kappa: float, nu: float) -> float:
    """|W| + |Gamma| after 200 steps on curvature W^2 / 2, in the support all the time."""
    weight = nn.Parameter(torch.ones(1, 1, dtype=torch.float64))
    optimizer = SplitLBI([weight], lr=lr, kappa=kappa, nu=nu, lam=0.0)
    for _ in range(200):
        weight.grad = curvature * weight.detach()
        optimizer.step()
    return float(weight.detach().abs() + optimizer.gamma(weight).abs())


@pytest.mark.parametrize(("curvature", "kappa", "nu"), [(3.0, 1.0, 10.0), (0.5, 2.0, 1.0), (10.0, 5.0, 0.3)])
def test_the_stable_learning_rate_is_where_iterations_begin_to_diverge(curvature: float, kappa: float, nu: float) -> None:
    limit = stable_lr(curvature, kappa, nu)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        assert quadratic(0.97 * limit, curvature, kappa, nu) < 2
        assert quadratic(1.03 * limit, curvature, kappa, nu) > 20
    published = 2 / (kappa * (curvature + 1 / nu))
    assert published / 2 <= limit <= published


def test_without_curvature_half_the_published_bound_is_left() -> None:
    assert stable_lr(0.0, 2.0, 10.0) == 5.0
    for bad in (-1.0, float("nan")):
        with pytest.raises(ValueError, match="lipschitz: expected a number >= 0"):
            stable_lr(bad)


def test_what_no_loss_can_make_stable_is_warned_of_once_where_the_step_is() -> None:
    weight = nn.Parameter(torch.ones(2, 2))
    optimizer = SplitLBI([weight], lr=0.4, kappa=2.0, nu=1.0)
    weight.grad = torch.zeros_like(weight)
    optimizer.step()
    optimizer.param_groups[0]["lr"] = 0.5
    with pytest.warns(UserWarning, match=r"kappa \* lr / nu is 1 in group 0; .* expected lr < nu / kappa = 0.5") as caught:
        optimizer.step()
    assert caught[0].filename == __file__
    optimizer.step()
    plain = SplitLBI([weight], lr=100.0, prox=None)
    plain.step()


# ---- what is refused ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"lr": -1.0}, ValueError, "lr: expected a number >= 0, got -1"),
        ({"lr": torch.tensor(0.1)}, TypeError, "lr: expected a number >= 0, got Tensor"),
        ({"kappa": 0}, ValueError, "kappa: expected a number > 0, got 0"),
        ({"nu": float("inf")}, ValueError, "nu: expected a number > 0, got inf"),
        ({"lam": -0.1}, ValueError, "lam: expected a number >= 0"),
        ({"prox": "ridge"}, ValueError, "prox: expected one of 'group', 'lasso', None, got 'ridge'"),
        ({"optimizer": "lion"}, ValueError, "optimizer: expected one of 'sgd', 'adam', got 'lion'"),
        ({"momentum": 1.0}, ValueError, "momentum: expected a number"),
        ({"nesterov": True}, ValueError, "nesterov: expected momentum > 0 with it, got 0"),
        ({"nesterov": 1}, ValueError, "nesterov: expected one of True, False, got 1"),
        ({"optimizer": "adam", "momentum": 0.9}, ValueError, "expected none beside Adam's betas, got 0.9"),
        ({"betas": 0.9}, TypeError, "betas: expected two numbers, got 0.9"),
        ({"betas": (0.9, 1.0)}, ValueError, "betas: expected a number"),
        ({"weight_decay": -1}, ValueError, "weight_decay: expected a number >= 0"),
        ({"eps": 0.0}, ValueError, "eps: expected a number > 0"),
        ({"foreach": None}, ValueError, "foreach: expected one of True, False, got None"),
    ],
)
def test_bad_options(options: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        SplitLBI([nn.Parameter(torch.ones(2, 2))], **{"lr": 0.1, **options})


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.complex64])
def test_bad_types(dtype: torch.dtype) -> None:
    weight = nn.Parameter(torch.ones(2, 2, dtype=dtype))
    with pytest.raises(TypeError, match=rf"params: parameter 0 of its group: expected .*, got {dtype}"):
        SplitLBI([weight], lr=0.1)
    if not dtype.is_complex:  # without V nothing is lost
        SplitLBI([weight], lr=0.1, prox=None)


def test_sparse_tensors_are_refused_before_anything_changes() -> None:
    with pytest.raises(TypeError, match=r"expected a dense real tensor, got torch.float32, layout torch.sparse_coo"):
        SplitLBI([nn.Parameter(torch.eye(3).to_sparse())], lr=0.1)
    first, second = nn.Parameter(torch.ones(3, 3)), nn.Parameter(torch.ones(3, 3))
    optimizer = SplitLBI([first, second], lr=0.1)
    first.grad, second.grad = torch.ones(3, 3), torch.eye(3).to_sparse()
    with pytest.raises(RuntimeError, match=r"expected dense gradients, got one of layout torch.sparse_coo"):
        optimizer.step()
    assert torch.equal(first, torch.ones(3, 3))


def test_a_bad_group_is_not_added() -> None:
    optimizer = SplitLBI([nn.Parameter(torch.ones(2, 2))], lr=0.1)
    with pytest.raises(ValueError, match="kappa: expected a number > 0"):
        optimizer.add_param_group({"params": [nn.Parameter(torch.ones(2, 2))], "kappa": -1})
    with pytest.raises(ValueError, match="params: unknown option 'lambda' of a group; there are lr, kappa, nu, lam, prox"):
        optimizer.add_param_group({"params": [nn.Parameter(torch.ones(2, 2))], "lambda": 1})
    assert len(optimizer.param_groups) == 1
    optimizer.add_param_group({"params": [nn.Parameter(torch.ones(2, 2))], "lam": 3.0})
    assert [group["lam"] for group in optimizer.param_groups] == [1.0, 3.0]


def test_groups_of_another_optimizer_are_taken_over_with_their_names() -> None:
    first = SplitLBI(small_net().named_parameters(), lr=0.1, lam=0.3)
    second = SplitLBI([dict(group) for group in first.param_groups], lr=9.0)
    assert second.param_groups[0].items() >= {"lr": 0.1, "lam": 0.3}.items()
    assert "stem.weight" in second.param_groups[0]["param_names"]


def test_only_parameters_with_a_gamma_are_read_out() -> None:
    net = small_net()
    optimizer = small_lbi(net)
    for tensor in (net.stem.bias, nn.Parameter(torch.ones(2, 2))):
        with pytest.raises(ValueError, match="param: expected a parameter of this optimizer with a Gamma, got one of shape"):
            optimizer.gamma(tensor)
    train(net, optimizer, 10)
    copied = optimizer.gamma(net.stem.weight)
    copied.zero_()
    assert optimizer.support(net.stem.weight).any()
