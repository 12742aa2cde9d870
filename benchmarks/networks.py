"""Whole networks as training steps: one class for every way to train them, dense and sparse."""

from __future__ import annotations

import copy
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import tost
import tost_kernels as tk
from tost import models

IMAGE = (3, 32, 32)
CLASSES = 10
LAYOUTS = {"contiguous": torch.contiguous_format, "channels_last": torch.channels_last}


@dataclass(frozen=True)
class Variant:
    """A way to train a network.

    Attributes:
        kind: dense, compiled, bf16, masked, sparse, sparse-bf16 or ghosts.
        layout: memory format of the images.
        sparsity, method: of the masks, where there are any; method is a name of `tost.methods()`.
        plan: of the sparse layers: "rule" (tost_kernels' static rule) or "tuned" (`tost_kernels.tune`, with its cache on disk).
        amp: bfloat16 autocast, for every kind (the kinds with bf16 in their name have it anyway).
    """

    kind: str
    layout: str
    sparsity: float | None = None
    method: str = "random"
    plan: str = "rule"
    amp: bool = False

    @property
    def name(self) -> str:
        """For tables and ledgers."""
        masks = f" {100 * self.sparsity:g}% {self.method}" if self.sparsity is not None else ""
        tuned = " tuned" if self.plan == "tuned" else ""
        return f"{self.kind}{' bf16 autocast' if self.amp else ''}{masks} {self.layout}{tuned}"


class Step:
    """One training step of a network on one batch: forward, backward, SGD with momentum; `step()` runs it.

    The optimizer is torch's fastest (fused) for every variant. The learning rate is tiny: the duration does not depend on it,
    and the network should stay where it is. A tuned variant is tuned while it is built. compiler: torch.compile's arguments for
    the kind "compiled".
    """

    def __init__(
        self, model: nn.Module, variant: Variant, batch: int, device: str = "cpu", image: tuple[int, ...] = IMAGE, **compiler: Any
    ) -> None:
        self.net = _form(model, variant, image).to(device).train()
        images = torch.randn(batch, *image, device=device)
        self.images = tk.to_batch_last(images) if variant.layout == "batch_last" else images
        if variant.layout in LAYOUTS:
            self.net = self.net.to(memory_format=LAYOUTS[variant.layout])  # type: ignore[call-overload]
            self.images = images.contiguous(memory_format=LAYOUTS[variant.layout])
        self.targets = torch.randint(CLASSES, (batch,), device=device)
        self.optimizer = torch.optim.SGD(tk.param_groups(self.net, 5e-4), lr=1e-6, momentum=0.9, fused=True)
        self.run: Callable[[Tensor], Tensor] = self.net
        if variant.kind == "compiled":
            self.run = torch.compile(self.net, dynamic=False, **compiler)
        self.half = variant.amp or variant.kind in ("bf16", "sparse-bf16")
        if variant.plan == "tuned":
            with self._precision():
                tk.tune(self.net, self.images)

    def _precision(self) -> AbstractContextManager[object]:
        return torch.autocast(self.images.device.type, torch.bfloat16) if self.half else nullcontext()

    def update(self) -> Tensor:
        """One step; the loss before it, on the device: nothing here waits for a GPU."""
        with self._precision():
            loss = F.cross_entropy(self.run(self.images), self.targets)
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        self.optimizer.step()
        return loss.detach()

    def __call__(self) -> float:
        """The loss before the update."""
        return self.update().item()


def build(name: str) -> nn.Module:
    """A freshly initialized dense network for 32x32 images."""
    return models.build(name, CLASSES, IMAGE[0], IMAGE[1:])


def masks_of(model: nn.Module, variant: Variant, image: tuple[int, ...] = IMAGE) -> tost.Masks:
    """The masks of a variant: every convolution and linear layer, chosen without data."""
    assert variant.sparsity is not None
    return tost.prune(model, variant.method, 1 - variant.sparsity, input_shape=image)


def can_have_ghosts(model: nn.Module) -> bool:
    """Whether `tost.add_ghosts` finds places for ghost skips."""
    return sum(isinstance(module, nn.Conv2d) and module.kernel_size != (1, 1) for module in model.modules()) > 1


def _form(model: nn.Module, variant: Variant, image: tuple[int, ...]) -> nn.Module:
    """The network as it is trained."""
    if variant.sparsity is None:
        return copy.deepcopy(model)
    masks = masks_of(model, variant, image)
    if variant.kind == "masked":
        return masks.apply_to(model)
    recipe = tost.Recipe(rescale_init=False) if variant.kind == "ghosts" else tost.Recipe.vanilla()
    return tost.add_ghosts(tk.sparsify(model, masks), recipe, inplace=True)


def check(model: nn.Module, batch: int, sparsity: float, device: str = "cpu", image: tuple[int, ...] = IMAGE) -> None:
    """Compare the loss and the gradients of the sparse network with those of torch's masked one.

    Raises:
        ArithmeticError: they differ by more than rounding explains.
    """
    masked = Step(model, Variant("masked", "contiguous", sparsity), batch, device, image)
    sparse = Step(model, Variant("sparse", "batch_last", sparsity), batch, device, image)
    sparse.images, sparse.targets = tk.to_batch_last(masked.images), masked.targets
    losses = [step() for step in (masked, sparse)]
    # the input gradients of all later layers end in the gradient of the first
    first = next(name for name, module in model.named_modules() if isinstance(module, nn.Conv2d))
    mask = masks_of(model, Variant("sparse", "batch_last", sparsity), image)[first].to(device)
    expected = masked.net.get_parameter(f"{first}.weight_orig").grad
    ours = sparse.net.get_parameter(f"{first}.values").grad
    assert expected is not None
    assert ours is not None
    error = float((ours - expected[mask]).norm() / expected[mask].norm())
    if abs(losses[0] - losses[1]) > 1e-4 * abs(losses[0]) or not error <= 1e-2:
        raise ArithmeticError(f"sparse network: expected loss {losses[0]:.6f}, got {losses[1]:.6f}; gradient {error:.1e} away")
