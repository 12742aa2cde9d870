"""`tost lottery`: a winning ticket, round by round."""

from __future__ import annotations

import dataclasses
import os

from jsonargparse import Namespace

from tost.cli.options import Parser, add_config, add_running, config_of, set_threads
from tost.cli.output import note, print_json, print_sheets
from tost.config import CHECKPOINT_SECONDS, Config

HELP = "lottery tickets: iterative magnitude pruning with rewinding"


def parser() -> Parser:
    lottery = Parser(
        description="Train the dense network; then, until --density is reached, remove the smallest weights, go back to those "
        "of an early step and train again. Finished rounds are read back, one that was cut off goes on."
    )
    add_config(lottery, [f.name for f in dataclasses.fields(Config) if f.name != "method"])
    lottery.add_argument("--rate", type=float, default=0.2, help="fraction of the weights left that a round removes")
    lottery.add_argument(
        "--rewind",
        type=str,
        default="init",
        help="what a round goes back to: init, a step (500 or 500it), an epoch (2ep), or none: it goes on from the last round",
    )
    lottery.add_argument("--figure", type=str | None, default=None, help="also draw accuracy against density into this file")
    lottery.add_argument("--device", type=str | None, default=None, help="cpu or cuda (default: cuda where there is some)")
    lottery.add_argument("--workers", type=int, default=0, help="processes that decode pictures (data sets read from folders)")
    lottery.add_argument("--tensorboard", action="store_true", help="also write curves for TensorBoard into the run folders")
    lottery.add_argument(
        "--checkpoint_seconds",
        type=float,
        default=CHECKPOINT_SECONDS,
        help="save amid an epoch when this much time has passed",
    )
    add_running(lottery)
    return lottery


def run(options: Namespace) -> None:
    config = config_of(options)
    config.check_names()
    set_threads(options.threads)
    from tost.report import lottery_sheet, require_matplotlib, save_lottery_figure
    from tost.tickets import lottery

    if options.figure is not None:
        require_matplotlib()  # before hours of training, not after
    found = lottery(
        config,
        rate=options.rate,
        rewind=options.rewind,
        overwrite=options.overwrite,
        progress=True,
        report=note,
        device=options.device,
        checkpoint_seconds=options.checkpoint_seconds,
        tensorboard=options.tensorboard,
        workers=options.workers,
    )
    if os.environ.get("RANK", "0") != "0":
        return  # under torchrun one process speaks
    if options.figure is not None:
        save_lottery_figure(found, options.figure)
    if options.json:
        print_json(found.as_dict())
    else:
        print_sheets([lottery_sheet(found)])
        print(f"record {found.path}, ticket {found.rounds[-1].result.run_dir}")
