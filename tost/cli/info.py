"""`tost info`: what is usable here."""

from __future__ import annotations

from jsonargparse import Namespace

from tost.cli.options import Parser, add_json

HELP = "what is installed and usable here"


def parser() -> Parser:
    info = Parser(description="What is installed and usable here, for each op and backend.")
    info.add_argument("--seed", type=int, default=0, help="accepted as everywhere; nothing here is random")
    add_json(info)
    return info


def run(options: Namespace) -> None:
    from tost_kernels import info

    info.main(["--json"] if options.json else [])
