"""Records of runs and analyses, and masks -> tables and pictures."""

from __future__ import annotations

from tost.recipe import recipe_name
from tost.report.analyses import iterations_sheet, layers_sheet, recovery_sheet, saliency_sheet
from tost.report.analysis_figures import (
    save_iterations_figure,
    save_layers_figure,
    save_recovery_figure,
    save_saliency_figure,
)
from tost.report.figures import check_figure, require_matplotlib
from tost.report.from_runs import grids_of, lotteries_of
from tost.report.grid_figures import save_curves_figure, save_forest_figure, save_sparsity_figure
from tost.report.grids import grid_sheets
from tost.report.kinds import KINDS, Kind, Record, pictures_of, read_record, sheets_of, write_report
from tost.report.layers import comparison_sheets, layer_figure, layer_sheet
from tost.report.lotteries import lottery_sheet, save_lottery_figure
from tost.report.sheet import Difference, Number, Range, Sheet, Spread, csv_tables
from tost.report.step_times import step_time_sheet

__all__ = [
    "KINDS",
    "Difference",
    "Kind",
    "Number",
    "Range",
    "Record",
    "Sheet",
    "Spread",
    "check_figure",
    "comparison_sheets",
    "csv_tables",
    "grid_sheets",
    "grids_of",
    "iterations_sheet",
    "layer_figure",
    "layer_sheet",
    "layers_sheet",
    "lotteries_of",
    "lottery_sheet",
    "pictures_of",
    "read_record",
    "recipe_name",
    "recovery_sheet",
    "require_matplotlib",
    "saliency_sheet",
    "save_curves_figure",
    "save_forest_figure",
    "save_iterations_figure",
    "save_layers_figure",
    "save_lottery_figure",
    "save_recovery_figure",
    "save_saliency_figure",
    "save_sparsity_figure",
    "sheets_of",
    "step_time_sheet",
    "write_report",
]
