"""The forms in which a state_dict may hold a sparse layer's weight: our own, and those of torch.nn.utils."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from tost_kernels.pattern import Pattern


@dataclass(frozen=True)
class StoredWeight:
    """A dense weight from a state_dict, the mask beside it if there is one, and how they belong together."""

    key: str
    weight: Any
    mask: Any
    masked_on_use: bool  # torch.nn.utils.prune and parametrizations keep the unmasked original: weight = original * mask


def take_weight(state: dict[str, Any], prefix: str) -> StoredWeight | None:
    """Remove a layer's weight and mask from `state`, whichever form they have; None if there is no weight.

    Forms: `weight` with or without `weight_mask` (ours; a dense network's); `weight_orig` and `weight_mask`
    (torch.nn.utils.prune); `parametrizations.weight.original` and `parametrizations.weight.<i>.mask`.
    """
    return _take(state, prefix, "weight")


def fold_bias(state: dict[str, Any], prefix: str) -> None:
    """Turn a pruned or parametrized bias in `state` into a plain `bias` entry."""
    if prefix + "bias" in state:
        return
    stored = _take(state, prefix, "bias")
    if stored is not None:
        masked = isinstance(stored.mask, Tensor) and isinstance(stored.weight, Tensor)
        state[prefix + "bias"] = stored.weight * stored.mask.to(stored.weight.dtype) if masked else stored.weight


def _take(state: dict[str, Any], prefix: str, name: str) -> StoredWeight | None:
    parametrized = f"{prefix}parametrizations.{name}."
    parametrized_mask = re.compile(re.escape(parametrized) + r"\d+\.mask")
    plain_mask = f"{prefix}{name}_mask"
    for key in (prefix + name, f"{prefix}{name}_orig", parametrized + "original"):
        if key not in state:
            continue
        masks = [k for k in state if parametrized_mask.fullmatch(k)] if key.startswith(parametrized) else [plain_mask]
        mask_key = next((k for k in masks if k in state), None)
        mask = state.pop(mask_key) if mask_key is not None else None
        return StoredWeight(key, state.pop(key), mask, masked_on_use=key != prefix + name)
    return None


def count_off(weight: Tensor, pattern: Pattern) -> int:
    """How many entries of the dense `weight` are not zero where `pattern` keeps nothing. NaN is not zero."""
    nonzero = weight.detach().reshape(-1).to(pattern.device) != 0
    return int(nonzero.sum() - nonzero[pattern.positions].sum())


def pattern_of(stored: StoredWeight, current: Pattern, *, adopt: bool, layer: str) -> Pattern:
    """The pattern that a layer whose pattern is `current` has after loading `stored`.

    adopt: whether another pattern than `current` is accepted (load_state_dict(assign=True)). Raises ValueError naming
    `layer` if it is not, or if the stored weight contradicts its own mask.
    """
    weight = stored.weight
    if stored.mask is None:
        off = count_off(weight, current)
        if off == 0:
            return current
        if not adopt:
            pruned = weight.numel() - current.nnz
            raise ValueError(
                f"layer {layer!r}: the loaded {stored.key!r} is not zero at {off} of the {pruned} positions "
                "that this layer's mask prunes; load_state_dict(assign=True) would adopt its zeros as the new mask"
            )
        return Pattern(weight.detach() != 0)
    try:
        loaded = Pattern(stored.mask)
    except (TypeError, ValueError) as error:
        raise type(error)(f"layer {layer!r}: the loaded mask: {error}") from None
    if loaded.shape != current.shape:
        raise ValueError(f"layer {layer!r}: the loaded mask: expected shape {current.shape}, got {loaded.shape}")
    if loaded != current and not adopt:
        differ = int((loaded.mask() != current.mask().to(loaded.device)).sum())
        raise ValueError(
            f"layer {layer!r}: the loaded mask differs from this layer's at {differ} of {weight.numel()} positions "
            f"({loaded.nnz} kept there, {current.nnz} here); load_state_dict(assign=True) would adopt it"
        )
    off = 0 if stored.masked_on_use else count_off(weight, loaded)
    if off:
        raise ValueError(f"layer {layer!r}: the loaded {stored.key!r} is not zero at {off} positions that its own mask prunes")
    return current if loaded == current else loaded


def scatter(pattern: Pattern, values: Tensor) -> Tensor:
    """`pattern.scatter(values)`, on the meta device too."""
    return values.new_empty(pattern.shape) if values.is_meta else pattern.scatter(values)


def gather(pattern: Pattern, dense: Tensor) -> Tensor:
    """The kept entries of `dense` in new memory, on the device of `dense`, meta too."""
    if dense.is_meta:
        return torch.empty(pattern.nnz, dtype=dense.dtype, device="meta")
    return pattern.to(dense.device).gather(dense)
