"""`tost shrink`: the network of a finished run without its dead filters, in a file."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from jsonargparse import Namespace

from tost.checks import integer
from tost.cli.options import Parser, add_json, set_threads
from tost.cli.output import note, print_json, print_sheets

if TYPE_CHECKING:
    from torch import nn

    from tost.report import Sheet
    from tost.shrinking import ForwardTimes, ShrinkReport

HELP = "remove the dead filters of a finished run's network"


def parser() -> Parser:
    shrink = Parser(
        description="Remove the dead filters of a finished run's network, and all that only they feed. Outputs stay the same. "
        "Of optimizer splitlbi: tost prune --path RUN --out FILE, tost train --masks FILE, then shrink that run."
    )
    shrink.add_argument("run", type=str, help="folder of a finished run")
    shrink.add_argument("--out", type=str | None, default=None, help="file to write (default: shrunk.safetensors in the run)")
    shrink.add_argument(
        "--zero_constants", action="store_true", help="also those whose constant must be made 0 first, which changes the outputs"
    )
    shrink.add_argument("--batch", type=int, default=64, help="inputs in a batch of the measured forward pass")
    shrink.add_argument("--passes", type=int, default=20, help="measured passes of each network, in turns; 0: measure nothing")
    shrink.add_argument("--threads", type=int | None, default=None, help="CPU threads (default: torch's choice)")
    add_json(shrink)
    return shrink


def run(options: Namespace) -> None:
    batch, passes = integer("batch", options.batch, least=1), integer("passes", options.passes, least=0)
    set_threads(options.threads)
    out = Path(options.out) if options.out is not None else Path(options.run) / "shrunk.safetensors"
    if options.out is not None and not out.parent.is_dir():
        raise FileNotFoundError(f"out: no such folder: {out.parent}")
    if out.is_dir():
        raise IsADirectoryError(f"out: expected a file to write, got a folder: {out}")
    import torch

    from tost.analysis.networks import network_of
    from tost.shrinking import shrink, time_forward

    snapshot = network_of(options.run)
    if snapshot.config.optimizer == "splitlbi":
        note(
            "tost: note: the zeros that optimizer splitlbi finds are in Gamma, not in these weights: tost prune --path "
            f"{options.run} --out FILE, tost train --masks FILE, then shrink that run"
        )
    net = _plain(snapshot.net)
    shape = snapshot.dataset.input_shape
    result = shrink(net, input_shape=shape, zero_constants=options.zero_constants)
    result.save(out)
    images = torch.randn((batch, *shape), generator=torch.Generator().manual_seed(0))
    times = time_forward(net, result.model, images, passes) if passes else None
    report = result.report
    if options.json:
        print_json(
            {
                "file": str(out),
                "layers": [layer._asdict() for layer in report.layers],
                "kept": [kept._asdict() for kept in report.kept],
                "zeroed": report.zeroed,
                "folded": report.folded,
                "parameters": report.parameters,
                "macs": report.macs,
                "macs_kept": report.macs_kept,
                "ms": times and {**times._asdict(), "batch": batch},
            }
        )
        return
    title = f"{snapshot.config.model_name} without its dead filters, saved to {out}"
    print_sheets([_layers(report, title), *([_kept(report)] if report.kept else []), _sums(report, times, batch)])
    classes, (channels, *size) = snapshot.dataset.num_classes, shape
    network = f"tost.models.build({snapshot.config.model!r}, {classes}, {channels}, {tuple(size)})"
    print(f"in Python: net = tost.load_shrunk({network}, {str(out)!r}).eval()")


def _plain(net: nn.Module) -> nn.Module:
    """The masked weights as they are: a mask would be multiplied in at every pass."""
    from torch.nn.utils import prune

    for module in net.modules():
        if "weight_orig" in module._parameters:
            prune.remove(module, "weight")  # type: ignore[no-untyped-call]
    return net


def _layers(report: ShrinkReport, title: str) -> Sheet:
    from tost.report import Sheet
    from tost.report.sheet import Cell, Number

    rows: list[tuple[Cell, ...]] = [
        (layer.name, layer.kind, *map(Number, (layer.inputs, layer.outputs, layer.dead, layer.inputs_left, layer.outputs_left)))
        for layer in report.layers
    ]
    header = ("layer", "kind", "inputs", "outputs", "dead", "inputs left", "outputs left")
    note = f"The constants of removed inputs are in the bias of {', '.join(report.folded)}." if report.folded else ""
    if report.zeroed:
        count = sum(len(places) for places in report.zeroed.values())
        note += f" {count:,} constants were made 0 first, which changes the outputs: in {', '.join(report.zeroed)}."
    return Sheet(title, header, tuple(rows), note.strip(), texts=("kind",))


def _kept(report: ShrinkReport) -> Sheet:
    from tost.report import Sheet
    from tost.report.sheet import Number

    rows = tuple((kept.layer, Number(len(kept.filters)), kept.reason) for kept in report.kept)
    return Sheet("dead filters that stay", ("layer", "filters", "why"), rows, texts=("why",))


def _sums(report: ShrinkReport, times: ForwardTimes | None, batch: int) -> Sheet:
    from tost.report import Sheet
    from tost.report.sheet import Number

    sums: list[tuple[str, tuple[float, float], str]] = [("parameters", report.parameters, ",")]
    sums.append(("FLOPs of an input", (2 * report.macs[0], 2 * report.macs[1]), ","))
    sums.append(("FLOPs with weights other than 0", (2 * report.macs_kept[0], 2 * report.macs_kept[1]), ","))
    note = ""
    if times is not None:
        sums.append((f"ms of a batch of {batch}", (times.before, times.after), ".2f"))
        note = f"Milliseconds: medians of {times.passes} forward passes in turns, {times.threads} threads, dense weights."
    rows = tuple(
        (name, Number(before, form), Number(after, form), Number(100 * after / before, ".1f", "%"))
        for name, (before, after), form in sums
    )
    return Sheet("before and after", ("", "before", "after", "left"), rows, note)
