"""The networks of the papers by name: `build("resnet20", num_classes=10, in_channels=1)`; `names()` lists them.

`build("my_nets.py:small", ...)` builds one of yours.
"""

from __future__ import annotations

from tost.models.registry import build, check_name, names
from tost.models.user import check_outputs, source_digest

__all__ = ["build", "check_name", "check_outputs", "names", "source_digest"]
