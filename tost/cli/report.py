"""`tost report`: tables and pictures of finished runs, and of records."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from jsonargparse import Namespace

from tost.cli.options import Parser, add_json
from tost.cli.output import print_json, print_sheets

if TYPE_CHECKING:
    from tost.report import Record

HELP = "tables and pictures of finished runs and of records"
_FORMATS = ("markdown", "latex", "csv")


def parser() -> Parser:
    report = Parser(
        description="Tables and pictures of the finished lotteries and other runs in a folder, or of a record that compare, "
        "lottery or analyze wrote."
    )
    report.add_argument("source", type=str, help="a run folder, a folder of them, or a record (FILE.json)")
    report.add_argument("--figure", type=str | None, default=None, help="also save the pictures (FILE.png)")
    report.add_argument(
        "--out", type=str | None, default=None, help="also write pictures, tables (.md, .csv, .tex) and record into this folder"
    )
    for form in _FORMATS:
        report.add_argument(f"--{form}", action="store_true", help=f"print the tables as {form}")
    report.add_argument("--seed", type=int | None, default=None, help="only runs of this seed, of a folder")
    add_json(report)
    return report


def run(options: Namespace) -> None:
    forms = [form for form in (*_FORMATS, "json") if options[form]]
    if len(forms) > 1:
        raise ValueError(f"{forms[1]}: expected one way to print, got --{' and --'.join(forms)}")
    from tost.report import check_figure, csv_tables, pictures_of, sheets_of, write_report

    if options.figure is not None:
        check_figure(options.figure)
    if options.out is not None:
        check_figure(Path(options.out) / "figure.png", "out")
    found = _records(options)
    if options.figure is not None:
        stem = Path(options.figure)
        pictures = [draw for one in found.values() for draw in pictures_of(one).values()]
        for number, draw in enumerate(pictures, 1):
            draw(stem.with_name(f"{stem.stem}{f'-{number}' if len(pictures) > 1 else ''}{stem.suffix or '.png'}"))
    if options.out is not None:
        for name, one in found.items():
            write_report(one, Path(options.out) / name)
    sheets = [sheet for one in found.values() for sheet in sheets_of(one)]
    if options.json:
        print_json([one.as_dict() for one in found.values()])
    elif options.csv:
        print("\n".join(csv_tables(sheets).values()), end="")
    elif options.markdown or options.latex:
        print("\n".join(sheet.markdown() if options.markdown else sheet.latex() for sheet in sheets), end="")
    else:
        print_sheets(sheets)


def _records(options: Namespace) -> dict[str, Record]:
    """Name -> record: the one in a file, or what the runs of a folder come to."""
    from tost.report import grids_of, lotteries_of, read_record
    from tost.runs import find_runs

    source = Path(options.source)
    if source.is_file():
        if options.seed is not None:
            raise ValueError(f"seed: expected a folder of runs with it, got the record {source}")
        return {source.stem: read_record(source)}
    if source.suffix == ".json":
        raise FileNotFoundError(f"source: no such file: {source}")
    results = find_runs(source)
    if options.seed is not None:
        results = [result for result in results if result.config.seed == options.seed]
        if not results:
            raise ValueError(f"seed: no run in {source} has seed {options.seed}")
    lotteries, others = lotteries_of(results)
    return {**_numbered("lottery", lotteries), **_numbered("comparison", grids_of(others))}


def _numbered(name: str, records: Sequence[Record]) -> dict[str, Record]:
    return {f"{name}-{i}" if len(records) > 1 else name: one for i, one in enumerate(records, 1)}
