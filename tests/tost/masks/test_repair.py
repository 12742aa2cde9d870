"""Masks in which every layer has a weight on a path: exactly as many weights as before, the best in, the worst out."""

import warnings

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

import tost
from tost import models
from tost.masks import Masks, methods
from tost.masks.effective import Paths
from tost.masks.repair import dead_layers, keep_alive


def random_masks(net: nn.Module, density: float, seed: int = 0) -> Masks:
    random = torch.Generator().manual_seed(seed)
    layers = {name: m.weight for name, m in net.named_modules() if isinstance(m, nn.Conv2d | nn.Linear)}
    return Masks({name: torch.rand(w.shape, generator=random) < density for name, w in layers.items()})


def dead(masks: Masks, net: nn.Module, shape: tuple[int, ...]) -> tuple[str, ...]:
    return dead_layers(Paths(net, list(masks), shape), masks)


def test_an_empty_layer_by_hand():
    """Its largest weight on a path comes in, the smallest weight that nobody needs goes."""
    net = nn.Sequential(nn.Linear(2, 3, bias=False), nn.Linear(3, 2, bias=False), nn.Linear(2, 1, bias=False))
    with torch.no_grad():
        net[0].weight.copy_(torch.tensor([[1.0, 2.0], [0.1, 3.0], [5.0, 6.0]]))
        net[1].weight.copy_(torch.tensor([[1.0, 2.0, 9.0], [3.0, 4.0, 8.0]]))
        net[2].weight.copy_(torch.tensor([[1.0, 0.2]]))
    masks = Masks({"0": torch.tensor([[1, 1], [1, 1], [0, 0]]), "1": torch.zeros(2, 3), "2": torch.tensor([[1, 1]])})
    repaired = masks.kept_alive(net, (2,))
    assert repaired["1"].tolist() == [[False] * 3, [False, True, False]]  # 9 and 8 lead from a unit that nothing reaches
    assert repaired["0"].tolist() == [[True, True], [False, True], [False, False]]
    assert repaired["2"].tolist() == [[True, True]]
    by_score = masks.kept_alive(net, (2,), scores={n: -w for n, w in zip("012", net.parameters(), strict=True)})
    assert by_score["1"].tolist() == [[True, False, False], [False] * 3]
    assert by_score["0"].tolist() == [[True, True], [True, False], [False, False]]


def test_nothing_to_repair_changes_nothing(resnet):
    masks = random_masks(resnet, 0.5)
    assert masks.kept_alive(resnet, (3, 8, 8)) == masks


def test_a_layer_with_weights_that_lead_nowhere_is_dead_too():
    net = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    masks = Masks({"0": torch.tensor([[1, 1], [0, 0]]), "1": torch.tensor([[0, 1], [0, 1]])})
    repaired = masks.kept_alive(net, (2,))
    assert repaired.kept == 4
    assert dead(repaired, net, (2,)) == ()


class Split(nn.Module):
    """Two branches that read different channels of one layer: it needs two weights."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.left, self.right = nn.Linear(3, 4), nn.Linear(2, 2), nn.Linear(2, 2)

    def forward(self, x: Tensor) -> Tensor:
        left, right = self.stem(x).chunk(2, -1)
        return torch.cat([self.left(left), self.right(right)], -1)


def test_a_layer_that_needs_two_weights():
    net, empty = Split(), {"stem": torch.zeros(4, 3), "left": torch.zeros(2, 2), "right": torch.ones(2, 2)}
    repaired = Masks(empty).kept_alive(net, (3,))
    assert {layer.name: layer.kept for layer in repaired.per_layer()} == {"stem": 2, "left": 1, "right": 1}
    assert dead(repaired, net, (3,)) == ()
    few = Masks({**empty, "right": torch.tensor([[1, 1], [1, 0]])})
    with pytest.raises(
        ValueError, match="3 weights cannot keep 3 layers alive, this choice of them needs 4; expected a higher density"
    ):
        few.kept_alive(net, (3,))


@settings(max_examples=10, deadline=None)
@given(density=st.sampled_from([0.005, 0.01, 0.02, 0.05]), seed=st.integers(0, 1000))
def test_exactly_as_many_and_every_layer_alive(density, seed):
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Conv2d(2, 6, 3, padding=1), nn.BatchNorm2d(6), nn.ReLU(), nn.Conv2d(6, 6, 3, padding=1, groups=3), nn.MaxPool2d(2),
        nn.Conv2d(6, 8, 1), nn.Tanh(), nn.Flatten(), nn.Linear(32, 10), nn.ReLU(), nn.Linear(10, 5),
    )  # fmt: skip
    masks = random_masks(net, density, seed)
    if masks.kept < len(masks):
        with pytest.raises(
            ValueError, match=f"keep_alive: {masks.kept} weights cannot keep 5 layers alive, at least one in each"
        ):
            masks.kept_alive(net, (2, 4, 4))
        return
    repaired = masks.kept_alive(net, (2, 4, 4))
    assert repaired.kept == masks.kept
    assert dead(repaired, net, (2, 4, 4)) == ()
    assert repaired == masks.kept_alive(net, (2, 4, 4))
    assert repaired.kept_alive(net, (2, 4, 4)) == repaired


def test_as_few_weights_as_layers():
    net = nn.Sequential(*[nn.Linear(5, 5) for _ in range(6)])
    masks = Masks({"0": torch.eye(5) + torch.eye(5)[[4, 0, 1, 2, 3]], **{str(i): torch.zeros(5, 5) for i in range(1, 6)}})
    one_each = Masks({**masks, "0": torch.cat([torch.ones(1, 5), torch.zeros(4, 5)]), "3": torch.eye(5)[:1].expand(5, 5) * 0 + 0})
    with pytest.raises(ValueError, match="5 weights cannot keep 6 layers alive"):
        one_each.kept_alive(net, (5,))
    six = Masks({**one_each, "5": torch.eye(5) * torch.tensor([0, 0, 0, 0, 1])})
    repaired = six.kept_alive(net, (5,))
    assert [layer.kept for layer in repaired.per_layer()] == [1] * 6
    assert dead(repaired, net, (5,)) == ()


def test_a_network_at_the_edge():
    net = models.build("resnet20", 10, 3, (8, 8))
    masks = random_masks(net, 0.001)
    assert len(dead(masks, net, (3, 8, 8))) > 10
    repaired = masks.kept_alive(net, (3, 8, 8))
    assert repaired.kept == masks.kept
    assert dead(repaired, net, (3, 8, 8)) == ()


def test_a_layer_that_the_model_does_not_use():
    class Half(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.used, self.unused = nn.Linear(2, 2), nn.Linear(2, 2)

        def forward(self, x: Tensor) -> Tensor:
            return self.used(x)

    masks = Masks({"used": torch.zeros(2, 2), "unused": torch.eye(2)})
    repaired = masks.kept_alive(Half(), (2,))
    assert (repaired["used"].sum(), repaired["unused"].sum()) == (1, 1)


@pytest.mark.parametrize("method", ["random", "snip", "synflow", "force"])
def test_prune_with_keep_alive(resnet, batches, method):
    density = 0.004
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        plain = tost.prune(resnet, method, density, batches, (3, 8, 8))
    assert bool(caught) == bool(plain.empty_layers())
    before = {name: value.clone() for name, value in resnet.state_dict().items()}
    alive = tost.prune(resnet, method, density, batches, (3, 8, 8), keep_alive=True)
    assert alive.kept == plain.kept == round(density * plain.total)
    assert dead(alive, resnet, (3, 8, 8)) == ()
    assert tost.prune(resnet, method, density, batches, keep_alive=True) == alive  # the shape comes from the data
    assert all(torch.equal(value, before[name]) for name, value in resnet.state_dict().items())


@pytest.mark.parametrize("method", ["random", "snip"])
def test_keep_alive_reads_no_more_data_than_the_method(resnet, batches, method):
    """The data may be an iterator, of which nothing is left in the end."""
    masks = tost.prune(resnet, method, 0.004, batches, keep_alive=True)
    assert tost.prune(resnet, method, 0.004, iter(batches[:1]), keep_alive=True) == masks


def test_the_best_by_score_come_in(two_layers):
    """Magnitude keeps nothing of the second layer; there, -1 is larger than 0.5 and leads from a unit that is reached."""
    with torch.no_grad():
        two_layers[2].weight.copy_(torch.tensor([[0.4, -0.45]]))
    with pytest.warns(UserWarning, match=r"leaves no weight in 2; keep_alive=True .* in each that the model uses"):
        tost.prune(two_layers, "magnitude", 0.5)
    masks = tost.prune(two_layers, "magnitude", 0.5, input_shape=(2,), keep_alive=True)
    assert masks["0"].tolist() == [[False, True], [True, False]]
    assert masks["2"].tolist() == [[False, True]]


def test_a_network_that_detaches():
    class Detaches(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(4, 4), nn.Linear(4, 2)

        def forward(self, x: Tensor) -> Tensor:
            return self.b(self.a(x).detach())

    repaired = Masks({"a": torch.zeros(4, 4), "b": torch.ones(2, 4)}).kept_alive(Detaches(), (4,))
    assert [layer.kept for layer in repaired.per_layer()] == [1, 7]
    assert dead(repaired, Detaches(), (4,)) == ()


def test_paths_that_contradict_each_other_do_not_hang():
    class Contradicting:
        def through(self, masks):
            """The second layer needs all of the first, of which one weight alone lies on a path."""
            first = torch.zeros_like(masks["a"])
            first[0, 0] = True
            return {"a": masks["a"] & first, "b": masks["b"] & masks["a"].all()}

    masks = {"a": torch.eye(2) > 0, "b": torch.ones(1, 2) > 0}
    with pytest.raises(ValueError, match="model: no weight of layer 'a' lies on a path"):
        keep_alive(Contradicting(), masks, {name: (mask.float(),) for name, mask in masks.items()})


def test_what_comes_in_are_single_weights():
    """The right branch needs a weight that is only the seventh best; those between it and the best do not come in with it."""
    scores = {"stem": torch.arange(12.0).reshape(4, 3).flip(0), "left": torch.ones(2, 2), "right": torch.ones(2, 2)}
    masks = Masks({"stem": torch.zeros(4, 3), "left": torch.ones(2, 2), "right": torch.ones(2, 2)})
    repaired = masks.kept_alive(Split(), (3,), scores=scores)
    assert repaired["stem"].nonzero().tolist() == [[0, 2], [2, 2]]


def test_refused(two_layers):
    with pytest.raises(ValueError, match="input_shape: keep_alive needs the shape of a sample"):
        tost.prune(two_layers, "random", 0.5, keep_alive=True)
    with pytest.raises(ValueError, match="1 weights cannot keep 2 layers alive"):
        tost.prune(two_layers, methods()["random"], 0.2, input_shape=(2,), keep_alive=True)
    masks = Masks({"0": torch.ones(2, 2), "2": torch.zeros(1, 2)})
    with pytest.raises(ValueError, match=r"scores\['2'\]: expected a tensor of shape \(1, 2\), got NoneType"):
        masks.kept_alive(two_layers, (2,), scores={"0": torch.ones(2, 2)})
    with pytest.raises(ValueError, match=r"scores\['0'\]: expected numbers, got NaN"):
        masks.kept_alive(two_layers, (2,), scores={"0": torch.full((2, 2), torch.nan), "2": torch.ones(1, 2)})
