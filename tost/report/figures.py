"""Records -> picture: accuracy curves of every run, and the duration of a step."""

from __future__ import annotations

import os
import statistics
from pathlib import Path
from typing import TYPE_CHECKING

from tost.old_experiment import Comparison
from tost.report.tables import mask_name

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["COLOURS", "MARKERS", "check_figure", "new_figure", "require_matplotlib", "save", "save_figure"]

# Okabe and Ito's colours: told apart by colour-blind readers, and in grey
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
MARKERS = ("o", "s", "^", "D", "v", "P", "X")


def require_matplotlib() -> None:
    """Raise ModuleNotFoundError with the remedy where matplotlib is missing."""
    try:
        import matplotlib  # noqa: F401
    except ModuleNotFoundError as error:
        if error.name != "matplotlib":
            raise  # it is there, but broken: its own message says more
        raise ModuleNotFoundError("pictures need matplotlib: run `pip install 'tost-sparse[plot]'`") from error


def check_figure(path: str | Path, argument: str = "figure") -> None:
    """Check before the work that a picture can be written to `path` after it; folders that are missing are made then.

    Raises:
        ModuleNotFoundError: matplotlib is missing. ValueError: it draws no such format. OSError: there can be no such file.
    """
    require_matplotlib()
    from matplotlib.backend_bases import FigureCanvasBase

    target = Path(path)
    suffix, known = target.suffix[1:].lower(), FigureCanvasBase.get_supported_filetypes()
    if suffix not in ("", *known):
        raise ValueError(f"{argument}: expected a picture (.{', .'.join(sorted(known))}), got {target}")
    if target.is_dir():
        raise IsADirectoryError(f"{argument}: expected a file to write, got a folder: {target}")
    folder = next(parent for parent in target.absolute().parents if parent.exists())
    if not folder.is_dir():
        raise NotADirectoryError(f"{argument}: expected a folder, got a file: {folder}")
    if not os.access(folder, os.W_OK | os.X_OK):
        raise PermissionError(f"{argument}: no permission to write in {folder}")


def new_figure(width: float, height: float) -> Figure:
    """An empty figure, in inches; it needs no display.

    Raises:
        ModuleNotFoundError: matplotlib is missing; the message says how to get it.
    """
    require_matplotlib()
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), layout="constrained")


def save(figure: Figure, path: str | Path) -> None:
    """Write a PNG (or what `path`'s suffix says); folders are made."""
    target = Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(target, dpi=150)


def save_figure(comparison: Comparison, path: str | Path) -> None:
    """Write a PNG (or what `path`'s suffix says).

    Left: test accuracy of the finalized network over the steps, a thin line a run and a thick one for the mean. Right,
    where steps were timed: milliseconds a step with quartiles.
    """
    timed = bool(comparison.step_times)
    figure = new_figure(12 if timed else 7, 4.8)
    axes = figure.subplots(1, 2 if timed else 1, squeeze=False)[0]
    _curves(axes[0], comparison)
    if timed:
        _bars(axes[1], comparison)
    save(figure, path)


def _curves(axes: Axes, comparison: Comparison) -> None:
    for colour, (name, results) in zip(_cycle(len(comparison.results)), comparison.results.items(), strict=True):
        points: dict[int, list[float]] = {}
        for result in results:
            line = [(h["step"], 100 * h["test_accuracy"]) for h in result.history if "test_accuracy" in h]
            axes.plot([s for s, _ in line], [a for _, a in line], color=colour, alpha=0.35, linewidth=0.9)
            for step, accuracy in line:
                points.setdefault(step, []).append(accuracy)
        mean = {step: statistics.fmean(a) for step, a in points.items() if len(a) == len(results)}
        final = statistics.fmean(comparison.accuracies(name))
        label = f"{name} ({100 * final:.2f}%, {len(results)} run{'s' if len(results) > 1 else ''})"
        axes.plot(list(mean), list(mean.values()), color=colour, linewidth=2.2, label=label)
    first = next(iter(comparison.results.values()))[0]
    axes.set_title(f"{first.config.model_name}, {first.config.dataset}, {mask_name(first)}")
    axes.set_xlabel("step")
    axes.set_ylabel("test accuracy of the finalized network, %")
    axes.grid(alpha=0.3)
    axes.legend(loc="lower right")


def _bars(axes: Axes, comparison: Comparison) -> None:
    times = comparison.step_times
    labels = [t.backend.replace("-", "-\n") + ("\nghosts alive" if t.ghosts else "") for t in times]
    errors = [[t.ms - t.ms_low for t in times], [t.ms_high - t.ms for t in times]]
    colours = [COLOURS[1] if t.ghosts else COLOURS[0] for t in times]
    bars = axes.bar(labels, [t.ms for t in times], color=colours, yerr=errors, capsize=3)
    axes.bar_label(bars, [f"{t.ms:.0f}" for t in times], padding=2)
    axes.set_title(f"a training step, batch of {next(iter(comparison.results.values()))[0].config.batch_size}")
    axes.set_ylabel("ms, median and quartiles")
    axes.tick_params(axis="x", labelsize=8)


def _cycle(count: int) -> list[str]:
    return [COLOURS[i % len(COLOURS)] for i in range(count)]
