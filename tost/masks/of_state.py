"""Masks out of names and tensors: a state_dict, or the file of another program."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from tost.masks.layers import choose

_PRUNED = ".weight_mask"
_PLAIN = ".weight"
_PARAMETRIZED = re.compile(r"(.+)\.parametrizations\.weight\.\d+\.mask")


def named_by_module(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The masks among the tensors of a file, under the names of the modules; what they hold is not looked at.

    Names are "layer", "layer.weight" or "layer.weight_mask"; where there are any of the last kind, they alone are masks. A
    one-dimensional tensor of ones, which prunes nothing of a bias or a normalisation, is left out.
    """
    pruned = {name: tensor for name, tensor in tensors.items() if name.endswith(_PRUNED)}
    found: dict[str, Tensor] = {}
    for name, tensor in (pruned or tensors).items():
        module = name.removesuffix(_PRUNED).removesuffix(_PLAIN)
        if tensor.dim() == 1 and bool((tensor == 1).all()):
            continue
        if module in found:
            raise ValueError(f"expected one mask for each layer, got two for {module!r}")
        found[module] = tensor
    return found


def masks_in_state(
    state: Mapping[str, Any], include: str | Sequence[str] | None = None, exclude: str | Sequence[str] | None = None
) -> dict[str, Tensor]:
    """Module name -> mask (bool, or 0/1); see `Masks.from_state_dict`."""
    if not isinstance(state, Mapping):
        raise TypeError(f"state: expected a mapping of names to tensors, got {type(state).__name__}")
    found: dict[str, list[Tensor]] = {}
    plain: dict[str, Tensor] = {}
    for name, tensor in state.items():
        if not isinstance(name, str) or not isinstance(tensor, Tensor):
            continue  # get_extra_state hands out anything
        parametrized = _PARAMETRIZED.fullmatch(name)
        if name.endswith(_PRUNED) and tensor.dim() not in (2, 4) and include is None:  # an `include` says which are wanted
            raise ValueError(f"state: expected masks of two or four dimensions, got shape {tuple(tensor.shape)} for {name!r}")
        if name.endswith(_PRUNED) and tensor.dim() in (2, 4):
            found[name.removesuffix(_PRUNED)] = [tensor]
        elif parametrized is not None:
            found.setdefault(parametrized[1], []).append(tensor)
        elif name.endswith(_PLAIN) and tensor.dim() in (2, 4):
            plain[name.removesuffix(_PLAIN)] = tensor
    names = list(dict.fromkeys(_layer_of(name) for name in state))
    masks = {name: _all(found[name]) if name in found else plain[name] != 0 for name in names if name in found or name in plain}
    if not masks:
        raise ValueError(
            f"state: expected weights of two or four dimensions, or masks of them, found none among {len(state)} names"
        )
    chosen = choose({name: [name] for name in masks}, include, exclude)
    return {name: masks[name] for name in chosen}


def _layer_of(name: object) -> str:
    """The module that an entry belongs to."""
    text = str(name)
    parametrized = _PARAMETRIZED.fullmatch(text)
    return parametrized[1] if parametrized is not None else text.rpartition(".")[0]


def _all(masks: Sequence[Tensor]) -> Tensor:
    """Several parametrizations: kept where all keep."""
    return masks[0] if len(masks) == 1 else torch.stack([mask != 0 for mask in masks]).all(0)
