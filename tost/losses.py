"""Losses of the papers: label smoothing (ToST) and distillation (SLTH's variant)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tost.checks import number

__all__ = ["Distillation", "cross_entropy"]


def cross_entropy(label_smoothing: float = 0.0) -> nn.CrossEntropyLoss:
    """Mean cross entropy against the target distribution y (1 - a) + a / K, a = `label_smoothing`, K classes.

    This is the form of ToST's poster (and torch's); its released code spreads a over the K - 1 wrong classes instead.
    The loss takes logits (N, K) and targets (N,) int64.

    Raises:
        TypeError, ValueError: `label_smoothing` is no number in [0, 1).
    """
    return nn.CrossEntropyLoss(label_smoothing=number("cross_entropy: label_smoothing", label_smoothing, least=0.0, below=1.0))


class Distillation(nn.Module):
    """a T^2 KL(teacher / T || student / T) + (1 - a) CE(student, targets), mean over the batch.

    T = `temperature` > 0, a = `weight` in [0, 1]; CE with `label_smoothing` as in `cross_entropy`.
    T^2 keeps the soft part's gradient at the scale of the hard one's
    (Hinton et al., arXiv 1503.02531). No gradient flows into the teacher. The defaults are those of SLTH's CIFAR runs
    (arXiv 2101.03255).
    """

    def __init__(self, temperature: float = 5.0, weight: float = 0.9, label_smoothing: float = 0.0) -> None:
        super().__init__()
        self.hard = cross_entropy(label_smoothing)
        self.temperature = number("Distillation: temperature", temperature, above=0.0)
        self.weight = number("Distillation: weight", weight, least=0.0, most=1.0)

    def forward(self, student: Tensor, teacher: Tensor, targets: Tensor) -> Tensor:
        """Logits (N, K), logits (N, K), int64 targets (N,) -> 0-dim loss."""
        if student.shape != teacher.shape:
            raise ValueError(
                f"Distillation: teacher: expected logits of the student's shape {tuple(student.shape)}, "
                f"got {tuple(teacher.shape)}"
            )
        t = self.temperature
        soft = F.kl_div(
            torch.log_softmax(student / t, dim=1),
            torch.log_softmax(teacher.detach() / t, dim=1),
            reduction="batchmean",
            log_target=True,
        )
        hard: Tensor = self.hard(student, targets)
        return self.weight * t * t * soft + (1.0 - self.weight) * hard

    def extra_repr(self) -> str:
        return f"temperature={self.temperature}, weight={self.weight}"
