"""Any user model: inputs that are tuples or mappings, outputs of any kind, modules used twice."""

from collections import OrderedDict, namedtuple
from dataclasses import dataclass, replace

import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy

import tost
from tost.masks import methods, prune
from tost.user_batches import describe, map_tensors, tensors_in

# Small networks at low densities: layers may end empty; these tests are about something else.
pytestmark = pytest.mark.filterwarnings("ignore:.*leaves no weight:UserWarning")

DATA_METHODS = sorted(name for name, method in methods().items() if method.needs == "data")


@dataclass
class Output:
    logits: torch.Tensor
    hidden: tuple[torch.Tensor, ...]
    name: str = "output"


class TwoInputs(nn.Module):
    """An image, a vector, a flag; a module used twice; an output of a class of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3, padding=1)
        self.depthwise = nn.Conv2d(4, 4, 3, padding=1, groups=4)
        self.vector = nn.Linear(5, 4)
        self.twice = nn.Linear(4, 4)
        self.classes = nn.Linear(4, 10)

    def forward(self, image: torch.Tensor, vector: torch.Tensor, negate: bool = False) -> Output:
        h = torch.relu(self.depthwise(torch.relu(self.conv(image)))).mean((2, 3)) + torch.tanh(self.vector(vector))
        h = torch.relu(self.twice(torch.relu(self.twice(h))))
        return Output(self.classes(-h if negate else h), (h, torch.arange(3)))


def loss(output: Output, targets: torch.Tensor) -> torch.Tensor:
    assert output.name == "output"
    assert output.hidden[1].dtype is torch.int64
    return cross_entropy(output.logits, targets)


@pytest.fixture
def model() -> TwoInputs:
    torch.manual_seed(4)
    return TwoInputs()


def batches(kind):
    generator = torch.Generator().manual_seed(5)
    for _ in range(2):
        image, vector = torch.randn(8, 3, 6, 6, generator=generator), torch.randn(8, 5, generator=generator)
        targets = torch.randint(0, 10, (8,), generator=generator)
        yield {"tuple": (image, vector), "list": [image, vector], "mapping": {"vector": vector, "image": image}}[kind], targets


@pytest.mark.parametrize("name", DATA_METHODS)
def test_all_kinds_of_inputs_give_the_same(model, name):
    method = replace(methods()[name], steps=min(methods()[name].steps, 3), batches=min(methods()[name].batches, 2))
    masks = [prune(model, method, 0.2, data=list(batches(kind)), loss=loss) for kind in ("tuple", "list", "mapping")]
    assert masks[0] == masks[1] == masks[2]
    assert masks[0].kept == round(0.2 * 220)
    assert list(masks[0]) == ["conv", "depthwise", "vector", "twice", "classes"]


def test_other_arguments_reach_the_model(model):
    data = list(batches("mapping"))
    negated = [({**inputs, "negate": True}, targets) for inputs, targets in data]
    plain, other = (tost.score(model, "snip", data=d, loss=loss)["classes"] for d in (data, negated))
    assert not torch.equal(plain, other)
    # a flag for the model, and targets in a mapping
    dicts = [({**inputs, "negate": True}, {"y": targets}) for inputs, targets in data]
    same = tost.score(model, "snip", data=dicts, loss=lambda output, targets: loss(output, targets["y"]))["classes"]
    assert torch.equal(same, other)


def test_the_temperature_of_grasp_divides_every_output(model):
    def through_hidden(output, targets):
        return output.hidden[0].square().sum()

    # A loss of degree 2 in its outputs is divided by 200^2, so H g by 200^4.
    data = list(batches("tuple"))
    grasp = tost.score(model.double(), "grasp", data=data, loss=through_hidden)
    images, _ = data[0]
    h = model(*(part.double() for part in images)).hidden[0].square().sum()
    (g,) = torch.autograd.grad(h, model.twice.weight, create_graph=True)
    others = torch.autograd.grad(h, [model.conv.weight, model.depthwise.weight, model.vector.weight], create_graph=True)
    dot = (g * g.detach()).sum() + sum((o * o.detach()).sum() for o in others)
    (product,) = torch.autograd.grad(dot, model.twice.weight)
    torch.testing.assert_close(grasp["twice"], (model.twice.weight * product / 200**4).detach(), rtol=1e-10, atol=0)


def test_synflow_of_several_inputs(model):
    by_tuple = tost.score(model, "synflow", input_shape=((3, 6, 6), (5,)))
    by_list = tost.score(model, "synflow", input_shape=[[3, 6, 6], [5]])
    by_mapping = tost.score(model, "synflow", input_shape={"vector": (5,), "image": (3, 6, 6)})
    by_data = tost.score(model, "synflow", data=list(batches("mapping")))
    for scores in (by_list, by_mapping, by_data):
        assert all(torch.equal(scores[layer], score) for layer, score in by_tuple.items())
    # all outputs count: the hidden ones reach `twice` without `classes`
    assert (by_tuple["twice"] > 0).any()
    assert prune(model, "synflow", 0.2, input_shape={"vector": (5,), "image": (3, 6, 6)}).kept == 44


def test_synflow_with_indices_for_inputs():
    net = nn.Sequential(nn.Embedding(5, 3), nn.Flatten(), nn.Linear(6, 4))
    assert prune(net, "synflow", 0.5, data=[(torch.tensor([[0, 1], [2, 3]]), None)]).kept == 12


def test_synflow_with_a_padding_mask_for_an_input():
    class Attends(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.attention, self.fc = nn.MultiheadAttention(4, 1, batch_first=True), nn.Linear(4, 3)

        def forward(self, x: torch.Tensor, padding: torch.Tensor) -> torch.Tensor:
            return self.fc(self.attention(x, x, x, key_padding_mask=padding)[0])

    # the second place is padding; if all were, attention would have nothing to look at, and its results would be NaN
    data = [((torch.randn(2, 3, 4), torch.tensor([[False, True, False]] * 2)), None)]
    scores = tost.score(Attends(), "synflow", data=data)
    assert list(scores) == ["attention.out_proj", "fc"]
    assert all((score > 0).all() for score in scores.values())


@pytest.mark.parametrize(
    ("arguments", "error", "text"),
    [
        ({"method": "snip"}, TypeError, "model: expected it to return a tensor, got Output; give a `loss`"),
        ({"method": "synflow", "input_shape": ((3, 6, 6), 5)}, TypeError, "input_shape: expected the shape of one sample"),
        (
            {"method": "synflow", "input_shape": {"image": (3, 6, 6), "vector": (0,)}},
            ValueError,
            "input_shape: expected positive",
        ),
        ({"method": "synflow", "input_shape": {}}, TypeError, "input_shape: expected the shape of one sample"),
        ({"method": "synflow", "input_shape": ((3, 6, 6), (7,))}, ValueError, r"input_shape: .* \(1, 3, 6, 6\).*\(1, 7\)"),
        ({"method": "synflow", "input_shape": (3, 6, 6)}, ValueError, "input_shape: the model failed .*missing"),
        ({"method": "snip", "data": [((torch.ones(0, 2),), 0)]}, TypeError, r"data: .*at least one sample, got tuple.*\(0, 2\)"),
        ({"method": "snip", "data": [({"x": 1}, 0)]}, TypeError, "data: .*at least one sample, got dict"),
    ],
)
def test_errors(model, arguments, error, text):
    with pytest.raises(error, match=text):
        prune(model, density=0.5, **{"data": list(batches("tuple")), **arguments})


def test_a_model_without_outputs():
    class Silent(nn.Linear):
        def forward(self, x):
            return {"argmax": super().forward(x).argmax(1)}

    with pytest.raises(TypeError, match="model: expected it to return a tensor of floating-point numbers"):
        prune(nn.Sequential(Silent(2, 3)), "synflow", 0.5, input_shape=(2,))


def test_map_tensors():
    Point = namedtuple("Point", "x y")
    one = torch.ones(1)
    value = {"a": [one, 3], "b": Point(one, "text"), "c": OrderedDict(d=(one,)), "e": Output(one, (one,)), "f": None}
    doubled = map_tensors(lambda tensor: 2 * tensor, value)
    assert doubled == {
        "a": [2 * one, 3],
        "b": Point(2 * one, "text"),
        "c": OrderedDict(d=(2 * one,)),
        "e": Output(2 * one, (2 * one,)),
        "f": None,
    }
    assert isinstance(doubled["b"], Point)
    assert type(doubled["c"]) is OrderedDict
    assert tensors_in(value) == [one] * 5
    assert one.item() == 1
    assert describe((one, 3)) == "tuple of tensors of shape (1,) and type torch.float32"
    assert describe("text") == "str"
