"""`tost prune`: masks of a freshly initialized network, in a file."""

from __future__ import annotations

from pathlib import Path

from jsonargparse import Namespace

from tost.cli.options import Parser, add_config, add_json, config_of
from tost.cli.output import print_json, print_sheets

HELP = "choose a mask and save it"
_FIELDS = (
    "model",
    "dataset",
    "data_dir",
    "validation",
    "method",
    "method_steps",
    "density",
    "include",
    "exclude",
    "keep_alive",
    "seed",
)


def parser() -> Parser:
    prune = Parser(description="Choose a mask for a freshly initialized network and save it.")
    add_config(prune, _FIELDS)
    prune.add_argument("--list", action="store_true", help="describe the methods, and choose no mask")
    prune.add_argument("--out", type=str, default="masks.safetensors", help="file to write")
    add_json(prune)
    return prune


def run(options: Namespace) -> None:
    if options.list:
        _list(options.json)
        return
    config = config_of(options, without=("out",))  # here a file, there the folder of runs
    config.check_names()
    out = Path(options.out)
    if not out.parent.is_dir():
        raise FileNotFoundError(f"out: no such folder: {out.parent}")
    if out.is_dir():
        raise IsADirectoryError(f"out: expected a file to write, got a folder: {out}")
    from tost.data import load
    from tost.preparation import make_masks
    from tost.report import Sheet

    dataset = load(config.dataset, config.data_dir)
    masks = make_masks(config, dataset, progress=True)
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


def _list(as_json: bool) -> None:
    from tost.masks import methods
    from tost.report import Sheet

    known = methods().values()
    if as_json:
        fields = ("name", "summary", "needs", "steps", "batches", "paper")
        print_json([{field: getattr(method, field) for field in fields} for method in known])
        return
    rows = [(m.name, m.summary, {"nothing": ""}.get(m.needs, m.needs), str(m.steps), m.paper) for m in known]
    header = ("method", "keeps", "needs", "steps", "paper")
    print_sheets([Sheet("pruning methods, all with exactly round(density * weights) kept", header, tuple(rows))])
