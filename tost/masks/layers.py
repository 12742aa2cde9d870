"""Which layers of a network can be pruned."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from fnmatch import fnmatchcase
from typing import NamedTuple

from torch import Tensor, nn
from torch.nn.parameter import Parameter, UninitializedParameter

from tost_kernels.nn import SparseConv2d, SparseLinear


class Layer(NamedTuple):
    """A Conv2d or Linear of a network, under its first name there."""

    name: str
    module: nn.Module
    weight: Parameter


def prunable_layers(
    model: nn.Module, include: str | Sequence[str] | None = None, exclude: str | Sequence[str] | None = None
) -> list[Layer]:
    """Every Conv2d and Linear (stem, shortcuts and classifier too) in the order of `model.named_modules()`.

    A module that the network uses twice counts once. Raises for a layer that has no plain weight of its own to prune:
    sparse already, pruned or parametrized, not initialised yet, on the meta device, or tied to another module's parameter.
    """
    modules = masked_modules(model, include, exclude)
    layers = [Layer(name, module, _plain_weight(name, module)) for name, module in modules.items()]
    _refuse_ties(model, layers)
    return layers


def is_sparse(module: nn.Module) -> bool:
    """Whether `module` is one of our layers that hold only their kept weights."""
    return isinstance(module, (SparseConv2d, SparseLinear))


def masked_modules(
    model: nn.Module, include: str | Sequence[str] | None = None, exclude: str | Sequence[str] | None = None
) -> dict[str, nn.Module]:
    """Conv2d, Linear and their sparse forms, those that `include` (default: all) names and `exclude` does not, by first name."""
    if not isinstance(model, nn.Module):
        raise TypeError(f"model: expected an nn.Module, got {type(model).__name__}")
    if _takes_mask(model):
        raise ValueError(f"model: a lone {type(model).__name__} has no name; put it into an nn.Sequential")
    aliases: dict[nn.Module, list[str]] = {}
    for name, module in model.named_modules(remove_duplicate=False):
        if _takes_mask(module):
            aliases.setdefault(module, []).append(name)
    if not aliases:
        raise ValueError("model: expected at least one Conv2d or Linear, found none")
    modules = {names[0]: module for module, names in aliases.items()}
    return {name: modules[name] for name in choose({names[0]: names for names in aliases.values()}, include, exclude)}


def choose(
    layers: Mapping[str, Sequence[str]], include: str | Sequence[str] | None, exclude: str | Sequence[str] | None
) -> list[str]:
    """Those of the layers (name -> all its names) that `include` (default: all) names and `exclude` does not, in their order."""
    names = [name for group in layers.values() for name in group]
    included = set(names) if include is None else matched("include", include, names)
    excluded = set() if exclude is None else matched("exclude", exclude, names)
    chosen = [name for name, group in layers.items() if not included.isdisjoint(group) and excluded.isdisjoint(group)]
    if not chosen:
        raise ValueError(f"include, exclude: no layer is left to prune, of {', '.join(names)}")
    return chosen


def _takes_mask(module: nn.Module) -> bool:
    return isinstance(module, (nn.Conv2d, nn.Linear)) or is_sparse(module)


def matched(argument: str, patterns: str | Sequence[str], names: Sequence[str]) -> set[str]:
    """Those of `names` that some pattern (a name, or as in `fnmatch`) means. ValueError: a pattern means none."""
    patterns = [patterns] if isinstance(patterns, str) else list(patterns)
    matched: set[str] = set()
    for pattern in patterns:
        if not isinstance(pattern, str):
            raise TypeError(f"{argument}: expected patterns as strings, got {pattern!r}")
        hits = {name for name in names if name == pattern or fnmatchcase(name, pattern)}  # a name may hold brackets
        if not hits:  # most likely a typo, which would silently prune too much or too little
            raise ValueError(f"{argument}: pattern {pattern!r} matches no layer; the layers are {', '.join(names)}")
        matched |= hits
    return matched


def _plain_weight(name: str, module: nn.Module) -> Parameter:
    if is_sparse(module):
        raise ValueError(f"model: layer {name!r} is a {type(module).__name__} already; use tost_kernels.densify(model) first")
    weight = module._parameters.get("weight")
    if weight is None:
        raise ValueError(
            f"model: the weight of layer {name!r} is pruned or parametrized, not a plain parameter; make it permanent first "
            f"(torch.nn.utils.prune.remove or torch.nn.utils.parametrize.remove_parametrizations), or exclude the layer"
        )
    if isinstance(weight, UninitializedParameter):
        raise ValueError(f"model: layer {name!r} is lazy and not initialised; run one batch through the model first")
    if weight.is_meta:
        raise ValueError(f"model: layer {name!r} is on the meta device and has no values; materialise the model first")
    if not weight.is_floating_point():
        raise TypeError(f"model: layer {name!r}: expected a floating-point weight, got {weight.dtype}")
    if weight.numel() == 0:
        raise ValueError(f"model: layer {name!r} has an empty weight of shape {tuple(weight.shape)}; exclude it")
    return weight


def _refuse_ties(model: nn.Module, layers: Sequence[Layer]) -> None:
    """A mask on one of two tied weights would silently prune the other; two masks could contradict each other."""
    owners: dict[tuple[object, ...], list[str]] = {}
    for name, module in model.named_modules():
        for key, parameter in module._parameters.items():
            if parameter is not None:
                owners.setdefault(_place(parameter), []).append(f"{name}.{key}" if name else key)
    for layer in layers:
        names = owners[_place(layer.weight)]
        if len(names) > 1:
            raise ValueError(f"model: tied weights cannot be pruned: {' and '.join(names)} are one; untie or exclude them")


def _place(parameter: Tensor) -> tuple[object, ...]:
    if isinstance(parameter, UninitializedParameter) or parameter.is_meta or parameter.numel() == 0:
        return (id(parameter),)
    return (parameter.device, parameter.data_ptr())  # `Parameter(other.data)` is a tie as well
