"""What the commands print: results to stdout, progress, notes and errors to stderr."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

if TYPE_CHECKING:
    from tost.report import Record, Sheet


def print_json(values: Any) -> None:
    print(json.dumps(values, indent=2, allow_nan=False))


def print_sheets(sheets: Sequence[Sheet]) -> None:
    from rich.console import Console

    # a pipe has no width; wide enough that no cell is folded there
    console = Console() if sys.stdout.isatty() else Console(width=140)
    with console.capture() as text:
        for sheet in sheets:
            console.print(sheet.rich())
            console.print()
    print(text.get(), end="")  # rich ends the process where nobody reads


def show(found: Record, stem: Path, as_json: bool) -> None:
    """Write the record with its tables and pictures, `stem` and what tells them apart; print the tables or the record."""
    from tost.report import sheets_of, write_report

    pictures = write_report(found, stem)
    if as_json:
        print_json(found.as_dict())
    else:
        print_sheets(sheets_of(found))
        drawn = f"picture{'s' if len(pictures) > 1 else ''} {', '.join(map(str, pictures))}, " if pictures else ""
        print(f"{drawn}tables {stem}.md, .tex and .csv, record {stem}.json")


def reader_is_gone(probe: str = "") -> bool:
    """Whether nobody reads stdout any more, as behind `| head`; what is left to write is then dropped.

    Args:
        probe: to write; a write that failed has left nothing behind that would fail once more.
    """
    try:
        print(end=probe, flush=True)
    except BrokenPipeError:
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, sys.stdout.fileno())  # or Python complains as it ends
        os.close(nowhere)
        return True
    return False


def note(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def complain(error: Exception | str, code: int) -> int:
    note(f"tost: error: {' '.join(str(error).split())}")
    return code


def print_warning(
    message: Warning | str,
    category: type[Warning],
    filename: str,
    lineno: int,
    file: TextIO | None = None,
    line: str | None = None,
) -> None:
    note(f"tost: note: {' '.join(str(message).split())}")
