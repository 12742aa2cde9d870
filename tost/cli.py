"""The command `tost`: train | prune | compare | report | data | info.

Results go to stdout; progress, notes and errors to stderr. Exit codes: 0 done, 1 the run itself failed (it diverged, its
process died, two runs are no pair), 2 the command line, a configuration or a file is wrong, 130 interrupted, 143 terminated.
Errors are one line.
"""

from __future__ import annotations

import dataclasses
import difflib
import json
import os
import re
import signal
import sys
import threading
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn, TextIO, get_type_hints

from jsonargparse import ArgumentParser, Namespace

from tost.choices import check_choice
from tost.config import CHECKPOINT_SECONDS, RECIPES, Config
from tost.files import read_yaml
from tost.recipe import Recipe

# torch and the kernels are imported inside the commands: --help and typos answer at once
if TYPE_CHECKING:
    from tost.experiment import Comparison
    from tost.report import Sheet

_MOST_THREADS = 1024  # OpenMP keeps a table of them on the stack, and crashes where it does not fit
_MASK_FIELDS = ("model", "dataset", "data_dir", "validation", "method", "density", "include", "exclude", "seed")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command line (default: the process's) and return its exit code."""
    words = [_with_underscores(word) for word in (sys.argv[1:] if arguments is None else arguments)]
    try:
        words = _with_recipe_spelled_out(words)
        options = _parser().parse_args(words)
        with warnings.catch_warnings(), _sigterm_raises():
            warnings.showwarning = _print_warning
            _COMMANDS[options.subcommand](options[options.subcommand])
    except SystemExit as stop:  # --help, or an error that is told already
        return stop.code if isinstance(stop.code, int) else 2
    except (ValueError, TypeError, OSError, ModuleNotFoundError) as error:
        return _complain(error, 2)
    except (ArithmeticError, RuntimeError) as error:
        return _complain(error, 1)
    except KeyboardInterrupt as stop:  # a training that was stopped says where it will go on, and which signal it was
        code = 128 + (getattr(stop, "signal", None) or signal.SIGINT)
        # under torchrun one process speaks
        return code if os.environ.get("RANK", "0") != "0" else _complain(str(stop) or "interrupted", code)
    return 0


class _Terminated(KeyboardInterrupt):
    """SIGTERM, outside of a training's steps."""

    signal = signal.SIGTERM

    def __str__(self) -> str:
        return "terminated"


@contextmanager
def _sigterm_raises() -> Iterator[None]:
    """Inside, SIGTERM ends the process as an exception does: what is running is ended too."""
    if threading.current_thread() is not threading.main_thread():
        yield  # only the main thread may set handlers
        return

    def leave(number: int, frame: object) -> NoReturn:
        raise _Terminated

    before = signal.signal(signal.SIGTERM, leave)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


# ---- commands --------------------------------------------------------------------------------------------------------


def _train(options: Namespace) -> None:
    config = _config(options)
    config.check_names()
    _set_threads(options.threads)
    from tost.training import train

    result = train(
        config,
        overwrite=options.overwrite,
        progress=True,
        device=options.device,
        checkpoint_seconds=options.checkpoint_seconds,
        tensorboard=options.tensorboard,
        workers=options.workers,
    )
    if os.environ.get("RANK", "0") != "0":
        return  # under torchrun one process speaks
    if options.json:
        _print_json(result.as_dict())
        return
    counts, best = result.accounting, result.best
    lines = [f"test accuracy    {100 * result.test_accuracy:.2f}%  (loss {result.test_loss:.4f})"]
    if best is not None:
        percent = f"{100 * best['test_accuracy']:.2f}%, {100 * best['validation_accuracy']:.2f}% of the images held out"
        lines.append(f"best epoch       {best['epoch']}: {percent}")
    lines += [
        f"weights kept     {counts.weights_kept:,} of {counts.weights_prunable:,} ({100 * counts.density:.3g}%)",
        f"ghost weights    {result.ghost_weights_at_start:,} while training, {counts.ghost_weights:,} left",
        f"ms a step        {result.ms_per_step:.1f}"
        + (f"  ({result.ms_per_step_with_ghosts:.1f} with ghosts)" if result.ms_per_step_with_ghosts else ""),
        f"throughput       {result.images_per_second:,.0f} images a second",
        f"run folder       {result.run_dir}",
    ]
    print("\n".join(lines))


def _prune(options: Namespace) -> None:
    config = _config(options, without=("out",))  # here a file, there the folder of runs
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
        _print_json(
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
    _print_sheets([Sheet(title, ("layer", "shape", "kept", "weights", "kept %"), tuple(rows))])


def _compare(options: Namespace) -> None:
    base = dataclasses.replace(_config(options), recipe=Recipe.vanilla())
    base.check_names()
    variants = _variants(options.variants)
    if options.seeds < 1:
        raise ValueError(f"seeds: expected at least 1, got {options.seeds}")
    if options.jobs < 1:
        raise ValueError(f"jobs: expected at least 1, got {options.jobs}")
    _set_threads(options.threads)
    import torch

    from tost.experiment import compare
    from tost.report import accuracy_sheet, require_matplotlib, save_figure, step_time_sheet

    require_matplotlib()  # before minutes of training, not after
    comparison = compare(
        base,
        variants,
        range(base.seed, base.seed + options.seeds),
        timing_rounds=options.timing_rounds,
        jobs=options.jobs,
        overwrite=options.overwrite,
        progress=True,
        report=_note,
    )
    out = Path(base.out)
    sheets = [accuracy_sheet(comparison)]
    if comparison.step_times:
        sheets.append(step_time_sheet(comparison.step_times, torch.get_num_threads()))
    _save(comparison, sheets, out / "comparison")
    save_figure(comparison, out / "comparison.png")
    if options.json:
        _print_json(comparison.as_dict())
    else:
        _print_sheets(sheets)
        print(f"picture {out / 'comparison.png'}, records {out / 'comparison.json'}, runs in {out}")


def _report(options: Namespace) -> None:
    from tost.report import accuracy_sheet, comparisons_of, require_matplotlib, save_figure
    from tost.runs import find_runs

    results = find_runs(options.folder)
    if options.seed is not None:
        results = [result for result in results if result.config.seed == options.seed]
        if not results:
            raise ValueError(f"seed: no run in {options.folder} has seed {options.seed}")
    comparisons = comparisons_of(results)
    if options.figure is not None:
        require_matplotlib()
        stem = Path(options.figure)
        for number, comparison in enumerate(comparisons):
            suffix = f"-{number + 1}" if len(comparisons) > 1 else ""
            save_figure(comparison, stem.with_name(f"{stem.stem}{suffix}{stem.suffix or '.png'}"))
    sheets = [accuracy_sheet(comparison) for comparison in comparisons]
    if options.json:
        _print_json([comparison.as_dict() for comparison in comparisons])
    elif options.markdown:
        print("\n".join(sheet.markdown() for sheet in sheets))
    else:
        _print_sheets(sheets)


def _data(options: Namespace) -> None:
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
            _print_json(done.as_dict())
        else:
            print(f"{done.name}  {done.folder}" + ("" if done.downloaded else "  (was there already)"))
        return
    found = {name: find(name, options.data_dir) for name in names()}
    if options.json:
        _print_json([{"name": n, "fetch": n in SOURCES, "folder": str(f) if f else None} for n, f in found.items()])
        return
    rows = [(n, str(f) if f else "-", "yes" if n in SOURCES else "no") for n, f in found.items()]
    _print_sheets([Sheet("data sets", ("name", "found in", "tost data fetch"), tuple(rows))])


def _info(options: Namespace) -> None:
    from tost_kernels import info

    info.main(["--json"] if options.json else [])


_COMMANDS: dict[str, Callable[[Namespace], None]] = {
    "train": _train,
    "prune": _prune,
    "compare": _compare,
    "report": _report,
    "data": _data,
    "info": _info,
}


# ---- options ---------------------------------------------------------------------------------------------------------


class _Parser(ArgumentParser):
    """Says what is wrong in one line; jsonargparse would add usage, a tip and a paragraph."""

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        known = [option for action in self._actions for option in action.option_strings]
        known += [f"--{field.name}" for field in dataclasses.fields(Config)]  # those of the commands
        # jsonargparse parses nested options with parsers of other names
        prog = self.prog.replace(" [options]", "") if self.prog.startswith("tost") else "tost"
        print(f"{prog}: error: {_one_line(message, known)}", file=sys.stderr)
        raise SystemExit(2)


def _parser() -> ArgumentParser:
    parser = _Parser(prog="tost", description="Train sparse networks better (ToST) and faster (sparse-weight kernels).")
    commands = parser.add_subcommands(required=True, dest="subcommand")

    train = _Parser(
        description="Train one network. A finished run of the same configuration is read back, one that was cut off goes on. "
        "Several processes or GPUs: torchrun --nproc-per-node N -m tost train ..."
    )
    _add_config(train, [f.name for f in dataclasses.fields(Config)])
    train.add_argument("--device", type=str | None, default=None, help="cpu or cuda (default: cuda where there is some)")
    train.add_argument("--workers", type=int, default=0, help="processes that decode pictures (data sets read from folders)")
    train.add_argument("--tensorboard", action="store_true", help="also write curves for TensorBoard into the run folder")
    train.add_argument(
        "--checkpoint_seconds",
        type=float,
        default=CHECKPOINT_SECONDS,
        help="save amid an epoch when this much time has passed",
    )
    _add_running(train)
    commands.add_subcommand("train", train, help="train one network")

    prune = _Parser(description="Choose a mask for a freshly initialized network and save it.")
    _add_config(prune, _MASK_FIELDS)
    prune.add_argument("--out", type=str, default="masks.safetensors", help="file to write")
    _add_json(prune)
    commands.add_subcommand("prune", prune, help="choose a mask and save it")

    compare = _Parser(description="Train recipes against each other on the same masks, initial weights and batches.")
    _add_config(compare, [f.name for f in dataclasses.fields(Config) if f.name != "recipe"])
    compare.add_argument(
        "--variants",
        type=dict,
        default={name: name for name in reversed(RECIPES)},
        help="name -> 'vanilla', 'tost' or settings of the recipe (others as in 'tost'); the first is the baseline",
    )
    compare.add_argument("--seeds", type=int, default=3, help="number of pairs; their seeds count up from --seed")
    compare.add_argument(
        "--timing_rounds", type=int, default=0, help="also time a step of each backend, this many turns of 2 steps"
    )
    compare.add_argument("--jobs", type=int, default=1, help="runs at the same time, sharing the threads")
    _add_running(compare)
    commands.add_subcommand("compare", compare, help="paired comparison of recipes")

    report = _Parser(description="Tables of the finished runs in a folder.")
    report.add_argument("folder", type=str, help="a run folder, or a folder of them")
    report.add_argument("--figure", type=str | None, default=None, help="also save a picture (FILE.png)")
    report.add_argument("--markdown", action="store_true", help="print Markdown tables")
    report.add_argument("--seed", type=int | None, default=None, help="only runs of this seed")
    _add_json(report)
    commands.add_subcommand("report", report, help="tables and pictures of finished runs")

    data = _Parser(description="Download data sets from their official sources, or list what there is.")
    data.add_argument("action", type=str, help="fetch or list")
    data.add_argument("name", type=str | None, nargs="?", default=None, help="the data set to fetch")
    data.add_argument(
        "--data_dir", type=str | None, default=None, help="folder of data sets (default: $TOST_DATA_DIR or ~/.cache/tost/data)"
    )
    _add_json(data)
    commands.add_subcommand("data", data, help="download data sets, or list them")

    info = _Parser(description="What is installed and usable here, for each op and backend.")
    info.add_argument("--seed", type=int, default=0, help="accepted as everywhere; nothing here is random")
    _add_json(info)
    commands.add_subcommand("info", info, help="what is installed and usable here")
    return parser


def _add_config(parser: ArgumentParser, names: Sequence[str]) -> None:
    """An option for each of these fields of Config, and --config for a YAML file that has the same names."""
    parser.add_argument("--config", action="config", help="YAML file of options; later options override it")
    hints = get_type_hints(Config)
    for field in dataclasses.fields(Config):
        if field.name not in names:
            continue
        default = Recipe.tost() if field.name == "recipe" else field.default
        kind = Recipe | str if field.name == "recipe" else hints[field.name]
        parser.add_argument(f"--{field.name}", type=kind, default=default, help=field.metadata["help"])


def _add_running(parser: ArgumentParser) -> None:
    parser.add_argument("--overwrite", action="store_true", help="repeat finished runs")
    parser.add_argument("--threads", type=int | None, default=None, help="CPU threads (default: torch's choice)")
    _add_json(parser)


def _add_json(parser: ArgumentParser) -> None:
    parser.add_argument("--json", action="store_true", help="print the result as JSON")


def _config(options: Namespace, without: Sequence[str] = ()) -> Config:
    known = {f.name for f in dataclasses.fields(Config)}.difference(without)
    return Config.from_dict({name: value for name, value in options.as_dict().items() if name in known})


def _variants(values: dict[str, Any]) -> dict[str, Recipe]:
    recipes = {}
    for name, value in values.items():
        try:
            recipes[str(name)] = Config(recipe=value).recipe
        except (ValueError, TypeError) as error:
            raise ValueError(f"variants: {name}: {error}") from None
    return recipes


def _with_underscores(word: str) -> str:
    """--batch-size is --batch_size."""
    name, equals, value = word.partition("=")
    return name[:2] + name[2:].replace("-", "_") + equals + value if word.startswith("--") else word


def _with_recipe_spelled_out(words: list[str]) -> list[str]:
    """`--recipe NAME` (or that of a YAML file) beside single settings: all settings of NAME, and behind them the single ones.

    The parser would forget the name, and take what is not set from the default recipe.
    """
    named = [i for i, word in enumerate(words[:-1]) if word == "--recipe" and words[i + 1] in RECIPES]
    glued = [i for i, word in enumerate(words) if word.partition("=")[0] == "--recipe" and word.partition("=")[2] in RECIPES]
    files = [i for i, word in enumerate(words[:-1]) if word == "--config"]
    if not any(word.startswith("--recipe.") for word in words):
        return words
    names = {i: words[i + 1] for i in named} | {i: words[i].partition("=")[2] for i in glued}
    name = names[max(names)] if names else None
    if name is None and files and Path(words[files[-1] + 1]).is_file():
        in_file = read_yaml(words[files[-1] + 1]).get("recipe")
        name = in_file if in_file in RECIPES else None
    if name is None:
        return words
    gone = {*glued, *named, *(i + 1 for i in named)}
    settings = Config(recipe=name).recipe.as_dict()  # type: ignore[arg-type]
    spelled_out = [f"--recipe.{key}={json.dumps(value).strip(chr(34))}" for key, value in settings.items()]
    start = files[-1] + 2 if files else 1  # behind the file, which would override them
    head = [word for i, word in enumerate(words[:start]) if i not in gone]
    return head + spelled_out + [word for i, word in enumerate(words[start:], start) if i not in gone]


def _set_threads(threads: int | None) -> None:
    if threads is None:
        return
    if not 1 <= threads <= _MOST_THREADS:
        raise ValueError(f"threads: expected 1 to {_MOST_THREADS}, got {threads}")
    import torch

    torch.set_num_threads(threads)


# ---- output ----------------------------------------------------------------------------------------------------------


def _print_json(values: Any) -> None:
    print(json.dumps(values, indent=2, allow_nan=False))


def _print_sheets(sheets: Sequence[Sheet]) -> None:
    from rich.console import Console

    # a pipe has no width; wide enough that no cell is folded there
    console = Console() if sys.stdout.isatty() else Console(width=140)
    for sheet in sheets:
        console.print(sheet.rich())
        console.print()


def _save(comparison: Comparison, sheets: Sequence[Sheet], stem: Path) -> None:
    from tost.files import write_atomic

    comparison.save(stem.with_suffix(".json"))
    write_atomic(stem.with_suffix(".md"), "\n".join(sheet.markdown() for sheet in sheets))


def _note(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def _complain(error: Exception | str, code: int) -> int:
    _note(f"tost: error: {' '.join(str(error).split())}")
    return code


def _print_warning(
    message: Warning | str,
    category: type[Warning],
    filename: str,
    lineno: int,
    file: TextIO | None = None,
    line: str | None = None,
) -> None:
    _note(f"tost: note: {' '.join(str(message).split())}")


_TYPES = {
    "int": "a whole number",
    "float": "a number",
    "bool": "true or false",
    "str": "text",
    "NoneType": "null",
    "tuple[str": 'a list like ["layer1*", "fc"]',
    "tuple": "a list like [0.5, 0.75]",
    "tuple[float": "a list like [0.5, 0.75]",
    "dict": 'a mapping like {"baseline": "vanilla", "mine": "tost"}',
}


def _one_line(message: str, options: Sequence[str]) -> str:
    """jsonargparse's message as `field: expected ..., got ...`, with the option that was probably meant."""
    text = " ".join(message.split())
    key = re.match(r'Parser key "([^"]+)": ?(.*)', text)
    if key:
        name, rest = key.groups()
        kinds = re.findall(r"(?<=<class ')\w+|\b(?:tuple\[\w+|dict\b)", rest.split("Errors:")[0].split("Given value type")[0])
        value = re.search(r"(?:Got value|Given value): (.*)$", rest)
        if kinds and value:
            expected = " or ".join(dict.fromkeys(_TYPES.get(kind, kind) for kind in kinds))
            return f"{name}: expected {expected}, got {value[1]!r}"
        return f"{name}: {rest}"
    stray = re.search(r"(?:unrecognized arguments: |does not accept option |Option )'?([\w.-]+)", text)
    if stray:
        typed = f"--{stray[1].lstrip('-')}"
        close = difflib.get_close_matches(typed, [option for option in options if option != typed], n=1)
        text += f"; did you mean {close[0]}?" if close else ""
    if 'expected "subcommand"' in text:
        return f"expected a command: {', '.join(_COMMANDS)} (tost --help)"
    choice = re.search(r"invalid choice: '([^']*)'", text)
    if choice:
        try:
            check_choice("command", choice[1], _COMMANDS)
        except ValueError as error:
            return str(error)
    return text
