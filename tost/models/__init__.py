"""The networks of the papers by name: `build("resnet20", num_classes=10, in_channels=1)`; `names()` lists them."""

from __future__ import annotations

from tost.models.registry import build, names

__all__ = ["build", "names"]
