"""`GhostBlock`: a ResNet BasicBlock with a ghost skip across each 3x3 convolution and fused tails.

    h   = act(bn1(conv1(x)) + alpha * ghost_bn1(ghost1(x)))
    out = act(bn2(conv2(h)) + shortcut(x) + alpha * ghost_bn2(ghost2(h)))

(wiring of the ToST poster, ICML 2022). Everything behind a convolution is one `ghost_skip_add`: the BatchNorms, the
gate, the block's own shortcut and the activation.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from tost.ghosts import tail as tails
from tost.models.resnet import BasicBlock
from tost.recipe import Recipe
from tost_kernels.nn import Conv2d, SparseConv2d
from tost_kernels.pattern import full_pattern

__all__ = ["GHOST_WEIGHT", "GhostBlock", "ghost_conv"]

# Every ghost weight starts here. A BatchNorm would cancel the constant, were it not for eps: the branch's variance is small
# against eps = 1e-5, so it starts weak and finds its own strength.
GHOST_WEIGHT = 1e-4

_SHARED = ("conv1", "bn1", "conv2", "bn2", "shortcut")


def ghost_conv(across: nn.Module) -> nn.Module:
    """The dense 1x1 convolution across `across` (a Conv2d or SparseConv2d): same channels, same stride, no bias.

    In a sparse network it is a SparseConv2d of density 1: activations are batch-last there, where the sparse kernels run a
    dense 1x1 faster than a dense convolution does.
    """
    if not isinstance(across, nn.Conv2d | SparseConv2d):
        raise TypeError(f"ghost_conv: across: expected Conv2d or SparseConv2d, got {type(across).__name__}")
    like = next(across.parameters())
    # skip_init draws no random numbers: a run with ghosts sees the same random stream as its vanilla twin.
    conv: nn.Conv2d = torch.nn.utils.skip_init(  # type: ignore[no-untyped-call]
        nn.Conv2d,
        across.in_channels,
        across.out_channels,
        kernel_size=1,
        stride=across.stride,
        bias=False,
        device=like.device,
        dtype=like.dtype,
    )
    nn.init.constant_(conv.weight, GHOST_WEIGHT)
    if isinstance(across, SparseConv2d | Conv2d):
        return SparseConv2d.from_dense(conv, full_pattern(conv.weight.shape, conv.weight.device))
    return conv


def _ghost_norm(conv: nn.Module) -> nn.BatchNorm2d:
    like = next(conv.parameters())
    # float32 even in a half precision network: running variances far below 1 move in steps bf16 cannot make.
    dtype = torch.float64 if like.dtype == torch.float64 else torch.float32
    return nn.BatchNorm2d(int(conv.out_channels), eps=1e-5, device=like.device, dtype=dtype)  # type: ignore[arg-type]


def check_block(block: BasicBlock) -> None:
    """Raises TypeError unless the fused tail can take the place of both activations of `block`."""
    for name in ("act1", "act2"):
        act = getattr(block, name)
        if type(act) is not nn.ReLU:
            raise TypeError(f"add_ghosts: BasicBlock.{name}: expected nn.ReLU, got {type(act).__name__}")


class GhostBlock(nn.Module):
    """A BasicBlock while it is trained with ghosts. (N, C, H, W) -> (N, planes, H / stride, W / stride).

    It shares the block's submodules under the block's names, so the plain network's state_dict keys all stay; added are
    `ghost1`, `ghost_bn1`, `ghost2`, `ghost_bn2` (with `recipe.ghost_skip`) and the tails `tail1`, `tail2`, which hold
    alpha and beta (so a checkpoint has them). `live` says whether the ghost convolutions run: at alpha = 0 they do not,
    and their BatchNorms see nothing.
    """

    conv1: nn.Module
    bn1: nn.Module
    conv2: nn.Module
    bn2: nn.Module
    shortcut: nn.Module

    def __init__(self, block: BasicBlock, recipe: Recipe) -> None:
        super().__init__()
        check_block(block)
        self.recipe = recipe
        self.training = block.training
        # The emptied shell that `plain` fills again. In a tuple: it must not be a submodule of this one.
        self._shell = (block,)
        for name in _SHARED:
            self.add_module(name, block._modules[name])
            block._modules[name] = None  # keeps the place, so the state_dict's order comes back too
        device = next(self.conv1.parameters()).device
        if recipe.ghost_skip:
            self.ghost1 = ghost_conv(self.conv1)
            self.ghost_bn1 = _ghost_norm(self.ghost1)
            self.ghost2 = ghost_conv(self.conv2)
            self.ghost_bn2 = _ghost_norm(self.ghost2)
            for module in (self.ghost1, self.ghost_bn1, self.ghost2, self.ghost_bn2):
                module.train(self.training)
        self.tail1 = tails.new_tail(recipe, device).train(self.training)
        self.tail2 = tails.new_tail(recipe, device).train(self.training)
        self.live = recipe.ghost_skip
        self.register_load_state_dict_post_hook(_follow_checkpoint)  # type: ignore[no-untyped-call]

    def forward(self, x: Tensor) -> Tensor:
        live = self.live
        h = self.tail1(
            self.conv1(x),
            norm=self.bn1,
            ghost=self.ghost1(x) if live else None,
            ghost_norm=self.ghost_bn1 if live else None,
        )
        shortcut, shortcut_norm = self._shortcut(x)
        out: Tensor = self.tail2(
            self.conv2(h),
            norm=self.bn2,
            ghost=self.ghost2(h) if live else None,
            ghost_norm=self.ghost_bn2 if live else None,
            shortcut=shortcut,
            shortcut_norm=shortcut_norm,
        )
        return out

    def _shortcut(self, x: Tensor) -> tuple[Tensor, nn.BatchNorm2d | None]:
        """The shortcut up to its last BatchNorm, and that BatchNorm for the tail to apply (None: there is none)."""
        steps = list(self.shortcut.children()) if isinstance(self.shortcut, nn.Sequential) else [self.shortcut]
        norm = steps.pop() if steps and isinstance(steps[-1], nn.BatchNorm2d) else None
        for step in steps:
            x = step(x)
        return x, norm  # type: ignore[return-value]

    def set_strength(self, alpha: float, beta: float) -> None:
        """Fills both tails; see `tost.ghosts.set_strength`."""
        for tail in (self.tail1, self.tail2):
            tails.fill(tail, self.recipe, alpha, beta)
        self.live = self.recipe.ghost_skip and tails.rounded(alpha) != 0.0

    def strength(self) -> tuple[float, float]:
        """(alpha, beta) as they are now; waits for the device."""
        return tails.read(self.tail2)

    def ghosts(self) -> Iterator[nn.Module]:
        """The modules that are not the plain block's: ghost convolutions and their BatchNorms."""
        if self.recipe.ghost_skip:
            yield from (self.ghost1, self.ghost_bn1, self.ghost2, self.ghost_bn2)

    def plain(self) -> BasicBlock:
        """The BasicBlock again, around the same submodules (hence the same Parameter objects)."""
        (block,) = self._shell
        for name in _SHARED:
            block._modules[name] = self._modules[name]
        for module in (block, block.act1, block.act2):
            module.training = self.training
        return block

    def extra_repr(self) -> str:
        return f"live={self.live}, permanent={self.recipe.permanent}"


def _follow_checkpoint(block: nn.Module, incompatible: Any) -> None:
    """After load_state_dict: the Python flags follow the alpha and beta that were loaded."""
    if isinstance(block, GhostBlock) and not block.tail2.alpha.is_meta:
        block.set_strength(*block.strength())
