"""Kernels for sparse WEIGHTS: masked convolution and linear layers, fused PSwish and ghost-skip add.

Modules: `SparseConv2d`, `SparseLinear`, `sparsify`, `densify` (in `tost_kernels.nn`, exported here). Ops: `masked_conv2d`,
`masked_linear`, `pswish`, `ghost_skip_add`. What runs where: `python -m tost_kernels.info`; what is fastest: `tune`.
"""

from tost_kernels import backend as _backend
from tost_kernels import library as _library
from tost_kernels.backend import use_backend
from tost_kernels.layout import is_batch_last, to_batch_last
from tost_kernels.ops import pool2d as _pool2d  # noqa: F401  (registers the ops that `survey` asks for)
from tost_kernels.ops.ghost_skip_add import GhostSkipAddOutput, Norm, ghost_skip_add
from tost_kernels.ops.masked_conv2d import masked_conv2d
from tost_kernels.ops.masked_linear import masked_linear
from tost_kernels.ops.pswish import pswish
from tost_kernels.pattern import Pattern

_library.load_all()
_backend.survey()

from tost_kernels import nn  # noqa: E402  (modules may ask what is usable)
from tost_kernels.best_layout import best_layout  # noqa: E402
from tost_kernels.nn import (  # noqa: E402
    GhostSkipAdd,
    PSwish,
    SparseConv2d,
    SparseLinear,
    densify,
    param_groups,
    sparsify,
)
from tost_kernels.tune import TuneReport, tune  # noqa: E402

__all__ = [
    "GhostSkipAdd",
    "GhostSkipAddOutput",
    "Norm",
    "PSwish",
    "Pattern",
    "SparseConv2d",
    "SparseLinear",
    "TuneReport",
    "best_layout",
    "densify",
    "ghost_skip_add",
    "is_batch_last",
    "masked_conv2d",
    "masked_linear",
    "nn",
    "param_groups",
    "pswish",
    "sparsify",
    "to_batch_last",
    "tune",
    "use_backend",
]
