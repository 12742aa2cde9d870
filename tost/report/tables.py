"""Comparisons of recipes, and durations -> tables."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from tost.experiment import Comparison
from tost.paired import mean_and_spread
from tost.report.sheet import Difference, Number, Range, Sheet, Spread
from tost.runs import Result
from tost.step_times import StepTime

__all__ = ["accuracy_sheet", "mask_name", "step_time_sheet"]


_NONE_COMPILED = "no compiled kernel"


def _none_compiled(backend: str, kernels: str) -> bool:
    """Whether a run that asked for the sparse kernels had to do without."""
    return backend == "sparse" and kernels == "dense"


def _kernels(backend: str, kernels: str) -> str:
    if _none_compiled(backend, kernels):
        return _NONE_COMPILED
    names = {"cpu": "compiled sparse kernels", "reference": "reference kernels", "dense": "dense kernels"}
    return names.get(kernels, f"kernels {kernels}")  # "tuned (triton, dense)"


def mask_name(result: Result) -> str:
    """E.g. `erk mask, 95% sparse`; `dense`."""
    config = result.config
    if config.backend == "dense":
        return "dense"
    check = "" if config.mask_check == "none" else f", {config.mask_check}"
    if config.masks is not None:
        return f"masks of {Path(config.masks).name}{check}, {100 * (1 - result.accounting.density):.4g}% sparse"
    return f"{config.method} mask{check}, {100 * (1 - config.density):g}% sparse"


def accuracy_sheet(comparison: Comparison) -> Sheet:
    """Accuracy and weights of each variant, and its paired difference to the baseline."""
    rows = []
    for name, results in comparison.results.items():
        against = "baseline" if name == comparison.baseline else Difference(comparison.against_baseline(name))
        counts = results[0].accounting
        ghosts_left = max(result.accounting.ghost_weights for result in results)
        rows.append(
            (
                name,
                Spread([100 * accuracy for accuracy in comparison.accuracies(name)]),
                against,
                f"{counts.weights_kept:,} of {counts.weights_prunable:,}",
                f"{results[0].ghost_weights_at_start:,} -> {ghosts_left:,}",
                Number(mean_and_spread([result.seconds for result in results])[0], ".0f"),
            )
        )
    first = next(iter(comparison.results.values()))[0]
    config, steps = first.config, first.history[-1]["step"]
    count = len(comparison.seeds)
    return Sheet(
        f"{config.model_name} on {config.dataset}, {mask_name(first)}, {steps} steps, {count} seed{'s' if count > 1 else ''}, "
        f"{_kernels(config.backend, first.kernels)}",
        ("recipe", "test accuracy %", f"paired difference to {comparison.baseline}", "weights kept", "ghost weights", "s/run"),
        tuple(rows),
        "Accuracy after the last step, finalized network: mean ± standard deviation. Difference: points, with its 95% "
        "t-interval. Ghost weights: while training -> left in the result.",
    )


def step_time_sheet(times: Sequence[StepTime], threads: int | None = None) -> Sheet:
    """Milliseconds a step of each backend, and how many times faster than dense without ghosts."""
    dense = next((t.ms for t in times if t.backend == "dense" and not t.ghosts), None)
    rows = tuple(
        (
            t.backend
            + (f", {_NONE_COMPILED}" if _none_compiled(t.backend, t.kernels) else "")
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
    )
