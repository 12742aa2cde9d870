"""kill -9 lotteries KILLS times, between rounds and within them; each must end with the uninterrupted one's bits.

    python tests/tost/kill_lotteries.py FOLDER KILLS SEED

Prints a line of JSON: the round in progress at each kill.
"""

import dataclasses
import json
import os
import random as chances
import signal
import sys
import time
from pathlib import Path

import torch
from kill_runs import ended, in_child
from small_images import small_images

from tost import Config, Lottery, Recipe, lottery, tickets, training

CONFIG = Config(model="lenet300100", batch_size=16, steps=14, density=0.1, validation=0.2, recipe=Recipe.vanilla())


def whole_lottery(config: Config) -> Lottery:
    return lottery(config, rate=0.4, rewind=3, checkpoint_seconds=0)


def files(out: Path) -> dict[str, bytes]:
    """Every file there is, with the content of those that hold no times and places."""
    paths = [path for path in out.rglob("*") if path.is_file()]
    return {str(path.relative_to(out)): path.read_bytes() if path.suffix == ".safetensors" else b"" for path in paths}


def accuracies(found: Lottery) -> list[tuple[int, float, float]]:
    return [(one.kept, one.result.test_accuracy, one.result.test_loss) for one in found.rounds]


def main(out: Path, kills: int, seed: int) -> None:
    torch.set_num_threads(1)
    images = small_images()
    training.load = tickets.load = lambda name, folder: images
    chance = chances.Random(seed)
    whole = dataclasses.replace(CONFIG, out=str(out / "whole"))
    started = time.perf_counter()
    os.waitpid(in_child(lambda: whole_lottery(whole)), 0)
    seconds = time.perf_counter() - started
    reference = whole_lottery(whole)

    killed_in: list[int] = []
    lotteries = 0
    while len(killed_in) < kills:
        config = dataclasses.replace(CONFIG, out=str(out / f"lottery{lotteries}"))
        done = False
        while not done:
            pid = in_child(lambda config=config: whole_lottery(config))
            deadline = time.perf_counter() + chance.uniform(0.0, seconds / 3)
            while not (done := ended(pid)):
                if len(killed_in) < kills and time.perf_counter() > deadline:
                    os.kill(pid, signal.SIGKILL)
                    os.waitpid(pid, 0)
                    killed_in.append(len(list(Path(config.out).rglob("result.json"))))
                    break
                time.sleep(0.002)
        found = whole_lottery(config)
        if files(Path(config.out)) != files(out / "whole") or accuracies(found) != accuracies(reference):
            raise SystemExit(f"lottery {lotteries} ended with other bits than the uninterrupted one")
        lotteries += 1
    print(json.dumps({"killed_in": killed_in, "lotteries": lotteries}))


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]))
