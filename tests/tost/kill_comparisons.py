"""kill -9 `tost compare` KILLS times, in both phases; it must end with the record of one that nobody killed, and repeat no run.

    python tests/tost/kill_comparisons.py FOLDER KILLS SEED

Prints a line of JSON: how many runs were finished at each kill.
"""

import contextlib
import json
import os
import random as chances
import signal
import sys
import time
from pathlib import Path
from typing import Any

import torch
from kill_runs import ended, in_child
from small_images import small_images

from tost import tickets, training
from tost.cli import main as tost

VARIANTS = "{vanilla: vanilla, swish: {recipe: vanilla, ghost_swish: true}, taught: {recipe: vanilla, distillation: 0.9, teacher: dense}}"
COMMAND = ["compare", "--model", "lenet300100", "--steps", "12", "--batch_size", "16", "--eval_every", "1", "--out", "runs"]
COMMAND += ["--methods", "[random, lth]", "--densities", "[0.7]", "--seeds", "2", "--snapshots", "1", "--variants", VARIANTS]
SECONDS = ("seconds", "ms_per_step", "ms_per_step_with_ghosts", "images_per_second")


def compare(place: Path) -> None:
    os.chdir(place)
    with open(os.devnull, "w") as nowhere, contextlib.redirect_stdout(nowhere), contextlib.redirect_stderr(nowhere):
        if tost(COMMAND) != 0:
            raise SystemExit("it failed")


def in_its_own(place: Path) -> int:
    place.mkdir(parents=True, exist_ok=True)
    return in_child(lambda: compare(place))


def without_seconds(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: 0 if name in SECONDS else without_seconds(inner) for name, inner in value.items()}
    return [without_seconds(inner) for inner in value] if isinstance(value, list) else value


def outcome(place: Path) -> dict[str, str | bytes]:
    """The record, but for seconds, and every file with its content where that holds no times."""
    runs = place / "runs"
    record = json.dumps(without_seconds(json.loads((runs / "comparison.json").read_text())), indent=2)
    files = [path for path in runs.rglob("*") if path.is_file()]
    return {"record": record} | {
        str(path.relative_to(runs)): path.read_bytes() if path.suffix == ".safetensors" else b"" for path in files
    }


def finished(place: Path) -> dict[str, int]:
    """Run -> when it ended."""
    return {str(path): path.stat().st_mtime_ns for path in place.rglob("result.json")}


def main(out: Path, kills: int, seed: int) -> None:
    torch.set_num_threads(1)
    images = small_images()
    training.load = tickets.load = lambda name, folder: images
    chance = chances.Random(seed)
    started = time.perf_counter()
    os.waitpid(in_its_own(out / "whole"), 0)
    seconds = time.perf_counter() - started
    reference = outcome(out / "whole")

    killed_at: list[int] = []
    comparisons = 0
    while len(killed_at) < kills:
        place, done, before = out / f"killed{comparisons}", False, dict[str, int]()
        while not done:
            pid = in_its_own(place)
            deadline = time.perf_counter() + chance.uniform(0.0, seconds / 2)
            while not (done := ended(pid)):
                if len(killed_at) < kills and time.perf_counter() > deadline:
                    os.kill(pid, signal.SIGKILL)
                    os.waitpid(pid, 0)
                    killed_at.append(len(finished(place)))
                    break
                time.sleep(0.002)
            now = finished(place)
            if any(now[path] != when for path, when in before.items()):
                raise SystemExit(f"comparison {comparisons} repeated a finished run")
            before = now
        found = outcome(place)
        if found != reference:
            raise SystemExit(
                f"comparison {comparisons} differs: {[name for name in reference if found.get(name) != reference[name]]}"
            )
        comparisons += 1
    print(json.dumps({"killed_at": killed_at, "runs": len(finished(out / "whole")), "comparisons": comparisons}))


if __name__ == "__main__":
    main(Path(sys.argv[1]).resolve(), int(sys.argv[2]), int(sys.argv[3]))
