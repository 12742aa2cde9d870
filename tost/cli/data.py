"""`tost data`: download data sets, or list them."""

from __future__ import annotations

from jsonargparse import Namespace

from tost.choices import check_choice
from tost.cli.options import Parser, add_json
from tost.cli.output import print_json, print_sheets

HELP = "download data sets, or list them"


def parser() -> Parser:
    data = Parser(description="Download data sets from their official sources, or list what there is.")
    data.add_argument("action", type=str, help="fetch or list")
    data.add_argument("name", type=str | None, nargs="?", default=None, help="the data set to fetch")
    data.add_argument(
        "--data_dir", type=str | None, default=None, help="folder of data sets (default: $TOST_DATA_DIR or ~/.cache/tost/data)"
    )
    add_json(data)
    return data


def run(options: Namespace) -> None:
    check_choice("action", options.action, ("fetch", "list"))
    if options.action == "fetch" and options.name is None:
        raise ValueError("name: expected the data set to fetch (tost data list shows them), got none")
    if options.action == "list" and options.name is not None:
        raise ValueError(f"name: expected none for list, got {options.name}")
    from tost.data import fetch, find, names
    from tost.data.sources import SOURCES
    from tost.report import Sheet

    if options.action == "fetch":
        done = fetch.fetch(options.name, options.data_dir, progress=True)
        if options.json:
            print_json(done.as_dict())
        else:
            print(f"{done.name}  {done.folder}" + ("" if done.downloaded else "  (was there already)"))
        return
    found = {name: find(name, options.data_dir) for name in names()}
    if options.json:
        print_json([{"name": n, "fetch": n in SOURCES, "folder": str(f) if f else None} for n, f in found.items()])
        return
    rows = [(n, str(f) if f else "-", "yes" if n in SOURCES else "no") for n, f in found.items()]
    print_sheets([Sheet("data sets", ("name", "found in", "tost data fetch"), tuple(rows), texts=("found in",))])
