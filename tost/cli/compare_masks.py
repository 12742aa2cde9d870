"""`tost compare-masks`: how far masks overlap."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import TYPE_CHECKING

from jsonargparse import Namespace

from tost.cli.options import Parser, add_json
from tost.cli.output import print_json, print_sheets

if TYPE_CHECKING:
    from tost.masks import Masks

HELP = "overlap of masks, layer by layer"


def parser() -> Parser:
    compare = Parser(
        description="Overlap of masks of one network, in all and layer by layer, beside that of random masks of these densities."
    )
    compare.add_argument(
        "masks", type=str, nargs="+", help="two or more files (.safetensors, .npz) or run folders; each pair is compared"
    )
    compare.add_argument(
        "--figure", type=str | None, default=None, help="also save a picture of what each layer keeps (FILE.png)"
    )
    compare.add_argument("--markdown", action="store_true", help="print Markdown tables")
    add_json(compare)
    return compare


def run(options: Namespace) -> None:
    if len(options.masks) < 2:
        raise ValueError(f"masks: expected at least two files or run folders, got {len(options.masks)}")
    from tost.masks import compare
    from tost.report import check_figure, comparison_sheets, layer_figure

    if options.figure is not None:
        check_figure(options.figure)
    masks = {label: _load(Path(path)) for label, path in zip(_labels(options.masks), options.masks, strict=True)}
    comparisons = {}
    for a, b in itertools.combinations(masks, 2):
        try:
            comparisons[a, b] = compare(masks[a], masks[b])
        except ValueError as error:
            raise ValueError(f"masks: a = {a}, b = {b}: {error}") from error
    if options.figure is not None:
        layer_figure({name: one.per_layer() for name, one in masks.items()}, options.figure)
    if options.json:
        print_json([{"a": a, "b": b, **comparison.as_dict()} for (a, b), comparison in comparisons.items()])
        return
    sheets = comparison_sheets(comparisons)
    if options.markdown:
        print("\n".join(sheet.markdown() for sheet in sheets))
    else:
        print_sheets(sheets)


def _load(path: Path) -> Masks:
    """The masks in a file, or those of a run folder."""
    from tost.masks import Masks

    if not path.is_dir():
        return Masks.load(path)
    inside = path / "masks.safetensors"
    if not inside.is_file():
        raise FileNotFoundError(f"masks: expected a run folder with a mask (masks.safetensors), found none in {path}")
    return Masks.load(inside)


def _labels(paths: list[str]) -> list[str]:
    """The paths; those given twice are told apart by number."""
    return [path if paths.count(path) == 1 else f"{path} ({paths[: i + 1].count(path)})" for i, path in enumerate(paths)]
