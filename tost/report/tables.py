"""Records -> tables: one list of cells for the terminal (rich) and for Markdown."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.table import Table

from tost.experiment import Comparison
from tost.paired import Paired, mean_and_spread
from tost.runs import Result
from tost.step_times import StepTime

__all__ = ["Sheet", "accuracy_sheet", "format_paired", "mask_name", "step_time_sheet"]


@dataclass(frozen=True)
class Sheet:
    """A table without a look: the first column and those named in `texts` are left-aligned, the others hold numbers."""

    title: str
    header: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    note: str = ""
    texts: tuple[str, ...] = ()

    def rich(self) -> Table:
        """For a terminal."""
        table = Table(title=self.title, title_justify="left", caption=self.note or None, caption_justify="left")
        for name, left in zip(self.header, self._left(), strict=True):
            table.add_column(name, justify="left" if left else "right", overflow="fold")
        for row in self.rows:
            table.add_row(*row)
        return table

    def markdown(self) -> str:
        """For a file."""
        ruler = [":--" if left else "--:" for left in self._left()]
        lines = [f"**{self.title}**", ""]
        for cells in (self.header, ruler, *self.rows):
            lines.append("| " + " | ".join(cell.replace("|", r"\|") for cell in cells) + " |")
        return "\n".join([*lines, *(["", self.note] if self.note else []), ""])

    def _left(self) -> list[bool]:
        return [i == 0 or name in self.texts for i, name in enumerate(self.header)]


def format_paired(difference: Paired) -> str:
    """E.g. `+0.53 [-0.20, +1.26], 2 of 3 won`: mean difference in points, its 95% interval, wins."""
    if difference.mean is None:
        return "no pair"
    text = f"{100 * difference.mean:+.2f}"
    if difference.low is not None and difference.high is not None:
        text += f" [{100 * difference.low:+.2f}, {100 * difference.high:+.2f}]"
    return f"{text}, {difference.wins} of {len(difference.differences)} won"


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
        mean, spread = mean_and_spread(comparison.accuracies(name))
        against = "baseline" if name == comparison.baseline else format_paired(comparison.against_baseline(name))
        counts = results[0].accounting
        ghosts_left = max(result.accounting.ghost_weights for result in results)
        rows.append(
            (
                name,
                f"{100 * mean:.2f}" + (f" ± {100 * spread:.2f}" if len(results) > 1 else ""),
                against,
                f"{counts.weights_kept:,} of {counts.weights_prunable:,}",
                f"{results[0].ghost_weights_at_start:,} -> {ghosts_left:,}",
                f"{mean_and_spread([result.seconds for result in results])[0]:.0f}",
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
            f"{t.ms:.1f}",
            f"{t.ms_low:.1f} - {t.ms_high:.1f}",
            f"{dense / t.ms:.2f}x" if dense else "",
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
