"""Padding layers that keep the batch-last layout: torch's own in every other respect."""

from __future__ import annotations

from torch import nn

from tost_kernels.nn.keep_layout import KeepsLayout


class ZeroPad2d(KeepsLayout, nn.ZeroPad2d):
    """torch.nn.ZeroPad2d, batch-last in, batch-last out."""


class ConstantPad2d(KeepsLayout, nn.ConstantPad2d):
    """torch.nn.ConstantPad2d, batch-last in, batch-last out."""


class ReflectionPad2d(KeepsLayout, nn.ReflectionPad2d):
    """torch.nn.ReflectionPad2d, batch-last in, batch-last out."""


class ReplicationPad2d(KeepsLayout, nn.ReplicationPad2d):
    """torch.nn.ReplicationPad2d, batch-last in, batch-last out."""


class CircularPad2d(KeepsLayout, nn.CircularPad2d):
    """torch.nn.CircularPad2d, batch-last in, batch-last out."""
