"""Records of runs, and masks -> tables and pictures."""

from __future__ import annotations

from tost.report.figures import require_matplotlib, save_figure
from tost.report.from_runs import comparisons_of, recipe_name
from tost.report.layers import comparison_sheets, layer_figure, layer_sheet
from tost.report.lotteries import lottery_sheet, save_lottery_figure
from tost.report.tables import Sheet, accuracy_sheet, format_paired, step_time_sheet

__all__ = [
    "Sheet",
    "accuracy_sheet",
    "comparison_sheets",
    "comparisons_of",
    "format_paired",
    "layer_figure",
    "layer_sheet",
    "lottery_sheet",
    "recipe_name",
    "require_matplotlib",
    "save_figure",
    "save_lottery_figure",
    "step_time_sheet",
]
