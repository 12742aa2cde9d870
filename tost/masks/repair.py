"""Masks in which every layer has a part in what the network computes: at least one weight on a path from input to output.

A layer without any cuts the network, or a branch of it, in two: what stands in the other layers is then lost as well
(https://arxiv.org/abs/2006.05467 calls it layer collapse).
"""

from __future__ import annotations

import bisect
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from tost.masks.effective import Paths

MaskDict = dict[str, Tensor]


def dead_layers(paths: Paths, masks: Mapping[str, Tensor]) -> tuple[str, ...]:
    """Names of the layers none of whose weights lie on a path from an input to an output."""
    return tuple(name for name, mask in paths.through(masks).items() if not mask.any())


def keep_alive(paths: Paths, masks: Mapping[str, Tensor], scores: Mapping[str, Sequence[Tensor]]) -> MaskDict:
    """As many weights as in `masks`, at least one of each layer on a path from an input to an output.

    Layers that have none get the best weights that give them one, as few as possible; as many go, the worst of those that no
    layer needs. Where nothing is wrong, the masks come back as they are. A layer that is on no path of the dense network
    (the model does not use it) is left as it is.

    Args:
        paths: of the network.
        masks: layer -> bool tensor.
        scores: layer -> tensors of the mask's shape; of two weights the one with the larger first number is better, where
            they are equal that with the larger second one, and so on; among equals the first.

    Raises:
        ValueError: there are too few weights.
    """
    dense = {name: torch.ones_like(mask) for name, mask in masks.items()}
    needed = masks.keys() - dead_layers(paths, dense)

    def alive(candidate: Mapping[str, Tensor]) -> bool:
        return needed.isdisjoint(dead_layers(paths, candidate))

    result = {name: mask.clone() for name, mask in masks.items()}
    dead = [name for name in dead_layers(paths, result) if name in needed]
    if not dead:
        return result
    kept = sum(int(mask.sum()) for mask in masks.values())
    if kept < len(needed):
        raise ValueError(_too_few(kept, len(needed), "at least one in each"))
    # All weights of the dead layers are there at first; if that is not enough, because the others feed channels that these do not
    # read, all weights of all layers.
    for opened in (dead, list(masks)):
        full = {**result, **{name: dense[name] for name in opened}}
        if alive(full):
            break
    for name in opened:
        result[name] = _closed(paths, full, name, result[name], scores[name], alive)
        full[name] = result[name]
    _take_away(result, masks, sum(int(mask.sum()) for mask in result.values()) - kept, scores, alive)
    left = sum(int(mask.sum()) for mask in result.values())
    if left > kept:
        raise ValueError(_too_few(kept, len(needed), f"this choice of them needs {left:,}"))
    return result


def _too_few(kept: int, layers: int, why: str) -> str:
    return f"keep_alive: {kept:,} weights cannot keep {layers} layers alive, {why}; expected a higher density"


def _closed(
    paths: Paths,
    full: MaskDict,
    name: str,
    mask: Tensor,
    scores: Sequence[Tensor],
    alive: Callable[[Mapping[str, Tensor]], bool],
) -> Tensor:
    """`mask` with the fewest and best weights of layer `name` that, in the place of full[name], leave every layer alive."""

    def with_best(count: int, of: np.ndarray[Any, Any]) -> Tensor:
        added = mask.flatten().clone()
        added[torch.from_numpy(of[:count])] = True
        return added.reshape(mask.shape)

    while not alive({**full, name: mask}):
        useful = (paths.through(full)[name] & ~mask).flatten().nonzero().flatten().numpy()
        if len(useful) == 0:
            raise ValueError(f"model: no weight of layer {name!r} lies on a path, though without it others lie on none")
        order = useful[_best_first([score.flatten().numpy()[useful] for score in scores])]
        # All of them would do. The shortest beginning of the list that does is as good as always the very first.
        count = 1
        while count < len(order) and not alive({**full, name: with_best(count, order)}):
            count *= 2
        shortest = bisect.bisect_left(
            range(count), True, lo=count // 2 + 1, key=lambda n: alive({**full, name: with_best(n, order)})
        )
        mask = with_best(1, order[min(shortest, len(order)) - 1 :])
    return mask


def _take_away(
    result: MaskDict,
    before: Mapping[str, Tensor],
    count: int,
    scores: Mapping[str, Sequence[Tensor]],
    alive: Callable[[Mapping[str, Tensor]], bool],
) -> None:
    """Remove `count` weights from `result`, the worst first; those without which a layer would die stay, as far as possible."""
    names = list(result)
    places = [mask.flatten().nonzero().flatten().numpy() for mask in result.values()]
    layers = np.repeat(np.arange(len(names)), [len(place) for place in places])
    kinds = len(scores[names[0]])
    keys = [
        np.concatenate([scores[n][kind].flatten().numpy()[p] for n, p in zip(names, places, strict=True)])
        for kind in range(kinds)
    ]
    # what was added last goes last
    old = np.concatenate([before[n].flatten().numpy()[p] for n, p in zip(names, places, strict=True)])
    positions = np.concatenate(places)
    order = _best_first([~old, *keys])[::-1]

    def without(gone: np.ndarray[Any, Any]) -> MaskDict:
        less = {name: mask.clone() for name, mask in result.items()}
        for layer in np.unique(layers[gone]):
            less[names[layer]].view(-1)[torch.from_numpy(positions[gone[layers[gone] == layer]])] = False
        return less

    start = 0
    while count and start < len(order):
        batch = order[start : start + count]
        # the first weights of the list that can go together; the next one is needed
        some = bisect.bisect_left(range(1, len(batch) + 1), True, key=lambda n: not alive(without(batch[:n])))
        result.update(without(batch[:some]))
        count -= some
        start += some + 1


def _best_first(keys: Sequence[np.ndarray[Any, Any]]) -> np.ndarray[Any, Any]:
    """Indices in falling order of the first key, then the second, ...; among equals the first."""
    return np.lexsort([-key.astype(np.float64) for key in reversed(keys)])
