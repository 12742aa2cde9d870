"""Run folders: where a finished run lives, and how it is read back."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors.torch import save
from torch import Tensor

from tost.accounting import Accounting
from tost.config import Config
from tost.files import write_atomic, write_json
from tost.masks import Masks


@dataclass(frozen=True)
class Result:
    """What a run came to. Accuracy and loss are those of the finalized network on the test images.

    Attributes:
        config: the run's configuration.
        run_dir: its folder, see `RunFolder`.
        test_accuracy: fraction of the test images classified right after the last step.
        test_loss: mean cross entropy on them, without label smoothing.
        history: one dict an epoch, see `tost.callbacks.Record`.
        accounting: weights of the finalized network.
        ghost_weights_at_start: weights of the ghost branches while they lived.
        masks_fingerprint: hash of the masks; None for a dense run.
        weights_fingerprint: hash of the initial weights, before masks and re-scaling.
        batches_fingerprint: hash of every shuffle and augmentation the run saw.
        seconds: of the training, measurements of the accuracy and set-up included.
        ms_per_step: median duration of a step (forward, backward, update) in milliseconds, without living ghosts; of all
            steps where the ghosts lived to the end.
        ms_per_step_with_ghosts: the same of the steps with living ghosts; None where there were none.
        kernels: what computed the masked layers: "cpu" (compiled), "reference" (the specification in plain torch) or "dense"
            (torch's dense operations, also those on the scattered weights where there is no compiled kernel).
        threads: threads torch used.
        torch: its version.
    """

    config: Config
    run_dir: Path
    test_accuracy: float
    test_loss: float
    history: tuple[Mapping[str, Any], ...]
    accounting: Accounting
    ghost_weights_at_start: int
    masks_fingerprint: str | None
    weights_fingerprint: str
    batches_fingerprint: str
    seconds: float
    ms_per_step: float
    ms_per_step_with_ghosts: float | None
    kernels: str
    threads: int
    torch: str

    def as_dict(self) -> dict[str, Any]:
        """Plain JSON types; what result.json holds."""
        values = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}
        values["config"] = self.config.as_dict()
        values["run_dir"] = str(self.run_dir)
        values["history"] = [dict(line) for line in self.history]
        values["accounting"] = dataclasses.asdict(self.accounting)
        return values


class RunFolder:
    """`<out>/<hash of the configuration>/` with

    config.json, record.jsonl (a line an epoch), masks.safetensors, model.safetensors (the finalized network, the plain
    dense model's state_dict with zeros where weights are pruned) and, written last, result.json: where it is, the run is
    finished.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.config = path / "config.json"
        self.record = path / "record.jsonl"
        self.masks = path / "masks.safetensors"
        self.model = path / "model.safetensors"
        self.result = path / "result.json"

    @classmethod
    def of(cls, config: Config) -> RunFolder:
        """The folder of a configuration; nothing is created."""
        return cls(Path(config.out) / config.hash)

    @property
    def finished(self) -> bool:
        return self.result.is_file()

    def start(self, config: Config) -> None:
        """Create the folder, make it unfinished, write the configuration.

        Raises:
            OSError: the folder cannot be made.
        """
        self.path.mkdir(parents=True, exist_ok=True)
        self.result.unlink(missing_ok=True)
        write_json(self.config, config.as_dict())

    def save_masks(self, masks: Masks) -> None:
        masks.save(self.masks)  # atomic by itself

    def save_model(self, state: Mapping[str, Tensor]) -> None:
        write_atomic(self.model, save({name: value.detach().contiguous() for name, value in state.items()}))

    def finish(self, result: Result) -> None:
        write_json(self.result, result.as_dict())

    def load(self) -> Result:
        """The result of a finished run.

        Raises:
            FileNotFoundError: the folder holds no finished run.
            ValueError: its result.json is damaged.
        """
        if not self.finished:
            raise FileNotFoundError(f"no finished run in {self.path} (no {self.result.name})")
        try:
            values = json.loads(self.result.read_text())
            values["config"] = Config.from_dict(values["config"])
            values["run_dir"] = self.path
            values["history"] = tuple(values["history"])
            values["accounting"] = Accounting(**values["accounting"])
            return Result(**values)
        except (ValueError, TypeError, KeyError) as error:
            raise ValueError(f"{self.result} is not a run's result: {error}") from error


def find_runs(folder: str | Path) -> list[Result]:
    """Every finished run in `folder`: the folder itself, or those inside it; sorted by configuration.

    Raises:
        FileNotFoundError: no such folder, or no finished run in it.
    """
    root = Path(folder)
    if not root.is_dir():
        raise FileNotFoundError(f"runs: no such folder: {root}")
    results = [RunFolder(path.parent).load() for path in sorted(root.rglob("result.json"))]
    if not results:
        raise FileNotFoundError(f"runs: no finished run in {root}")
    return sorted(results, key=lambda r: json.dumps(r.config.as_dict(), sort_keys=True))
