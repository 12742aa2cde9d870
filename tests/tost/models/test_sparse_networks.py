"""Every network with sparse layers stays batch-last throughout. That it computes what it should: test_every_network.py."""

import pytest
import torch
from torch import Tensor, nn

import tost_kernels as tk
from tost.masks import prune
from tost.models import build, names

# each stem and kind of block once where only depth and width differ
SMALL = [name for name in names() if name not in ("resnet34", "resnet34_imagenet", "resnet56", "vgg19")]


def sparse_net(name: str) -> tuple[nn.Module, Tensor]:
    """Sparse form of a network and three images for it."""
    channels, size = (1, 28) if name.startswith("lenet") or name == "mlp" else (3, 16)
    if name.endswith("_imagenet"):
        size = 64
    model = build(name, 10, channels, (size, size)).train()
    return tk.sparsify(model, prune(model, "erk", 0.1)), torch.randn(3, channels, size, size)


@pytest.mark.parametrize("name", SMALL)
def test_stays_batch_last(name: str) -> None:
    sparse, x = sparse_net(name)
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
