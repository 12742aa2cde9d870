"""How many weights each layer keeps, out of a budget for the whole network. Integers only, so the sum is always exact."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import prod

from tost.checks import integer

Shapes = Sequence[Sequence[int]]
# (shapes of the weights, number to keep) -> number to keep in each; None: one competition over all layers
Distribution = Callable[[Shapes, int], "list[int] | None"]


def globally(shapes: Shapes, k: int) -> None:
    """All weights of the network compete for the k places: a layer keeps as many as it wins."""
    return None


def uniform(shapes: Shapes, k: int) -> list[int]:
    """The same density in every layer."""
    sizes = [prod(shape) for shape in shapes]
    return apportion(k, sizes, sizes)


def erk(shapes: Shapes, k: int) -> list[int]:
    """Erdős-Rényi-Kernel: density of a layer proportional to sum(shape) / prod(shape), at most 1.

    Small layers stay denser; those that would exceed density 1 are kept whole and the rest shares what is left
    (https://arxiv.org/abs/1911.11134).
    """
    return apportion(k, [sum(shape) for shape in shapes], [prod(shape) for shape in shapes])


def checked(quotas: Sequence[int], shapes: Shapes, k: int) -> list[int]:
    """What a distribution gave, as plain integers; ValueError unless they are one a layer, fit into it, and sum to `k`."""
    sizes = [prod(shape) for shape in shapes]
    given = [integer("distribution", quota, least=0) for quota in quotas]
    if len(given) != len(sizes) or sum(given) != k or any(q > size for q, size in zip(given, sizes, strict=True)):
        raise ValueError(f"distribution: expected numbers up to {sizes} that sum to {k}, got {given}")
    return given


def within(quotas: Sequence[int], least: Sequence[int], most: Sequence[int]) -> list[int]:
    """`quotas` with the same sum, but `least <= quota <= most` in each layer.

    Each is moved into its range; what that adds or takes away the other layers make up for in proportion to their room. For
    sum(least) <= sum(quotas) <= sum(most).
    """
    moved = [min(max(quota, low), high) for quota, low, high in zip(quotas, least, most, strict=True)]
    excess = sum(moved) - sum(quotas)
    if excess > 0:
        room = [quota - low for quota, low in zip(moved, least, strict=True)]
        return [quota - part for quota, part in zip(moved, apportion(excess, room, room), strict=True)]
    if excess < 0:
        room = [high - quota for quota, high in zip(moved, most, strict=True)]
        return [quota + part for quota, part in zip(moved, apportion(-excess, room, room), strict=True)]
    return moved


def apportion(k: int, weights: Sequence[int], capacities: Sequence[int]) -> list[int]:
    """Integers that sum to exactly `k`, proportional to `weights`, none above its capacity.

    A share above its capacity is cut to it and the rest is shared out again, until all fit. What rounding down leaves goes
    to the largest remainders, the first among equals.

    Args:
        k: 0 <= k <= sum(capacities).
        weights, capacities: integers, one a layer; a weight of 0 gets nothing.

    Raises:
        ValueError: `k` is out of its range, or more than the layers of positive weight hold.
    """
    if not 0 <= k <= sum(capacities):
        raise ValueError(f"k: expected 0 <= k <= {sum(capacities)}, got {k}")
    shares = list(capacities)
    free = list(range(len(weights)))
    left = k
    while free:
        whole = sum(weights[i] for i in free)
        if whole == 0 and left > 0:
            raise ValueError(f"weights: expected them positive where the capacities hold {k}, got {list(weights)}")
        # Cutting a layer leaves more for the others, so all that are too large now may be cut at once.
        full = {i for i in free if left * weights[i] > capacities[i] * whole}
        if not full:
            for i in free:
                shares[i] = left * weights[i] // max(whole, 1)
            # Stable sort: the first among equal remainders. A remainder of 0 never gets one, so no capacity is exceeded.
            by_remainder = sorted(free, key=lambda i: -(left * weights[i] % max(whole, 1)))
            for i in by_remainder[: left - sum(shares[i] for i in free)]:
                shares[i] += 1
            break
        left -= sum(capacities[i] for i in full)
        free = [i for i in free if i not in full]
    return shares
