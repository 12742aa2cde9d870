"""Modules with sparse weights, the layers that keep the batch-last layout beside them, and ToST's activation and tail."""

from tost_kernels.nn.batch_norm import BatchNorm2d
from tost_kernels.nn.conv2d import Conv2d
from tost_kernels.nn.convert import densify, sparsify
from tost_kernels.nn.ghost_skip_add import GhostSkipAdd
from tost_kernels.nn.pad import CircularPad2d, ConstantPad2d, ReflectionPad2d, ReplicationPad2d, ZeroPad2d
from tost_kernels.nn.param_groups import param_groups
from tost_kernels.nn.pool import AdaptiveAvgPool2d, AdaptiveMaxPool2d, AvgPool2d, MaxPool2d
from tost_kernels.nn.pswish import PSwish
from tost_kernels.nn.sparse_conv2d import SparseConv2d
from tost_kernels.nn.sparse_linear import SparseLinear
from tost_kernels.nn.sparse_module import SparseModule

__all__ = [
    "AdaptiveAvgPool2d",
    "AdaptiveMaxPool2d",
    "AvgPool2d",
    "BatchNorm2d",
    "CircularPad2d",
    "ConstantPad2d",
    "Conv2d",
    "GhostSkipAdd",
    "MaxPool2d",
    "PSwish",
    "ReflectionPad2d",
    "ReplicationPad2d",
    "SparseConv2d",
    "SparseLinear",
    "SparseModule",
    "ZeroPad2d",
    "densify",
    "param_groups",
    "sparsify",
]
