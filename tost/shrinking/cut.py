"""What is left of each layer, and cutting the rest out of the modules themselves, so that class, hooks and names stay."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from tost.shrinking.layers import form_of, geometry, is_norm
from tost_kernels.nn import Conv2d, SparseModule
from tost_kernels.pattern import Pattern

__all__ = ["Cut", "cut_out"]


@dataclass(frozen=True)
class Cut:
    """What one layer keeps.

    inputs, outputs: the places that stay, ascending. of: how many inputs and outputs there were. groups: how many are left.
    bias: whether there is a bias now, maybe one that was not there before.
    """

    inputs: tuple[int, ...]
    outputs: tuple[int, ...]
    of: tuple[int, int]
    groups: int = 1
    bias: bool = True

    def weight(self, dense: Tensor) -> Tensor:
        """Of a tensor (outputs, inputs / groups, ...), a weight or a mask, what stays, in the same memory format."""
        left = dense.detach()[torch.tensor(self.outputs, device=dense.device)]
        if dense.shape[1] == self.of[0]:  # else whole groups, whose filters read all of their own inputs
            left = left[:, torch.tensor(self.inputs, device=dense.device)]
        return left.contiguous(memory_format=_memory_format(dense))


def _memory_format(tensor: Tensor) -> torch.memory_format:
    for rank, channels_last in ((4, torch.channels_last), (5, torch.channels_last_3d)):
        if tensor.dim() == rank and tensor.is_contiguous(memory_format=channels_last) and not tensor.is_contiguous():
            return channels_last
    return torch.contiguous_format


@torch.no_grad()
def cut_out(net: nn.Module, cuts: Mapping[str, Cut], added: Mapping[str, Tensor]) -> None:
    """Cuts the layers of `net`, by their paths; parameters become new ones.

    added: layer -> what its bias gains, float64 (outputs that stay,).
    """
    for path, cut in cuts.items():
        module: Any = net.get_submodule(path)
        if is_norm(module):
            _cut_vectors(module, ("weight", "bias", "running_mean", "running_var"), cut.outputs)
            module.num_features = len(cut.outputs)
            continue
        _cut_weight(module, cut)
        _cut_vectors(module, ("bias",), cut.outputs)
        gain = added.get(path)
        if cut.bias and (module.bias is None or gain is not None):
            _add_to_bias(module, len(cut.outputs), gain)
        for name, count in zip(geometry(module), (len(cut.inputs), len(cut.outputs)), strict=True):
            setattr(module, name, count)
        if hasattr(module, "groups"):
            module.groups = cut.groups
        if isinstance(module, Conv2d):
            module.compile_pattern()


def _cut_vectors(module: nn.Module, names: Sequence[str], places: Sequence[int]) -> None:
    for name in names:
        value = getattr(module, name)
        if value is None:
            continue
        left = value.detach()[torch.tensor(places, device=value.device)]
        if name in module._buffers:
            module._buffers[name] = left
        else:
            module._parameters[name] = nn.Parameter(left, value.requires_grad)


def _cut_weight(module: Any, cut: Cut) -> None:
    form = form_of(module)
    if form == "sparse":
        sparse: SparseModule = module
        weight, flag = cut.weight(sparse.weight), sparse.values.requires_grad
        sparse.pattern = Pattern(cut.weight(sparse.mask))
        sparse.values = nn.Parameter(sparse.pattern.gather(weight), flag)
    elif form == "prune":
        original = module._parameters["weight_orig"]
        module._parameters["weight_orig"] = nn.Parameter(cut.weight(original), original.requires_grad)
        module._buffers["weight_mask"] = cut.weight(module._buffers["weight_mask"])
        for hook in module._forward_pre_hooks.values():
            if isinstance(getattr(hook, "mask", None), Tensor):  # of torch's CustomFromMask
                hook.mask = module._buffers["weight_mask"]
        module.weight = module._parameters["weight_orig"] * module._buffers["weight_mask"]  # the hook refreshes it
    elif form == "parametrization":
        steps = module.parametrizations["weight"]
        steps._parameters["original"] = nn.Parameter(cut.weight(steps.original), steps.original.requires_grad)
        for step in steps:
            step._buffers["mask"] = cut.weight(step.mask)
    else:
        module._parameters["weight"] = nn.Parameter(cut.weight(module.weight), module.weight.requires_grad)


def _add_to_bias(module: nn.Module, outputs: int, gain: Tensor | None) -> None:
    like = next(module.parameters())
    old: Any = module.bias
    bias = torch.zeros(outputs, dtype=torch.float64) if old is None else old.detach().cpu().double()
    bias = bias if gain is None else bias + gain
    flag = like.requires_grad if old is None else old.requires_grad
    module.register_parameter("bias", nn.Parameter(bias.to(like.device, like.dtype), flag))
