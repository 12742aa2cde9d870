"""Pooling layers that keep the batch-last layout: torch's own in every other respect."""

from __future__ import annotations

from torch import nn

from tost_kernels.nn.keep_layout import KeepsLayout


class MaxPool2d(KeepsLayout, nn.MaxPool2d):
    """torch.nn.MaxPool2d, batch-last in, batch-last out; `return_indices` gives torch's indices."""


class AvgPool2d(KeepsLayout, nn.AvgPool2d):
    """torch.nn.AvgPool2d, batch-last in, batch-last out."""


class AdaptiveAvgPool2d(KeepsLayout, nn.AdaptiveAvgPool2d):
    """torch.nn.AdaptiveAvgPool2d, batch-last in, batch-last out."""


class AdaptiveMaxPool2d(KeepsLayout, nn.AdaptiveMaxPool2d):
    """torch.nn.AdaptiveMaxPool2d, batch-last in, batch-last out; `return_indices` gives torch's indices."""
