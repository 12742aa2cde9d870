"""What durations were measured on, and with."""

from __future__ import annotations

import os
import platform
from typing import Any

import torch

from tost_kernels.tuning.store import cpu_name

__all__ = ["environment"]


def environment() -> dict[str, Any]:
    """Processor, cores, threads and versions, plain JSON types."""
    return {
        "processor": cpu_name(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "python": platform.python_version(),
    }
