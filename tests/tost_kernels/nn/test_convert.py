"""sparsify and densify on whole networks."""

import copy
from collections.abc import Mapping
from functools import partial

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrize, prune

import tost_kernels as tk
from tost_kernels import backend


class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv1 = nn.Conv2d(4, 4, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(4)
        self.conv2 = nn.Conv2d(4, 4, 3, padding=1, padding_mode="reflect")
        self.pool = nn.MaxPool2d(2)

    def forward(self, x):
        return self.pool(self.conv2(self.bn1(self.conv1(x)).relu()) + x)


def network():
    torch.manual_seed(0)
    return nn.Sequential(
        nn.ZeroPad2d(1),
        nn.Conv2d(3, 4, 3),
        nn.BatchNorm2d(4),
        Block(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(4, 6),
        nn.Linear(6, 5),
    )


def masks_for(model, *names):
    generator = torch.Generator().manual_seed(1)
    return {n: torch.rand(model.get_submodule(n).weight.shape, generator=generator) < 0.4 for n in names}


NAMES = ("1", "3.conv1", "3.conv2", "6")
X = torch.randn(4, 3, 6, 6)


@pytest.mark.parametrize("batch_last", [False, True])
def test_computes_the_masked_network(batch_last):
    model = network()
    masks = masks_for(model, *NAMES)
    net = tk.sparsify(model, masks)
    masked = copy.deepcopy(model)
    for name, mask in masks.items():
        prune.custom_from_mask(masked.get_submodule(name), "weight", mask)
    x = tk.to_batch_last(X) if batch_last else X
    for training in (True, False):
        net.train(training)
        masked.train(training)
        torch.testing.assert_close(net(x), masked(X), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(net[2].running_mean, masked[2].running_mean)


@pytest.mark.parametrize("name", ["reference", "dense", "cpu"])
def test_every_backend(name):
    if why := backend.why_not("masked_conv2d", name) or backend.why_not("masked_linear", name):
        pytest.skip(why)
    model = network()
    net = tk.sparsify(model, masks_for(model, *NAMES))
    plain = tk.densify(net)
    x = tk.to_batch_last(X)
    with tk.use_backend(name):
        got = net(x)
        got.square().sum().backward()
    expected = plain(X)
    expected.square().sum().backward()
    torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-5)
    for layer in NAMES:
        ours, theirs = net.get_submodule(layer), plain.get_submodule(layer)
        torch.testing.assert_close(ours.values.grad, theirs.weight.grad[ours.mask], rtol=1e-3, atol=1e-4)
        if ours.bias is not None:
            torch.testing.assert_close(ours.bias.grad, theirs.bias.grad, rtol=1e-3, atol=1e-4)


def test_what_is_swapped_and_what_is_not():
    model = network()
    net = tk.sparsify(model, masks_for(model, *NAMES))
    kinds = {name: type(module) for name, module in net.named_modules()}
    assert kinds["1"] is kinds["3.conv1"] is kinds["3.conv2"] is tk.SparseConv2d
    assert kinds["6"] is tk.SparseLinear
    assert kinds["7"] is nn.Linear
    assert kinds["0"] is tk.nn.ZeroPad2d
    assert kinds["2"] is kinds["3.bn1"] is tk.nn.BatchNorm2d
    assert kinds["3.pool"] is tk.nn.MaxPool2d
    assert kinds["4"] is tk.nn.AdaptiveAvgPool2d
    assert type(model[1]) is nn.Conv2d
    assert type(model[2]) is nn.BatchNorm2d
    stem_only = tk.sparsify(model, masks_for(model, "1"))
    assert type(stem_only[3].conv1) is tk.nn.Conv2d
    assert type(tk.densify(stem_only)[3].conv1) is nn.Conv2d
    more = tk.sparsify(stem_only, masks_for(model, "3.conv1"))  # what is dense still can become sparse
    assert type(more[3].conv1) is tk.SparseConv2d
    extra = {f"{name}.weight_mask" for name in NAMES}
    assert set(net.state_dict()) - extra == set(model.state_dict())


def test_batch_last_reaches_the_end():
    model = network()
    net = tk.sparsify(model, masks_for(model, *NAMES))
    seen = {}

    def note(name, module, inputs, output):
        seen[name] = tk.is_batch_last(output)

    for name, module in net.named_modules():
        module.register_forward_hook(partial(note, name))
    net(tk.to_batch_last(X))
    assert {name for name, is_so in seen.items() if not is_so} <= {"", "5", "6", "7"}
    assert seen["4"]


@pytest.mark.parametrize("inplace", [False, True])
def test_there_and_back(inplace):
    model = network().eval()
    model[3].train()
    model[6].weight.requires_grad_(False)
    model[3].conv2.bias.requires_grad_(False)
    masks = masks_for(model, *NAMES)
    bn, bn_weight, bias, running = model[2], model[2].weight, model[1].bias, model[2].running_mean
    net = tk.sparsify(model, masks, inplace=inplace)
    assert (net is model) == inplace
    assert (net[2] is bn) == (net[2].weight is bn_weight) == (net[1].bias is bias) == (net[2].running_mean is running) == inplace
    net.eval()
    expected = net(X)
    net[3].train()
    back = tk.densify(net, inplace=inplace)
    assert (back is net) == inplace
    plain = network()
    assert [type(m) for m in back.modules()] == [type(m) for m in plain.modules()]
    assert repr(back) == repr(plain)
    assert list(back.state_dict()) == list(plain.state_dict())
    assert [m.training for m in back.modules()] == [m.training for m in net.modules()]
    assert back[3].conv1.training
    assert not back[1].training
    frozen = [name for name, p in back.named_parameters() if not p.requires_grad]
    assert frozen == ["3.conv2.bias", "6.weight"]
    for name, mask in masks.items():
        assert torch.equal(back.get_submodule(name).weight, plain.get_submodule(name).weight * mask)
    back.eval()
    torch.testing.assert_close(back(X), expected, rtol=1e-5, atol=1e-6)
    assert not any(a is b for a in back.parameters() for b in plain.parameters())
    if not inplace:
        with torch.no_grad():
            for parameter in back.parameters():
                parameter.zero_()
        torch.testing.assert_close(net.eval()(X), expected)


def test_the_root_may_be_the_layer():
    layer = nn.Linear(4, 3)
    mask = torch.rand(3, 4) < 0.5
    for inplace in (False, True):
        sparse = tk.sparsify(layer, {"": mask}, inplace=inplace)
        assert type(sparse) is tk.SparseLinear
        assert (sparse.bias is layer.bias) == inplace
        dense = tk.densify(sparse, inplace=inplace)
        assert type(dense) is nn.Linear
        assert torch.equal(dense.weight, layer.weight * mask)
    assert type(tk.sparsify(nn.BatchNorm2d(3), {})) is tk.nn.BatchNorm2d
    assert type(tk.densify(tk.nn.BatchNorm2d(3))) is nn.BatchNorm2d


def test_no_masks_at_all():
    model = network()
    net = tk.sparsify(model, {})
    assert not any(isinstance(m, tk.nn.SparseModule) for m in net.modules())
    assert torch.equal(net.eval()(X), model.eval()(X))


def test_any_mapping_will_do():
    class Masks(Mapping):
        def __getitem__(self, name):
            return {"6": torch.ones(6, 4)}[name]

        def __iter__(self):
            return iter(["6"])

        def __len__(self):
            return 1

    assert tk.sparsify(network(), Masks())[6].density == 1


class Twice(nn.Module):
    def __init__(self):
        super().__init__()
        self.first = nn.Linear(4, 4)
        self.second = self.first

    def forward(self, x):
        return self.second(self.first(x))


@pytest.mark.parametrize("names", [("first",), ("second",), ("first", "second")])
def test_a_shared_module_stays_shared(names):
    mask = torch.eye(4)
    net = tk.sparsify(Twice(), dict.fromkeys(names, mask))
    assert isinstance(net.first, tk.SparseLinear)
    assert net.first is net.second
    back = tk.densify(net)
    assert type(back.first) is nn.Linear
    assert back.first is back.second
    assert len(list(net.parameters())) == len(list(back.parameters())) == 2
    net.load_state_dict(net.state_dict())


def test_two_masks_for_one_shared_module():
    with pytest.raises(ValueError, match="'first' and 'second' are one shared module, but their masks differ"):
        tk.sparsify(Twice(), {"first": torch.eye(4), "second": torch.ones(4, 4)})


def test_tied_weights_are_refused():
    model = nn.ModuleDict({"embedding": nn.Embedding(5, 4), "inner": nn.Linear(4, 4), "decoder": nn.Linear(4, 5)})
    model["decoder"].weight = model["embedding"].weight
    with pytest.raises(ValueError, match=r"masks\['decoder'\]: 'embedding' and 'decoder' share one weight"):
        tk.sparsify(model, {"decoder": torch.ones(5, 4)})
    net = tk.sparsify(model, {"inner": torch.eye(4)})
    assert net["decoder"].weight is net["embedding"].weight


def test_tied_biases_stay_tied():
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    model[1].bias = model[0].bias
    net = tk.sparsify(model, {"0": torch.eye(4)})
    assert net[0].bias is net[1].bias
    back = tk.densify(net)
    assert back[0].bias is back[1].bias


def error_cases():
    one = torch.ones(6, 4)
    return {
        "unknown name": ({"3.conv": torch.ones(1)}, ValueError, r"no module '3\.conv'; close names: '3\.conv"),
        "parameter name": ({"3.conv1.weight": one}, ValueError, r"no module '3\.conv1\.weight'; close names: '3\.conv1'"),
        "far name": ({"encoder": one}, ValueError, r"no module 'encoder'; its Conv2d and Linear modules: '1', '3\.conv1'"),
        "not a layer": ({"2": one}, TypeError, r"masks\['2'\]: expected an nn\.Conv2d or nn\.Linear in the model, got Batch"),
        "shape": ({"6": one.t()}, ValueError, r"masks\['6'\]: expected shape \(6, 4\), that of the weight, got \(4, 6\)"),
        "one-dimensional": ({"6": one[0]}, ValueError, r"masks\['6'\]: mask: expected shape"),
        "not 0 or 1": ({"6": one * 2}, ValueError, r"masks\['6'\]: mask: expected only 0 and 1"),
        "not a tensor": ({"6": [1]}, TypeError, r"masks\['6'\]: mask: expected a torch\.Tensor, got list"),
        "not a mapping": ([("6", one)], TypeError, "masks: expected a mapping"),
    }


@pytest.mark.parametrize("case", error_cases())
def test_errors_leave_the_model_alone(case):
    masks, error, message = error_cases()[case]
    model = network()
    if isinstance(masks, dict):
        masks = {"7": torch.ones(5, 6), **masks}  # a good one first
    with pytest.raises(error, match=message):
        tk.sparsify(model, masks, inplace=True)
    assert [type(m) for m in model.modules()] == [type(m) for m in network().modules()]


def test_more_errors():
    class Scaled(nn.Linear):
        def forward(self, x):
            return 2 * super().forward(x)

    net = tk.sparsify(network(), {"6": torch.ones(6, 4)})
    with pytest.raises(ValueError, match=r"masks\['6'\]: the layer is a SparseLinear already: densify"):
        tk.sparsify(net, {"6": torch.ones(6, 4)})
    with pytest.raises(TypeError, match=r"masks\['0'\]: Scaled overrides forward"):
        tk.sparsify(nn.Sequential(Scaled(4, 3)), {"0": torch.ones(3, 4)})
    with pytest.raises(ValueError, match=r"masks\['0'\]: LazyLinear has no weight yet"):
        tk.sparsify(nn.Sequential(nn.LazyLinear(3)), {"0": torch.ones(3, 4)})
    with pytest.raises(TypeError, match=r"masks\['0'\]: expected an nn\.Conv2d or nn\.Linear in the model, got ConvTranspose2d"):
        tk.sparsify(nn.Sequential(nn.ConvTranspose2d(1, 1, 1)), {"0": torch.ones(1, 1, 1, 1)})
    with pytest.raises(TypeError, match="model: expected"):
        tk.sparsify(3, {})
    with pytest.raises(TypeError, match="net: expected"):
        tk.densify(3)


def test_what_is_not_named_is_left_alone():
    class Scaled(nn.BatchNorm2d):
        def forward(self, x):
            return 2 * super().forward(x)

    model = nn.Sequential(Scaled(3), nn.ConvTranspose2d(3, 3, 1), nn.LazyConv2d(2, 1))
    net = tk.sparsify(model, {})
    assert [type(m) for m in net] == [Scaled, nn.ConvTranspose2d, nn.LazyConv2d]


@pytest.mark.parametrize("inplace", [False, True])
def test_a_pruned_model(inplace):
    """torch.nn.utils.prune leaves non-leaf tensors in its modules, which copy.deepcopy refuses (pytorch#37322)."""
    model = network()
    for name in ("1", "6", "7"):
        prune.l1_unstructured(model.get_submodule(name), "weight", amount=0.5)
    model.eval()
    expected = model(X)
    net = tk.sparsify(model, {name: model.get_submodule(name).weight_mask for name in ("1", "6")}, inplace=inplace)
    torch.testing.assert_close(net(X), expected, rtol=1e-5, atol=1e-6)
    assert "1.weight_orig" not in net.state_dict()
    assert "7.weight_orig" in net.state_dict()
    assert type(net[7]) is nn.Linear
    net(X).sum().backward()
    assert net[7].weight_orig.grad is not None


def test_a_parametrized_model():
    class Symmetric(nn.Module):
        def forward(self, weight):
            return weight + weight.t()

    model = nn.Sequential(nn.Linear(4, 4))
    parametrize.register_parametrization(model[0], "weight", Symmetric())
    net = tk.sparsify(model, {"0": torch.eye(4)})
    assert list(net.state_dict()) == ["0.weight", "0.bias", "0.weight_mask"]
    assert torch.equal(net[0].values, model[0].weight.diagonal())
    assert type(tk.densify(net)[0]) is nn.Linear


@pytest.mark.parametrize("inplace", [False, True])
def test_hooks_move(inplace):
    calls = []
    model = network().eval()
    handle = model[6].register_forward_hook(lambda *arguments: calls.append("linear"))
    model[2].register_forward_hook(lambda *arguments: calls.append("bn"))
    net = tk.sparsify(model, masks_for(model, *NAMES), inplace=inplace)
    net(X)
    assert calls == ["bn", "linear"]
    back = tk.densify(net, inplace=inplace)
    calls.clear()
    back(X)
    assert calls == ["bn", "linear"]
    if inplace:
        handle.remove()
        calls.clear()
        back(X)
        assert calls == ["bn"]


def test_a_sparse_network_compiles_and_trains_batch_last():
    model = network()
    net = tk.sparsify(model, masks_for(model, *NAMES))
    compiled = torch.compile(copy.deepcopy(net), fullgraph=True, backend="aot_eager")
    x = tk.to_batch_last(X)
    got, expected = compiled(x), net(x)
    torch.testing.assert_close(got, expected, rtol=1e-5, atol=1e-6)
    got.square().sum().backward()
    expected.square().sum().backward()
    for ours, theirs in zip(compiled.parameters(), net.parameters(), strict=True):
        torch.testing.assert_close(ours.grad, theirs.grad, rtol=1e-4, atol=1e-5)


def test_the_optimizer_state_of_a_sparse_network():
    model = network()
    names = ("1", "3.conv1", "3.conv2", "6", "7")
    masks = {}
    for name in names:
        weight = model.get_submodule(name).weight
        masks[name] = (torch.arange(weight.numel()) % 50 == 0).view(weight.shape)
    net = tk.sparsify(model, masks)
    optimizer = torch.optim.SGD(tk.param_groups(net, 1e-4), lr=0.1, momentum=0.9)
    net(X).sum().backward()
    optimizer.step()
    elements = sum(state["momentum_buffer"].numel() for state in optimizer.state.values())
    kept = sum(int(mask.sum()) for mask in masks.values())
    others = sum(p.numel() for n, p in net.named_parameters() if not n.endswith("values"))
    assert elements == kept + others
    for name, mask in masks.items():
        assert torch.count_nonzero(tk.densify(net).get_submodule(name).weight[~mask]) == 0
