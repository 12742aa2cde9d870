"""`prune`: choose which weights of a network to keep."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from tost.checks import integer, number, sample_shape
from tost.choices import check_choice
from tost.isolation import isolated
from tost.masks.layers import Layer, prunable_layers
from tost.masks.masks import Masks
from tost.masks.methods import Method, methods
from tost.masks.probe import Data, Loss, Probe
from tost.masks.schedules import targets
from tost.masks.selection import keep_largest
from tost.user_batches import check_iterable

_log = logging.getLogger(__name__)


def prune(
    model: nn.Module,
    method: str | Method,
    density: float,
    data: Data | None = None,
    input_shape: Sequence[int] | None = None,
    loss: Loss | None = None,
    include: str | Sequence[str] | None = None,
    exclude: str | Sequence[str] | None = None,
    seed: int = 0,
) -> Masks:
    """Choose the weights to keep: exactly `round(density * total)` of them.

    Prunable are the weights of all Conv2d and Linear layers, stem, shortcuts and classifier included; biases and
    normalisation are not. Ties go to the first in the order of `model.named_modules()`.

    Args:
        model: a dense network; scored on the device it is on. It comes back as it was: weights, gradients, BatchNorm
            statistics, flags; so do all global random generators. (Hooks on the model do run.)
        method: a name out of `methods()`, or a `Method`.
        density: fraction of the prunable weights to keep, in (0, 1].
        data: iterable of batches (inputs, targets), for the methods that need it; a fresh batch is taken for every step,
            from the start again when they end. Batches as in training: around 128 samples.
        input_shape: shape of one sample, e.g. (3, 32, 32), for the methods that need it; default: that of `data`.
        loss: (outputs, targets) -> scalar; default: cross-entropy.
        include, exclude: fnmatch patterns on module names, e.g. "layer1.*", exclude=["conv1", "fc"]; the layers left out
            have no mask, and do not count in `density`. Default: every layer.
        seed: of everything random (dropout and the order of a shuffling DataLoader too). On one machine, the same seed gives
            the same masks as far as the model's own kernels are deterministic (on a GPU not all are).

    Returns:
        The masks, one for each prunable layer that `include` and `exclude` leave.

    Raises:
        TypeError, ValueError: an argument is wrong; a layer is sparse, pruned, tied or not initialised; a weight or score is
            not finite.

    Warns:
        UserWarning: layers end without any weight; `masks.empty_layers()` names them.
    """
    if not isinstance(method, Method):
        method = methods()[check_choice("method", method, methods())]
    density = number("density", density, above=0.0, most=1.0)
    seed = integer("seed", seed, least=0, below=2**63)
    input_shape = None if input_shape is None else sample_shape(input_shape)
    if loss is not None and not callable(loss):
        raise TypeError(f"loss: expected a function (outputs, targets) -> scalar, got {type(loss).__name__}")
    if data is not None:
        check_iterable(data, "data")
    if method.needs == "data" and data is None:
        raise ValueError(f"data: method {method.name!r} needs an iterable of batches (inputs, targets), got None")
    if method.needs == "input_shape" and data is None and input_shape is None:
        raise ValueError(
            f"input_shape: method {method.name!r} needs the shape of a sample, such as (3, 32, 32), or `data`; got None"
        )

    layers = prunable_layers(model, include, exclude)
    for layer in layers:
        if not torch.isfinite(layer.weight).all():
            raise ValueError(f"model: the weight of layer {layer.name!r} is not finite")
    total = sum(layer.weight.numel() for layer in layers)
    k = round(density * total)
    if k == 0:
        raise ValueError(f"density: {density} of {total} weights is less than one weight")

    tensors = [*model.parameters(), *model.buffers()]
    with isolated(seed, {tensor.device for tensor in tensors}):
        generator = torch.Generator().manual_seed(seed)
        probe = Probe(
            model,
            layers,
            method.prepare,
            generator,
            data=data,
            input_shape=input_shape,
            loss=loss,
            batches=method.batches,
        )
        kept = _choose(method, probe, layers, targets(method.schedule, method.steps, density, total, k))
    masks = Masks({layer.name: mask.reshape(layer.weight.shape) for layer, mask in zip(layers, kept, strict=True)})
    if masks.empty_layers():
        warnings.warn(
            f"{method.name} at density {density:g} leaves no weight in {', '.join(masks.empty_layers())}",
            UserWarning,
            stacklevel=2,
        )
    return masks


def _choose(method: Method, probe: Probe, layers: Sequence[Layer], counts: Sequence[int]) -> list[Tensor]:
    """Flat bool masks, one a layer, after the last of the steps; step i keeps `counts[i]` weights."""
    shapes = [tuple(layer.weight.shape) for layer in layers]
    sizes = [layer.weight.numel() for layer in layers]
    kept = torch.ones(sum(sizes), dtype=torch.bool)
    for step, count in enumerate(counts):
        if step and not method.recover and count == int(kept.count_nonzero()):
            continue  # nothing to remove at this step
        if step:
            probe.mask(torch.split_with_sizes(kept, sizes))
        scores = _flat_scores(method, probe, layers)
        quotas = method.distribution(shapes, count)
        before = kept
        if quotas is not None:
            parts = zip(torch.split_with_sizes(scores, sizes), quotas, strict=True)
            kept = torch.cat([keep_largest(part, quota) for part, quota in parts])
        elif method.recover:
            kept = keep_largest(scores, count)
        else:  # the kept ones compete alone: removed weights never return, whatever their score
            kept = torch.zeros_like(before).masked_scatter_(before, keep_largest(scores[before], count))
        returned = int((kept & ~before).count_nonzero()) if step else 0
        _log.debug("%s: step %d of %d keeps %d weights, %d of them returned", method.name, step + 1, len(counts), count, returned)
    return list(torch.split_with_sizes(kept, sizes))


def _flat_scores(method: Method, probe: Probe, layers: Sequence[Layer]) -> Tensor:
    """All scores in one finite float32 or float64 vector on the CPU."""
    scores = method.score(probe)
    broken = []
    for layer, score in zip(layers, scores, strict=True):
        if score.shape != layer.weight.shape:
            shapes = f"expected {tuple(layer.weight.shape)}, got {tuple(score.shape)}"
            raise ValueError(f"{method.name}: wrong shape of the scores of layer {layer.name!r}: {shapes}")
        if not torch.isfinite(score).all():
            broken.append(layer.name)
    if broken:
        raise ValueError(
            f"{method.name}: not finite: the scores of {', '.join(broken)}; look for NaN in `data` and for overflow in the model"
        )
    precise = torch.float64 if any(score.dtype is torch.float64 for score in scores) else torch.float32
    return torch.cat([score.detach().flatten().to("cpu", precise) for score in scores])
