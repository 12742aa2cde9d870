"""What SparseConv2d and SparseLinear share: derived attributes, copies, moves, conversion from and to the dense layer."""

import copy
import io
import pickle
import shutil

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations, parametrize, prune

import tost_kernels as tk


def conv_layer(dtype=torch.float32):
    return tk.SparseConv2d(4, 6, 3, padding=1, dtype=dtype, mask=torch.rand(6, 4, 3, 3) < 0.3)


def linear_layer(dtype=torch.float32):
    return tk.SparseLinear(8, 5, dtype=dtype, mask=torch.rand(5, 8) < 0.3)


LAYERS = pytest.mark.parametrize("make", [conv_layer, linear_layer])


def input_for(layer, dtype=torch.float32):
    return torch.randn(2, 4, 5, 5, dtype=dtype) if isinstance(layer, tk.SparseConv2d) else torch.randn(3, 8, dtype=dtype)


@LAYERS
def test_parameters_are_the_kept_weights(make):
    layer = make()
    assert [name for name, _ in layer.named_parameters()] == ["values", "bias"]
    assert list(layer.buffers()) == []  # DDP would broadcast a buffer at every forward
    assert layer.values.shape == (layer.pattern.nnz,) == (int(layer.mask.sum()),)
    assert layer.mask.dtype == torch.bool
    assert layer.density == pytest.approx(layer.mask.double().mean().item())
    rows = layer.mask.nonzero()
    assert torch.equal(layer.weight[tuple(rows.T)], layer.values)


@LAYERS
def test_weight_is_derived_and_differentiable(make):
    layer = make()
    first = layer.weight
    with torch.no_grad():
        layer.values.add_(1)
    assert torch.equal(layer.weight[layer.mask], layer.values)
    assert not torch.equal(first, layer.weight)
    factor = torch.randn(layer.weight.shape)
    (layer.weight * factor).sum().backward()
    assert torch.equal(layer.values.grad, factor[layer.mask])
    assert layer.weight[~layer.mask].abs().sum() == 0


@LAYERS
def test_assigning_weight_gathers(make):
    layer = make()
    values = layer.values
    new = torch.randn(layer.weight.shape) * layer.mask
    for tensor in (new, nn.Parameter(new * 2), new.double() * 3):
        layer.weight = tensor
        assert layer.values is values
        assert torch.equal(layer.weight, tensor.float())
    assert "weight" not in layer._parameters
    with torch.no_grad():
        new[(~layer.mask).nonzero()[0].unbind()] = float("nan")
    with pytest.raises(ValueError, match="weight: expected zeros where the mask prunes, got 1 nonzero"):
        layer.weight = new
    with pytest.raises(ValueError, match="weight: expected shape"):
        layer.weight = torch.zeros(3)
    with pytest.raises(TypeError, match=r"weight: expected a torch\.Tensor, got float"):
        layer.weight = 1.0


@LAYERS
def test_from_dense_copies_and_keeps_flags(make):
    dense = make().to_dense()
    nn.init.normal_(dense.weight)
    dense.weight.requires_grad_(False)
    dense.eval()
    mask = torch.rand(dense.weight.shape) < 0.5
    layer = type(make()).from_dense(dense, mask)
    assert not layer.values.requires_grad
    assert layer.bias.requires_grad
    assert not layer.training
    before = dense.weight.clone(), dense.bias.clone()
    with torch.no_grad():
        layer.values.zero_()
        layer.bias.zero_()
    assert torch.equal(dense.weight, before[0])
    assert torch.equal(dense.bias, before[1])
    back = layer.to_dense()
    assert not back.weight.requires_grad
    assert not back.training
    assert back.bias is not layer.bias


@pytest.mark.parametrize("dtype", [torch.bool, torch.uint8, torch.int64, torch.float32, torch.float64])
def test_masks_of_any_type(dtype):
    class Marked(torch.Tensor):
        pass

    mask = torch.rand(5, 8) < 0.5
    dense = nn.Linear(8, 5)
    for given in (mask.to(dtype), mask.to(dtype).as_subclass(Marked), mask.to(dtype).t().contiguous().t()):
        layer = tk.SparseLinear.from_dense(dense, given)
        assert torch.equal(layer.mask, mask)
        assert type(layer.mask) is torch.Tensor
    again = tk.SparseLinear.from_dense(dense, layer.pattern)
    assert again.pattern is layer.pattern


def test_from_dense_takes_the_effective_weight():
    mask = torch.rand(6, 4, 3, 3) < 0.5
    pruned = nn.Conv2d(4, 6, 3)
    prune.custom_from_mask(pruned, "weight", mask)
    with torch.no_grad():
        pruned.weight_orig.add_(1)  # an optimizer step: the attribute `weight` is out of date until the next forward
    layer = tk.SparseConv2d.from_dense(pruned, mask)
    assert torch.equal(layer.values, pruned.weight_orig[mask])
    assert layer.values.requires_grad
    assert layer.values.is_leaf
    assert not layer._forward_pre_hooks
    assert len(pruned._forward_pre_hooks) == 1
    x = torch.randn(2, 4, 5, 5)
    torch.testing.assert_close(layer(x), pruned(x))

    pruned.weight_orig.requires_grad_(False)
    prune.random_unstructured(pruned, "bias", amount=3)
    layer = tk.SparseConv2d.from_dense(pruned, mask)
    assert not layer.values.requires_grad
    assert (layer.bias == 0).sum() == 3

    parametrized = parametrizations.weight_norm(nn.Linear(8, 5))
    everything = torch.ones(5, 8)
    layer = tk.SparseLinear.from_dense(parametrized, everything)
    assert torch.equal(layer.weight, parametrized.weight)
    assert layer.values.is_leaf

    class Double(nn.Module):
        def forward(self, weight):
            return 2 * weight

    linear = nn.Linear(8, 5)
    parametrize.register_parametrization(linear, "weight", Double())
    linear.parametrizations.weight.original.requires_grad_(False)
    layer = tk.SparseLinear.from_dense(linear, everything)
    assert torch.equal(layer.weight, 2 * linear.parametrizations.weight.original)
    assert not layer.values.requires_grad


def test_layers_that_cannot_be_converted():
    class Scaled(nn.Conv2d):
        def forward(self, x):
            return 2 * super().forward(x)

    class Named(nn.Conv2d):
        """No forward of its own: computes what nn.Conv2d does."""

    one = torch.ones(1, 1, 1, 1)
    with pytest.raises(TypeError, match=r"dense: Scaled overrides forward of torch\.nn\.Conv2d"):
        tk.SparseConv2d.from_dense(Scaled(1, 1, 1), one)
    patched = nn.Conv2d(1, 1, 1)
    patched.forward = lambda x: x
    with pytest.raises(TypeError, match="overrides forward"):
        tk.SparseConv2d.from_dense(patched, one)
    with pytest.raises(TypeError, match=r"dense: expected a torch\.nn\.Conv2d, got ConvTranspose2d"):
        tk.SparseConv2d.from_dense(nn.ConvTranspose2d(1, 1, 1), one)
    with pytest.raises(ValueError, match="LazyConv2d has no weight yet: run one batch"):
        tk.SparseConv2d.from_dense(nn.LazyConv2d(1, 1), one)
    with pytest.raises(ValueError, match="mask: expected shape"):
        tk.SparseConv2d.from_dense(nn.Conv2d(1, 1, 1), torch.ones(1, 1, 3, 3))
    with pytest.raises(ValueError, match="remove SpectralNorm"):
        tk.SparseConv2d.from_dense(nn.utils.spectral_norm(nn.Conv2d(1, 1, 1)), one)
    hooked = nn.Conv2d(1, 1, 1)
    hooked.register_load_state_dict_pre_hook(lambda *arguments: None)
    with pytest.raises(ValueError, match="load_state_dict pre-hooks"):
        tk.SparseConv2d.from_dense(hooked, one)
    assert isinstance(tk.SparseConv2d.from_dense(Named(1, 1, 1), one), tk.SparseConv2d)


def test_hooks_are_kept_both_ways():
    calls = []
    dense = nn.Linear(8, 5)
    dense.register_forward_pre_hook(lambda module, arguments: calls.append("pre"))
    handle = dense.register_forward_hook(lambda module, arguments, output: calls.append("forward"))
    dense.register_full_backward_hook(lambda module, grads, outputs: calls.append("backward"))
    layer = tk.SparseLinear.from_dense(dense, torch.ones(5, 8))
    for module in (layer, layer.to_dense()):
        calls.clear()
        module(torch.randn(3, 8, requires_grad=True)).sum().backward()
        assert calls == ["pre", "forward", "backward"]
    handle.remove()
    calls.clear()
    layer(torch.randn(3, 8))
    assert calls == ["pre", "forward"]  # a copy: the handle belongs to the dense layer


@LAYERS
def test_copies(make):
    layer = make().eval()
    x = input_for(layer)
    deep = copy.deepcopy(layer)
    assert deep.pattern is layer.pattern
    assert deep.values is not layer.values
    shallow = copy.copy(layer)
    assert shallow.values is layer.values
    unpickled = pickle.loads(pickle.dumps(layer))
    file = io.BytesIO()
    torch.save(layer, file)
    file.seek(0)
    loaded = torch.load(file, weights_only=False)
    for other in (deep, shallow, unpickled, loaded):
        assert other.pattern == layer.pattern
        assert not other.training
        assert torch.equal(other(x), layer(x))


@LAYERS
def test_dtypes(make):
    layer = make()
    x = input_for(layer)
    expected = layer(x)
    values = layer.values
    assert layer.double() is layer
    assert layer.values is values  # torch's own layers keep their Parameters too
    assert layer.weight.dtype == torch.float64
    torch.testing.assert_close(layer(x.double()).float(), expected, rtol=1e-5, atol=1e-5)
    for dtype in (torch.float16, torch.bfloat16):
        low = make().to(dtype)
        assert low(x.to(dtype)).dtype == low.weight.dtype == low.state_dict()["weight"].dtype == dtype
    assert layer.to(torch.float32)(x).dtype == torch.float32
    assert layer.requires_grad_(False).values.requires_grad is False


@LAYERS
def test_meta(make):
    layer = make()
    pattern = layer.pattern
    layer.to("meta")
    assert layer.values.is_meta
    assert layer.weight.is_meta
    assert layer.pattern is pattern
    assert layer.state_dict()["weight"].shape == pattern.shape
    with pytest.raises(NotImplementedError, match="to_empty"):
        layer.to("cpu")
    layer.to_empty(device="cpu").reset_parameters()
    assert layer(input_for(layer)).isfinite().all()

    with torch.device("meta"):
        built = nn.Conv2d(4, 6, 3)
    mask = torch.rand(6, 4, 3, 3) < 0.5
    sparse = tk.SparseConv2d.from_dense(built, mask)
    assert sparse.values.is_meta
    assert sparse.values.shape == (int(mask.sum()),)
    full = nn.Conv2d(4, 6, 3)
    with torch.no_grad():
        full.weight *= mask
    sparse.load_state_dict(full.state_dict(), assign=True)
    x = torch.randn(1, 4, 4, 4)
    torch.testing.assert_close(sparse(x), full(x))
    with pytest.raises(ValueError, match="meta"):
        tk.SparseConv2d.from_dense(full, mask.to("meta"))
    assert tk.SparseConv2d(4, 6, 3, device="meta", mask=mask).bias.is_meta


@LAYERS
def test_functional_call(make):
    layer = make()
    x = input_for(layer)
    new = {name: torch.randn_like(p) for name, p in layer.named_parameters()}
    got = torch.func.functional_call(layer, new, (x,))
    before = layer(x)
    assert not torch.allclose(got, before)
    with torch.no_grad():
        for name, parameter in layer.named_parameters():
            parameter.copy_(new[name])
    torch.testing.assert_close(got, layer(x))

    def loss(parameters):
        return torch.func.functional_call(layer, parameters, (x,)).square().sum()

    gradients = torch.func.grad(loss)({name: p.detach() for name, p in layer.named_parameters()})
    layer(x).square().sum().backward()
    torch.testing.assert_close(gradients["values"], layer.values.grad)


@pytest.mark.parametrize("batch_last", [False, True])
@LAYERS
def test_compiles_to_one_graph(make, batch_last):
    layer = make()
    x = input_for(layer)
    x = tk.to_batch_last(x) if batch_last else x
    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager")
    got = compiled(x)
    torch.testing.assert_close(got, layer(x))
    got.sum().backward()
    gradient, layer.values.grad = layer.values.grad, None
    layer(x).sum().backward()
    torch.testing.assert_close(gradient, layer.values.grad)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # inductor's own imports
@pytest.mark.skipif(shutil.which("g++") is None, reason="inductor needs a C++ compiler")
def test_compiles_with_inductor():
    layer = conv_layer()
    x = tk.to_batch_last(input_for(layer))
    compiled = torch.compile(layer, fullgraph=True)
    got = compiled(x)
    torch.testing.assert_close(got, layer(x))
    assert tk.is_batch_last(got)
    got.sum().backward()
    gradient, layer.values.grad = layer.values.grad, None
    layer(x).sum().backward()
    torch.testing.assert_close(gradient, layer.values.grad)


def test_averaged_model():
    layer = conv_layer()
    average = torch.optim.swa_utils.AveragedModel(layer, multi_avg_fn=torch.optim.swa_utils.get_ema_multi_avg_fn(0.5))
    first = layer.values.detach().clone()
    average.update_parameters(layer)
    with torch.no_grad():
        layer.values.add_(2)
    average.update_parameters(layer)
    torch.testing.assert_close(average.module.values, first + 1)
    assert "module.weight_mask" in average.state_dict()
    average.load_state_dict(average.state_dict())


def test_training_touches_kept_weights_only():
    """A 98 % sparse layer: the optimizer's state has as many elements as weights are kept, and pruned weights stay zero."""
    layer = tk.SparseLinear(100, 50, bias=False, mask=torch.arange(5000).view(50, 100) % 50 == 0)
    assert layer.density == 0.02
    optimizer = torch.optim.AdamW(layer.parameters(), lr=0.1, weight_decay=0.1)
    before = layer.values.detach().clone()
    layer(torch.randn(8, 100)).square().sum().backward()
    norm = nn.utils.clip_grad_norm_(layer.parameters(), 1.0)
    assert norm > 1
    torch.testing.assert_close(layer.values.grad.norm(), torch.tensor(1.0))
    optimizer.step()
    state = optimizer.state[layer.values]
    assert state["exp_avg"].numel() == state["exp_avg_sq"].numel() == 100
    assert not torch.equal(layer.values, before)
    assert layer.weight.count_nonzero() == 100


@LAYERS
def test_loading_with_a_map_location(make):
    file = io.BytesIO()
    torch.save(make(), file)
    file.seek(0)
    loaded = torch.load(file, weights_only=False, map_location="meta")
    assert loaded.values.is_meta
    assert loaded.pattern.device.type == "cpu"


def test_channels_last_networks():
    layer = conv_layer().to(memory_format=torch.channels_last)
    x = input_for(layer).contiguous(memory_format=torch.channels_last)
    assert layer(x).is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("density", [0, 1])
def test_reparametrized_values_do_not_break_the_state_dict(density):
    layer = tk.SparseLinear(8, 5, mask=torch.full((5, 8), density))
    prune.identity(layer, "values")
    assert torch.equal(layer.state_dict()["weight"], layer.weight)


@pytest.mark.gpu
@LAYERS
def test_the_pattern_moves_with_the_layer(make):
    layer = make()
    x = input_for(layer)
    expected = layer(x)
    on_cpu = layer.pattern
    layer.cuda()
    assert layer.pattern.device == layer.values.device == layer.weight.device == layer.mask.device
    torch.testing.assert_close(layer(x.cuda()).cpu(), expected, rtol=1e-3, atol=1e-3)
    assert layer.cpu().pattern == on_cpu
    assert layer.pattern.device.type == "cpu"
    file = io.BytesIO()
    torch.save(layer, file)
    file.seek(0)
    loaded = torch.load(file, weights_only=False, map_location="cuda")
    assert loaded.pattern.device == loaded.values.device
    from_gpu = type(layer).from_dense(layer.to_dense(), layer.mask.cuda())
    assert from_gpu.pattern.device.type == "cpu"
    loaded.load_state_dict(layer.state_dict())
    assert loaded.values.is_cuda
    loaded.load_state_dict(layer.state_dict(), assign=True)
    assert loaded.pattern.device.type == loaded.values.device.type == "cpu"
