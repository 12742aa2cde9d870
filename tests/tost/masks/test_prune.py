"""What every method of `prune` owes: exactly k weights, the same again for the same seed, and nothing changed."""

import copy
import random
import warnings
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint
from torch.utils.data import DataLoader, TensorDataset

import tost_kernels as tk
from tost.masks import Masks, Method, methods, prune, score
from tost.masks.schedules import exponential

METHODS = sorted(methods())
NAMES = ["conv1", "layer1.0.conv1", "layer1.0.conv2", "layer2.0.conv1", "layer2.0.conv2", "layer2.0.shortcut.0", "fc"]
TOTAL = 5112


def quick(name: str) -> Method:
    """The method with a handful of steps and batches where it has many."""
    method = methods()[name]
    return replace(method, steps=min(method.steps, 4), batches=min(method.batches, 2))


def prune_quietly(*arguments, **keywords) -> Masks:
    """Layers may end empty at the lowest densities; the test is about something else."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*leaves no weight", category=UserWarning)
        return prune(*arguments, **keywords)


def test_the_registry():
    for name, method in methods().items():
        assert method.name == name
        assert str(method) == f"{name}: {method.summary} ({method.paper})"
        assert method.paper.startswith("https://arxiv.org/abs/")
        assert "\n" not in str(method)
    methods().clear()
    assert methods()


def test_the_defaults_of_the_papers():
    known = {name: (method.needs, method.steps, method.batches, method.recover) for name, method in methods().items()}
    assert known == {
        "random": ("nothing", 1, 1, False),
        "erk": ("nothing", 1, 1, False),
        "magnitude": ("nothing", 1, 1, False),
        "snip": ("data", 1, 1, False),
        "snip_mb": ("data", 1, 60, False),
        "grasp": ("data", 1, 1, False),
        "grasp_mb": ("data", 1, 60, False),
        "grasp_it": ("data", 60, 1, False),
        "synflow": ("input_shape", 100, 1, False),
        "iter_snip": ("data", 60, 1, False),
        "force": ("data", 60, 1, True),
        "early": ("data", 1, 1000, False),
    }
    assert all(method.schedule is exponential for method in methods().values())


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("density", [1, 0.5, 0.1, 0.02, 0.005, 0.001])
def test_exactly_k(resnet, batches, name, density):
    masks = prune_quietly(resnet, quick(name), density, data=batches)
    assert masks.kept == round(density * TOTAL)
    assert masks.total == TOTAL
    assert list(masks) == NAMES
    for layer in masks.per_layer():
        assert layer.shape == tuple(resnet.get_submodule(layer.name).weight.shape)


@pytest.mark.parametrize("name", METHODS)
def test_exactly_k_with_nothing_but_ties(convnet, batches, name):
    with torch.no_grad():
        for parameter in convnet.parameters():
            parameter.zero_()
    for density in (0.5, 0.1, 0.02):
        first = prune_quietly(convnet, quick(name), density, data=batches)
        assert first.kept == round(density * 1656)
        assert first == prune_quietly(convnet, quick(name), density, data=batches)
    if methods()[name].needs != "nothing" or name == "magnitude":
        # All scores are 0: the first in the order of the network stay.
        kept = torch.cat([mask.flatten() for mask in first.values()])
        assert kept[:33].all()
        assert first.kept == 33


def test_full_synflow_keeps_every_layer_connected(convnet):
    # 17 of 1656 weights, and no skip connection that could replace an empty layer
    masks = prune(convnet, "synflow", 0.01, input_shape=(3, 8, 8))
    assert masks.kept == 17
    assert masks.empty_layers() == ()
    masked = masks.apply_to(convnet)
    with torch.no_grad():
        for parameter in masked.parameters():
            parameter.abs_()
        for name in masks:
            masked.get_submodule(name).bias.zero_()
    assert masked(torch.ones(1, 3, 8, 8)).sum() > 0  # something flows from the first layer to the last
    assert masks == prune(convnet, "synflow", 0.01, data=[(torch.randn(2, 3, 8, 8), None)])


@pytest.mark.parametrize("name", METHODS)
def test_seeds(resnet, batches, name):
    loader = DataLoader(TensorDataset(*(torch.cat(part) for part in zip(*batches, strict=True))), 8, shuffle=True)
    first = prune_quietly(resnet, quick(name), 0.1, data=loader, seed=1)
    torch.rand(3)
    again = prune_quietly(resnet, quick(name), 0.1, data=loader, seed=1)
    other = prune_quietly(resnet, quick(name), 0.1, data=loader, seed=2)
    assert first == again
    assert (first == other) == (name in ("magnitude", "synflow"))


@pytest.fixture
def two_threads():
    """A number of threads that no test runs with otherwise."""
    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(threads)


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("surroundings", [torch.enable_grad, torch.no_grad, torch.inference_mode])
def test_nothing_changes(resnet, batches, name, surroundings):
    resnet.train()
    resnet.layer1.eval()
    resnet(batches[0][0]).sum().backward()
    resnet.conv1.weight.requires_grad_(False)
    resnet.fc.bias.grad = None
    before = copy.deepcopy(resnet)
    gradients = [None if p.grad is None else p.grad.clone() for p in resnet.parameters()]  # deepcopy leaves them out
    identities = [id(tensor) for tensor in (*resnet.parameters(), *resnet.buffers())]
    versions = [tensor._version for tensor in (*resnet.parameters(), *resnet.buffers())]
    data = copy.deepcopy(batches)
    states = torch.get_rng_state(), random.getstate(), np.random.get_state()  # noqa: NPY002
    flags = (
        torch.are_deterministic_algorithms_enabled(),
        torch.backends.cudnn.deterministic,
        torch.backends.cudnn.benchmark,
        torch.get_default_dtype(),
        torch.get_num_threads(),
    )

    with surroundings():
        grad_mode = torch.is_grad_enabled()
        prune_quietly(resnet, quick(name), 0.1, data=batches, seed=5)
        assert torch.is_grad_enabled() == grad_mode

    assert torch.equal(torch.get_rng_state(), states[0])
    assert random.getstate() == states[1]
    numpy_state = np.random.get_state()  # noqa: NPY002
    assert all(np.array_equal(now, then) for now, then in zip(numpy_state, states[2], strict=True))
    assert flags == (
        torch.are_deterministic_algorithms_enabled(),
        torch.backends.cudnn.deterministic,
        torch.backends.cudnn.benchmark,
        torch.get_default_dtype(),
        torch.get_num_threads(),
    )
    tensors = [*resnet.parameters(), *resnet.buffers()]
    assert [id(tensor) for tensor in tensors] == identities
    assert [tensor._version for tensor in tensors] == versions
    for now, then in zip(tensors, [*before.parameters(), *before.buffers()], strict=True):
        assert torch.equal(now, then)
        assert now.dtype is then.dtype
        assert now.requires_grad == then.requires_grad
    for parameter, gradient in zip(resnet.parameters(), gradients, strict=True):
        assert (parameter.grad is None) == (gradient is None)
        assert gradient is None or torch.equal(parameter.grad, gradient)
    assert sum(gradient is None for gradient in gradients) == 1
    assert [module.training for module in resnet.modules()] == [module.training for module in before.modules()]
    for (x, y), (x_before, y_before) in zip(batches, data, strict=True):
        assert torch.equal(x, x_before)
        assert torch.equal(y, y_before)


@pytest.mark.parametrize("name", METHODS)
def test_the_number_of_threads_comes_back(two_layers, name, two_threads):
    prune_quietly(two_layers, quick(name), 0.5, data=[(torch.ones(4, 2), torch.zeros(4).long())])
    assert torch.get_num_threads() == 2


@pytest.mark.parametrize("name", METHODS)
def test_generators_and_threads_are_restored_after_an_error_too(name, two_threads):
    class Broken(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc = nn.Linear(2, 2)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            torch.rand(1)
            raise RuntimeError("boom\nand more")

    broken = Broken()
    state = torch.get_rng_state()
    method = methods()[name]
    data = [(torch.ones(4, 2), torch.zeros(4))]
    if method.prepare is not None:
        source = "input_shape" if method.needs == "input_shape" else "data"
        with pytest.raises(ValueError, match=rf"{source}: .*\(., 2\).*RuntimeError: boom$"):
            prune(broken, name, 0.5, data=data)
    else:  # nothing of the model runs; what observes the steps does

        def fail(step):
            torch.rand(1)
            raise RuntimeError("boom")

        with pytest.raises(RuntimeError, match="boom"):
            prune(broken, name, 0.5, data=data, on_step=fail)
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.get_num_threads() == 2


def test_gradients_are_not_needed_on_the_model(resnet, batches):
    frozen = copy.deepcopy(resnet).requires_grad_(False).eval()
    for name in ("snip", "synflow", "grasp"):
        assert prune_quietly(frozen, quick(name), 0.1, data=batches) == prune_quietly(resnet, quick(name), 0.1, data=batches)


def test_autocast_around_does_not_change_scores(resnet, batches):
    with torch.autocast("cpu", torch.bfloat16):
        inside = prune_quietly(resnet, "snip", 0.1, data=batches)
    assert inside == prune_quietly(resnet, "snip", 0.1, data=batches)


def test_double_networks(resnet, batches):
    for name in METHODS:
        assert prune_quietly(resnet.double(), quick(name), 0.1, data=batches).kept == 511


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("name", METHODS)
def test_networks_in_half_precision_are_scored_in_single(resnet, batches, name, dtype):
    half = resnet.to(dtype)
    masks = prune_quietly(half, quick(name), 0.1, data=batches)
    assert all(tensor.dtype is dtype for tensor in half.parameters())
    assert masks == prune_quietly(copy.deepcopy(half).float(), quick(name), 0.1, data=batches)


@pytest.mark.parametrize("name", METHODS)
def test_default_dtype_and_device_do_not_matter(convnet, batches, name):
    before = prune_quietly(convnet, quick(name), 0.1, input_shape=(3, 8, 8), data=batches, keep_alive=True)
    effective = before.effective(convnet, (3, 8, 8))
    dtype = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    torch.set_default_device("meta")
    try:
        assert prune_quietly(convnet, quick(name), 0.1, input_shape=(3, 8, 8), data=batches, keep_alive=True) == before
        assert before.effective(convnet, (3, 8, 8)) == effective
        assert torch.get_default_dtype() is torch.float64
        assert torch.empty(()).is_meta
    finally:
        torch.set_default_device(None)
        torch.set_default_dtype(dtype)


class Checkpointed(nn.Module):
    """Activations of the second of three layers are computed again on the way back."""

    def __init__(self, reentrant: bool) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Linear(6, 6), nn.Linear(6, 6), nn.Linear(6, 6)
        self.reentrant = reentrant

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.c(torch.relu(checkpoint(self.b, self.a(x), use_reentrant=self.reentrant)))


@pytest.mark.parametrize("exclude", [None, "a"])
def test_checkpointed_activations(exclude):
    torch.manual_seed(0)
    data = [(torch.randn(8, 6), torch.arange(8) % 6)]
    scores = score(Checkpointed(False), "snip", data, exclude=exclude)
    assert all((part != 0).any() for part in scores.values())
    with pytest.raises(ValueError, match="model: it checkpoints activations; expected use_reentrant=False"):
        prune(Checkpointed(True), "snip", 0.5, data, exclude=exclude)


def test_include_and_exclude(resnet):
    odd = nn.Sequential(nn.ModuleDict({"conv[1]": nn.Linear(2, 2), "conv1": nn.Linear(2, 2)})["conv[1]"])
    odd.add_module("fc[1]", nn.Linear(2, 2))
    assert list(prune(odd, "magnitude", 0.5, include="fc[1]")) == ["fc[1]"]
    assert list(prune(resnet, "magnitude", 0.5, include="layer1.*")) == ["layer1.0.conv1", "layer1.0.conv2"]
    masks = prune(resnet, "magnitude", 0.5, include=["layer?.0.conv1", "fc"], exclude=("*1.0.conv1",))
    assert list(masks) == ["layer2.0.conv1", "fc"]
    assert masks.kept == round(0.5 * (16 * 8 * 9 + 160))
    assert list(prune(resnet, "synflow", 0.5, input_shape=(3, 8, 8), exclude=["conv1", "fc"])) == NAMES[1:-1]
    with pytest.raises(
        ValueError, match=r"include: pattern 'layer3\.\*' matches no layer; the layers are conv1, layer1\.0\.conv1"
    ):
        prune(resnet, "magnitude", 0.5, include=["fc", "layer3.*"])
    with pytest.raises(ValueError, match="exclude: pattern 'FC'"):
        prune(resnet, "magnitude", 0.5, exclude="FC")
    with pytest.raises(ValueError, match="no layer is left"):
        prune(resnet, "magnitude", 0.5, exclude="*")
    with pytest.raises(TypeError, match="include: expected patterns as strings, got 3"):
        prune(resnet, "magnitude", 0.5, include=[3])


def test_a_shared_module_counts_once():
    net = nn.Sequential(nn.Linear(3, 3), nn.ReLU(), nn.Linear(3, 3))
    net.append(net[0])
    masks = prune(net, "synflow", 0.5, input_shape=(3,))
    assert list(masks) == ["0", "2"]
    assert masks.total == 18
    assert list(prune(net, "magnitude", 0.5, include="3")) == ["0"]  # either name finds it


@pytest.mark.parametrize("data_only", [False, True])
def test_tied_weights_are_refused(data_only):
    net = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3), nn.Linear(3, 3))
    net[2].weight = nn.Parameter(net[0].weight.data) if data_only else net[0].weight
    with pytest.raises(ValueError, match=r"tied.*0\.weight and 2\.weight"):
        prune(net, "magnitude", 0.5)
    assert list(prune(net, "magnitude", 0.5, include="1")) == ["1"]


def test_tied_to_an_embedding_is_refused():
    net = nn.Sequential(nn.Embedding(5, 3), nn.Linear(3, 5))
    net[1].weight = net[0].weight
    with pytest.raises(ValueError, match=r"tied.*0\.weight and 1\.weight"):
        prune(net, "random", 0.5)


def test_integer_inputs_reach_an_embedding():
    net = nn.Sequential(nn.Embedding(5, 3), nn.Flatten(), nn.Linear(6, 4))
    data = [(torch.tensor([[0, 1], [2, 3]]), torch.tensor([0, 3]))]
    assert prune(net, "snip", 0.5, data=data).kept == 12


def test_empty_layers_are_warned_about(two_layers):
    with pytest.warns(UserWarning, match="magnitude at density 0.16 leaves no weight in 2") as record:
        masks = prune(two_layers, "magnitude", 0.16)
    assert masks.empty_layers() == ("2",)
    assert record[0].filename == __file__


@pytest.mark.parametrize(
    ("density", "error"),
    [
        (0, ValueError),
        (-0.1, ValueError),
        (1.01, ValueError),
        (float("nan"), ValueError),
        (float("inf"), ValueError),
        ("0.1", TypeError),
        (None, TypeError),
        (True, TypeError),
        (0.1j, TypeError),
        (torch.tensor(0.1), TypeError),
    ],
)
def test_density_is_checked(two_layers, density, error):
    with pytest.raises(error, match="density: expected a number in"):
        prune(two_layers, "random", density)


def test_density_of_less_than_one_weight(two_layers):
    with pytest.raises(ValueError, match=r"density: 0\.05 of 6 weights"):
        prune(two_layers, "random", 0.05)
    assert prune_quietly(two_layers, "random", np.float32(0.1)).kept == 1


@pytest.mark.parametrize(
    ("arguments", "error", "text"),
    [
        ({"method": "snop"}, ValueError, "method: unknown name 'snop'.*snip"),
        ({"method": 3}, ValueError, "method"),
        ({"method": "snip"}, ValueError, "data: method 'snip' needs"),
        ({"method": "grasp"}, ValueError, "data: method 'grasp' needs"),
        ({"method": "synflow"}, ValueError, "input_shape: method 'synflow' needs"),
        ({"method": "synflow", "input_shape": 3}, TypeError, "input_shape.*3"),
        ({"method": "synflow", "input_shape": ()}, TypeError, "input_shape"),
        ({"method": "synflow", "input_shape": (2, 0)}, ValueError, "input_shape: expected positive"),
        ({"method": "synflow", "input_shape": (2.0,)}, ValueError, "input_shape: expected positive"),
        ({"method": "synflow", "input_shape": (7,)}, ValueError, r"input_shape: the model failed.*\(1, 7\)"),
        ({"method": "snip", "data": 3}, TypeError, "data: expected an iterable.*int"),
        ({"method": "snip", "data": []}, ValueError, "data: expected another batch.* after 0"),
        ({"method": "snip", "data": (torch.ones(4, 2), torch.ones(4))}, TypeError, "data: expected batches.*Tensor"),
        ({"method": "snip", "data": [(torch.ones(4, 2),)]}, TypeError, "data: expected batches.*1 parts"),
        ({"method": "snip", "data": [([1, 2], [3])]}, TypeError, "data: expected inputs as a tensor.*list"),
        ({"method": "snip", "data": [(torch.ones(0, 2), torch.ones(0))]}, TypeError, r"at least one sample.*\(0, 2\)"),
        ({"method": "snip", "data": [(torch.ones(4, 3), torch.ones(4))]}, ValueError, r"data: the model failed.*\(4, 3\)"),
        ({"method": "snip", "data": [(torch.ones(4, 2), torch.tensor([5] * 4))]}, ValueError, "loss: it failed.*bounds"),
        ({"method": "snip", "loss": 3}, TypeError, "loss: expected a function"),
        ({"loss": lambda o, t: 3.0}, TypeError, "loss: expected a scalar tensor, got float"),
        ({"loss": lambda o, t: o}, TypeError, r"loss: expected a scalar tensor, got a tensor of shape \(4, 1\)"),
        ({"loss": lambda o, t: o.detach().sum()}, ValueError, "does not depend on any prunable weight"),
        ({"loss": lambda o, t: o.sum() * float("nan")}, ValueError, "not finite: the scores of 0, 2"),
        ({"seed": 0.5}, TypeError, "seed"),
        ({"seed": True}, TypeError, "seed"),
        ({"seed": -1}, ValueError, "seed"),
        ({"seed": 2**63}, ValueError, "seed"),
    ],
)
def test_wrong_arguments(two_layers, arguments, error, text):
    if "method" not in arguments:
        arguments = {"method": "snip", "data": [(torch.ones(4, 2), torch.zeros(4).long())], **arguments}
    with pytest.raises(error, match=text):
        prune(two_layers, density=0.5, **arguments)


def test_an_iterator_that_runs_dry_is_named(two_layers, batches):
    data = iter([(torch.ones(4, 2), torch.zeros(4).long())] * 2)
    with pytest.raises(ValueError, match=r"data: expected another batch.* after 2"):
        prune(two_layers, replace(methods()["force"], steps=3), 0.5, data=data)


class Pair(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(2, 2)

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return self.fc(x), x


def test_wrong_models(two_layers, convnet):
    with pytest.raises(TypeError, match=r"model: expected an nn\.Module, got dict"):
        prune({}, "random", 0.5)
    with pytest.raises(ValueError, match="at least one Conv2d or Linear"):
        prune(nn.Sequential(nn.ReLU()), "random", 0.5)
    with pytest.raises(ValueError, match=r"lone Linear.*nn\.Sequential"):
        prune(nn.Linear(2, 2), "random", 0.5)
    with pytest.raises(TypeError, match="model: expected it to return a tensor, got tuple; give a `loss`"):
        prune(Pair(), "snip", 0.5, data=[(torch.ones(4, 2), torch.zeros(4))])
    with pytest.raises(ValueError, match=r"'0' is a SparseConv2d already.*densify"):
        prune(tk.sparsify(convnet, prune(convnet, "random", 0.5)), "random", 0.5)
    with pytest.raises(ValueError, match=r"layer '0' is pruned or parametrized.*remove"):
        prune(prune(convnet, "random", 0.5).apply_to(convnet), "random", 0.5)
    with pytest.raises(ValueError, match="layer '0' is pruned or parametrized"):
        prune(nn.Sequential(nn.utils.parametrizations.weight_norm(nn.Linear(2, 2))), "random", 0.5)
    with pytest.raises(ValueError, match="layer '0' is lazy"):
        prune(nn.Sequential(nn.LazyLinear(2)), "random", 0.5)
    with pytest.raises(ValueError, match="meta device"):
        prune(nn.Sequential(nn.Linear(2, 2, device="meta")), "random", 0.5)
    with pytest.raises(TypeError, match="layer '0': expected a floating-point weight"):
        prune(nn.Sequential(nn.Linear(2, 2, dtype=torch.complex64)), "random", 0.5)
    with torch.no_grad():
        two_layers[2].weight[0, 1] = float("nan")
    with pytest.raises(ValueError, match="the weight of layer '2' is not finite"):
        prune(two_layers, "random", 0.5)


def test_a_model_that_holds_results_of_computations(two_layers):
    # copy.deepcopy refuses both
    two_layers.cache = two_layers(torch.ones(1, 2))
    assert prune(two_layers, "synflow", 0.5, input_shape=(2,)).kept == 3
    assert two_layers.cache.grad_fn is not None


@pytest.mark.parametrize("name", METHODS)
def test_the_rest_of_a_network_that_is_pruned_already_and_has_run(convnet, batches, name):
    first = prune(convnet, "random", 0.5, include="0")
    pruned = first.apply_to(convnet)
    pruned(batches[0][0]).sum().backward()
    with torch.no_grad():
        convnet[0].weight *= first["0"]
    method, rest = quick(name), {"density": 0.3, "data": batches, "exclude": "0"}
    masks = prune_quietly(pruned, method, **rest)
    if name == "early":  # it trains: the zeros of the dense network would come back
        assert masks.kept == round(0.3 * 1494)
    else:
        assert masks == prune_quietly(convnet, method, **rest)
    assert pruned[0].weight.grad_fn is not None


def test_a_layer_the_model_does_not_use_goes_first(two_layers):
    class Unused(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.spare = nn.Linear(2, 2)
            self.used = two_layers

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.used(x)

    with pytest.warns(UserWarning, match="no weight in spare"):
        masks = prune(Unused(), "synflow", 0.6, input_shape=(2,))
    assert masks.kept == 6


def test_a_method_of_ones_own(two_layers):
    def last(probe):
        return [torch.arange(w.numel(), dtype=torch.float32).reshape(w.shape) for w in probe.weights]

    own = Method("last", "the last weights", "none", score=last)
    assert prune_quietly(two_layers, own, 1 / 3)["0"].tolist() == [[False, False], [True, True]]
    with pytest.raises(ValueError, match=r"last: wrong shape of the scores of layer '0'"):
        prune(two_layers, replace(own, score=lambda probe: [w[0] for w in probe.weights]), 0.5)
    for wrong, got in (
        (lambda probe: None, "NoneType"),
        (lambda probe: [], "0"),
        (lambda probe: probe.weights[:1], "1"),
        (lambda probe: probe.weights * 2, "tensor number 3"),
        (lambda probe: ["x", "y"], "str"),
    ):
        with pytest.raises(TypeError, match=rf"^last: expected its score to give a tensor for each .*got {got}$"):
            prune(two_layers, replace(own, score=wrong), 0.5)
    with pytest.raises(ValueError, match="steps: expected a whole number of at least 1, got 0"):
        replace(own, steps=0)


def test_masks_of_prune_run_in_a_sparse_network(resnet, batches):
    masks = prune(resnet, "erk", 0.2)
    x = batches[0][0]
    sparse, masked = tk.sparsify(resnet, masks).eval(), masks.apply_to(resnet).eval()
    torch.testing.assert_close(sparse(x), masked(x))
    assert Masks.from_model(sparse) == masks


@pytest.mark.gpu
@pytest.mark.parametrize("name", METHODS)
def test_on_a_gpu(resnet, batches, name):
    torch.use_deterministic_algorithms(False)  # cuBLAS would ask for an environment variable
    on_cpu = prune_quietly(resnet, quick(name), 0.1, data=batches)
    state = torch.cuda.get_rng_state()
    on_gpu = prune_quietly(resnet.cuda(), quick(name), 0.1, data=batches)
    assert torch.equal(torch.cuda.get_rng_state(), state)
    assert on_gpu.kept == on_cpu.kept
    assert all(mask.device.type == "cpu" for mask in on_gpu.values())
    if methods()[name].needs == "nothing":
        assert on_gpu == on_cpu
