"""A sparse network stays batch-last from its first layer to its last, forward and backward."""

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

import tost
import tost_kernels as tk
from tost_kernels import backend

SAMPLES = 12  # no number of channels, so that the batch is known by its size
pytestmark = pytest.mark.skipif(not backend.has_native_conversion(), reason="needs the compiled CPU kernels")


class Watch(TorchDispatchMode):
    """Lists what leaves the layout: copies of activations, and activations in another layout wherever an op sees one.

    A compiled op converts what is not batch-last without a word, so its inputs tell.
    """

    COPIES = ("clone", "copy_", "contiguous", "_to_copy", "cat", "constant_pad_nd")

    def __init__(self):
        super().__init__()
        self.conversions, self.faults, self.checked = 0, [], 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        output = func(*args, **(kwargs or {}))
        name = func.overloadpacket.__name__
        seen = [t for t in tree_leaves((args, kwargs, output)) if isinstance(t, torch.Tensor) and t.dim() == 4]
        if name == "to_batch_last_cpu":
            self.conversions += 1
            return output
        if name in self.COPIES and any(t.numel() >= 16 * SAMPLES for t in seen):
            self.faults.append(f"{name} {[tuple(t.shape) for t in seen]}")
        for t in seen:
            if t.shape[0] == SAMPLES:
                self.checked += 1
                if not tk.is_batch_last(t) and name != "expand":
                    self.faults.append(f"{name} {tuple(t.shape)} {t.stride()}")
        return output


@pytest.mark.parametrize("ghosts", [False, True], ids=["plain", "ghosts"])
@pytest.mark.parametrize("name", ["resnet20", "resnet18"])
def test_one_conversion_at_the_entry_and_none_behind_it(name, ghosts):
    torch.manual_seed(0)
    model = tost.models.build(name, num_classes=10, in_channels=3)
    net = tk.sparsify(model, tost.prune(model, "random", density=0.05, input_shape=(3, 16, 16)))
    if ghosts:
        net = tost.add_ghosts(net, tost.Recipe.tost())
        assert all(ghost.strength()[0] > 0 for ghost in tost.ghosts.ghosts_of(net).values() if ghost.conv is not None)
    x = torch.randn(SAMPLES, 3, 16, 16)
    # Forced: the static rule gives the widest ghosts to the dense library, which has a layout of its own.
    with tk.use_backend("cpu"), Watch() as watch:
        net(tk.to_batch_last(x)).square().sum().backward()
    assert watch.faults == []
    assert watch.conversions == 1
    assert watch.checked > 100
    assert all(p.grad is not None for p in net.parameters())


@pytest.mark.parametrize("name", ["resnet18", "vgg16"])
def test_a_layer_without_a_mask_stays_batch_last(name):
    """Stem and shortcuts are dense; the static rule chooses, as in a training."""
    torch.manual_seed(0)
    model = tost.models.build(name, num_classes=10, in_channels=3)
    dense = ["conv1", "*shortcut*"] if name == "resnet18" else ["features.0"]
    net = tk.sparsify(model, tost.prune(model, "random", density=0.05, input_shape=(3, 16, 16), exclude=dense))
    assert sum(isinstance(module, tk.nn.Conv2d) for module in net.modules()) == (4 if name == "resnet18" else 1)
    x = torch.randn(SAMPLES, 3, 16, 16)
    with Watch() as watch:
        net(tk.to_batch_last(x)).square().sum().backward()
    assert watch.faults == []
    assert watch.conversions == 1
    assert watch.checked > 100


def test_the_watch_sees_a_hidden_conversion():
    conv = tk.SparseConv2d(3, 8, 3, padding=1, mask=torch.ones(8, 3, 3, 3))
    x = tk.to_batch_last(torch.randn(SAMPLES, 3, 8, 8))
    with tk.use_backend("cpu"), Watch() as watch:
        out = conv(x)
        out.backward(torch.ones(out.shape))  # contiguous
        x.clone(memory_format=torch.contiguous_format)
    assert any("values_grad" in fault for fault in watch.faults)
    assert any("clone" in fault for fault in watch.faults)


def test_a_dense_layer_hands_back_a_batch_last_gradient():
    """The dense backend runs in channels_last; what comes before it must not see that."""
    conv = tk.SparseConv2d(8, 8, 3, padding=1, bias=False, mask=torch.ones(8, 8, 3, 3))
    x = tk.to_batch_last(torch.randn(SAMPLES, 8, 4, 4)).requires_grad_()
    with tk.use_backend("dense"):
        y = conv(x)
    (grad,) = torch.autograd.grad(y.square().sum(), x)
    assert tk.is_batch_last(y)
    assert tk.is_batch_last(grad)


def test_the_gradient_of_a_global_average_is_batch_last():
    x = tk.to_batch_last(torch.randn(SAMPLES, 8, 4, 4)).requires_grad_()
    (grad,) = torch.autograd.grad(tk.nn.AdaptiveAvgPool2d(1)(x).square().sum(), x)
    assert tk.is_batch_last(grad)
