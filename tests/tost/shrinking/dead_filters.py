"""Networks with dead filters and BatchNorm that is nowhere near its start; and whether two networks compute the same."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

import tost
from tost.shrinking import Shrunk
from tost_kernels.nn.surgery import duplicate


def randomised(net: nn.Module, seed: int = 0) -> nn.Module:
    """`net` in evaluation mode, with random affine parameters and running statistics in every BatchNorm."""
    random = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for module in net.modules():
            if isinstance(module, nn.modules.batchnorm._BatchNorm):
                count = module.num_features
                module.weight.copy_(torch.rand(count, generator=random) * 1.5 + 0.2)
                module.bias.copy_(torch.randn(count, generator=random) * 0.5)
                module.running_mean.copy_(torch.randn(count, generator=random) * 0.3)
                module.running_var.copy_(torch.rand(count, generator=random) + 0.5)
    return net.eval()


def filter_masks(net: nn.Module, sparsity: float, seed: int = 0) -> dict[str, Tensor]:
    """Masks that prune this fraction of the filters of every convolution, at random."""
    random = torch.Generator().manual_seed(seed)
    masks = {}
    for name, module in net.named_modules():
        if isinstance(module, nn.Conv2d):
            mask = torch.ones_like(module.weight, dtype=torch.bool)
            mask[torch.randperm(module.out_channels, generator=random)[: round(sparsity * module.out_channels)]] = False
            masks[name] = mask
    return masks


def without_zeroed(net: nn.Module, zeroed: Mapping[str, tuple[int, ...]]) -> nn.Module:
    """What `zero_constants` says it does, done to a copy of the whole network."""
    net = duplicate(net)
    for name, places in zeroed.items():
        module: Any = net.get_submodule(name)
        with torch.no_grad():
            module.bias[list(places)] = 0
            if isinstance(module, nn.modules.batchnorm._BatchNorm):
                module.weight[list(places)] = 0
    return net


@torch.no_grad()
def assert_same(net: nn.Module, small: nn.Module, x: Tensor, tolerance: float) -> None:
    expected, got = net(x), small(x)
    torch.testing.assert_close(got, expected, rtol=0.0, atol=tolerance * max(1.0, float(expected.abs().max())))


def shrunk(net: nn.Module, x: Tensor, **options: Any) -> Shrunk:
    """`net` shrunk, and compared with it in both precisions; `x` is not what `shrink` itself has looked at."""
    net.eval()
    result = tost.shrink(net, input_shape=tuple(x.shape[1:]), **options)
    reference = without_zeroed(net, result.report.zeroed)
    assert_same(reference, result.model, x, 1e-5)
    double = tost.shrink(duplicate(net).double(), input_shape=tuple(x.shape[1:]), **options)
    assert_same(reference.double(), double.model, x.double(), 1e-12)
    assert double.report == result.report
    return result


def outputs_left(result: Shrunk) -> dict[str, int]:
    return {layer.name: layer.outputs_left for layer in result.report.layers}
