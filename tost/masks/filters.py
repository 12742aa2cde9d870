"""Masks that keep or drop whole filters: those of the largest norms of a layer, or the best of all layers."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from tost.masks.layers import Layer, prunable_layers
from tost.masks.masks import Masks
from tost.masks.selection import keep_largest

__all__ = ["best_filters", "strongest_filters"]


def strongest_filters(
    model: nn.Module, density: float, include: str | Sequence[str] | None = None, exclude: str | Sequence[str] | None = None
) -> Masks:
    """In every convolution the same fraction of its filters, those of the largest ||W_o||_2; other layers are kept whole.

    The fraction is the one with which the network keeps `density` of its prunable weights; of each convolution as many whole
    filters as are in it, at least one. So no more weights than asked for are kept, unless a single filter is more.

    Args:
        model: dense.
        density: of all prunable layers together, in (0, 1].
        include, exclude: as in `tost.prune`.

    Raises:
        ValueError: the network has no convolution to prune, or the layers that are kept whole have more weights than `density`.
    """
    layers = prunable_layers(model, include, exclude)
    convolutions = {layer.name for layer in layers if isinstance(layer.module, nn.Conv2d)}
    if not convolutions:
        raise ValueError("model: expected a Conv2d to prune the filters of, found none")
    kept = _left(layers, convolutions, density)
    fraction = kept / sum(layer.weight.numel() for layer in layers if layer.name in convolutions)
    masks = {}
    for layer in layers:
        weight = layer.weight.detach()
        rows = torch.ones(len(weight), dtype=torch.bool)
        if layer.name in convolutions:
            norms = torch.linalg.vector_norm(weight.flatten(1), dim=1).float().cpu()
            # a fraction that is just a whole number of filters must not lose one to rounding
            rows = keep_largest(norms, max(1, math.floor(fraction * len(norms) + 1e-9)))
        masks[layer.name] = _whole(rows, weight)
    return Masks(masks)


def best_filters(
    model: nn.Module,
    scores: Mapping[str, Tensor],
    density: float,
    include: str | Sequence[str] | None = None,
    exclude: str | Sequence[str] | None = None,
) -> Masks:
    """The filters of the highest scores of all layers together, as many as `density` has room for; other layers are kept whole.

    Args:
        model: dense.
        scores: layer -> a number a filter, (O,): larger is kept.
        density: of all prunable layers together, in (0, 1].
        include, exclude: as in `tost.prune`; scores of layers that they leave out are not used.

    Raises:
        ValueError: no layer with scores is left to prune, or those that are kept whole have more weights than `density`.
    """
    layers = prunable_layers(model, include, exclude)
    judged = [layer for layer in layers if layer.name in scores]
    if not judged:
        raise ValueError(f"scores: expected those of a layer to prune, got {', '.join(scores) or 'none'}")
    room = _left(layers, {layer.name for layer in judged}, density)
    together = torch.cat([scores[layer.name].detach().float().cpu() for layer in judged])
    costs = torch.cat([torch.full((len(layer.weight),), layer.weight[0].numel()) for layer in judged])
    order = torch.argsort(together, descending=True, stable=True)  # among equals the first
    chosen = torch.zeros(len(together), dtype=torch.bool)
    chosen[order] = torch.cumsum(costs[order], 0) <= room  # a percentile: nothing behind the first that does not fit
    rows = dict(
        zip([layer.name for layer in judged], chosen.split_with_sizes([len(layer.weight) for layer in judged]), strict=True)
    )
    return Masks({layer.name: _whole(rows.get(layer.name, torch.ones(1, dtype=torch.bool)), layer.weight) for layer in layers})


def _left(layers: Sequence[Layer], pruned: set[str], density: float) -> int:
    """How many weights the `pruned` layers keep, so that all `layers` keep `density`."""
    total = sum(layer.weight.numel() for layer in layers)
    whole = sum(layer.weight.numel() for layer in layers if layer.name not in pruned)
    left = round(density * total) - whole
    if left < 1:
        names = ", ".join(layer.name for layer in layers if layer.name not in pruned)
        raise ValueError(
            f"density: expected more than {whole / total:.4g}, the weights of {names}, which are kept whole, got {density:g} "
            "(or exclude these layers)"
        )
    return left


def _whole(rows: Tensor, weight: Tensor) -> Tensor:
    return rows.view(-1, *[1] * (weight.dim() - 1)).expand(weight.shape)
