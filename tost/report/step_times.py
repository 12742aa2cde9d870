"""Durations of a step -> a table."""

from __future__ import annotations

from collections.abc import Sequence

from tost.report.sheet import Number, Range, Sheet
from tost.step_times import StepTime

__all__ = ["NONE_COMPILED", "none_compiled", "step_time_sheet"]

NONE_COMPILED = "no compiled kernel"


def none_compiled(backend: str, kernels: str) -> bool:
    """Whether a run that asked for the sparse kernels had to do without."""
    return backend == "sparse" and kernels == "dense"


def step_time_sheet(times: Sequence[StepTime], threads: int | None = None) -> Sheet:
    """Milliseconds a step of each backend, and how many times faster than dense without ghosts."""
    dense = next((t.ms for t in times if t.backend == "dense" and not t.ghosts), None)
    rows = tuple(
        (
            t.backend
            + (f", {NONE_COMPILED}" if none_compiled(t.backend, t.kernels) else "")
            + (", ghosts alive" if t.ghosts else ""),
            Number(t.ms, ".1f"),
            Range(t.ms_low, t.ms_high),
            Number(dense / t.ms if dense else None, ".2f", "x"),
            t.layout,
        )
        for t in times
    )
    return Sheet(
        "Duration of a training step" + (f", {threads} thread{'s' if threads != 1 else ''}" if threads else ""),
        ("backend", "ms (median)", "quartiles", "speed against dense", "images"),
        rows,
        "Forward, backward and update, interleaved in one process on the same batches. Dense and masked-dense: the faster "
        "of contiguous and channels_last.",
        name="step-times",
    )
