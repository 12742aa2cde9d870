"""`tost lottery`: a winning ticket, round by round."""

from __future__ import annotations

import dataclasses
import os

from jsonargparse import Namespace

from tost.cli.options import Parser, add_config, add_running, add_training, config_of, set_threads
from tost.cli.output import note, print_json, print_sheets
from tost.config import Config

HELP = "lottery tickets: iterative magnitude pruning with rewinding"
# what a lottery does without
_FOUND = ("method", "method_steps", "masks", "weights", "mask_check", "keep_alive", "bn_l1", "soft_filter")


def parser() -> Parser:
    lottery = Parser(
        description="Train the dense network; then, until --density is reached, remove the smallest weights, go back to those "
        "of an early step and train again. Finished rounds are read back, one that was cut off goes on."
    )
    add_config(lottery, [f.name for f in dataclasses.fields(Config) if f.name not in _FOUND])
    lottery.add_argument("--rate", type=float, default=0.2, help="fraction of the weights left that a round removes")
    lottery.add_argument(
        "--rewind",
        type=str,
        default="init",
        help="what a round goes back to: init, a step (500 or 500it), an epoch (2ep), or none: it goes on from the last round",
    )
    lottery.add_argument("--figure", type=str | None, default=None, help="also draw accuracy against density into this file")
    add_training(lottery)
    add_running(lottery)
    return lottery


def run(options: Namespace) -> None:
    config = config_of(options)
    config.check_names()
    set_threads(options.threads)
    from tost.report import check_figure, lottery_sheet, save_lottery_figure
    from tost.tickets import lottery

    if options.figure is not None:
        check_figure(options.figure)  # before hours of training, not after
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
