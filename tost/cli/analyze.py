"""`tost analyze`: what pruning methods do, drawn; and what the networks they leave come to."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jsonargparse import Namespace

from tost.cli.options import PRUNING, Parser, add_config, add_json, add_running, config_of, set_threads, words
from tost.cli.output import note, print_json, print_sheets
from tost.config import Config
from tost.recipe import Recipe

if TYPE_CHECKING:
    from tost.analysis import Setting
    from tost.report import Sheet

HELP = "figures of pruning methods: steps, saliency, recovery, layers, accuracy"

# a network on which extreme sparsities tell methods apart, and that trains in seconds
_DEFAULTS = {"model": "lenet5_caffe", "density": 0.005, "batch_size": 64, "steps": 620, "eval_every": 10, "out": "runs/analysis"}
_PRUNING = (*(name for name in PRUNING if name != "method"), "out")
_SWEPT = ("method", "method_steps", "masks", "mask_check", "recipe")
_TRAINING = tuple(f.name for f in dataclasses.fields(Config) if f.name not in _SWEPT)
_UNREAD = {"iterations": ("teacher",), "recovery": ("keep_alive",)}  # a recipe without distillation; steps before any repair
_METHODS = {
    "iterations": ("iter_snip", "force"),
    "saliency": ("snip", "iter_snip", "force"),
    "recovery": ("force", "iter_snip"),
    "layers": ("random", "magnitude", "snip", "grasp", "synflow", "iter_snip", "force"),
}


def parser() -> Parser:
    analyze = Parser(description="Figures of pruning methods, after FORCE (arXiv 2006.09081): a picture, a table and a record.")
    analyze.commands = {name: make() for name, (make, _, _) in _ACTIONS.items()}
    return analyze


def add_actions(analyze: Parser) -> None:
    """The subcommands of `analyze`, a part of the root parser by now."""
    actions = analyze.add_subcommands(required=True, dest="what")
    for name, (_, _, help) in _ACTIONS.items():
        actions.add_subcommand(name, analyze.commands[name], help=help)


def run(options: Namespace) -> None:
    chosen = options[options.what]
    for name in ("methods", "baselines"):
        if name in chosen:
            chosen[name] = words(chosen[name])
    _ACTIONS[options.what][1](options.what, chosen)


def _parser(what: str, fields: Sequence[str], seeds: int = 5) -> Parser:
    parser = Parser(description=_ACTIONS[what][2][0].upper() + _ACTIONS[what][2][1:] + ".")
    add_config(parser, [name for name in fields if name not in _UNREAD.get(what, ())])
    parser.set_defaults({name: value for name, value in _DEFAULTS.items() if name in fields})
    parser.add_argument("--seeds", type=int, default=seeds, help="number of networks; their seeds count up from --seed")
    if what in _METHODS:
        parser.add_argument(
            "--methods", type=tuple[str, ...] | str, default=_METHODS[what], help="pruning methods, see tost.methods()"
        )
    return parser


def _pruning_parser(what: str) -> Parser:
    parser = _parser(what, _PRUNING)
    parser.add_argument("--threads", type=int | None, default=None, help="CPU threads (default: torch's choice)")
    add_json(parser)
    return parser


def _iterations_parser() -> Parser:
    parser = _parser("iterations", _TRAINING)
    parser.add_argument(
        "--iterations", type=tuple[int, ...], default=(1, 2, 5, 10, 20, 50, 100), help="numbers of steps of the methods"
    )
    _add_batches(parser)
    parser.add_argument("--jobs", type=int, default=1, help="runs at the same time, sharing the threads")
    add_running(parser)
    return parser


def _saliency_parser() -> Parser:
    parser = _pruning_parser("saliency")
    _add_batches(parser)
    return parser


def _methods_parser() -> Parser:
    parser = _parser("methods", [name for name in _TRAINING if name != "density"])
    parser.add_argument("--densities", type=tuple[float, ...], default=(0.02, 0.005), help="fractions of the weights to keep")
    parser.add_argument(
        "--variants",
        type=dict,
        default={name: name for name in ("random", "snip", "iter_snip", "force")},
        help="name -> a pruning method, or fields of the configuration, with `rewind` those of a lottery",
    )
    parser.add_argument(
        "--baselines",
        type=tuple[str, ...] | str,
        default=("random", "snip"),
        help="variants that all others are compared with",
    )
    parser.add_argument("--jobs", type=int, default=1, help="runs at the same time, sharing the threads")
    add_running(parser)
    return parser


def _add_batches(parser: Parser) -> None:
    parser.add_argument("--batches", type=int, default=5, help="batches over which the gradients of a saliency are averaged")


def _iterations(what: str, options: Namespace) -> None:
    setting = _setting(options)
    from tost.analysis import analyze_iterations
    from tost.report import iterations_sheet, save_iterations_figure

    with _bar(len(options.methods) * len(options.iterations) * len(setting.seeds)) as progress:
        found = analyze_iterations(
            setting,
            options.methods,
            options.iterations,
            options.batches,
            jobs=options.jobs,
            overwrite=options.overwrite,
            progress=progress,
            bars=True,
            report=note,
        )
    _show(what, options, [iterations_sheet(found)], found.as_dict(), lambda path: save_iterations_figure(found, path))


def _saliency(what: str, options: Namespace) -> None:
    setting = _setting(options)
    from tost.analysis import analyze_saliency
    from tost.report import saliency_sheet, save_saliency_figure

    with _bar(len(options.methods) * len(setting.seeds)) as progress:
        found = analyze_saliency(setting, options.methods, options.batches, progress)
    _show(what, options, [saliency_sheet(found)], found.as_dict(), lambda path: save_saliency_figure(found, path))


def _recovery(what: str, options: Namespace) -> None:
    setting = _setting(options)
    from tost.analysis import analyze_recovery
    from tost.report import recovery_sheet, save_recovery_figure

    with _bar(len(options.methods) * len(setting.seeds)) as progress:
        found = analyze_recovery(setting, options.methods, progress)
    _show(what, options, [recovery_sheet(found)], found.as_dict(), lambda path: save_recovery_figure(found, path))


def _layers(what: str, options: Namespace) -> None:
    setting = _setting(options)
    from tost.analysis import analyze_layers
    from tost.report import layer_figure, layers_sheet
    from tost.report.analyses import setting_title

    with _bar(len(options.methods) * len(setting.seeds)) as progress:
        found = analyze_layers(setting, options.methods, progress)
    first = setting_title(dataclasses.replace(setting, seeds=setting.seeds[:1]))
    _show(what, options, [layers_sheet(found)], found.as_dict(), lambda path: layer_figure(found.masks, path, first))


def _methods(what: str, options: Namespace) -> None:
    setting = _setting(options)
    from tost.analysis import environment
    from tost.choices import check_choice
    from tost.method_grid import train_grid
    from tost.report import grid_sheets, save_grid_figure

    for name in options.baselines:
        check_choice("baselines", name, list(options.variants))  # before minutes of training, not after
    grid = train_grid(
        setting.config,
        {str(name): _changes(name, value) for name, value in options.variants.items()},
        options.densities,
        setting.seeds,
        jobs=options.jobs,
        overwrite=options.overwrite,
        progress=True,
        report=note,
    )
    record = {**grid.as_dict(), "environment": environment()}
    _show(what, options, grid_sheets(grid, options.baselines), record, lambda path: save_grid_figure(grid, path))


def _changes(name: object, value: Any) -> Mapping[str, Any]:
    if isinstance(value, str):
        return {"method": value}
    if not isinstance(value, Mapping):
        raise TypeError(f"variants: {name}: expected the name of a method or a mapping, got {value!r}")
    return value


def _setting(options: Namespace) -> Setting:
    """Networks and density that the options ask for; every name is looked up first, and pictures can be drawn."""
    config = dataclasses.replace(config_of(options, without=("method",)), recipe=Recipe.vanilla())
    dataclasses.replace(config, method_steps=None).check_names()  # the steps are for those of `methods` that take several
    if options.seeds < 1:
        raise ValueError(f"seeds: expected at least 1, got {options.seeds}")
    if getattr(options, "jobs", 1) < 1:
        raise ValueError(f"jobs: expected at least 1, got {options.jobs}")
    set_threads(options.threads)
    from tost.analysis import Setting
    from tost.report import check_figure

    check_figure(Path(options.out) / "figure.png", "out")
    setting = Setting(config, tuple(range(config.seed, config.seed + options.seeds)))
    for name in getattr(options, "methods", ()):
        setting.of(name, config.seed)
    return setting


@contextmanager
def _bar(total: int) -> Iterator[Callable[[int], None]]:
    """A bar on stderr that counts networks, and ends when all are pruned."""
    from tost.progress import step_bar

    with step_bar() as bar:
        task = bar.add_task("pruning", total=total)

        def progress(done: int) -> None:
            bar.update(task, completed=done)
            if done == total:
                bar.stop()  # a training that follows has bars of its own

        yield progress


def _show(what: str, options: Namespace, sheets: Sequence[Sheet], record: dict[str, Any], draw: Callable[[Path], None]) -> None:
    """Write OUT/<what>.png, .md and .json, and print the tables or the record."""
    from tost.files import write_atomic, write_json

    stem = Path(options.out) / what
    stem.parent.mkdir(parents=True, exist_ok=True)
    draw(stem.with_suffix(".png"))
    write_json(stem.with_suffix(".json"), record)
    write_atomic(stem.with_suffix(".md"), "\n".join(sheet.markdown() for sheet in sheets))
    if options.json:
        print_json(record)
    else:
        print_sheets(sheets)
        print(f"picture {stem}.png, tables {stem}.md, record {stem}.json")


# name -> options, what is done, help
_ACTIONS: dict[str, tuple[Callable[[], Parser], Callable[[str, Namespace], None], str]] = {
    "iterations": (_iterations_parser, _iterations, "saliency, accuracy and time against the number of steps T (FORCE's Fig. 4)"),
    "saliency": (_saliency_parser, _saliency, "saliency of sparsified against that of pruned networks (FORCE's Figs. 6 and 7)"),
    "recovery": (
        lambda: _pruning_parser("recovery"),
        _recovery,
        "weights that every step prunes and recovers (FORCE's Fig. 9)",
    ),
    "layers": (lambda: _pruning_parser("layers"), _layers, "weights left in each layer (FORCE's Figs. 8 and 13)"),
    "methods": (_methods_parser, _methods, "accuracy of pruning methods and lotteries at several densities, in pairs"),
}
