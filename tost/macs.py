"""`count_macs`: the multiply-adds one input costs, dense and with the masks' weights alone."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from tost.accounting import ghost_modules, is_weighted, weight_count
from tost.checks import sample_shape
from tost.isolation import isolated
from tost_kernels.nn import SparseLinear
from tost_kernels.nn.surgery import duplicate

__all__ = ["LayerMacs", "Macs", "count_macs"]


class LayerMacs(NamedTuple):
    """Multiply-adds of one Conv2d or Linear, dense or sparse, for one input; 0 if the network did not call it."""

    name: str
    kept: int
    dense: int
    ghost: bool


@dataclass(frozen=True)
class Macs:
    """Multiply-adds (MACs) of one input; biases, BatchNorm and activations not counted. FLOPs are usually twice as many.

    kept: those with weights the masks keep. dense: those of the same layers when dense. ghosts: those of the ghosts' 1x1
    convolutions, in neither of the two; 0 once their gate is. layers: every layer, ghosts too, in the network's order.
    """

    kept: int
    dense: int
    ghosts: int
    layers: tuple[LayerMacs, ...]


def count_macs(net: nn.Module, input_shape: Sequence[int]) -> Macs:
    """Counts the multiply-adds (MACs) of one input of `input_shape`; biases, BatchNorm and activations not counted.

    `net` may be dense, masked-dense (torch.nn.utils.prune or a parametrization), sparse and have ghosts; which weights count as
    kept is what `tost.account` says. A kept weight of a convolution costs one multiply-add per output pixel, padding
    included, as is usual. A layer that is called twice costs twice. Counted are Conv2d and Linear layers, called as modules.

    One input of zeros goes through a copy of `net` in eval mode: `net`, its BatchNorm statistics and the random generators are
    left as they are. Hooks of `net` are part of the copy, and run.

    Args:
        input_shape: one sample, e.g. (3, 32, 32).

    Raises:
        TypeError: `net` is no module, or `input_shape` no sequence.
        ValueError: `input_shape` holds something else than positive integers, or the network fails on such an input.
    """
    if not isinstance(net, nn.Module):
        raise TypeError(f"count_macs: net: expected a torch.nn.Module, got {type(net).__name__}")
    shape = sample_shape(input_shape)
    copy = duplicate(net).eval()
    ghosts = ghost_modules(copy)
    layers: dict[nn.Module, str] = {m: name for name, m in copy.named_modules() if is_weighted(m)}
    positions = dict.fromkeys(layers, 0)

    def count(module: nn.Module, inputs: Any, output: Tensor) -> None:
        # Each weight is used once for every pixel (convolution) or row (linear) of the output.
        channel_axis = -1 if isinstance(module, nn.Linear | SparseLinear) else 1
        positions[module] += output.numel() // output.shape[channel_axis]

    for layer in layers:
        layer.register_forward_hook(count)
    tensors = [*copy.parameters(), *copy.buffers()]
    like = next((t for t in tensors if t.is_floating_point()), torch.empty(0))
    with isolated(0, {t.device for t in tensors}), torch.no_grad():
        try:
            copy(torch.zeros((1, *shape), dtype=like.dtype, device=like.device))
        except (RuntimeError, ValueError, TypeError) as error:
            reason = str(error).partition("\n")[0]
            raise ValueError(f"input_shape: the network failed on one input of shape {shape}: {reason}") from error
    counts = []
    for layer, name in layers.items():
        kept, dense = weight_count(layer)
        counts.append(LayerMacs(name, kept * positions[layer], dense * positions[layer], layer in ghosts))
    return Macs(
        kept=sum(c.kept for c in counts if not c.ghost),
        dense=sum(c.dense for c in counts if not c.ghost),
        ghosts=sum(c.dense for c in counts if c.ghost),
        layers=tuple(counts),
    )
