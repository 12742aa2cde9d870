"""Physically smaller networks: dead filters and all that only they feed are removed, and the outputs stay the same."""

from tost.shrinking.graph import Untraceable
from tost.shrinking.removal import Shrunk, shrink
from tost.shrinking.report import KeptDead, LayerChange, ShrinkReport
from tost.shrinking.saved import load_shrunk
from tost.shrinking.timing import ForwardTimes, time_forward

__all__ = [
    "ForwardTimes",
    "KeptDead",
    "LayerChange",
    "ShrinkReport",
    "Shrunk",
    "Untraceable",
    "load_shrunk",
    "shrink",
    "time_forward",
]
