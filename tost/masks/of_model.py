"""Reading the masks out of a network, and masking a dense network."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, TypeVar, cast

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize
from torch.nn.utils import prune as torch_prune

from tost.choices import check_choice
from tost.masks.layers import is_sparse, masked_modules
from tost_kernels.nn.surgery import duplicate

ModelT = TypeVar("ModelT", bound=nn.Module)


def read_masks(
    model: nn.Module, include: str | Sequence[str] | None = None, exclude: str | Sequence[str] | None = None
) -> dict[str, Tensor]:
    """Module name -> mask of the weight's shape (bool, or 0/1), for each layer that can have one; see `Masks.from_model`."""
    modules = masked_modules(model, include, exclude)
    for name, module in model.named_modules():
        # an `include` says that the others are not wanted
        if include is None and "weight_mask" in module._buffers and not isinstance(module, (nn.Conv2d, nn.Linear)):
            raise ValueError(f"model: {name!r} is a {type(module).__name__} with a mask; masks are for Conv2d and Linear alone")
    with torch.no_grad():
        return {name: _mask_of(module) for name, module in modules.items()}


def _mask_of(module: nn.Module) -> Tensor:
    if is_sparse(module):
        return cast(Tensor, module.mask)
    if "weight_orig" in module._parameters and isinstance(module._buffers.get("weight_mask"), Tensor):
        return cast(Tensor, module.weight_mask)
    weight = cast(Tensor, module.weight)
    if parametrize.is_parametrized(module, "weight"):
        steps = cast(Any, module).parametrizations["weight"]
        masks = [step.mask for step in steps if isinstance(getattr(step, "mask", None), Tensor)]
        fitting = [mask != 0 for mask in masks if mask.shape == weight.shape]
        if fitting:
            return torch.stack(fitting).all(0)
    return weight != 0


FORMS = ("prune", "parametrization", "zeros")


class Masked(nn.Module):
    """A parametrization: `weight * mask`."""

    mask: Tensor

    def __init__(self, mask: Tensor) -> None:
        super().__init__()
        self.register_buffer("mask", mask)

    def forward(self, weight: Tensor) -> Tensor:
        return weight * self.mask

    def right_inverse(self, weight: Tensor) -> Tensor:
        return weight


def apply_masks(model: ModelT, masks: Mapping[str, Tensor], inplace: bool = False, form: str = "prune") -> ModelT:
    """Mask the named layers; see `Masks.apply_to`."""
    check_choice("form", form, FORMS)
    if not isinstance(model, nn.Module):
        raise TypeError(f"model: expected an nn.Module, got {type(model).__name__}")
    modules = dict(model.named_modules(remove_duplicate=False))
    seen: dict[nn.Module, str] = {}
    for name, mask in masks.items():  # everything is checked before anything is changed
        module = modules.get(name)
        if module is None:
            raise ValueError(f"model: has no module {name!r}, for which there is a mask")
        if not isinstance(module, (nn.Conv2d, nn.Linear)) or is_sparse(module):
            raise TypeError(f"model: expected a Conv2d or Linear at {name!r}, got {type(module).__name__}")
        weight = module._parameters.get("weight")
        if weight is None:
            raise ValueError(f"model: the weight of {name!r} is pruned or parametrized already, not a plain parameter")
        if weight.shape != mask.shape:
            raise ValueError(f"model: the mask of {name!r} has shape {tuple(mask.shape)}, its weight {tuple(weight.shape)}")
        if module in seen:
            raise ValueError(f"model: {name!r} and {seen[module]!r} are one module, but have a mask each")
        seen[module] = name
    if not inplace:
        model = duplicate(model)
    for name, mask in masks.items():
        module = model.get_submodule(name)
        dense = cast(Tensor, module.weight)
        mask = mask.to(dense.device)
        if form == "prune":
            cast(Any, torch_prune.custom_from_mask)(module, "weight", mask)  # torch does not type it; it makes its own copy
        elif form == "parametrization":
            parametrize.register_parametrization(module, "weight", Masked(mask.clone()))
        else:
            with torch.no_grad():
                dense.masked_fill_(~mask, 0)  # a NaN would survive a product
    return model
