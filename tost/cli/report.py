"""`tost report`: tables and pictures of finished runs."""

from __future__ import annotations

from functools import partial
from pathlib import Path

from jsonargparse import Namespace

from tost.cli.options import Parser, add_json
from tost.cli.output import print_json, print_sheets

HELP = "tables and pictures of finished runs"


def parser() -> Parser:
    report = Parser(description="Tables of the finished lotteries and other runs in a folder.")
    report.add_argument("folder", type=str, help="a run folder, or a folder of them")
    report.add_argument("--figure", type=str | None, default=None, help="also save a picture (FILE.png)")
    report.add_argument("--markdown", action="store_true", help="print Markdown tables")
    report.add_argument("--seed", type=int | None, default=None, help="only runs of this seed")
    add_json(report)
    return report


def run(options: Namespace) -> None:
    from tost.report import (
        accuracy_sheet,
        check_figure,
        comparisons_of,
        lotteries_of,
        lottery_sheet,
        save_figure,
        save_lottery_figure,
    )
    from tost.runs import find_runs

    if options.figure is not None:
        check_figure(options.figure)
    results = find_runs(options.folder)
    if options.seed is not None:
        results = [result for result in results if result.config.seed == options.seed]
        if not results:
            raise ValueError(f"seed: no run in {options.folder} has seed {options.seed}")
    lotteries, others = lotteries_of(results)
    comparisons = comparisons_of(others)
    if options.figure is not None:
        stem = Path(options.figure)
        pictures = [partial(save_lottery_figure, one) for one in lotteries] + [partial(save_figure, one) for one in comparisons]
        for number, save in enumerate(pictures):
            suffix = f"-{number + 1}" if len(pictures) > 1 else ""
            save(stem.with_name(f"{stem.stem}{suffix}{stem.suffix or '.png'}"))
    sheets = [lottery_sheet(one) for one in lotteries] + [accuracy_sheet(one) for one in comparisons]
    if options.json:
        print_json([one.as_dict() for one in lotteries] + [one.as_dict() for one in comparisons])
    elif options.markdown:
        print("\n".join(sheet.markdown() for sheet in sheets))
    else:
        print_sheets(sheets)
