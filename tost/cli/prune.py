"""`tost prune`: masks of a freshly initialized network, in a file."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from jsonargparse import Namespace

from tost.cli.options import PRUNING, Parser, add_config, add_json, config_of, set_threads
from tost.cli.output import note, print_json, print_sheets

if TYPE_CHECKING:
    from torch import nn

    from tost.masks import Masks, Method

HELP = "choose a mask and save it"


def parser() -> Parser:
    prune = Parser(description="Choose a mask for a freshly initialized network and save it.")
    add_config(prune, PRUNING)
    prune.add_argument("--list", action="store_true", help="describe the methods, and choose no mask")
    prune.add_argument("--out", type=str, default="masks.safetensors", help="file to write (.safetensors or .npz)")
    prune.add_argument("--figure", type=str | None, default=None, help="also save a picture of what each layer keeps (FILE.png)")
    prune.add_argument("--threads", type=int | None, default=None, help="CPU threads (default: torch's choice)")
    add_json(prune)
    return prune


def run(options: Namespace) -> None:
    config = config_of(options, without=("out",))  # here a file, there the folder of runs
    config.check_names()
    set_threads(options.threads)
    if options.list:
        _list(options.json)
        return
    out = Path(options.out)
    if not out.parent.is_dir():
        raise FileNotFoundError(f"out: no such folder: {out.parent}")
    if out.is_dir():
        raise IsADirectoryError(f"out: expected a file to write, got a folder: {out}")
    from tost.data import load
    from tost.masks.masks import check_suffix
    from tost.preparation import initial_model, make_masks
    from tost.report import check_figure, layer_figure, layer_sheet

    check_suffix(out)  # before minutes of pruning, not after
    if options.figure is not None:
        check_figure(options.figure)
    dataset = load(config.dataset, config.data_dir)
    masks = make_masks(config, dataset, progress=True)
    masks.save(out)
    effective = _effective(masks, initial_model(config, dataset), dataset.input_shape)
    if options.figure is not None:
        layers = {"kept": masks.per_layer()} | ({"on a path": effective.per_layer()} if effective is not None else {})
        layer_figure(layers, options.figure, f"{config.method} masks of {config.model_name}")
    if options.json:
        reached = {layer.name: layer.kept for layer in effective.per_layer()} if effective is not None else {}
        print_json(
            {
                "file": str(out),
                "fingerprint": masks.fingerprint,
                "density": masks.density,
                "effective_density": effective.density if effective is not None else None,
                "kept": masks.kept,
                "total": masks.total,
                "layers": [{**layer._asdict(), "effective": reached.get(layer.name)} for layer in masks.per_layer()],
            }
        )
        return
    print_sheets([layer_sheet(masks, effective, f"{config.method} masks of {config.model_name}, saved to {out}")])


def _effective(masks: Masks, model: nn.Module, input_shape: tuple[int, ...]) -> Masks | None:
    """The weights on a path; None, and a note, for a network of the user's that cannot be followed."""
    try:
        return masks.effective(model, input_shape)
    except ValueError as error:
        note(f"tost: note: no effective density: {error}")
        return None


def _list(as_json: bool) -> None:
    from tost.masks import methods
    from tost.report import Sheet

    known = methods().values()
    if as_json:
        fields = ("name", "summary", "needs", "steps", "batches", "recover", "paper")
        print_json([{**{field: getattr(method, field) for field in fields}, **_parts(method)} for method in known])
        return
    rows = []
    for m in known:
        parts = [name for part, name in _parts(m).items() if part != "schedule" or m.steps > 1]  # one step has one target
        made_of = ", ".join(parts + ["recover"] * m.recover)
        needs, paper = {"nothing": ""}.get(m.needs, m.needs), m.paper.removeprefix("https://")
        rows.append((m.name, m.summary, made_of, needs, str(m.steps), str(m.batches), paper))
    header = ("method", "keeps", "made of", "needs", "steps", "batches", "paper")
    note = (
        "Made of: score, selection, distribution, schedule of several steps; recover: removed weights can return. Lottery "
        "tickets (arxiv.org/abs/1803.03635) need training: tost lottery."
    )
    title = "pruning methods, all with exactly round(density * weights) kept"
    print_sheets([Sheet(title, header, tuple(rows), note, texts=("keeps", "made of", "needs", "paper"))])


def _parts(method: Method) -> dict[str, str]:
    """What a method is composed of, by the names of the functions."""
    return {part: getattr(method, part).__name__ for part in ("score", "selection", "distribution", "schedule")}
