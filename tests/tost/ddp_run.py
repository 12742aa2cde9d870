"""Train under torchrun; `--die RANK STEP` kills that rank with SIGKILL behind that step. `--lottery`: three rounds.

torchrun --nproc-per-node 2 tests/tost/ddp_run.py FOLDER [--lottery | --die RANK STEP]
"""

import argparse
import dataclasses
import json
import os
import signal
import sys

import torch
from small_images import small_images

from tost import Config, Recipe, tickets, training
from tost.callbacks import Callback, Run
from tost.distributed import PeerLost


class Die(Callback):
    def __init__(self, rank: int, step: int) -> None:
        self.rank, self.step = rank, step

    def after_step(self, run: Run) -> None:
        if (int(os.environ["RANK"]), run.step) == (self.rank, self.step):
            os.kill(os.getpid(), signal.SIGKILL)


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("folder")
    parser.add_argument("--lottery", action="store_true")
    parser.add_argument("--die", type=int, nargs=2, default=(-1, -1))
    options = parser.parse_args()
    torch.set_num_threads(1)
    training.load = tickets.load = lambda name, folder: small_images()
    config = Config(
        model="resnet20",
        batch_size=16,
        accumulate=2,
        steps=12,
        density=0.1,
        validation=0.2,
        recipe=Recipe(rescale_iterations=1),  # ghosts die at the first milestone, step 6
        out=options.folder,
    )
    try:
        if options.lottery:
            less = dataclasses.replace(config, density=0.4)
            result = tickets.lottery(less, rate=0.45, rewind="1ep", device="cpu").rounds[-1].result
        else:
            result = training.train(config, callbacks=[Die(*options.die)], checkpoint_seconds=0, device="cpu")
    except PeerLost as error:
        print(f"tost: {error}", file=sys.stderr, flush=True)
        return 1
    said = {"rank": int(os.environ["RANK"]), "loss": result.test_loss, "history": result.history[-1]["train_loss"]}
    os.write(1, (json.dumps(said) + "\n").encode())  # one write: both processes share the pipe
    return 0


if __name__ == "__main__":
    sys.exit(main())
