"""`tost report`: tables and pictures of finished runs."""

from __future__ import annotations

import itertools
from pathlib import Path

from jsonargparse import Namespace

from tost.cli.options import Parser, add_json
from tost.cli.output import print_json, print_sheets

HELP = "tables and pictures of finished runs"


def parser() -> Parser:
    report = Parser(description="Tables of the finished runs and lotteries in a folder.")
    report.add_argument("folder", type=str, help="a run folder, or a folder of them")
    report.add_argument("--figure", type=str | None, default=None, help="also save a picture (FILE.png)")
    report.add_argument("--markdown", action="store_true", help="print Markdown tables")
    report.add_argument("--seed", type=int | None, default=None, help="only runs of this seed")
    add_json(report)
    return report


def run(options: Namespace) -> None:
    from tost.report import (
        accuracy_sheet,
        comparisons_of,
        lottery_sheet,
        require_matplotlib,
        save_figure,
        save_lottery_figure,
    )
    from tost.runs import find_runs
    from tost.tickets import find_lotteries

    if options.figure is not None:
        require_matplotlib()
    results, lotteries = find_runs(options.folder), find_lotteries(options.folder)
    if options.seed is not None:
        results = [result for result in results if result.config.seed == options.seed]
        lotteries = [lottery for lottery in lotteries if lottery.config.seed == options.seed]
        if not results:
            raise ValueError(f"seed: no run in {options.folder} has seed {options.seed}")
    rounds = {one.result.run_dir for lottery in lotteries for one in lottery.rounds}
    comparisons = comparisons_of([result for result in results if result.run_dir not in rounds])
    if options.figure is not None:
        stem = Path(options.figure)
        several = len(comparisons) + len(lotteries) > 1
        paths = (
            stem.with_name(f"{stem.stem}{f'-{number}' if several else ''}{stem.suffix or '.png'}")
            for number in itertools.count(1)
        )
        for comparison in comparisons:
            save_figure(comparison, next(paths))
        for lottery in lotteries:
            save_lottery_figure(lottery, next(paths))
    sheets = [*map(accuracy_sheet, comparisons), *map(lottery_sheet, lotteries)]
    if options.json:
        print_json([*(one.as_dict() for one in comparisons), *(one.as_dict() for one in lotteries)])
    elif options.markdown:
        print("\n".join(sheet.markdown() for sheet in sheets))
    else:
        print_sheets(sheets)
