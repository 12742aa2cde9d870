"""The layers that can be made smaller, as numbers: which input reaches which output, and what a constant input adds to it."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize
from torch.nn.utils.prune import BasePruningMethod

from tost.masks.of_model import Masked
from tost.shrinking.channels import Array
from tost_kernels.nn import BatchNorm2d, SparseConv2d, SparseLinear, SparseModule
from tost_kernels.nn.dense_layer import check_convertible, effective

__all__ = ["FORMS", "Mixer", "Norm", "form_of", "geometry", "is_mixer", "is_norm", "why_fixed"]

_CONVS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
_DENSE = (*_CONVS, nn.Linear)
_SPARSE = (SparseConv2d, SparseLinear)
# Exact types: a subclass may compute anything.
_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm, BatchNorm2d)
# How a layer holds its mask: not at all, as a SparseModule, by torch.nn.utils.prune, by the parametrization `Masked`.
FORMS = ("plain", "sparse", "prune", "parametrization")


def is_mixer(module: nn.Module) -> bool:
    """Whether the outputs of `module` are weighted sums of its inputs: a convolution or linear layer, dense or sparse."""
    return isinstance(module, _DENSE + _SPARSE) and not isinstance(module, nn.modules.conv._ConvTransposeNd)


def is_norm(module: nn.Module) -> bool:
    """Whether `module` is a BatchNorm."""
    return isinstance(module, nn.modules.batchnorm._BatchNorm)


def form_of(module: nn.Module) -> str:
    """One of FORMS; for a layer that `why_fixed` has nothing to say of."""
    if isinstance(module, SparseModule):
        return "sparse"
    if "weight_orig" in module._parameters:
        return "prune"
    return "parametrization" if parametrize.is_parametrized(module, "weight") else "plain"


def geometry(module: nn.Module) -> tuple[str, str]:
    """The names of the attributes that count inputs and outputs."""
    if is_norm(module):
        return "num_features", "num_features"
    if isinstance(module, nn.Linear | SparseLinear):
        return "in_features", "out_features"
    return "in_channels", "out_channels"


def why_fixed(module: nn.Module) -> str | None:
    """Why a mixer or norm has to stay as it is; None where it may be made smaller."""
    hooks = (module._forward_hooks, module._backward_pre_hooks, module._backward_hooks)
    if any(hooks) or any(not isinstance(hook, BasePruningMethod) for hook in module._forward_pre_hooks.values()):
        return "it has hooks"
    if is_norm(module):
        return None if type(module) in _NORMS else f"{type(module).__name__} is a subclass of torch's BatchNorm"
    if any(parameter.is_complex() for parameter in module.parameters()):
        return "its weights are complex"
    if isinstance(module, SparseModule):
        return None if type(module) in _SPARSE else f"{type(module).__name__} is a subclass of a sparse layer"
    try:
        check_convertible(module, next(kind for kind in _DENSE if isinstance(module, kind)), "the layer")
    except (TypeError, ValueError) as error:
        return str(error)
    if "bias_orig" in module._parameters or parametrize.is_parametrized(module, "bias"):
        return "its bias is pruned or parametrized"
    if parametrize.is_parametrized(module, "weight"):
        steps: Any = module.parametrizations["weight"]  # type: ignore[index, unused-ignore]
        if not all(isinstance(step, Masked) for step in steps):
            return "its weight has a parametrization that is no mask"
    return None


class Mixer:
    """A convolution or linear layer with `outputs` outputs in `groups` groups, each a weighted sum of the inputs of its group.

    used: bool (outputs, inputs / groups): some weight is not 0. leaks: the same, of the weights that may meet the padding: there
    a constant input is not constant. sums: float64, the sum of the weights. bias: float64 (outputs,).
    """

    def __init__(self, module: nn.Module) -> None:
        with torch.no_grad():
            weight = module.weight if isinstance(module, SparseModule) else effective(module, "weight")
            assert isinstance(weight, Tensor)
            bias: Any = module.bias
        taps = _numbers(weight.flatten(2) if weight.dim() > 2 else weight)
        there = taps != 0
        if taps.ndim == 2:
            self.used, self.leaks, self.sums = there, np.zeros((1, taps.shape[1]), dtype=bool), taps
        else:
            self.used = there.any(2)
            self.leaks = there[:, :, ~_inner_taps(module).numpy()].any(2)
            self.sums = taps.sum(2)
        self.groups = int(getattr(module, "groups", 1))
        self.outputs = taps.shape[0]
        self.inputs = taps.shape[1] * self.groups
        self.bias = np.zeros(self.outputs) if bias is None else _numbers(bias)

    @property
    def pads(self) -> bool:
        return bool(self.leaks.any())

    def constants(self, inputs: Array) -> Array:
        """The constant output of each filter whose inputs that count are constant, else NaN; of constants (inputs,)."""
        inputs = inputs.reshape(self.groups, -1).repeat(self.outputs // self.groups, 0) if self.groups > 1 else inputs[None]
        unknown = (self.used & np.isnan(inputs)).any(1) | (self.leaks & (inputs != 0)).any(1)
        known = np.broadcast_to(np.nan_to_num(inputs), self.sums.shape)
        return np.where(unknown, np.nan, self.bias + np.einsum("oi,oi->o", self.sums, known))

    def reads(self, rows: Array, inputs: Array) -> tuple[Array, Array]:
        """Of a layer without groups: which inputs the filters `rows` need as they are. Two bool tensors (inputs,).

        The first: a filter reads something there that is not constant. The second: a constant other than 0 would leak into
        the padding. Any other input can be left out, once what its constant adds is in the bias.
        """
        alive = self.used[rows].any(0) & np.isnan(inputs)
        if not self.pads:
            return alive, np.zeros_like(alive)
        return alive, self.leaks[rows].any(0) & (inputs != 0) & ~np.isnan(inputs)

    def added(self, rows: Array, left_out: Array, inputs: Array) -> Array:
        """What the inputs `left_out` (bool) add to the outputs of `rows` (bool), (number of rows,)."""
        return self.sums[rows][:, left_out] @ np.nan_to_num(inputs[left_out])  # type: ignore[no-any-return]


class Norm:
    """A BatchNorm in evaluation mode: an affine map of each channel."""

    def __init__(self, module: nn.Module) -> None:
        def vector(name: str) -> Array | None:
            value: Any = getattr(module, name)
            return None if value is None else _numbers(value)

        self.features = int(module.num_features)  # type: ignore[arg-type]
        self.mean, self.variance = vector("running_mean"), vector("running_var")
        self.weight, self.bias = vector("weight"), vector("bias")
        self.eps = float(module.eps)  # type: ignore[arg-type]

    def constants(self, inputs: Array) -> Array:
        """The constant output of each channel that has one, else NaN; of constants (features,)."""
        if self.mean is None or self.variance is None:  # statistics of the batch
            return np.full(self.features, np.nan)
        scale = np.ones(self.features) if self.weight is None else self.weight
        shift = np.zeros(self.features) if self.bias is None else self.bias
        result = (inputs - self.mean) / np.sqrt(self.variance + self.eps) * scale + shift
        return np.where(scale == 0, shift, result)


def _numbers(tensor: Tensor) -> Array:
    """In float64; of complex ones, which only layers that stay have, the magnitude."""
    tensor = tensor.detach().cpu()
    return (tensor.abs() if tensor.is_complex() else tensor).double().numpy()


def _inner_taps(module: nn.Module) -> Tensor:
    """Which taps of a kernel read no padding at any place of an image of any size, bool, flat.

    Along an axis with `before` and `after` zeros around it, tap t reads from pixel t * dilation - before on, and up to
    t * dilation + after - dilation * (kernel - 1) pixels behind the last one.
    """
    geometry: Any = module
    masks = []
    for axis, (kernel, dilation) in enumerate(zip(geometry.kernel_size, geometry.dilation, strict=True)):
        reach = dilation * (kernel - 1)
        if geometry.padding_mode != "zeros" or geometry.padding == "valid":
            before = after = 0
        elif geometry.padding == "same":
            before, after = reach // 2, reach - reach // 2
        else:
            before = after = geometry.padding[axis]
        offsets = torch.arange(kernel) * dilation
        masks.append((offsets >= before) & (offsets <= reach - after))
    inner: Tensor = masks[0]
    for mask in masks[1:]:
        inner = inner.unsqueeze(-1) & mask
    return inner.flatten()
