"""`tost report`: tables and pictures of finished runs."""

from __future__ import annotations

from pathlib import Path

from jsonargparse import Namespace

from tost.cli.options import Parser, add_json
from tost.cli.output import print_json, print_sheets

HELP = "tables and pictures of finished runs"


def parser() -> Parser:
    report = Parser(description="Tables of the finished runs in a folder.")
    report.add_argument("folder", type=str, help="a run folder, or a folder of them")
    report.add_argument("--figure", type=str | None, default=None, help="also save a picture (FILE.png)")
    report.add_argument("--markdown", action="store_true", help="print Markdown tables")
    report.add_argument("--seed", type=int | None, default=None, help="only runs of this seed")
    add_json(report)
    return report


def run(options: Namespace) -> None:
    from tost.report import accuracy_sheet, check_figure, comparisons_of, save_figure
    from tost.runs import find_runs

    if options.figure is not None:
        check_figure(options.figure)
    results = find_runs(options.folder)
    if options.seed is not None:
        results = [result for result in results if result.config.seed == options.seed]
        if not results:
            raise ValueError(f"seed: no run in {options.folder} has seed {options.seed}")
    comparisons = comparisons_of(results)
    if options.figure is not None:
        stem = Path(options.figure)
        for number, comparison in enumerate(comparisons):
            suffix = f"-{number + 1}" if len(comparisons) > 1 else ""
            save_figure(comparison, stem.with_name(f"{stem.stem}{suffix}{stem.suffix or '.png'}"))
    sheets = [accuracy_sheet(comparison) for comparison in comparisons]
    if options.json:
        print_json([comparison.as_dict() for comparison in comparisons])
    elif options.markdown:
        print("\n".join(sheet.markdown() for sheet in sheets))
    else:
        print_sheets(sheets)
