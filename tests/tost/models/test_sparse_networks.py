"""Every network with sparse layers: the function and the gradients of the masked-dense one, batch-last throughout."""

import pytest
import torch
from torch import Tensor, nn

import tost_kernels as tk
from tost.masks import Masks, prune
from tost.models import build, names

# each stem and kind of block once where only depth and width differ
SMALL = [name for name in names() if name not in ("resnet34", "resnet34_imagenet", "resnet56", "vgg19")]


def sparse_pair(name: str) -> tuple[nn.Module, nn.Module, Tensor, Masks]:
    """Masked-dense and sparse form of a network, three images for it, and the masks."""
    channels, size = (1, 28) if name.startswith("lenet") or name == "mlp" else (3, 16)
    if name.endswith("_imagenet"):
        size = 64  # BatchNorm of single pixels would blow rounding errors up
    model = build(name, 10, channels, (size, size)).train()
    masks = prune(model, "erk", 0.1)
    return masks.apply_to(model), tk.sparsify(model, masks), torch.randn(3, channels, size, size), masks


@pytest.mark.parametrize("name", SMALL)
def test_a_step_equals_the_masked_dense_one(name: str) -> None:
    masked, sparse, x, masks = sparse_pair(name)
    masked, sparse, x = masked.double(), sparse.double(), x.double()
    expected, got = masked(x), sparse(tk.to_batch_last(x))
    torch.testing.assert_close(got, expected)
    expected.square().sum().backward()
    got.square().sum().backward()
    for layer, mask in masks.items():
        gradient = masked.get_submodule(layer).get_parameter("weight_orig").grad
        assert gradient is not None
        torch.testing.assert_close(sparse.get_submodule(layer).get_parameter("values").grad, gradient[mask])


@pytest.mark.parametrize("name", SMALL)
def test_stays_batch_last(name: str) -> None:
    _, sparse, x, _ = sparse_pair(name)
    images, left = 0, []

    def watch(module: nn.Module, inputs: object, output: Tensor) -> None:
        nonlocal images
        if output.dim() == 4 and not list(module.children()):
            images += 1
            if tk.to_batch_last(output) is not output:
                left.append(type(module).__name__)

    for module in sparse.modules():
        module.register_forward_hook(watch)
    sparse(tk.to_batch_last(x))
    assert left == []
    assert images >= 5 or name in ("lenet300100", "mlp")
