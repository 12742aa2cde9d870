"""sparsify and densify: a whole network to sparse layers and back."""

from __future__ import annotations

import difflib
from collections.abc import Mapping

from torch import Tensor, nn

from tost_kernels.nn import batch_norm, conv2d, pad, pool
from tost_kernels.nn.dense_layer import carry_hooks, check_convertible
from tost_kernels.nn.sparse_conv2d import SparseConv2d
from tost_kernels.nn.sparse_linear import SparseLinear
from tost_kernels.nn.sparse_module import SparseModule
from tost_kernels.nn.surgery import duplicate, replace_modules
from tost_kernels.pattern import Pattern

# The layout keepers add no state to torch's classes, so a module changes its class and nothing else. Exact types only: a
# subclass of a user may do anything in its forward.
_KEEPERS: dict[type[nn.Module], type[nn.Module]] = {
    nn.Conv2d: conv2d.Conv2d,
    nn.BatchNorm2d: batch_norm.BatchNorm2d,
    nn.MaxPool2d: pool.MaxPool2d,
    nn.AvgPool2d: pool.AvgPool2d,
    nn.AdaptiveAvgPool2d: pool.AdaptiveAvgPool2d,
    nn.AdaptiveMaxPool2d: pool.AdaptiveMaxPool2d,
    nn.ZeroPad2d: pad.ZeroPad2d,
    nn.ConstantPad2d: pad.ConstantPad2d,
    nn.ReflectionPad2d: pad.ReflectionPad2d,
    nn.ReplicationPad2d: pad.ReplicationPad2d,
    nn.CircularPad2d: pad.CircularPad2d,
}
_PLAIN = {keeper: plain for plain, keeper in _KEEPERS.items()}


def sparsify(model: nn.Module, masks: Mapping[str, Tensor | Pattern], inplace: bool = False) -> nn.Module:
    """The network with sparse layers where `masks` says so: it computes what `model` computes with masked weights.

    masks: from module names (as in `model.named_modules()`; "" is the model itself) to masks of the shape of the module's
    weight, bool or 0/1, on any device, or to Patterns. The nn.Conv2d and nn.Linear named become SparseConv2d and SparseLinear,
    all others stay dense. Those Conv2d, BatchNorm2d, pools and pads keep the batch-last layout from now on. Names, training
    flags, `requires_grad` and hooks stay; pruning and parametrizations of the replaced weights end in their effective weight.
    A module used in two places stays shared. Biases stay the same Parameters, so ties between them stay.

    inplace: change `model` itself, else a copy. Where `model` itself is the layer, the layer returned is a new one anyway.
    An optimizer must be built after this, on the parameters of the result.

    Raises, before anything is changed: TypeError for a module that is neither Conv2d nor Linear or overrides their forward;
    ValueError for an unknown name (with the close ones), a wrong mask, a layer already sparse, a lazy layer that has seen no
    batch, two different masks for one shared module, and a weight that two modules share: a tied weight.
    """
    _check_module(model, "model")
    if not isinstance(masks, Mapping):
        raise TypeError(f"masks: expected a mapping of module names to tensors, got {type(masks).__name__}")
    patterns = _checked_patterns(model, masks)
    _refuse_tied(model, list(patterns))
    if not inplace:
        model = duplicate(model)
    modules = dict(model.named_modules(remove_duplicate=False))
    swaps = {modules[name]: _sparse_in_place_of(modules[name], pattern) for name, pattern in patterns.items()}
    model = replace_modules(model, swaps)
    _change_classes(model, _KEEPERS)
    return model


def densify(net: nn.Module, inplace: bool = False) -> nn.Module:
    """The plain torch network again: nn.Conv2d and nn.Linear with zeros where the masks prune, torch's own Conv2d, BatchNorm2d,
    pools and pads everywhere. Computes what `net` computes. Names, flags and hooks stay; an optimizer must be built anew.

    inplace: change `net` itself, else a copy. Where `net` itself is the layer, the layer returned is a new one anyway.
    """
    _check_module(net, "net")
    if not inplace:
        net = duplicate(net)
    layers = [module for module in net.modules() if isinstance(module, SparseModule)]
    swaps: dict[nn.Module, nn.Module] = {layer: _handed_over(layer, layer.to_dense()) for layer in layers}
    net = replace_modules(net, swaps)
    _change_classes(net, _PLAIN)
    return net


def _check_module(module: nn.Module, argument: str) -> None:
    if not isinstance(module, nn.Module):
        raise TypeError(f"{argument}: expected a torch.nn.Module, got {type(module).__name__}")


def _checked_patterns(model: nn.Module, masks: Mapping[str, Tensor | Pattern]) -> dict[str, Pattern]:
    modules = dict(model.named_modules(remove_duplicate=False))
    unknown = [name for name in masks if name not in modules]
    if unknown:
        layers = [name for name, module in modules.items() if isinstance(module, nn.Conv2d | nn.Linear)]
        raise ValueError(f"masks: the model has no module {unknown[0]!r}{_close(unknown[0], layers)}")
    patterns: dict[str, Pattern] = {}
    first_name: dict[nn.Module, str] = {}
    for name, mask in masks.items():
        module, label = modules[name], f"masks[{name!r}]"
        _check_layer(module, label)
        try:
            pattern = mask if isinstance(mask, Pattern) else Pattern(mask)
        except (TypeError, ValueError) as error:
            raise type(error)(f"{label}: {error}") from None
        weight = module.weight
        assert isinstance(weight, Tensor)
        if pattern.shape != tuple(weight.shape):
            raise ValueError(f"{label}: expected shape {tuple(weight.shape)}, that of the weight, got {pattern.shape}")
        other = first_name.setdefault(module, name)
        if patterns.get(other, pattern) != pattern:
            raise ValueError(f"masks: {other!r} and {name!r} are one shared module, but their masks differ")
        patterns[name] = pattern
    return patterns


def _check_layer(module: nn.Module, label: str) -> None:
    if isinstance(module, SparseModule):
        raise ValueError(f"{label}: the layer is a {type(module).__name__} already: densify the network first")
    if not isinstance(module, nn.Conv2d | nn.Linear):
        raise TypeError(f"{label}: expected an nn.Conv2d or nn.Linear in the model, got {type(module).__name__}")
    check_convertible(module, nn.Conv2d if isinstance(module, nn.Conv2d) else nn.Linear, label)


def _close(name: str, names: list[str]) -> str:
    close = difflib.get_close_matches(name, names, n=3, cutoff=0.5)
    if close:
        return "; close names: " + ", ".join(map(repr, close))
    return "; its Conv2d and Linear modules: " + (", ".join(map(repr, names[:5])) + ", ..." * (len(names) > 5) or "none")


def _refuse_tied(model: nn.Module, names: list[str]) -> None:
    """A sparse layer has a weight of its own: to make one of two tied weights sparse would silently untie them."""
    owners: dict[nn.Parameter, dict[nn.Module, str]] = {}
    for owner_name, owner in model.named_modules():
        for parameter in owner._parameters.values():
            if parameter is not None:
                owners.setdefault(parameter, {})[owner] = owner_name
    modules = dict(model.named_modules(remove_duplicate=False))
    for name in names:
        for parameter_name, parameter in modules[name].named_parameters():
            if "bias" not in parameter_name.split(".") and len(owners[parameter]) > 1:
                first, second = list(owners[parameter].values())[:2]
                raise ValueError(f"masks[{name!r}]: {first!r} and {second!r} share one weight: untie them first")


def _sparse_in_place_of(dense: nn.Module, pattern: Pattern) -> nn.Module:
    kind: type[SparseModule] = SparseConv2d if isinstance(dense, nn.Conv2d) else SparseLinear
    return _handed_over(dense, kind.from_dense(dense, pattern))


def _handed_over(old: nn.Module, new: nn.Module) -> nn.Module:
    """`old` is thrown away: its own bias and hook dictionaries go over, so ties and hook handles still hold."""
    carry_hooks(old, new, move=True)
    bias = old._parameters.get("bias")
    if bias is not None:
        new._parameters["bias"] = bias
    return new


def _change_classes(model: nn.Module, classes: dict[type[nn.Module], type[nn.Module]]) -> None:
    for module in model.modules():
        if type(module) in classes:
            module.__class__ = classes[type(module)]
        if isinstance(module, conv2d.Conv2d):
            module.compile_pattern()
