"""`tost prune`: masks of a freshly initialized network, in a file."""

from __future__ import annotations

from pathlib import Path

from jsonargparse import Namespace

from tost.cli.options import Parser, add_config, add_json, config_of
from tost.cli.output import print_json, print_sheets

HELP = "choose a mask and save it"
_FIELDS = ("model", "dataset", "data_dir", "validation", "method", "density", "include", "exclude", "seed")


def parser() -> Parser:
    prune = Parser(description="Choose a mask for a freshly initialized network and save it.")
    add_config(prune, _FIELDS)
    prune.add_argument("--out", type=str, default="masks.safetensors", help="file to write")
    add_json(prune)
    return prune


def run(options: Namespace) -> None:
    config = config_of(options, without=("out",))  # here a file, there the folder of runs
    config.check_names()
    out = Path(options.out)
    if not out.parent.is_dir():
        raise FileNotFoundError(f"out: no such folder: {out.parent}")
    if out.is_dir():
        raise IsADirectoryError(f"out: expected a file to write, got a folder: {out}")
    from tost.data import load
    from tost.preparation import initial_model, make_masks
    from tost.report import Sheet

    dataset = load(config.dataset, config.data_dir)
    masks = make_masks(config, initial_model(config, dataset), dataset)
    masks.save(out)
    layers = [(layer.name, layer.shape, layer.kept, layer.total) for layer in masks.per_layer()]
    if options.json:
        print_json(
            {
                "file": str(out),
                "fingerprint": masks.fingerprint,
                "density": masks.density,
                "kept": masks.kept,
                "total": masks.total,
                "layers": [{"name": n, "shape": s, "kept": k, "total": t} for n, s, k, t in layers],
            }
        )
        return
    rows = [(n, "x".join(map(str, s)), f"{k:,}", f"{t:,}", f"{100 * k / t:.2f}") for n, s, k, t in layers]
    rows.append(("all", "", f"{masks.kept:,}", f"{masks.total:,}", f"{100 * masks.density:.2f}"))
    title = f"{config.method} masks of {config.model}, saved to {out}"
    print_sheets([Sheet(title, ("layer", "shape", "kept", "weights", "kept %"), tuple(rows))])
