"""`tost prune`: masks of a freshly initialized network, or from SplitLBI's solution path, in a file."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from jsonargparse import Namespace

from tost.cli.options import PRUNING, Parser, add_config, add_json, config_of, set_threads
from tost.cli.output import note, print_json, print_sheets
from tost.config import Config

if TYPE_CHECKING:
    from torch import nn

    from tost.masks import Masks, Method

HELP = "choose a mask and save it"


def parser() -> Parser:
    prune = Parser(
        description="Choose a mask for a freshly initialized network, or take it from a solution path (--path), and save it. "
        "tost train --masks FILE trains with it."
    )
    add_config(prune, PRUNING)
    prune.add_argument(
        "--path",
        type=str | None,
        default=None,
        help="take the masks from the solution path of this run of optimizer splitlbi (finished or not; or a path's own folder): "
        "the support of its last epoch with at most --density, or that of --epoch; nothing else chooses them then",
    )
    prune.add_argument(
        "--epoch", type=int | None, default=None, help="with --path: the support after this epoch, whatever --density"
    )
    prune.add_argument(
        "--exact",
        action="store_true",
        help="with --path: keep exactly --density, what entered the support first, of equals the filters of the largest norm",
    )
    prune.add_argument(
        "--projected",
        type=str | None,
        default=None,
        help="with --path: also save the network with these masks on its weights (FILE.safetensors, a state_dict); measured:"
        " the finished one, or with --epoch that after it, which --snapshots kept",
    )
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
    if options.path is None:
        given = {"epoch": options.epoch is not None, "exact": options.exact, "projected": options.projected is not None}
        for name in (name for name, said in given.items() if said):
            raise ValueError(f"{name}: expected --path with it, got none")
    elif options.projected is not None and Path(options.projected).suffix != ".safetensors":
        raise ValueError(f"projected: expected a file FILE.safetensors, got {options.projected}")
    for name, file in (("out", options.out), ("projected", options.projected)):
        if file is not None and not Path(file).parent.is_dir():
            raise FileNotFoundError(f"{name}: no such folder: {Path(file).parent}")
        if file is not None and Path(file).is_dir():
            raise IsADirectoryError(f"{name}: expected a file to write, got a folder: {file}")
    out = Path(options.out)
    from tost.masks.masks import check_suffix
    from tost.report import check_figure, layer_figure, layer_sheet

    check_suffix(out)  # before minutes of pruning, not after
    if options.figure is not None:
        check_figure(options.figure)
    masks, what, effective = _of_method(config) if options.path is None else _of_path(options)
    accuracy = _project(options, masks) if options.projected is not None else None
    masks.save(out)
    if effective is not None and not effective.kept:
        later = "; a larger --density or a later --epoch has more" if options.path is not None else ""
        note(f"tost: note: no weight is on a path from an input to an output: a network with these masks cannot learn{later}")
    if options.figure is not None:
        layers = {"kept": masks.per_layer()} | ({"on a path": effective.per_layer()} if effective is not None else {})
        layer_figure(layers, options.figure, what)
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
                **({"projected": {"file": options.projected, "test_accuracy": accuracy}} if accuracy is not None else {}),
            }
        )
        return
    print_sheets([layer_sheet(masks, effective, f"{what}, saved to {out}")])
    if accuracy is not None:
        print(f"with these masks on its weights, saved to {options.projected}: test accuracy {100 * accuracy:.2f}%")


class _Chosen(NamedTuple):
    """Masks, what they are, and those of them on a path, where that is known."""

    masks: Masks
    what: str
    effective: Masks | None


def _of_method(config: Config) -> _Chosen:
    from tost.data import load
    from tost.preparation import initial_model, make_masks

    dataset = load(config.dataset, config.data_dir)
    masks = make_masks(config, dataset, progress=True)
    effective = _effective(masks, initial_model(config, dataset), dataset.input_shape)
    return _Chosen(masks, f"{config.method} masks of {config.model_name}", effective)


def _of_path(options: Namespace) -> _Chosen:
    from tost.analysis import path_of
    from tost.analysis.networks import config_in
    from tost.data import load
    from tost.preparation import initial_model
    from tost.runs import RunFolder

    chosen = {"epoch": options.epoch} if options.epoch is not None else {"density": options.density}
    masks = path_of(options.path).masks(**chosen, exact=options.exact)
    what = f"support after epoch {options.epoch}" if options.epoch is not None else "masks from the solution path"
    folder = RunFolder(Path(options.path))
    if not folder.config.is_file():  # a path by itself
        return _Chosen(masks, what, None)
    config = config_in(folder)
    dataset = load(config.dataset, config.data_dir if options.data_dir is None else options.data_dir)
    effective = _effective(masks, initial_model(config, dataset), dataset.input_shape)
    return _Chosen(masks, f"{what}, of {config.model_name}", effective)


def _project(options: Namespace, masks: Masks) -> float:
    """W * mask, into a file; its test accuracy."""
    from tost import tensor_file
    from tost.analysis.networks import network_of
    from tost.training import EVAL_BATCH, evaluate

    snapshot = network_of(options.path, options.epoch, data_dir=options.data_dir)
    net = masks.apply_to(snapshot.net, inplace=True, form="zeros")
    tensor_file.write(options.projected, net.state_dict(), {"format": "pt", "version": "1"})
    return evaluate(net, snapshot.dataset, EVAL_BATCH)[0]


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
