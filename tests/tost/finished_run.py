"""Results that nobody trained, and a run folder as a finished run leaves it."""

from pathlib import Path
from typing import Any

from tost.accounting import Accounting
from tost.config import Config
from tost.runs import Result, RunFolder


def made(config: Config, run_dir: Path, **values: Any) -> Result:
    """A result of this configuration, with these values in the place of those here."""
    usual: dict[str, Any] = {
        "test_accuracy": 0.5,
        "test_loss": 1.0,
        "best": None,
        "history": ({"epoch": 1, "step": 3, "test_accuracy": 0.5},),
        "accounting": Accounting(5, 100, 0.05, 0, 120),
        "ghost_weights_at_start": 7,
        "masks_fingerprint": "m",
        "weights_fingerprint": "w",
        "batches_fingerprint": "b",
        "seconds": 1.5,
        "ms_per_step": 2.5,
        "ms_per_step_with_ghosts": None,
        "images_per_second": 100.0,
        "kernels": "reference",
        "device": "cpu",
        "processes": 1,
        "threads": 1,
        "torch": "2.13",
    }
    return Result(config=config, run_dir=run_dir, **{**usual, **values})


def finished(out: Path, **changes: object) -> Result:
    config = Config.from_dict({"out": str(out), **changes})
    folder = RunFolder.of(config)
    folder.path.mkdir(parents=True)
    folder.start(config, None)
    result = made(config, folder.path)
    folder.finish(result)
    return result
