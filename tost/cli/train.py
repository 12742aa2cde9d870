"""`tost train`: one run."""

from __future__ import annotations

import dataclasses
import os

from jsonargparse import Namespace

from tost.cli.options import Parser, add_config, add_running, add_snapshots, add_training, config_of, epochs_of, set_threads
from tost.cli.output import print_json
from tost.config import Config

HELP = "train one network"


def parser() -> Parser:
    train = Parser(
        description="Train one network. A finished run of the same configuration is read back, one that was cut off goes on. "
        "Several processes or GPUs: torchrun --nproc-per-node N -m tost train ..."
    )
    add_config(train, [f.name for f in dataclasses.fields(Config)])
    add_training(train)
    add_snapshots(train)
    add_running(train)
    return train


def run(options: Namespace) -> None:
    config = config_of(options)
    config.check_names()
    snapshots = epochs_of(options.snapshots)
    set_threads(options.threads)
    from tost.training import train

    result = train(
        config,
        overwrite=options.overwrite,
        progress=True,
        device=options.device,
        checkpoint_seconds=options.checkpoint_seconds,
        tensorboard=options.tensorboard,
        workers=options.workers,
        snapshots=snapshots,
    )
    if os.environ.get("RANK", "0") != "0":
        return  # under torchrun one process speaks
    if options.json:
        print_json(result.as_dict())
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
