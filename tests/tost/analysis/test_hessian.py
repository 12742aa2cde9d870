"""The eigenvalues of the Hessian over the kept weights, against the whole matrix of a tiny network."""

import builtins
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tost import Masks, Recipe, add_ghosts
from tost.analysis.hessian import Hessian, require_scipy
from tost.analysis.networks import active

# torch.func.hessian, which the matrix is from, loads decompositions that torch still scripts, and warns of itself
pytestmark = pytest.mark.filterwarnings("ignore:.torch.jit.script. is deprecated:DeprecationWarning")


class Tiny(nn.Module):
    """Two convolutions with BatchNorm and a linear layer, whose running statistics are not those of a fresh network."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(1, 3, 3, padding=1), nn.BatchNorm2d(3)
        self.conv2, self.bn2 = nn.Conv2d(3, 4, 3, stride=2, padding=1), nn.BatchNorm2d(4)
        self.fc = nn.Linear(4, 3)
        for norm in (self.bn1, self.bn2):
            nn.init.uniform_(norm.running_mean, -0.3, 0.3)
            nn.init.uniform_(norm.running_var, 0.2, 0.6)
            nn.init.uniform_(norm.bias, -0.3, 0.3)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.bn1(self.conv1(x)))
        x = torch.relu(self.bn2(self.conv2(x)))
        return self.fc(x.mean((2, 3)))


IMAGES, CLASSES = torch.randn(12, 1, 6, 6, generator=torch.Generator().manual_seed(1)), torch.arange(12) % 3


def masked(form: str) -> tuple[nn.Module, Masks]:
    """In eval mode, double precision."""
    net = Tiny().double().eval()
    masks = Masks({name: torch.rand(m.weight.shape) < 0.5 for name, m in net.named_modules() if hasattr(m, "kernel_size")})
    net = masks.apply_to(net)
    if form == "ghosts":
        net = add_ghosts(net, Recipe(alpha_start=0.7, beta_start=2.0))
        for name, parameter in net.named_parameters():
            if "ghosts" in name:
                nn.init.uniform_(parameter, 0.2, 1.0)
    return net, masks


def exact(net: nn.Module, masks: Masks) -> Tensor:
    """The whole matrix over all weights, from torch.func; of it the rows and columns of those that are kept."""
    weights = active(net, masks)
    names = {id(value): name for name, value in net.named_parameters()}
    values = [value.detach() for value, _ in weights.values()]

    def loss(flat: Tensor) -> Tensor:
        parts = torch.split(flat, [value.numel() for value in values])
        moved = {names[id(value)]: part.view_as(value) for (value, _), part in zip(weights.values(), parts, strict=True)}
        return F.cross_entropy(torch.func.functional_call(net, moved, IMAGES.double()), CLASSES)

    whole = torch.func.hessian(loss)(torch.cat([value.flatten() for value in values]))
    kept = torch.cat([mask.flatten() for _, mask in weights.values()])
    return whole.detach()[kept][:, kept]


def hessian(net: nn.Module, masks: Any) -> Hessian:
    return Hessian(net, active(net, masks), IMAGES.to(next(net.parameters())), CLASSES)


@pytest.mark.parametrize("form", ["plain", "ghosts"])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_eigenvalues_of_the_whole_matrix(form: str, dtype: torch.dtype) -> None:
    net, masks = masked(form)
    values, vectors = torch.linalg.eigh(exact(net, masks))
    found = hessian(net.to(dtype), masks)
    start = torch.randn(len(found))
    top = found.top(start, 3, tolerance=1e-8)
    assert len(found) == masks.kept + 12 == len(values)
    torch.testing.assert_close(torch.tensor(top.values, dtype=torch.float64), values.flip(0)[:3], rtol=1e-4, atol=0)
    same = (top.vectors * vectors.T.flip(0)[:3]).sum(1)  # up to the sign, which is fixed
    torch.testing.assert_close(same.abs(), torch.ones(3, dtype=torch.float64), rtol=0, atol=1e-4)
    assert all(vector[vector.abs().argmax()] > 0 for vector in top.vectors)
    largest = found.top(start, 2, "LM", 1e-8).values
    torch.testing.assert_close(
        torch.tensor(largest, dtype=torch.float64), values[values.abs().argsort(descending=True)][:2], rtol=1e-4, atol=0
    )
    assert found.top(start, 1).values[0] == pytest.approx(float(values[-1]), rel=1e-3)
    assert found.products > 0


def test_pruned_weights_take_no_part() -> None:
    net, masks = masked("plain")
    start = torch.randn(len(hessian(net, masks)))
    before = hessian(net, masks).top(start)
    with torch.no_grad():
        for parameter, mask in active(net, masks).values():
            parameter[~mask] = 5.0
    after = hessian(net, masks).top(start)
    assert after.values == before.values
    assert after.vectors.equal(before.vectors)


def test_a_wrong_restriction_is_seen() -> None:
    """What the usual tools do: all weights move, through layers that the mask does not hold."""
    net, masks = masked("plain")
    values = torch.linalg.eigvalsh(exact(net, masks))
    unmasked = Tiny().double().eval()
    unmasked.load_state_dict(plain(net, masks))
    wrong = hessian(unmasked, None)
    assert len(wrong) > len(values)
    assert wrong.top(torch.randn(len(wrong))).values[0] > 1.01 * float(values[-1])
    shuffled = {name: mask.flatten().flip(0).view_as(mask) for name, mask in masks.items()}
    other = hessian(unmasked, shuffled)
    assert other.top(torch.randn(len(other))).values[0] != pytest.approx(float(values[-1]), rel=1e-3)


def plain(net: nn.Module, masks: Masks) -> dict[str, Tensor]:
    """The state_dict of the network without its masks, 0 where a weight is pruned."""
    state = {name.removesuffix("_orig"): value for name, value in net.state_dict().items() if not name.endswith("_mask")}
    return {name: value * masks[layer] if (layer := name[:-7]) in masks else value for name, value in state.items()}


def test_the_network_is_left_alone() -> None:
    net, masks = masked("ghosts")
    before = {name: value.clone() for name, value in net.state_dict().items()}
    net.train()
    found = hessian(net, masks)
    found.top(torch.randn(len(found)))
    assert net.training
    assert all(value.equal(before[name]) for name, value in net.state_dict().items())
    assert all(parameter.grad is None for parameter in net.parameters())


def test_a_network_that_no_weight_reaches_is_flat() -> None:
    _, masks = masked("plain")
    empty = Masks({name: torch.zeros_like(mask) if name == "conv2" else mask for name, mask in masks.items()})
    net = empty.apply_to(Tiny().double().eval())
    flat = {"conv1.weight": active(net, empty)["conv1.weight"]}
    found = Hessian(net, flat, IMAGES.double(), CLASSES).top(torch.randn(int(empty["conv1"].sum())), 2)
    assert found.values == (0.0, 0.0)
    assert (found.vectors @ found.vectors.T).equal(torch.eye(2, dtype=torch.float64))


def test_errors(monkeypatch: pytest.MonkeyPatch) -> None:
    net, masks = masked("plain")
    found = hessian(net, masks)
    with pytest.raises(ValueError, match=f"count: expected 1 to {len(found) - 1} .*, got {len(found)}"):
        found.top(torch.randn(len(found)), len(found))
    with pytest.raises(ValueError, match="weights: expected at least one that is kept, got none"):
        Hessian(net, {"fc.weight": (net.fc.weight, torch.zeros(3, 4, dtype=torch.bool))}, IMAGES.double(), CLASSES)
    with torch.no_grad():
        net.fc.weight[0, 0] = float("nan")
    with pytest.raises(ArithmeticError, match="the gradient of the loss is not finite"):
        hessian(net, masks)
    imported = builtins.__import__

    def without_scipy(name: str, *rest: Any) -> Any:
        if name.split(".")[0] == "scipy":
            raise ModuleNotFoundError("no", name="scipy")
        return imported(name, *rest)

    monkeypatch.setattr(builtins, "__import__", without_scipy)
    with pytest.raises(ModuleNotFoundError, match=r"pip install 'tost-sparse\[analysis\]'"):
        require_scipy()
