"""What `add_ghosts` puts into a network: `Ghost`, the tail of a convolution, and `GhostSwish`, an activation elsewhere.

Both keep their strength as 0-dim tensors, so a fade neither recompiles nor re-captures anything, and a checkpoint has it. Two
facts must be known without reading a tensor, though: whether a ghost convolution has to run at all, and whether the activation
is swish or exact ReLU. Both change once in a training.
"""

from __future__ import annotations

import ctypes
import math
from collections.abc import Iterable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tost.recipe import Recipe
from tost_kernels import layout, pswish
from tost_kernels.nn import BatchNorm2d, Conv2d, GhostSkipAdd, SparseConv2d
from tost_kernels.pattern import full_pattern

__all__ = ["FUSABLE", "GHOST_WEIGHT", "Ghost", "GhostSwish", "fill", "ghost_conv", "ghost_norm", "rounded"]

# Every ghost weight starts here. A BatchNorm would cancel the constant, were it not for eps: the branch's variance is small
# against eps = 1e-5, so it starts weak and finds its own strength.
GHOST_WEIGHT = 1e-4

# The normalisations that `GhostSkipAdd` computes exactly; a subclass may do anything.
FUSABLE = (nn.BatchNorm2d, BatchNorm2d)


def ghost_conv(across: nn.Module) -> nn.Module:
    """The dense 1x1 convolution across `across` (a Conv2d or SparseConv2d): same channels, stride and groups, no bias.

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
        groups=across.groups,
        bias=False,
        device=like.device,
        dtype=like.dtype,
    )
    nn.init.constant_(conv.weight, GHOST_WEIGHT)
    conv.train(across.training)
    if isinstance(across, SparseConv2d | Conv2d):
        return SparseConv2d.from_dense(conv, full_pattern(conv.weight.shape, conv.weight.device))
    return conv


def ghost_norm(conv: nn.Module) -> nn.BatchNorm2d:
    """The BatchNorm of a ghost convolution."""
    like = next(conv.parameters())
    # float32 even in a half precision network: running variances far below 1 move in steps bf16 cannot make.
    dtype = torch.float64 if like.dtype == torch.float64 else torch.float32
    norm = nn.BatchNorm2d(int(conv.out_channels), eps=1e-5, device=like.device, dtype=dtype)  # type: ignore[arg-type]
    return norm.train(conv.training)


def rounded(value: float) -> float:
    """`value` in float32: what the tensor holds, so that flags set from floats and from a checkpoint agree."""
    return ctypes.c_float(value).value


def _is_relu(recipe: Recipe, beta: float) -> bool:
    """Whether sharpness `beta` stands for exact ReLU under `recipe`."""
    if not recipe.ghost_swish or math.isinf(beta):
        return True
    return not recipe.permanent and rounded(beta) >= rounded(recipe.beta_end)


def _activation(recipe: Recipe, beta: float) -> str:
    """What stands in the place of a ReLU: "relu", "pswish" or "mish"."""
    if _is_relu(recipe, beta):
        return "relu"
    return "mish" if recipe.swish == "mish" else "pswish"


def _offset_of(conv: nn.Conv2d | SparseConv2d) -> tuple[int, int]:
    """Where the pixel under the kernel's centre is, for the output pixel (0, 0): (row, column) of the input.

    0 wherever the padding keeps the image. A kernel of even size has no centre: the pixel up and left of it counts.
    """
    if conv.padding == "same":
        return 0, 0
    padding = (0, 0) if isinstance(conv.padding, str) else conv.padding
    row, column = (d * (k - 1) // 2 - p for k, d, p in zip(conv.kernel_size, conv.dilation, padding, strict=True))
    return row, column


class Ghost(nn.Module):
    """The tail of a convolution or BatchNorm as one op, and the ghost skip across the convolution where there is one.

        act(norm(u) + alpha * ghost norm(ghost convolution(x)) + shortcut norm(shortcut))

    Every part but u is optional. The network's own normalisations are arguments of the call, so they keep their places and names.
    `conv` and `norm` are the ghost convolution and its BatchNorm, None without a ghost skip and where another Ghost has them.
    `tail` holds alpha and beta. `live` says whether the ghost convolution runs: at alpha = 0 it does not, and its BatchNorm sees
    nothing.

    Args:
        recipe: which ghosts there are and how they start.
        across: the convolution that the ghost goes across, None for no ghost skip.
        act: whether a ReLU belongs to the tail, which is the ghost swish's place.
        device: where alpha and beta live.
        first: the ghost of an earlier call of the same convolution, whose ghost convolution and BatchNorm serve here too, as the
            calls share their weights.
        keeps_dtype_of: "u" or "shortcut" where the sum is in place on that one in the network, so that the result has its dtype
            whatever the other's is.
    """

    def __init__(
        self,
        recipe: Recipe,
        across: nn.Module | None,
        act: bool,
        device: torch.device | None,
        first: Ghost | None = None,
        keeps_dtype_of: str | None = None,
    ) -> None:
        super().__init__()
        self.recipe = recipe
        self.has_act = act
        self.has_skip = across is not None
        self.keeps_dtype_of = keeps_dtype_of
        self.conv: nn.Module | None = None
        self.norm: nn.Module | None = None
        # In a tuple: it must not be a submodule of this one, or a checkpoint would have its tensors twice.
        self._first = () if first is None else (first,)
        self.shared = first is not None
        if first is not None:
            first.shared = True
        self.offset, self.stride, self.padding_mode = (0, 0), (1, 1), "constant"
        if across is not None:
            if first is None:
                self.conv = ghost_conv(across)
                self.norm = ghost_norm(self.conv)
            assert isinstance(across, nn.Conv2d | SparseConv2d)
            self.offset, self.stride = _offset_of(across), (across.stride[0], across.stride[1])
            self.padding_mode = "constant" if across.padding_mode == "zeros" else across.padding_mode
        self.tail = GhostSkipAdd(alpha=0.0).to(device)
        self.live, self.act = False, ""
        self.set_strength(recipe.alpha_start, recipe.beta_start)
        self.register_load_state_dict_post_hook(_follow_checkpoint)  # type: ignore[no-untyped-call]

    def forward(
        self,
        u: Tensor,
        x: Tensor | None = None,
        norm: nn.Module | None = None,
        shortcut: Tensor | None = None,
        shortcut_norm: nn.Module | None = None,
    ) -> Tensor:
        """u, shortcut: (N, C, H, W); x: the convolution's input, (N, C', H', W'). Returns (N, C, H, W)."""
        ghost, own_norm = None, None
        owner = self._first[0] if self._first else self
        if self.live and owner.conv is not None and x is not None:
            if u.dim() != 4:
                raise ValueError(
                    f"expected a batch (N, C, H, W) in front of a ghost skip, got {tuple(u.shape)} behind its convolution"
                )
            ghost, own_norm = owner.conv(self._under_centres(x, u)), owner.norm
        kept = {"u": u, "shortcut": shortcut, None: None}[self.keeps_dtype_of]
        apart = shortcut is not None and shortcut.shape != u.shape  # the sum broadcasts, which is not the op's business
        u, norm = _apply(u, norm, apart)
        # All calls that share it in one way: the op updates the running statistics in place, which torch's BatchNorm has saved.
        ghost, own_norm = _apply(ghost, own_norm, apart or self.shared)
        shortcut, shortcut_norm = _apply(shortcut, shortcut_norm, apart)
        if apart:
            assert shortcut is not None
            u, shortcut = torch.broadcast_tensors(u, shortcut)  # type: ignore[no-untyped-call]
            ghost = None if ghost is None else ghost.expand(u.shape)
        out: Tensor = self.tail(u, norm=norm, ghost=ghost, ghost_norm=own_norm, shortcut=shortcut, shortcut_norm=shortcut_norm)
        out = F.mish(out) if self.act == "mish" else out
        return out if kept is None or kept.dtype == out.dtype else out.to(kept.dtype)

    def _under_centres(self, x: Tensor, u: Tensor) -> Tensor:
        """`x` cropped or padded, so that a 1x1 convolution reads what is under the kernel's centre for every pixel of `u`."""
        sides: list[int] = []
        for axis in (3, 2):
            start, stride = self.offset[axis - 2], self.stride[axis - 2]
            length, wanted = x.shape[axis] - start, u.shape[axis]
            exact = (length - 1) // stride + 1 == wanted
            sides += [-start, 0 if exact else (wanted - 1) * stride + 1 - length]
        if not any(sides):
            return x
        if self.padding_mode == "constant":
            return layout.pad(x, sides)
        x = layout.pad(x, [min(side, 0) for side in sides])
        return layout.pad(x, [max(side, 0) for side in sides], self.padding_mode)

    def set_strength(self, alpha: float, beta: float) -> None:
        """Fills alpha and beta; see `tost.ghosts.set_strength`."""
        fill(self.strengths(alpha, beta))
        self.set_flags(alpha, beta)

    def strengths(self, alpha: float, beta: float) -> list[tuple[Tensor, float]]:
        """The tensors that hold the strength, each with its number."""
        return [(self.tail.alpha, alpha if self.has_skip else 0.0), (self.tail.beta, beta)]

    def set_flags(self, alpha: float, beta: float) -> None:
        """What must be known without reading a tensor."""
        live = self.has_skip and rounded(alpha) != 0.0
        act = _activation(self.recipe, beta) if self.has_act else "none"
        if (live, act) != (self.live, self.act):  # a module's attributes are slow to set, and there is a call at each step
            self.live, self.act = live, act
            self.tail.act = "none" if act == "mish" else act

    def strength(self) -> tuple[float, float]:
        """(alpha, beta) as they are now, alpha 0 without a ghost skip; waits for the device."""
        return float(self.tail.alpha.item()), float(self.tail.beta.item())

    def extra_repr(self) -> str:
        return f"live={self.live}, act={self.act!r}, permanent={self.recipe.permanent}"


class GhostSwish(nn.Module):
    """The ghost swish where no convolution or BatchNorm2d is right before it, as behind a Linear. Any shape, kept.

    x * sigmoid(beta * x), or Mish, and exact ReLU in the end. `beta` is a buffer, so a checkpoint has it.
    """

    beta: Tensor
    has_act = True

    def __init__(self, recipe: Recipe, device: torch.device | None) -> None:
        super().__init__()
        self.recipe = recipe
        self.register_buffer("beta", torch.empty((), dtype=torch.float32, device=device))
        self.set_strength(0.0, recipe.beta_start)
        self.register_load_state_dict_post_hook(_follow_checkpoint)  # type: ignore[no-untyped-call]

    def forward(self, x: Tensor) -> Tensor:
        if self.act == "pswish":
            return pswish(x, self.beta)
        return F.mish(x) if self.act == "mish" else F.relu(x)

    def set_strength(self, alpha: float, beta: float) -> None:
        """Fills beta; see `tost.ghosts.set_strength`. There is no gate."""
        fill(self.strengths(alpha, beta))
        self.set_flags(alpha, beta)

    def strengths(self, alpha: float, beta: float) -> list[tuple[Tensor, float]]:
        """The tensor that holds the strength, with its number."""
        return [(self.beta, beta)]

    def set_flags(self, alpha: float, beta: float) -> None:
        """What must be known without reading a tensor."""
        self.act = _activation(self.recipe, beta)

    def strength(self) -> tuple[float, float]:
        """(0, beta) as it is now; waits for the device."""
        return 0.0, float(self.beta.item())

    def extra_repr(self) -> str:
        return f"act={self.act!r}, permanent={self.recipe.permanent}"


def _apply(part: Tensor | None, norm: nn.Module | None, apart: bool) -> tuple[Any, nn.Module | None]:
    """The part and the normalisation that is left for the op to apply: none where the op does not know it or must not."""
    if part is None or norm is None or (type(norm) in FUSABLE and not apart):
        return part, norm
    return norm(part), None  # SyncBatchNorm's statistics cross processes


@torch.no_grad()
def fill(strengths: Iterable[tuple[Tensor, float]]) -> None:
    """Fill each tensor with its number; those that get the same one together, which a GPU does in one launch."""
    alike: dict[tuple[float, torch.dtype, torch.device], list[Tensor]] = {}
    for tensor, value in strengths:
        alike.setdefault((value, tensor.dtype, tensor.device), []).append(tensor)
    for (value, dtype, device), tensors in alike.items():
        torch._foreach_copy_(tensors, [torch.full((), value, dtype=dtype, device=device)] * len(tensors))


def _follow_checkpoint(module: nn.Module, incompatible: Any) -> None:
    """After load_state_dict: the Python flags follow the alpha and beta that were loaded."""
    assert isinstance(module, Ghost | GhostSwish)
    beta = module.beta if isinstance(module, GhostSwish) else module.tail.beta
    if not beta.is_meta:
        module.set_strength(*module.strength())
