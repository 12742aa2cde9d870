"""What all pictures share: colours, checks before the work, and how they are written."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["COLOURS", "MARKERS", "check_figure", "new_figure", "require_matplotlib", "save"]

# Okabe and Ito's colours: told apart by colour-blind readers, and in grey
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
MARKERS = ("o", "s", "^", "D", "v", "P", "X")


def require_matplotlib() -> None:
    """Raise ModuleNotFoundError with the remedy where matplotlib is missing."""
    try:
        import matplotlib  # noqa: F401
    except ModuleNotFoundError as error:
        if error.name != "matplotlib":
            raise  # it is there, but broken: its own message says more
        raise ModuleNotFoundError("pictures need matplotlib: run `pip install 'tost-sparse[plot]'`") from error


def check_figure(path: str | Path, argument: str = "figure") -> None:
    """Check before the work that a picture can be written to `path` after it; folders that are missing are made then.

    Raises:
        ModuleNotFoundError: matplotlib is missing. ValueError: it draws no such format. OSError: there can be no such file.
    """
    require_matplotlib()
    from matplotlib.backend_bases import FigureCanvasBase

    target = Path(path)
    suffix, known = target.suffix[1:].lower(), FigureCanvasBase.get_supported_filetypes()
    if suffix not in ("", *known):
        raise ValueError(f"{argument}: expected a picture (.{', .'.join(sorted(known))}), got {target}")
    if target.is_dir():
        raise IsADirectoryError(f"{argument}: expected a file to write, got a folder: {target}")
    folder = next(parent for parent in target.absolute().parents if parent.exists())
    if not folder.is_dir():
        raise NotADirectoryError(f"{argument}: expected a folder, got a file: {folder}")
    if not os.access(folder, os.W_OK | os.X_OK):
        raise PermissionError(f"{argument}: no permission to write in {folder}")


def new_figure(width: float, height: float) -> Figure:
    """An empty figure, in inches; it needs no display.

    Raises:
        ModuleNotFoundError: matplotlib is missing; the message says how to get it.
    """
    require_matplotlib()
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), layout="constrained")


def save(figure: Figure, path: str | Path) -> None:
    """Write a PNG (or what `path`'s suffix says); folders are made."""
    target = Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(target, dpi=150)
