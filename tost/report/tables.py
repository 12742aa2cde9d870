"""Comparisons of recipes, and durations -> tables."""

from __future__ import annotations

from pathlib import Path

from tost.old_experiment import Comparison
from tost.paired import mean_and_spread
from tost.report.sheet import Difference, Number, Sheet, Spread
from tost.report.step_times import NONE_COMPILED, none_compiled
from tost.runs import Result

__all__ = ["accuracy_sheet", "mask_name"]


def _kernels(backend: str, kernels: str) -> str:
    if none_compiled(backend, kernels):
        return NONE_COMPILED
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
