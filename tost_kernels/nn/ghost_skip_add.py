"""GhostSkipAdd: the fused tail of a convolution, with the batch normalisations of BatchNorm2d modules."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from tost_kernels.nn.pswish import hold, strength
from tost_kernels.ops.ghost_skip_add import ACTIVATIONS, Norm, ghost_skip_add
from tost_kernels.ops.running_stats import update_running_stats


def _uses_batch(bn: _BatchNorm) -> bool:
    """BatchNorm's own rule: the batch in training, or where there are no running statistics."""
    return bn.training or (bn.running_mean is None and bn.running_var is None)


def _norm(name: str, bn: nn.Module | None) -> Norm | None:
    if bn is None:
        return None
    if not isinstance(bn, _BatchNorm) or isinstance(bn, nn.SyncBatchNorm):
        raise TypeError(f"GhostSkipAdd: expected {name} to be a BatchNorm2d module or None, got {type(bn).__name__}")
    if _uses_batch(bn):
        return Norm(bn.weight, bn.bias, None, None, bn.eps, batch_stats=True)
    return Norm(bn.weight, bn.bias, bn.running_mean, bn.running_var, bn.eps)


def _update(bn: _BatchNorm, stats: Tensor, row: int, count: int, alpha: Tensor | None) -> None:
    """What BatchNorm does to its buffers after a batch of `count` values a channel; nothing while alpha is 0."""
    if not (bn.training and bn.track_running_stats):
        return
    mean, var = bn.running_mean, bn.running_var
    if mean is not None and var is not None:
        update_running_stats(mean, var, bn.num_batches_tracked, stats, row, count, bn.momentum, alpha)


class GhostSkipAdd(nn.Module):
    """act(norm(u) + alpha * ghost_norm(ghost) + shortcut_norm(shortcut)) in one op (`tost_kernels.ghost_skip_add`).

    act: "none", "relu" or "pswish". alpha, beta: the first values of the tensors `alpha` (0-dim, the strength of the ghost) and
    `beta` (0-dim or, with num_channels, (C,), of pswish): Parameters where trainable, else persistent buffers (fill_ them to
    follow a schedule: a compiled graph sees the change).

    The batch normalisations are modules passed at the call and not owned, so the names in the network's state_dict stay its
    own. They are not called (their hooks do not run), but their training flag, affine parameters, eps, momentum and
    statistics are used, and updated, as BatchNorm2d would. While alpha is 0 the ghost's is left as it is.
    """

    alpha: Tensor
    beta: Tensor

    def __init__(
        self,
        act: str = "relu",
        alpha: float = 1.0,
        beta: float = 1.0,
        trainable_alpha: bool = False,
        trainable_beta: bool = False,
        num_channels: int | None = None,
    ) -> None:
        super().__init__()
        if act not in ACTIVATIONS:
            raise ValueError(f"GhostSkipAdd: expected act to be one of {ACTIVATIONS}, got {act!r}")
        self.act = act
        self.num_channels = num_channels
        hold(self, "alpha", strength(alpha, trainable_alpha))
        hold(self, "beta", strength(beta, trainable_beta, num_channels))

    def forward(
        self,
        u: Tensor,
        norm: nn.Module | None = None,
        ghost: Tensor | None = None,
        ghost_norm: nn.Module | None = None,
        shortcut: Tensor | None = None,
        shortcut_norm: nn.Module | None = None,
    ) -> Tensor:
        """u, ghost, shortcut: (N, C, H, W), one shape. Returns the same shape, in the layout of `u`.

        Raises TypeError or ValueError naming the argument, as `tost_kernels.ghost_skip_add`; TypeError for a norm that is no
        BatchNorm, or a SyncBatchNorm, whose statistics would have to cross processes.
        """
        out, stats = ghost_skip_add(
            u,
            ghost,
            None if ghost is None else self.alpha,
            shortcut,
            norm=_norm("norm", norm),
            ghost_norm=_norm("ghost_norm", ghost_norm),
            shortcut_norm=_norm("shortcut_norm", shortcut_norm),
            act=self.act,
            beta=self.beta if self.act == "pswish" else None,
        )
        count = u.numel() // max(u.shape[1], 1)
        for row, bn in enumerate((norm, ghost_norm, shortcut_norm)):
            if isinstance(bn, _BatchNorm):
                _update(bn, stats, row, count, self.alpha if row == 1 else None)
        return out

    def extra_repr(self) -> str:
        trainable = [name for name, _ in self.named_parameters()]
        return f"act={self.act!r}, num_channels={self.num_channels}, trainable={trainable}"
