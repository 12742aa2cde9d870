"""kill -9 training runs until KILLS of them were cut off; every run must end with the uninterrupted one's bits.

    python tests/tost/kill_runs.py FOLDER KILLS SEED

A process of its own, with torch loaded once: it forks a child a try. Half of the kills come at a random moment, half when a
temporary file shows that a save is in progress. Prints a line of JSON.
"""

import dataclasses
import json
import os
import random as chances
import shutil
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
from small_images import small_images

import tost
from tost import Config, Recipe, training
from tost.runs import RunFolder

CONFIG = Config(
    model="resnet20",
    batch_size=16,
    steps=20,  # of 4 an epoch
    density=0.1,
    ema=0.9,
    validation=0.2,
    recipe=Recipe(rescale_init=False),
)


def in_child(work: Callable[[], object]) -> int:
    """The id of a forked process that does `work`; its status is 0 where that ends well."""
    pid = os.fork()
    if pid == 0:
        try:
            work()
        except BaseException as error:
            print(f"child failed: {error!r}", file=sys.stderr, flush=True)
            os._exit(1)
        os._exit(0)
    return pid


def train_in_child(config: Config) -> int:
    return in_child(lambda: tost.train(config, checkpoint_seconds=0))


def ended(pid: int) -> bool:
    done, status = os.waitpid(pid, os.WNOHANG)
    if done and status not in (0, signal.SIGKILL):
        raise SystemExit(f"a resumed run failed: status {status}")
    return bool(done)


def weights(folder: RunFolder) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in (folder.model, folder.best, folder.masks)}


def main(out: Path, kills: int, seed: int) -> None:
    torch.set_num_threads(1)
    images = small_images()
    training.load = lambda name, folder: images
    chance = chances.Random(seed)
    whole = dataclasses.replace(CONFIG, out=str(out / "whole"))
    started = time.perf_counter()
    os.waitpid(train_in_child(whole), 0)
    seconds = time.perf_counter() - started
    expected, reference = weights(RunFolder.of(whole)), RunFolder.of(whole).load()
    killed = amid_a_save = resumed = runs = 0
    while killed < kills:
        config = dataclasses.replace(CONFIG, out=str(out / f"run{runs}"))
        folder = RunFolder.of(config)
        while not folder.finished:
            resumed += folder.can_go_on
            pid = train_in_child(config)
            at_a_save, delay = chance.random() < 0.5, chance.uniform(0.0, seconds)
            began = time.perf_counter()
            while not ended(pid):
                waited = time.perf_counter() - began > (delay / 2 if at_a_save else delay)
                if killed < kills and waited and (not at_a_save or any(folder.path.glob(".*.tmp"))):
                    os.kill(pid, signal.SIGKILL)
                    os.waitpid(pid, 0)
                    killed += 1
                    amid_a_save += any(folder.path.glob(".*.tmp"))
                    break
        result = tost.train(config)
        same = dataclasses.replace(
            reference,
            config=result.config,
            run_dir=result.run_dir,
            seconds=result.seconds,
            ms_per_step=result.ms_per_step,
            ms_per_step_with_ghosts=result.ms_per_step_with_ghosts,
            images_per_second=result.images_per_second,
            history=result.history,
        )
        no_times = {"ms_per_step": 0, "images_per_second": 0}
        histories = [[{**line, **no_times} for line in one.history] for one in (result, reference)]
        if weights(folder) != expected or result != same or histories[0] != histories[1]:
            raise SystemExit(f"run {runs} ended with other bits than the uninterrupted one")
        left = [path.name for path in folder.path.iterdir() if path.name.startswith(".") or path == folder.checkpoint]
        if left:
            raise SystemExit(f"run {runs} left {left}")
        shutil.rmtree(config.out)
        runs += 1
    print(json.dumps({"kills": killed, "amid_a_save": amid_a_save, "resumed": resumed, "runs": runs}))


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]))
