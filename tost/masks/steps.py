"""The steps of a method: score, distribute, select; and the record of each."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import chain
from math import prod

import torch
from torch import Tensor

from tost.masks.distributions import checked, within
from tost.masks.layers import Layer
from tost.masks.masks import Masks
from tost.masks.methods import Method
from tost.masks.probe import Probe
from tost.masks.schedules import targets
from tost.masks.selection import keep_largest, per_layer

__all__ = ["PruneStep", "flat_scores", "steps"]


@dataclass(frozen=True)
class PruneStep:
    """What one step of `prune` did.

    Attributes:
        number: of this step, from 1.
        steps: how many there are.
        kept: weights kept after it.
        pruned: weights that the step before kept (at the first step: all) and this one does not.
        recovered: weights that the step before did not keep and this one does; 0 for methods without recovery.
        seconds: what the step took.
        scores: of all weights, flat, as they were compared: -inf where the weight did not compete. The next step overwrites them.
        masks: what is kept after it; made when it is first read.
    """

    number: int
    steps: int
    kept: int
    pruned: int
    recovered: int
    seconds: float
    scores: Tensor = field(repr=False, compare=False)
    _make_masks: Callable[[], Masks] = field(repr=False, compare=False)

    @cached_property
    def masks(self) -> Masks:
        return self._make_masks()


def steps(
    method: Method, probe: Probe, layers: Sequence[Layer], density: float, k: int, allowed: Tensor | None = None
) -> Iterator[PruneStep]:
    """Runs a method on the weights of `layers`; after the last step exactly `k` are kept, all of them `allowed` (flat, bool)."""
    names, shapes = [layer.name for layer in layers], [tuple(layer.weight.shape) for layer in layers]
    sizes = [prod(shape) for shape in shapes]
    final = method.distribution(shapes, k)
    least = [0] * len(sizes) if final is None else checked(final, shapes, k)
    if allowed is not None:
        least = [min(pair) for pair in zip(least, _counts(allowed, sizes), strict=True)]
    kept = torch.ones(sum(sizes), dtype=torch.bool, device="cpu") if allowed is None else allowed
    number_kept = int(kept.count_nonzero())
    counts = [min(count, number_kept) for count in targets(method.schedule, method.steps, density, sum(sizes), k)]
    scores: Tensor | None = None

    def masks(of: Tensor) -> Masks:
        parts = zip(names, of.split_with_sizes(sizes), shapes, strict=True)
        return Masks({name: part.reshape(shape) for name, part, shape in parts})

    for number, count in enumerate(counts, 1):
        began = time.perf_counter()
        before, number_before = kept, number_kept
        # Without recovery there may be nothing to remove: no scores are needed then.
        if number == 1 or method.recover or count < number_before:
            if number > 1 or allowed is not None:
                probe.mask(before.split_with_sizes(sizes))
            probe.keep = count
            # Without recovery removed weights do not compete: they never return, whatever their score.
            competing = allowed if method.recover else before
            scores = flat_scores(method, probe, layers, competing, into=scores)
            kept, number_kept = _select(method, scores, shapes, count, least, competing), count
        assert scores is not None, "the first step makes them"
        recovered = int((kept & ~before).count_nonzero()) if method.recover else 0
        pruned = number_before - number_kept + recovered
        seconds = time.perf_counter() - began
        yield PruneStep(number, method.steps, count, pruned, recovered, seconds, scores, lambda of=kept: masks(of))  # type: ignore[misc]


def _select(
    method: Method, scores: Tensor, shapes: Sequence[tuple[int, ...]], count: int, least: Sequence[int], competing: Tensor | None
) -> Tensor:
    """The `count` weights to keep by their flat scores, as one flat bool mask.

    Weights that are not `competing` have the score -inf. A layer keeps at most those that are, at least what the distribution
    gives it in the last step (`least`). So without recovery it only ever loses weights, down to exactly that number.
    """
    sizes = [prod(shape) for shape in shapes]
    quotas = method.distribution(shapes, count)
    if quotas is None:
        winners = keep_largest(scores, count)
        if method.selection is per_layer:
            return winners  # they are the best of their layers already
        quotas = _counts(winners, sizes)
    else:
        quotas = checked(quotas, shapes, count)
        if competing is not None:
            quotas = within(quotas, least, _counts(competing, sizes))
    kept = []
    for part, shape, quota in zip(scores.split_with_sizes(sizes), shapes, quotas, strict=True):
        mask = method.selection(part.reshape(shape), quota)
        if mask.shape != shape or mask.dtype is not torch.bool or int(mask.count_nonzero()) != quota:
            raise ValueError(f"selection: expected a bool mask of shape {shape} with {quota} True, got {_described(mask)}")
        kept.append(mask.flatten())
    together = torch.cat(kept)
    if competing is not None and bool((together & ~competing).any()):
        raise ValueError("selection: it kept a weight whose score is -inf, one that does not compete")
    return together


def _counts(flat: Tensor, sizes: list[int]) -> list[int]:
    return [int(part.count_nonzero()) for part in flat.split_with_sizes(sizes)]


def _described(mask: Tensor) -> str:
    return f"{mask.dtype} of shape {tuple(mask.shape)} with {int(mask.count_nonzero())}"


def _one_each(method: Method, probe: Probe, layers: Sequence[Layer]) -> Iterator[Tensor]:
    """The scores that a method gives, checked for being a tensor a layer, of the weight's shape."""
    given = method.score(probe)
    if not isinstance(given, Iterable):
        raise TypeError(f"{method.name}: expected its score to give a tensor for each layer, got {type(given).__name__}")
    number = 0
    for number, score in enumerate(given, 1):
        if not isinstance(score, Tensor) or number > len(layers):
            got = f"tensor number {number}" if isinstance(score, Tensor) else type(score).__name__
            raise TypeError(f"{method.name}: expected its score to give a tensor for each of {len(layers)} layers, got {got}")
        layer = layers[number - 1]
        if score.shape != layer.weight.shape:
            shapes = f"expected {tuple(layer.weight.shape)}, got {tuple(score.shape)}"
            raise ValueError(f"{method.name}: wrong shape of the scores of layer {layer.name!r}: {shapes}")
        yield score
    if number < len(layers):
        raise TypeError(f"{method.name}: expected its score to give a tensor for each of {len(layers)} layers, got {number}")


def flat_scores(
    method: Method, probe: Probe, layers: Sequence[Layer], competing: Tensor | None = None, into: Tensor | None = None
) -> Tensor:
    """All scores, finite, in one float32 or float64 vector on the CPU: in the memory of `into`, if it suits.

    -inf where the flat bool vector `competing` is False.
    """
    sizes = [layer.weight.numel() for layer in layers]
    scores = _one_each(method, probe, layers)
    first = next(scores)
    precise = torch.float64 if first.dtype is torch.float64 else torch.float32
    flat = into if into is not None and into.dtype is precise else torch.empty(sum(sizes), dtype=precise, device="cpu")
    broken = []
    end = 0
    for layer, size, score in zip(layers, sizes, chain([first], scores), strict=True):
        if score.dtype is torch.float64:
            flat = flat.double()
        begin, end = end, end + size
        score = score.detach().flatten().to("cpu", flat.dtype)
        if not torch.isfinite(torch.stack(torch.aminmax(score))).all():  # NaN is handed on to both
            broken.append(layer.name)
        if competing is None:
            flat[begin:end] = score
        else:
            torch.where(competing[begin:end], score, score.new_tensor(-torch.inf), out=flat[begin:end])
    if broken:
        raise ValueError(
            f"{method.name}: not finite: the scores of {', '.join(broken)}; look for NaN in `data` and for overflow in the model"
        )
    return flat
