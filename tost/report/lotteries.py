"""A lottery -> table and picture: accuracy against density, round by round."""

from __future__ import annotations

from pathlib import Path

from tost.report.figures import COLOURS, new_figure, save
from tost.report.sheet import Number, Sheet, Value
from tost.tickets import Lottery

__all__ = ["lottery_sheet", "save_lottery_figure"]


def lottery_sheet(lottery: Lottery) -> Sheet:
    """A row a round; with the best epoch by validation where images were held out."""
    validated = lottery.rounds[0].result.best is not None
    rows = []
    for one in lottery.rounds:
        best = one.result.best
        cells: list[Value] = [
            Number(one.number),
            Number(100 * one.density, ".4g"),
            Number(one.kept),
            _percent(one.result.test_accuracy),
        ]
        if best is not None:
            cells += [_percent(best["validation_accuracy"]), _percent(best["test_accuracy"])]
        rows.append((*cells, Number(one.result.seconds, ".0f")))
    header = ["round", "kept %", "weights kept", "test accuracy %"]
    header += ["best validation %", "test accuracy % then"] if validated else []
    note = "Round 0 is dense; accuracy after the last step, finalized network."
    return Sheet(_title(lottery), (*header, "s"), tuple(rows), note)


def save_lottery_figure(lottery: Lottery, path: str | Path) -> None:
    """Write a PNG (or what `path`'s suffix says): test accuracy of every round against its density, the dense one as a line."""
    figure = new_figure(7, 4.8)
    axes = figure.subplots()
    densities = [100 * one.density for one in lottery.rounds]
    accuracies = [100 * one.result.test_accuracy for one in lottery.rounds]
    axes.axhline(accuracies[0], color="0.6", linewidth=0.9, label="dense")
    axes.plot(densities, accuracies, color=COLOURS[0], marker="o", linewidth=1.8, label="tickets")
    axes.set_xscale("log")
    axes.invert_xaxis()
    ticks = densities[:: max(1, len(densities) // 6)]
    axes.set_xticks(ticks, [f"{density:.3g}" for density in ticks])
    axes.set_xticks([], minor=True)
    axes.set_title(_title(lottery), fontsize=10)
    axes.set_xlabel("weights kept, %")
    axes.set_ylabel("test accuracy of the finalized network, %")
    axes.grid(alpha=0.3)
    axes.legend(loc="lower left")
    save(figure, path)


def _percent(fraction: float) -> Number:
    return Number(100 * fraction, ".2f")


def _title(lottery: Lottery) -> str:
    back = {None: "without rewinding", 0: "rewound to the first weights"}.get(lottery.rewind, f"rewound to step {lottery.rewind}")
    config = lottery.config
    return f"{config.model_name} on {config.dataset}, lottery tickets {back}, {100 * lottery.rate:g}% removed a round"
