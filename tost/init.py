"""Layer-wise re-scaled initialization: one learned scale per parameter tensor, before training, with the mask in place.

This is GradInit (Zhu et al., arXiv 2102.08098) on a masked network, as ToST uses it. It differentiates through a
gradient, so it runs on the masked-dense network, before `tost_kernels.sparsify` and `tost.add_ghosts`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.utils import prune

from tost.ghosts import ghosts_of
from tost.isolation import isolated
from tost.recipe import Recipe
from tost.seeds import derive_seed
from tost.user_batches import check_iterable, endless
from tost_kernels.nn import SparseConv2d, SparseLinear
from tost_kernels.nn.surgery import duplicate

__all__ = ["LearnedScales", "learn_scales", "rescale_init"]

Loss = Callable[[Tensor, Tensor], Tensor]

# A weight tensor scaled to nothing could never learn again; a bias may well vanish.
_WEIGHT_FLOOR, _BIAS_FLOOR = 0.01, 0.0


@dataclass(frozen=True)
class LearnedScales:
    """What `learn_scales` found.

    scales: parameter name -> scale, for every tensor that was learned (tensors of norm 0, e.g. fresh biases of BatchNorm,
    and frozen ones are not). grad_norms: ||g|| of each iteration before its step. looked_ahead: whether the iteration
    minimised the loss after the look-ahead step (True) or the norm itself (False). objectives: its value.
    """

    scales: dict[str, float]
    grad_norms: tuple[float, ...]
    looked_ahead: tuple[bool, ...]
    objectives: tuple[float, ...]


def rescale_init(
    model: nn.Module,
    masks: Mapping[str, Tensor],
    data: Iterable[Any],
    recipe: Recipe,
    loss: Loss | None = None,
    seed: int = 0,
) -> nn.Module:
    """A copy of `model` with every parameter tensor multiplied by its learned scale, weights outside the masks set to 0.

    Each of `recipe.rescale_iterations` iterations takes the gradient g of the loss on a batch S, in training mode, g counted
    over the active weights only. If ||g|| > `rescale_gamma` it lowers ||g||, else loss(theta - eta g / ||g||; S~) / eta, where
    S~ shares half of its samples with S. The scales start at 1 and are moved by Adam (`rescale_lr`, betas 0.9 and
    0.999, each scale's gradient clipped to +-`rescale_clip`), never below 0.01 (biases: 0).

    Nothing else changes: `model` itself, its BatchNorm statistics, its mode and every global random generator are left as
    found. A no_grad, inference_mode or autocast around the call does not matter.
    GradInit: arXiv 2102.08098.

    Args:
        model: the dense network, plain or pruned by torch.nn.utils.prune; without ghosts.
        masks: module name -> bool mask of its weight; layers without one are dense. May be empty.
        data: (inputs, targets) batches, iterated again as often as needed; moved to the device of `model`.
        recipe: the rescale_* fields.
        loss: loss(outputs, targets) -> 0-dim tensor, twice differentiable; None: cross entropy.
        seed: random stream of what draws (shuffling of a data loader, dropout).

    Raises:
        TypeError, ValueError: an argument is wrong (a mask of another shape, no data, a sparse network ...), or the
            objective is not finite.
    """
    learned = learn_scales(model, masks, data, recipe, loss, seed)
    with _isolated(model, seed), torch.no_grad():
        base, masked = _starting_point(model, masks)
        new = duplicate(model)
        for name, parameter in new.named_parameters():
            if name in masked or name in learned.scales:
                parameter.copy_(base[name] * learned.scales.get(name, 1.0))
        for module in new.modules():
            for hook in module._forward_pre_hooks.values():
                if isinstance(hook, prune.BasePruningMethod):
                    hook(module, None)  # torch derives the masked `weight` here; it must not wait for a forward pass
    return new


def learn_scales(
    model: nn.Module,
    masks: Mapping[str, Tensor],
    data: Iterable[Any],
    recipe: Recipe,
    loss: Loss | None = None,
    seed: int = 0,
) -> LearnedScales:
    """The scales `rescale_init` would apply, and how they were found. Arguments and errors: see there."""
    if not isinstance(recipe, Recipe):
        raise TypeError(f"rescale_init: recipe: expected a tost.Recipe, got {type(recipe).__name__}")
    if not isinstance(model, nn.Module):
        raise TypeError(f"rescale_init: model: expected a torch.nn.Module, got {type(model).__name__}")
    check_iterable(data, "rescale_init: data")
    with _isolated(model, seed):
        return _learn_scales(model, masks, data, recipe, loss or F.cross_entropy)


def _isolated(model: nn.Module, seed: int) -> AbstractContextManager[None]:
    devices = {tensor.device for tensor in (*model.parameters(), *model.buffers())}
    return isolated(derive_seed("rescale_init", seed), devices)


def _learn_scales(
    model: nn.Module, masks: Mapping[str, Tensor], data: Iterable[Any], recipe: Recipe, loss: Loss
) -> LearnedScales:
    base, masked = _starting_point(model, masks)
    work = duplicate(model).train()
    names = [name for name, tensor in base.items() if tensor.requires_grad and bool(tensor.count_nonzero())]
    if not names:
        raise ValueError("rescale_init: model: expected a trainable parameter that is not all zero, got none")
    trained = [name for name, tensor in base.items() if tensor.requires_grad]
    base = {name: tensor.detach() for name, tensor in base.items()}
    buffers = dict(work.named_buffers())
    objective_of = _Objective(work, base, masked, trained, buffers, loss, recipe)

    device = base[names[0]].device
    scales = torch.ones(len(names), device=device, requires_grad=True)
    floors = torch.tensor([_BIAS_FLOOR if name.endswith("bias") else _WEIGHT_FLOOR for name in names], device=device)
    adam = torch.optim.Adam([scales], lr=recipe.rescale_lr, betas=(0.9, 0.999))
    norms: list[float] = []
    ahead: list[bool] = []
    objectives: list[float] = []
    batches = _batches(data, device)
    batch = next(batches)
    for iteration in range(recipe.rescale_iterations):
        fresh = next(batches)
        objective, norm, looked_ahead = objective_of(dict(zip(names, scales, strict=True)), batch, fresh)
        (gradient,) = torch.autograd.grad(objective, [scales])
        objectives.append(float(objective.detach()))
        norms.append(float(norm.detach()))
        ahead.append(looked_ahead)
        if not (math.isfinite(objectives[-1]) and bool(gradient.isfinite().all())):
            raise ValueError(
                f"rescale_init: iteration {iteration}: expected a finite objective and gradient, got "
                f"{objectives[-1]:g} at a gradient norm of {norms[-1]:g}; look at model, data and loss, or lower "
                "rescale_lr"
            )
        scales.grad = gradient.clamp(-recipe.rescale_clip, recipe.rescale_clip)
        adam.step()
        with torch.no_grad():
            scales.copy_(scales.maximum(floors))
        batch = fresh
    return LearnedScales(dict(zip(names, scales.tolist(), strict=True)), tuple(norms), tuple(ahead), tuple(objectives))


class _Objective:
    """What one iteration lowers, as a differentiable function of the scales."""

    def __init__(
        self,
        net: nn.Module,
        base: dict[str, Tensor],
        masks: dict[str, Tensor],
        trained: list[str],
        buffers: dict[str, Tensor],
        loss: Loss,
        recipe: Recipe,
    ) -> None:
        self.net, self.base, self.masks, self.trained = net, base, masks, trained
        self.buffers, self.loss, self.recipe = buffers, loss, recipe

    def __call__(
        self, scales: Mapping[str, Tensor], batch: tuple[Tensor, Tensor], fresh: tuple[Tensor, Tensor]
    ) -> tuple[Tensor, Tensor, bool]:
        """(objective, gradient norm, whether it looked ahead)."""
        theta = {
            name: tensor * scales[name] if name in scales else tensor.clone().requires_grad_(name in self.trained)
            for name, tensor in self.base.items()
        }
        gradients = torch.autograd.grad(
            self._loss(theta, batch),
            [theta[name] for name in self.trained],
            create_graph=True,
            allow_unused=True,
            materialize_grads=True,
        )
        # A pruned weight takes no step, so its gradient must count neither in the norm nor in the look-ahead.
        g = {
            name: gradient * self.masks[name] if name in self.masks else gradient
            for name, gradient in zip(self.trained, gradients, strict=True)
        }
        norm = torch.stack([gradient.square().sum() for gradient in g.values()]).sum().sqrt()
        if float(norm.detach()) > self.recipe.rescale_gamma:
            return norm, norm, False
        eta = self.recipe.rescale_eta
        stepped = {name: tensor - eta * g[name] / norm if name in g else tensor for name, tensor in theta.items()}
        return self._loss(stepped, _half_shared(batch, fresh)) / eta, norm, True

    def _loss(self, theta: dict[str, Tensor], batch: tuple[Tensor, Tensor]) -> Tensor:
        # Clones: BatchNorm updates its statistics in place, and they must not remember any of this.
        buffers = {name: tensor.clone() for name, tensor in self.buffers.items()}
        return self.loss(functional_call(self.net, {**theta, **buffers}, (batch[0],)), batch[1])


def _half_shared(batch: tuple[Tensor, Tensor], fresh: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
    """S~: the first half of S, and as many samples as are missing from the end of a fresh batch."""
    shared = len(batch[0]) // 2
    missing = len(batch[0]) - shared
    inputs, targets = (
        torch.cat([old[:shared], new[max(len(new) - missing, 0) :]]) for old, new in zip(batch, fresh, strict=True)
    )
    return inputs, targets


def _batches(data: Iterable[Any], device: torch.device) -> Iterator[tuple[Tensor, Tensor]]:
    """The batches of `data`, over and over, on `device`."""
    for inputs, targets in endless(data, "rescale_init: data"):
        for part, value in (("inputs", inputs), ("targets", targets)):
            if not isinstance(value, Tensor):
                raise TypeError(f"rescale_init: data: expected {part} as a tensor, got {type(value).__name__}")
        yield inputs.to(device), targets.to(device)


def _starting_point(model: nn.Module, masks: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """(parameter name -> its masked initial value, parameter name -> its mask), of checked arguments.

    The values of trainable parameters require gradients, the others do not.
    """
    if not isinstance(masks, Mapping):
        raise TypeError(f"rescale_init: masks: expected a mapping of module names to masks, got {type(masks).__name__}")
    for name, module in model.named_modules():
        if isinstance(module, SparseConv2d | SparseLinear):
            raise TypeError(
                f"rescale_init: model: expected a dense network and its masks, got {type(module).__name__} at {name!r}; "
                "re-scale first, then sparsify"
            )
    if ghosts_of(model):
        raise ValueError("rescale_init: model: expected a network without ghosts; re-scale first, then add_ghosts")

    parameters = dict(model.named_parameters())
    masked: dict[str, Tensor] = {}
    for layer, mask in masks.items():
        forms = (f"{layer}.weight", f"{layer}.weight_orig", f"{layer}.parametrizations.weight.original")
        name = next((form for form in forms if form in parameters), None)
        if name is None:
            raise ValueError(f"rescale_init: masks: no layer {layer!r} with a weight in {type(model).__name__}")
        if not isinstance(mask, Tensor):
            raise TypeError(f"rescale_init: masks[{layer!r}]: expected a tensor, got {type(mask).__name__}")
        if mask.shape != parameters[name].shape:
            raise ValueError(
                f"rescale_init: masks[{layer!r}]: expected shape {tuple(parameters[name].shape)}, got {tuple(mask.shape)}"
            )
        masked[name] = (mask != 0).to(parameters[name].device)
    base = {}
    for name, parameter in parameters.items():
        value = parameter.detach() * masked[name] if name in masked else parameter.detach().clone()
        base[name] = value.requires_grad_(parameter.requires_grad)
    return base, masked
