"""What a dense layer hands over when it becomes a sparse one, or comes back: tensors and hooks."""

from __future__ import annotations

from collections import OrderedDict
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.lazy import LazyModuleMixin
from torch.nn.utils.parametrize import is_parametrized
from torch.nn.utils.prune import BasePruningMethod

from tost_kernels.nn.conv2d import Conv2d

_HOOKS = (
    "_forward_pre_hooks", "_forward_pre_hooks_with_kwargs", "_forward_hooks", "_forward_hooks_with_kwargs",
    "_forward_hooks_always_called", "_backward_pre_hooks", "_backward_hooks", "_state_dict_pre_hooks", "_state_dict_hooks",
    "_load_state_dict_post_hooks",
)  # fmt: skip


def effective(layer: nn.Module, name: str) -> Tensor | None:
    """The tensor `name` that `layer` computes with: pruned, parametrized, or simply stored. None if it has none.

    Requires grad if what it is computed from does. torch.nn.utils.prune refreshes its attribute in forward only, so that
    one is computed afresh: after an optimizer step the attribute is out of date.
    """
    with torch.enable_grad():
        original, mask = layer._parameters.get(f"{name}_orig"), layer._buffers.get(f"{name}_mask")
        if original is not None and mask is not None:
            return original * mask.to(original.dtype)
        tensor = getattr(layer, name)
    return tensor  # type: ignore[no-any-return]


def check_convertible(layer: nn.Module, expected: type[nn.Module], label: str) -> None:
    """Raise, naming `label`, unless a sparse layer can take the place of `layer`.

    expected: nn.Conv2d or nn.Linear. TypeError: another kind of layer, or a subclass that computes something else.
    ValueError: a layer of the right kind in a state that cannot be taken over.
    """
    if not isinstance(layer, expected):
        raise TypeError(f"{label}: expected a torch.nn.{expected.__name__}, got {type(layer).__name__}")
    computes = expected if type(layer) is Conv2d else type(layer)  # ours keeps a layout, and computes the same
    for method in ("forward", "_conv_forward"):
        if method in vars(layer) or getattr(computes, method, None) is not getattr(expected, method, None):
            raise TypeError(
                f"{label}: {type(layer).__name__} overrides {method} of torch.nn.{expected.__name__}: a sparse layer would "
                "not compute what it computes"
            )
    if isinstance(layer, LazyModuleMixin) and layer.has_uninitialized_params():
        raise ValueError(f"{label}: {type(layer).__name__} has no weight yet: run one batch through the network first")
    for hook in layer._forward_pre_hooks.values():
        # The hook forms of weight_norm and spectral_norm compute the weight from tensors that a sparse layer does not have.
        if type(hook).__module__.startswith("torch.nn.utils.") and not isinstance(hook, BasePruningMethod):
            name = type(hook).__name__
            raise ValueError(f"{label}: its weight is recomputed at every forward: remove {name} (torch.nn.utils) first")
    # A parametrization's own (they read its older forms) are left behind with it.
    if layer._load_state_dict_pre_hooks and not is_parametrized(layer):
        raise ValueError(f"{label}: its load_state_dict pre-hooks are bound to the dense layer: remove them first")


def carry_hooks(old: nn.Module, new: nn.Module, *, move: bool) -> None:
    """Give `new` the forward, backward and state_dict hooks of `old`, those of torch.nn.utils.prune excepted.

    move: hand over the very dictionaries, so that the handles which the registrations returned still remove their hooks
    (right when `old` is thrown away); else copy them.
    """
    for name in _HOOKS:
        hooks: OrderedDict[int, Any] = getattr(old, name)
        vars(new)[name] = hooks if move else hooks.copy()
    vars(new)["_is_full_backward_hook"] = old._is_full_backward_hook
    for key, hook in list(new._forward_pre_hooks.items()):
        if isinstance(hook, BasePruningMethod):
            del new._forward_pre_hooks[key]
