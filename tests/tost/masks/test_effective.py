"""Weights on a path: against a search through the graph of single numbers, and on every network of ours."""

import itertools
from collections import defaultdict
from collections.abc import Callable, Iterator

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn.utils import parametrize

import tost_kernels as tk
from tost import models
from tost.masks import Masks
from tost.masks.effective import Paths

Node = tuple[str, int]
Edges = dict[Node, list[tuple[Node, tuple[str, int] | None]]]


class Graph:
    """Every number of a small network as a node; an edge for each way one enters another, with the weight on it."""

    def __init__(self) -> None:
        self.edges: Edges = defaultdict(list)

    def layer(self, name: str, mask: Tensor, compute: Callable[[Tensor, Tensor], Tensor], source: str, shape: tuple[int, ...]):
        """An edge wherever output o depends on input i through weight w, as the derivatives of `compute(input, weight)` say."""
        size = torch.Size(shape).numel()
        for w in mask.flatten().nonzero().flatten().tolist():
            weight = torch.zeros(mask.numel())
            weight[w] = 1
            jacobian = torch.autograd.functional.jacobian(
                lambda x, weight=weight: compute(x, weight.reshape(mask.shape)).flatten(), torch.ones(shape)
            )
            for o, i in jacobian.reshape(-1, size).nonzero().tolist():
                self.edges[source, i].append(((name, o), (name, w)))

    def wire(self, target: str, source: str, pairs: Iterator[tuple[int, int]]):
        for i, o in pairs:
            self.edges[source, i].append(((target, o), None))

    def weights_on_paths(self, start: str, starts: int, end: str) -> set[tuple[str, int]]:
        backwards: dict[Node, list[Node]] = defaultdict(list)
        for source, targets in self.edges.items():
            for target, _ in targets:
                backwards[target].append(source)
        from_input = closure([(start, i) for i in range(starts)], lambda n: [t for t, _ in self.edges.get(n, [])])
        to_output = closure([n for n in backwards if n[0] == end], lambda n: backwards.get(n, []))
        return {
            weight
            for source, targets in self.edges.items()
            for target, weight in targets
            if weight is not None and source in from_input and target in to_output
        }


def closure(start: list[Node], following: Callable[[Node], list[Node]]) -> set[Node]:
    seen, waiting = set(start), list(start)
    while waiting:
        for node in following(waiting.pop()):
            if node not in seen:
                seen.add(node)
                waiting.append(node)
    return seen


def as_set(masks: Masks) -> set[tuple[str, int]]:
    return {(name, w) for name, mask in masks.items() for w in mask.flatten().nonzero().flatten().tolist()}


def random_masks(net: nn.Module, density: float, seed: int = 0) -> Masks:
    random = torch.Generator().manual_seed(seed)
    layers = {name: m.weight for name, m in net.named_modules() if isinstance(m, nn.Conv2d | nn.Linear)}
    return Masks({name: torch.rand(w.shape, generator=random) < density for name, w in layers.items()})


def test_a_table_by_hand(two_layers):
    first, second = torch.tensor([[1, 0], [1, 1]]), torch.tensor([[1, 0]])
    effective = Masks({"0": first, "2": second}).effective(two_layers, (2,))
    assert effective["0"].tolist() == [[True, False], [False, False]]  # nobody reads the second hidden unit
    assert effective["2"].tolist() == [[True, False]]
    unreached = Masks({"0": torch.tensor([[0, 0], [1, 1]]), "2": second}).effective(two_layers, (2,))
    assert unreached.kept == 0
    assert Masks({"0": first}).effective(two_layers, (2,)).kept == 3  # a layer without a mask is dense


class Branches(nn.Module):
    """Depthwise and grouped convolutions, max pooling, a residual sum, a concatenation, gates, and a module used twice."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(2, 4, 3, padding=1)
        self.depthwise = nn.Conv2d(4, 4, 3, padding=1, groups=4)
        self.grouped = nn.Conv2d(4, 4, (1, 3), padding=(0, 1), groups=2, bias=False)
        self.norm = nn.BatchNorm2d(4)
        self.shared = nn.Linear(8, 8)
        self.fc = nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        h = F.max_pool2d(torch.tanh(self.stem(x)), 2)
        h = F.dropout(torch.relu_(self.norm(self.depthwise(h))) + h, 0.5, self.training)
        h = torch.cat([h, F.silu(self.grouped(h))], 1).mean((2, 3))
        h = torch.sigmoid(self.shared(self.shared(h).clamp(0, 6)))
        return F.log_softmax(self.fc(h), -1)


def graph_of_branches(masks: Masks) -> Graph:
    graph = Graph()
    graph.layer("stem", masks["stem"], lambda x, w: F.conv2d(x, w, padding=1), "x", (1, 2, 4, 4))
    windows = ((c * 16 + y * 4 + x, c * 4 + y // 2 * 2 + x // 2) for c in range(4) for y in range(4) for x in range(4))
    graph.wire("pool", "stem", windows)
    graph.layer("depthwise", masks["depthwise"], lambda x, w: F.conv2d(x, w, padding=1, groups=4), "pool", (1, 4, 2, 2))
    for source in ("pool", "depthwise"):
        graph.wire("sum", source, ((i, i) for i in range(16)))
    graph.layer("grouped", masks["grouped"], lambda x, w: F.conv2d(x, w, padding=(0, 1), groups=2), "sum", (1, 4, 2, 2))
    for offset, source in ((0, "sum"), (4, "grouped")):
        graph.wire("mean", source, ((i, i // 4 + offset) for i in range(16)))
    graph.layer("shared", masks["shared"], lambda x, w: x @ w.T, "mean", (8,))
    again = Graph()
    again.layer("shared", masks["shared"], lambda x, w: x @ w.T, "shared", (8,))
    for source, targets in again.edges.items():
        graph.edges[source] += [(("again", target[1]), weight) for target, weight in targets]
    graph.layer("fc", masks["fc"], lambda x, w: x @ w.T, "again", (8,))
    return graph


@settings(max_examples=6, deadline=None)
@given(density=st.sampled_from([0.1, 0.2, 0.3, 0.5]), seed=st.integers(0, 1000))
def test_a_search_through_the_graph_finds_the_same(density, seed):
    net = Branches()
    masks = random_masks(net, density, seed)
    found = graph_of_branches(masks).weights_on_paths("x", 32, "fc")
    assert as_set(masks.effective(net, (2, 4, 4))) == found


class Linearized(torch.overrides.TorchFunctionMode):
    """Activations, dropout and normalisation are the identity, max pooling is average pooling."""

    def __torch_function__(self, function, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if function in (F.batch_norm, F.relu, torch.relu):
            return args[0]
        if getattr(function, "__name__", "") in ("boolean_dispatch", "max_pool2d"):
            names = ("input", "kernel_size", "stride", "padding", "dilation", "ceil_mode", "return_indices")
            given = {**dict(zip(names, args, strict=False)), **kwargs}
            return F.avg_pool2d(*(given[name] for name in ("input", "kernel_size", "stride", "padding", "ceil_mode")))
        return function(*args, **kwargs)


def flow(net: nn.Module, masks: Masks, shape: tuple[int, ...]) -> set[tuple[str, int]]:
    """Where weight times gradient is not 0 when every weight is 1 (https://arxiv.org/abs/2006.05467)."""
    net = masks.apply_to(net.double().eval(), form="zeros")
    for name, parameter in net.named_parameters():
        module = name.rpartition(".")[0]
        parameter.data = masks[module].double() if name.endswith("weight") and module in masks else torch.zeros_like(parameter)
    with Linearized():
        net(torch.ones(1, *shape, dtype=torch.float64)).sum().backward()
    weights = {name: net.get_submodule(name).weight for name in masks}
    return {(name, i) for name, w in weights.items() for i in (w * w.grad).flatten().nonzero().flatten().tolist()}


@pytest.mark.parametrize(("name", "density"), [("lenet5", 0.1), ("resnet20", 0.02), ("vgg16", 0.02), ("mobilenet", 0.3)])
def test_networks_of_ours_against_the_flow_in_double_precision(name, density):
    net = models.build(name, 10, 3, (16, 16))
    masks = random_masks(net, density)
    effective = masks.effective(net, (3, 16, 16))
    assert 0 < effective.kept < masks.kept
    assert as_set(effective) == flow(net, masks, (3, 16, 16))


@pytest.mark.parametrize("name", ["vgg19", "resnet50", "mobilenet"])
def test_deep_networks_at_high_sparsity(name):
    """One path by hand through the whole network, among a few weights that lead nowhere."""
    net = models.build(name, 10, 3, (8, 8))
    scattered = random_masks(net, 0.001)
    path, among = {}, {}
    for layer, mask in scattered.items():
        mask[:1] = mask[:, :1] = False  # the channels of the path are its own
        centre = tuple(size // 2 for size in mask.shape[2:])
        mask[(0, 0, *centre)] = True
        path[layer] = torch.zeros_like(mask)
        path[layer][(0, 0, *centre)] = True
        among[layer] = mask
    effective = Masks(among).effective(net, (3, 8, 8))
    assert all((effective[layer] & mask).any() for layer, mask in path.items())
    alone = Masks(path)
    assert alone.effective(net, (3, 8, 8)) == alone
    some = next(iter(path))
    cut = Masks({**path, some: torch.zeros_like(path[some])})
    assert cut.effective(net, (3, 8, 8)).kept == 0


def test_everything_kept_is_effective_but_what_only_meets_padding():
    net = nn.Sequential(nn.Conv2d(1, 2, 3, padding=1), nn.Flatten(), nn.Linear(2, 2))
    effective = random_masks(net, 2.0).effective(net, (1, 1, 1))
    assert effective["0"].flatten(2)[..., 4].all()
    assert effective["0"].sum() == 2
    assert effective["2"].all()


def test_any_form_of_the_network_gives_the_same_and_is_left_alone(convnet):
    masks = random_masks(convnet, 0.1)
    expected = masks.effective(convnet, (3, 8, 8))
    assert expected.kept < masks.kept
    forms = [masks.apply_to(convnet, form=form) for form in ("prune", "parametrization", "zeros")]
    for net in (*forms, tk.sparsify(convnet, masks), convnet.train().to(torch.bfloat16)):
        before = {name: value.clone() for name, value in net.state_dict().items()}
        random = torch.get_rng_state()
        assert masks.effective(net, (3, 8, 8)) == expected
        assert net.training
        assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())
        assert torch.equal(torch.get_rng_state(), random)
        assert all(parameter.grad is None for parameter in net.parameters())
    assert parametrize.is_parametrized(forms[1][0])
    with torch.inference_mode():
        assert masks.effective(forms[2], (3, 8, 8)) == expected


class Pools(nn.Module):
    """Overlapping windows, dilation, and a border that ceil_mode adds; each is an identity for the search below."""

    def __init__(self, pool: nn.Module) -> None:
        super().__init__()
        self.first, self.pool, self.last = nn.Conv2d(1, 2, 1, bias=False), pool, nn.Linear(2, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.pool(self.first(x)).flatten(2).transpose(1, 2))


@pytest.mark.parametrize(
    "pool",
    [
        nn.MaxPool2d(2),
        nn.MaxPool2d(3, 2, 1),
        nn.MaxPool2d(2, 2, ceil_mode=True),
        nn.MaxPool2d(2, 1, dilation=2),
        nn.AdaptiveMaxPool2d(1),
        nn.AvgPool2d(2),
        nn.AdaptiveAvgPool2d((2, 3)),
        nn.UpsamplingNearest2d(scale_factor=2),
        nn.UpsamplingBilinear2d(scale_factor=2),
        nn.ZeroPad2d(2),
        nn.ReflectionPad2d(1),
        nn.ConstantPad2d(1, 3.0),
        nn.InstanceNorm2d(2),
        nn.GroupNorm(1, 2),
        nn.LocalResponseNorm(3),
        nn.Softmax(1),
        nn.PReLU(2),
        nn.Hardswish(),
        nn.GELU(),
        nn.LeakyReLU(0.1, inplace=True),
        nn.Dropout2d(0.5),
    ],
    ids=repr,
)
def test_what_stands_between_layers(pool):
    net = Pools(pool)
    both = Masks({"first": torch.ones(2, 1, 1, 1), "last": torch.ones(1, 2)})
    assert both.effective(net, (1, 5, 5)) == both
    one = Masks({"first": torch.tensor([0, 1]).reshape(2, 1, 1, 1), "last": torch.ones(1, 2)})
    assert one.effective(net, (1, 5, 5))["last"].tolist() == ([[False, True]] if not mixes(pool) else [[True, True]])
    other = Masks({"first": torch.ones(2, 1, 1, 1), "last": torch.tensor([[1, 0]])})
    assert other.effective(net, (1, 5, 5))["first"].flatten().tolist() == ([True, False] if not mixes(pool) else [True, True])


def mixes(pool: nn.Module) -> bool:
    """It divides by a sum over neighbouring channels, operation by operation."""
    return isinstance(pool, nn.LocalResponseNorm)


def test_max_pooling_looks_at_every_number_of_the_window():
    """At any of nine places alone the path must be found, and where no window looks, none."""
    for y, x in itertools.product(range(3), range(3)):
        net = nn.Sequential(
            nn.Conv2d(1, 1, 3, padding=0, bias=False), nn.MaxPool2d(2, ceil_mode=True), nn.Flatten(), nn.Linear(4, 1)
        )
        first = torch.zeros(1, 1, 3, 3)
        first[0, 0, y, x] = 1
        masks = Masks({"0": first, "3": torch.tensor([[0, 0, 0, 1]])})
        assert masks.effective(net, (1, 5, 5)) == masks
    skipping = nn.Sequential(nn.Linear(4, 4), nn.Unflatten(1, (1, 4)), nn.MaxPool1d(1, 3), nn.Flatten(), nn.Linear(2, 1))
    masks = Masks({"0": torch.eye(4), "4": torch.ones(1, 2)})
    assert masks.effective(skipping, (4,))["0"].diagonal().tolist() == [True, False, False, True]


class TwoInputs(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.left, self.right, self.words, self.out = nn.Linear(2, 2), nn.Linear(3, 2), nn.Embedding(5, 2), nn.Linear(2, 1)

    def forward(self, a: Tensor, b: Tensor, words: Tensor | None = None) -> dict[str, Tensor]:
        h = self.left(a) * torch.sigmoid(self.right(b))
        return {"y": self.out(h if words is None else h + self.words(words).sum(1))}


def test_several_inputs():
    net = TwoInputs()
    masks = Masks({"left": torch.tensor([[0, 0], [1, 0]]), "right": torch.ones(2, 3), "out": torch.tensor([[1, 0]])})
    expected = {"left": [[False, False], [False, False]], "right": [[True] * 3, [False] * 3], "out": [[True, False]]}
    for shape in (((2,), (3,)), {"b": (3,), "a": (2,)}):
        assert {name: mask.tolist() for name, mask in masks.effective(net, shape).items()} == expected
    examples = {"a": torch.zeros(4, 2), "b": torch.zeros(4, 3), "words": torch.tensor([[0, 1]] * 4)}
    assert masks.effective(net, inputs=examples)["right"].tolist() == expected["right"]
    neither = Masks({"left": torch.zeros(2, 2), "right": torch.zeros(2, 3), "out": torch.ones(1, 2)})
    assert neither.effective(net, inputs=tuple(examples.values())).kept == 2  # through the words alone
    assert neither.effective(net, ((2,), (3,))).kept == 0


def test_attention():
    net = nn.Sequential(nn.Linear(4, 8), nn.TransformerEncoderLayer(8, 2, 16, batch_first=True), nn.Linear(8, 1))
    layers = ("0", "1.linear1", "1.linear2", "2")
    masks = Masks({name: torch.ones_like(net.get_submodule(name).weight) for name in layers})
    assert masks.effective(net, (3, 4)) == masks
    cut = Masks({**masks, "1.linear2": torch.zeros(8, 16)}).effective(net, (3, 4))
    assert cut["1.linear1"].sum() == 0  # the way around it is still there
    assert cut["0"].all()


@pytest.mark.parametrize("kind", [nn.LSTM, nn.GRU, nn.RNN])
def test_recurrent_layers(kind):
    class Reads(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.cells, self.last = nn.Linear(2, 3), kind(3, 4, batch_first=True), nn.Linear(4, 1)

        def forward(self, x: Tensor) -> Tensor:
            return self.last(self.cells(self.first(x))[0][:, 0])

    masks = Masks({"first": torch.tensor([[1, 1], [0, 0], [0, 1]]), "last": torch.tensor([[1, 0, 0, 1]])})
    assert masks.effective(Reads(), (5, 2)) == masks
    assert Masks({**masks, "last": torch.zeros(1, 4)}).effective(Reads(), (5, 2)).kept == 0
    assert torch.backends.mkldnn.enabled


class Gated(nn.Module):
    """Squeeze and excitation, shuffled channels, a transposed convolution, interpolation, a product over several axes."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.down, self.up = nn.Conv2d(2, 4, 1), nn.Linear(4, 2), nn.Linear(2, 4)
        self.shuffle, self.transposed, self.fc = nn.ChannelShuffle(2), nn.ConvTranspose2d(4, 2, 2, 2), nn.Linear(9, 1)

    def forward(self, x: Tensor) -> Tensor:
        h = F.relu(self.conv(x))
        h = h * torch.sigmoid(self.up(F.relu(self.down(h.mean((2, 3))))))[:, :, None, None]
        h = self.transposed(self.shuffle(F.pixel_unshuffle(F.pixel_shuffle(h, 2), 2)))
        h = F.interpolate(h, size=(3, 3), mode="bilinear", align_corners=False)
        return self.fc(torch.einsum("nchw,nc->nhw", h, h.amax((2, 3))).flatten(1))


def test_gates():
    net = Gated()
    sizes = {name: net.get_submodule(name).weight for name in ("conv", "down", "up", "fc")}
    masks = Masks({name: torch.ones_like(weight) for name, weight in sizes.items()})
    assert masks.effective(net, (2, 2, 2)) == masks
    one = torch.zeros(2, 4)
    one[0, 3] = 1
    narrow = Masks({**masks, "down": one, "conv": torch.tensor([1, 0, 0, 0]).reshape(4, 1, 1, 1).expand(4, 2, 1, 1)})
    effective = narrow.effective(net, (2, 2, 2))
    assert effective["down"].sum() == 0  # it reads a channel that nothing reaches,
    assert effective["up"].sum() == 0  # so there is nothing to send on
    assert torch.equal(effective["conv"], narrow["conv"])


class Between(nn.Module):
    """A function between two layers of four numbers."""

    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.a, self.b, self.function = nn.Linear(4, 4), nn.Linear(4, 2), function
        self.register_buffer("gate", torch.tensor([1.0, 0.0, 1.0, 0.0]))
        self.scale = nn.Parameter(torch.zeros(4))

    def forward(self, x: Tensor) -> Tensor:
        return self.b(self.function(self, self.a(x)))


def overwritten(net: Between, h: Tensor) -> Tensor:
    h = h.clone()
    h[:, 1] = 0
    h[:, 3].zero_()
    return h


def copied(net: Between, h: Tensor) -> Tensor:
    h[:, 1:2].copy_(net.gate[1:2])
    h[:, 3].fill_(net.gate[3])
    return h


@pytest.mark.parametrize(
    ("function", "open_units"),
    [
        (lambda net, h: h.detach(), 4),
        (lambda net, h: torch.relu_(h.detach()) + h.data, 4),
        (lambda net, h: h * net.gate, 2),
        (lambda net, h: h * 0 + h[:, :1] * net.gate, (1, 2)),
        (lambda net, h: h * net.scale, 4),  # a parameter may be 0 for now
        (lambda net, h: h.masked_fill(net.gate == 0, 3.0), 2),
        (lambda net, h: torch.where(net.gate > 0, h, 1), 2),
        (lambda net, h: torch.where(net.gate > 0, h, h.flip(1)), (2, 4)),  # 1 is a copy of 2, and 3 of 0
        (lambda net, h: torch.where(h > 0, h, torch.zeros(())), 4),
        (overwritten, 2),
        (copied, 2),
        (lambda net, h: h.clone().zero_() + h.clone().fill_(2.0), 0),
        (lambda net, h: torch.zeros_like(h).copy_(h), 4),
        (lambda net, h: F.avg_pool2d(h[:, None, None], (1, 1), divisor_override=-1)[:, 0, 0], 4),
    ],
)
def test_what_goes_through_constants_and_copies(function, open_units):
    """How many units of the first layer are read, and how many that the second layer reads are reached."""
    effective = Masks({"a": torch.ones(4, 4), "b": torch.ones(2, 4)}).effective(Between(function), (4,))
    read, reached = open_units if isinstance(open_units, tuple) else (open_units, open_units)
    assert (effective["a"].sum(), effective["b"].sum()) == (4 * read, 2 * reached)


@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_default_dtype_and_device_do_not_matter(device):
    class Makes(nn.Module):
        """It makes tensors of the default type and device."""

        def __init__(self) -> None:
            super().__init__()
            self.conv, self.fc = nn.Conv2d(1, 2, 1), nn.Linear(8, 2)

        def forward(self, x: Tensor) -> Tensor:
            return self.fc(F.max_pool2d(self.conv(x), 2).flatten(1) @ torch.eye(8))

    net, masks = Makes(), Masks({"fc": torch.ones(2, 8)})
    torch.set_default_dtype(torch.float64)
    torch.set_default_device(device)
    try:
        assert masks.effective(net, (1, 4, 4)) == masks
        assert torch.get_default_dtype() is torch.float64
        assert torch.empty(()).device.type == device
    finally:
        torch.set_default_device(None)
        torch.set_default_dtype(torch.float32)


def test_a_constant_condition_picks_weights_too():
    net = Between(lambda net, h: F.linear(h, torch.where(net.gate > 0, net.a.weight, torch.zeros(()))))
    effective = Masks({"a": torch.ones(4, 4), "b": torch.ones(2, 4)}).effective(net, (4,))
    # its columns 1 and 3 are cut off at its second use, so at the first nobody reads its units 1 and 3
    assert effective["a"].sum() == 12
    assert not effective["a"][1::2, 1::2].any()
    only = Masks({"b": torch.cat([torch.ones(2, 1), torch.zeros(2, 3)], 1)}).effective(
        Between(lambda net, h: h * torch.where(net.gate[1:2] > 0, net.b.weight[:1], 0.0)), (4,)
    )
    assert only.kept == 0


def test_windows_that_round_reach_nothing():
    """Convolutions may give 1e-8 in the place of 0 (Fourier, Winograd), forwards and backwards."""

    class Rounds(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            result = function(*args, **(kwargs or {}))
            if function is torch.ops.aten.convolution.default:
                return result + 1e-6
            if function is torch.ops.aten.convolution_backward.default:
                return tuple(part if part is None else part + 1e-6 for part in result)
            return result

    net = nn.Sequential(nn.Conv2d(1, 2, 3, bias=False), nn.MaxPool2d(2), nn.Conv2d(2, 2, 1, bias=False))
    first = torch.ones(2, 1, 3, 3)
    first[0] = 0
    masks = Masks({"0": first, "2": torch.tensor([[1, 0], [1, 0]]).reshape(2, 2, 1, 1)})
    paths = Paths(net, list(masks), (1, 6, 6))
    with Rounds():
        assert not any(mask.any() for mask in paths.through(masks).values())
        both = {"0": torch.ones(2, 1, 3, 3).bool(), "2": masks["2"]}
        assert [int(mask.sum()) for mask in paths.through(both).values()] == [9, 2]


def test_refused(convnet):
    masks = random_masks(convnet, 0.5)
    with pytest.raises(TypeError, match="input_shape, inputs: expected one of the two"):
        masks.effective(convnet)
    with pytest.raises(TypeError, match="inputs: expected a tensor"):
        masks.effective(convnet, inputs=3)
    with pytest.raises(ValueError, match="input_shape: expected positive"):
        masks.effective(convnet, (3, 0, 8))
    with pytest.raises(ValueError, match=r"cannot be run and traced on an input of .*1, 3, 9, 9.*mat1 and mat2"):
        masks.effective(convnet, (3, 9, 9))
    with pytest.raises(ValueError, match="no module 'x'"):
        Masks({"x": torch.ones(1, 1)}).effective(convnet, (3, 8, 8))
    with pytest.raises(ValueError, match="'1', for which there is a mask, is a ReLU without"):
        Masks({"1": torch.ones(1, 1)}).effective(convnet, (3, 8, 8))
    with pytest.raises(ValueError, match=r"mask of '5' has shape \(1, 1\), its weight \(10, 144\)"):
        Masks({"5": torch.ones(1, 1)}).effective(convnet, (3, 8, 8))
    with pytest.raises(TypeError, match=r"expected an nn\.Module, got dict"):
        masks.effective({}, (3, 8, 8))
    twice = nn.Sequential(shared := nn.Linear(2, 2), shared)
    with pytest.raises(ValueError, match="'0' has a mask, and so has another layer with the same weight"):
        Masks({"0": torch.ones(2, 2), "1": torch.ones(2, 2)}).effective(twice, (2,))


class Odd(nn.Module):
    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.fc, self.function = nn.Linear(2, 2), function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(self.fc(x))


@pytest.mark.parametrize(
    ("function", "text"),
    [
        (lambda x: x if x.sum() > 0 else -x, r"traced on an input of .*: what it does depends on values .* \(`if`, .*\)$"),
        (lambda x: torch.linalg.inv(x[None, :, :] + torch.eye(2)), "aten.linalg_inv_ex.default, and the paths"),
        (lambda x: torch.arange(4.0)[x.long()], "takes indices that depend on the inputs"),
        (lambda x: torch.layer_norm(x, (2,), x[0]), "takes factors that depend on the inputs"),
        (lambda x: x.view(torch.int32), "its paths cannot be followed: TypeError"),
        (lambda x: x.as_strided((2,), (2,)), "aten.as_strided.default, and the paths"),
    ],
)
def test_networks_that_cannot_be_followed(function, text):
    with pytest.raises(ValueError, match=text):
        Masks({"fc": torch.ones(2, 2)}).effective(Odd(function), inputs=torch.ones(2, 2))


def test_writes_into_a_tensor_and_own_masks():
    class Writes(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc, self.out = nn.Linear(2, 2), nn.Linear(3, 1)
            self.register_buffer("part", torch.tensor([[1.0, 1.0], [0.0, 1.0]]))

        def forward(self, x: Tensor) -> Tensor:
            h = x.new_zeros(x.shape[0], 3)
            h[:, 1:] = F.linear(x, self.fc.weight * self.part)
            return self.out(h)

    masks = Masks({"fc": torch.ones(2, 2), "out": torch.ones(1, 3)})
    effective = masks.effective(Writes(), (2,))
    assert effective["fc"].tolist() == [[True, True], [False, True]]
    assert effective["out"].tolist() == [[False, True, True]]
