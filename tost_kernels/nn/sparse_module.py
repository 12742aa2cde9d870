"""What SparseConv2d and SparseLinear share: the vector of kept weights, and speaking the dense layer's language."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor, nn

from tost_kernels.nn import checkpoint
from tost_kernels.nn.dense_layer import carry_hooks, check_convertible, effective
from tost_kernels.pattern import Pattern

if TYPE_CHECKING:
    from typing_extensions import Self


class SparseModule(nn.Module):
    """A layer with sparse weights. Its parameters: `values`, 1-D, the kept weights in the order of mask.nonzero(); and `bias`.

    So gradients, optimizer state and DDP traffic have as many elements as weights are kept, and a pruned weight cannot come
    back. Mind that optimizers told to skip weight decay for one-dimensional parameters would skip `values`: use
    `tost_kernels.param_groups`.

    pattern   the mask, compiled; a plain attribute that moves with the module. DDP would broadcast a buffer at every forward.
    weight    the dense weight, derived at every access and differentiable. Writing INTO it changes a temporary tensor only
              (`nn.init` functions and `.data` writes included); ASSIGNING it gathers the kept entries into `values` and
              raises ValueError if an entry off the mask is not zero.
    mask      bool, the shape of `weight`; a new tensor at every access.
    density   the fraction of weights kept.

    state_dict() holds what the dense layer's does (`weight`, dense, and `bias`) and `weight_mask`, bool; no `values`. Its
    `weight` is a new tensor: writing into it does not reach the layer. load_state_dict() takes that, a dense layer's
    (`weight` alone, with zeros off the mask), torch.nn.utils.prune's (`weight_orig`, `weight_mask`) and parametrizations'
    (`parametrizations.weight.original`, `parametrizations.weight.<i>.mask`). The mask must be this layer's: for another one,
    or for weights off the mask that are not zero (NaN is not), it raises ValueError naming the layer, layers before it being
    loaded already. With assign=True the layer adopts the other mask, and `values` becomes a new Parameter.

    A layer on the meta device keeps its pattern where it was; `to_empty` works, `.to()` raises as torch's own layers do.
    """

    _DENSE: ClassVar[type[nn.Module]]
    _GEOMETRY: ClassVar[tuple[str, ...]]

    values: nn.Parameter
    bias: nn.Parameter | None
    pattern: Pattern

    def __init__(self, shell: nn.Module, mask: Tensor | Pattern, device: torch.device | str | None) -> None:
        """shell: the dense layer on the meta device: it has checked the arguments and holds the geometry."""
        super().__init__()
        weight = shell.weight
        assert isinstance(weight, Tensor)
        pattern = _pattern_for(mask, weight)
        values = torch.empty(pattern.nnz, device=device, dtype=weight.dtype)
        bias = None if shell.bias is None else torch.empty(weight.shape[0], device=device, dtype=weight.dtype)
        self._install(shell, pattern, nn.Parameter(values), None if bias is None else nn.Parameter(bias))
        self.reset_parameters()

    @classmethod
    def from_dense(cls, dense: nn.Module, mask: Tensor | Pattern) -> Self:
        """A sparse layer that computes what `dense` computes with `weight * mask`.

        dense: nn.Conv2d for SparseConv2d, nn.Linear for SparseLinear. Under torch.nn.utils.prune or a parametrization its
        effective weight is taken and the rest is left behind. mask: bool or 0/1, the shape of the weight, or a Pattern; on
        any device. Weights and bias are copied; `requires_grad`, the training flag, and forward, backward and state_dict
        hooks are kept.

        Raises TypeError for any other layer and for a subclass that overrides `forward`, ValueError for a lazy layer that
        has no weight yet, for the hook forms of weight_norm and spectral_norm, for load_state_dict pre-hooks, and for a mask
        of another shape.
        """
        check_convertible(dense, cls._DENSE, "dense")
        weight, bias = effective(dense, "weight"), effective(dense, "bias")
        assert weight is not None
        pattern = _pattern_for(mask, weight)
        layer = cls.__new__(cls)
        nn.Module.__init__(layer)
        values = nn.Parameter(checkpoint.gather(pattern, weight.detach()), weight.requires_grad)
        layer._install(dense, pattern, values, _cloned(bias))
        carry_hooks(dense, layer, move=False)
        return layer.train(dense.training)

    def to_dense(self) -> nn.Module:
        """The plain torch layer: zeros where the mask prunes, tensors copied, flags and hooks kept."""
        dense = self._shell()
        weight = checkpoint.scatter(self.pattern, self.values.detach())
        dense.weight = nn.Parameter(weight, self.values.requires_grad)
        dense.register_parameter("bias", _cloned(self.bias))
        carry_hooks(self, dense, move=False)
        return dense.train(self.training)

    def _install(self, dense: nn.Module, pattern: Pattern, values: nn.Parameter, bias: nn.Parameter | None) -> None:
        for name in self._GEOMETRY:
            setattr(self, name, getattr(dense, name))
        self.pattern = pattern
        self.values = values
        self.register_parameter("bias", bias)
        self._pattern_follows()

    def _shell(self) -> nn.Module:
        """The dense layer of the same geometry, on meta: without memory, and without touching the random state."""
        geometry = {name: getattr(self, name) for name in self._GEOMETRY}
        return self._DENSE(**geometry, bias=self.bias is not None, device="meta", dtype=self.values.dtype)

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Initialise as the dense layer does, from the same random numbers, and keep what the mask keeps."""
        dense = self.values.new_empty(self.pattern.shape)
        nn.init.kaiming_uniform_(dense, a=math.sqrt(5))
        self.values.copy_(checkpoint.gather(self.pattern, dense))
        if self.bias is not None:
            bound = 1 / math.sqrt(dense[0].numel())
            nn.init.uniform_(self.bias, -bound, bound)

    @property
    def weight(self) -> Tensor:
        """The dense weight, computed from `values` now; assigning it gathers into `values`."""
        return checkpoint.scatter(self.pattern, self.values)

    @weight.setter
    def weight(self, dense: Tensor) -> None:
        if not isinstance(dense, Tensor):
            raise TypeError(f"weight: expected a torch.Tensor, got {type(dense).__name__}")
        if tuple(dense.shape) != self.pattern.shape:
            raise ValueError(f"weight: expected shape {self.pattern.shape}, got {tuple(dense.shape)}")
        off = checkpoint.count_off(dense, self.pattern)
        if off:
            raise ValueError(f"weight: expected zeros where the mask prunes, got {off} nonzero entries there")
        with torch.no_grad():
            self.values.copy_(checkpoint.gather(self.pattern, dense))

    @property
    def mask(self) -> Tensor:
        """The mask, bool, of the shape of `weight`; a new tensor."""
        return self.pattern.mask()

    @property
    def density(self) -> float:
        """The fraction of weights kept."""
        return self.pattern.density

    def extra_repr(self) -> str:
        """The dense layer's text, and the density."""
        return f"{self._shell().extra_repr()}, density={self.density:.4g}"

    def __setattr__(self, name: str, value: Any) -> None:
        # nn.Module registers a Parameter before it looks at properties: `layer.weight = Parameter(...)` would add a second,
        # unused weight.
        if name == "weight":
            object.__setattr__(self, name, value)
        else:
            super().__setattr__(name, value)

    def _pattern_follows(self) -> None:
        if not self.values.is_meta:
            self.pattern = self.pattern.to(self.values.device)

    def _apply(self, fn: Any, recurse: bool = True) -> Self:
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        self._pattern_follows()
        return self

    def __setstate__(self, state: Any) -> None:
        super().__setstate__(state)  # type: ignore[no-untyped-call]
        # torch.load(map_location=...) moves tensors behind the module's back.
        self._pattern_follows()

    def _save_to_state_dict(self, destination: Any, prefix: str, keep_vars: bool) -> None:
        destination[prefix + "weight"] = self.weight if keep_vars else self.weight.detach()
        super()._save_to_state_dict(destination, prefix, keep_vars)
        destination.pop(prefix + "values", None)  # absent where someone reparametrized it
        destination[prefix + "weight_mask"] = self.mask

    def _load_from_state_dict(
        self,
        state_dict: Any,
        prefix: str,
        local_metadata: Any,
        strict: bool,
        missing_keys: list[str],
        unexpected_keys: list[str],
        error_msgs: list[str],
    ) -> None:
        own = {key: value for key, value in state_dict.items() if key.startswith(prefix)}
        values_key = prefix + "values"
        if own.pop(values_key, None) is not None:
            unexpected_keys.append(values_key)
        checkpoint.fold_bias(own, prefix)
        stored = checkpoint.take_weight(own, prefix)
        if stored is None:
            missing_keys.append(prefix + "weight")
            own.pop(prefix + "weight_mask", None)
        else:
            problem = self._why_unloadable(stored)
            if problem is None:
                adopt = bool(local_metadata.get("assign_to_params_buffers", False))
                own[values_key] = self._values_from(stored, prefix, adopt=adopt)
            else:
                error_msgs.append(problem)
        missing: list[str] = []
        super()._load_from_state_dict(own, prefix, local_metadata, strict, missing, unexpected_keys, error_msgs)
        missing_keys += [key for key in missing if key != values_key]
        self._pattern_follows()

    def _why_unloadable(self, stored: checkpoint.StoredWeight) -> str | None:
        if not isinstance(stored.weight, Tensor):
            return f"{stored.key}: expected a torch.Tensor, got {type(stored.weight).__name__}"
        if tuple(stored.weight.shape) != self.pattern.shape:
            return (
                f"size mismatch for {stored.key}: copying a param with shape {stored.weight.shape} from checkpoint, "
                f"the shape in current model is {torch.Size(self.pattern.shape)}."
            )
        if stored.weight.is_meta:
            return f"{stored.key}: expected a tensor with data, got one on 'meta'"
        return None

    def _values_from(self, stored: checkpoint.StoredWeight, prefix: str, *, adopt: bool) -> Tensor:
        layer = prefix[:-1] or type(self).__name__
        pattern = checkpoint.pattern_of(stored, self.pattern, adopt=adopt, layer=layer)
        values = checkpoint.gather(pattern, stored.weight.detach())
        if pattern != self.pattern:
            self.pattern = pattern
            self.values = nn.Parameter(torch.empty_like(values), self.values.requires_grad)  # nn.Module checks the shape
        return values


def _pattern_for(mask: Tensor | Pattern, weight: Tensor) -> Pattern:
    pattern = mask if isinstance(mask, Pattern) else Pattern(mask)
    if pattern.shape != tuple(weight.shape):
        raise ValueError(f"mask: expected shape {tuple(weight.shape)}, that of the weight, got {pattern.shape}")
    return pattern


def _cloned(parameter: Tensor | None) -> nn.Parameter | None:
    if parameter is None:
        return None
    return nn.Parameter(parameter.detach().clone(), parameter.requires_grad)
