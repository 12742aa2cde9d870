"""Run folders: where a finished run lives, and how it is read back."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import warnings
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from tost import checkpoint, tensor_file
from tost.accounting import Accounting
from tost.checks import check_types, is_of, number
from tost.config import Config
from tost.files import DamagedFile, locked, read_json, remove_stale, write_atomic, write_json
from tost.masks import Masks

# one damaged file is no reason to repeat a whole comparison
_REPEAT = "to repeat this run alone remove its folder (--overwrite repeats all runs of the command)"
_LIST = "runs.txt"  # of run folders kept elsewhere, a path a line, relative to its own folder


@dataclass(frozen=True)
class Result:
    """What a run came to. Accuracy and loss are those of the finalized network on the test images.

    Attributes:
        config: the run's configuration.
        run_dir: its folder, see `RunFolder`.
        test_accuracy: fraction of the test images classified right after the last step.
        test_loss: mean cross entropy on them, without label smoothing.
        best: epoch, validation_accuracy and test_accuracy of the epoch with the best validation accuracy, whose network is
            best.safetensors; None where nothing was held out.
        history: one dict an epoch, see `tost.callbacks.Record`.
        accounting: weights of the finalized network.
        ghost_weights_at_start: weights of the ghost branches while they lived.
        masks_fingerprint: the first 16 digits of `Masks.fingerprint`; None for a dense run.
        weights_fingerprint: hash of the initial weights, before masks and re-scaling.
        batches_fingerprint: hash of every shuffle and augmentation the run saw.
        seconds: of the training, measurements of the accuracy and set-up included.
        ms_per_step: median duration of a step (forward, backward, update) in milliseconds, without living ghosts; of all
            steps where the ghosts lived to the end.
        ms_per_step_with_ghosts: the same of the steps with living ghosts; None where there were none.
        images_per_second: median over the epochs of images trained on in a second, with the making of batches.
        kernels: what computed the masked layers: "cpu" (compiled), "reference" (the specification in plain torch), "dense"
            (torch's dense operations, also those on the scattered weights where there is no compiled kernel), or on CUDA the
            backends chosen by tuning: "tuned (triton, dense)".
        device: where it ran: "cpu", "cuda:0".
        processes: how many shared the batches.
        threads: threads torch used.
        torch: its version.
        not_recorded: why each step was launched by itself; None: steps were CUDA graphs (`Config.cuda_graph`).
    """

    config: Config
    run_dir: Path
    test_accuracy: float
    test_loss: float
    best: Mapping[str, Any] | None
    history: tuple[Mapping[str, Any], ...]
    accounting: Accounting
    ghost_weights_at_start: int
    masks_fingerprint: str | None
    weights_fingerprint: str
    batches_fingerprint: str
    seconds: float
    ms_per_step: float
    ms_per_step_with_ghosts: float | None
    images_per_second: float
    kernels: str
    device: str
    processes: int
    threads: int
    torch: str
    not_recorded: str | None = "this run is older than recorded steps"

    def as_dict(self) -> dict[str, Any]:
        """Plain JSON types; what result.json holds."""
        values = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}
        values["config"] = self.config.as_dict()
        values["run_dir"] = str(self.run_dir)
        values["best"] = dict(self.best) if self.best is not None else None
        values["history"] = [dict(line) for line in self.history]
        values["accounting"] = dataclasses.asdict(self.accounting)
        return values

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Result:
        """What `as_dict` gave.

        Raises:
            ValueError, TypeError, KeyError: it is no such thing.
        """
        result = cls(
            **{
                **values,
                "config": Config.from_dict(values["config"]),
                "run_dir": Path(values["run_dir"]),
                "history": tuple(values["history"]),
                "accounting": Accounting(**values["accounting"]),
            }
        )
        check_types(result.accounting)
        check_types(result)
        number("test_accuracy", result.test_accuracy, least=0.0, most=1.0)  # statistics stumble over an infinity
        _check_history(result.history)
        return result


class RunFolder:
    """`<out>/<hash of the configuration>/` with

    config.json, record.jsonl (a line an epoch), masks.safetensors, model.safetensors (the finalized network after the last
    step, the plain dense model's state_dict with zeros where weights are pruned), best.safetensors (the same of the epoch with
    the best validation accuracy) and, written last, result.json: where it is, the run is finished. Until then
    checkpoint.safetensors holds all that a run needs to go on. The dense round of a lottery also has rewind.safetensors: the
    state_dict of the network in training, its ghosts included, at the step to which the other rounds go back; the last round
    has lottery.json, the record of all rounds. A run that stopped at a loss without a number has diverged.json, which says where.
    Where snapshots were asked for, epoch-0005.safetensors is the network in training, its ghosts included, as it was after 5
    epochs. In solution-path is what SplitLBI had found after each epoch, see `tost.optim.SolutionPath`.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.config = path / "config.json"
        self.record = path / "record.jsonl"
        self.masks = path / "masks.safetensors"
        self.checkpoint = path / "checkpoint.safetensors"
        self.best = path / "best.safetensors"
        self.model = path / "model.safetensors"
        self.rewind = path / "rewind.safetensors"
        self.lottery = path / "lottery.json"
        self.path_points = path / "solution-path"
        self.result = path / "result.json"
        self.divergence = path / "diverged.json"

    @classmethod
    def of(cls, config: Config) -> RunFolder:
        """The folder of a configuration; nothing is created."""
        return cls(Path(config.out) / config.hash)

    @property
    def finished(self) -> bool:
        return self.result.is_file()

    def snapshot(self, epoch: int) -> Path:
        """The file of the network in training after `epoch` epochs (0: before the first step), whether or not it is there."""
        return self.path / f"epoch-{epoch:04d}.safetensors"

    @property
    def snapshots(self) -> dict[int, Path]:
        """Epoch -> file, of those that were kept, the first epoch first."""
        named = {path.stem.removeprefix("epoch-"): path for path in self.path.glob("epoch-*.safetensors")}
        return {int(epoch): named[epoch] for epoch in sorted(named) if epoch.isdecimal()}

    @property
    def diverged(self) -> str | None:
        """Why the run stopped for good, where its loss stayed without a number: what `save_divergence` wrote.

        Raises:
            DamagedFile: (a ValueError) the file is damaged.
        """
        if self.finished or not self.divergence.is_file():
            return None
        with _advice(_REPEAT):
            values = read_json(self.divergence)
            if not (isinstance(values, dict) and isinstance(values.get("reason"), str)):
                raise DamagedFile(self.divergence, f"expected a reason, got {values!r:.50}")
            return str(values["reason"])

    def save_divergence(self, reason: str) -> None:
        """Say why the run has no result. The checkpoint stays: `train` goes on from it, and diverges once more."""
        write_json(self.divergence, {"reason": reason})

    @property
    def can_go_on(self) -> bool:
        """Whether there is a checkpoint of an unfinished run."""
        return self.checkpoint.is_file() and not self.finished

    @contextlib.contextmanager
    def held(self) -> Iterator[None]:
        """Inside, the folder exists and is this process's alone; what a killed process left half written is gone.

        Raises:
            BlockingIOError: another process has it. OSError: the folder cannot be made.
        """
        try:
            self.path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise OSError(error.errno, f"out: cannot make the run folder {self.path}: {error.strerror}") from error
        with locked(self.path):
            remove_stale(self.path)
            try:
                yield
            finally:
                if not any(self.path.iterdir()):
                    self.path.rmdir()  # nothing was begun

    def forget(self) -> None:
        """Remove what an earlier run found, so that the next one begins anew."""
        self.result.unlink(missing_ok=True)  # first: unfinished from here on
        for path in (
            self.checkpoint,
            self.record,
            self.best,
            self.model,
            self.rewind,
            self.lottery,
            self.masks,
            self.divergence,
            *self.snapshots.values(),
            *self.path_points.glob("*"),
        ):
            path.unlink(missing_ok=True)

    def start(self, config: Config, masks: Masks | None) -> None:
        """Make the run a new one. Write the configuration and the masks."""
        self.forget()
        write_json(self.config, config.as_dict())
        if masks is not None:
            masks.save(self.masks)  # atomic by itself

    def save_checkpoint(self, state: Mapping[str, Any]) -> None:
        checkpoint.save(self.checkpoint, state)

    def load_checkpoint(self) -> dict[str, Any]:
        """What `save_checkpoint` wrote last.

        Raises:
            ValueError: the file is damaged.
        """
        with _advice(_REPEAT):
            state: dict[str, Any] = checkpoint.load(self.checkpoint)
        return state

    def load_masks(self) -> Masks:
        """The masks of a run that goes on.

        Raises:
            FileNotFoundError: they are gone. ValueError: the file is damaged.
        """
        with _advice(f"nothing goes on from a run without its masks; {_REPEAT}"):
            return Masks.load(self.masks)

    def save_model(self, net: nn.Module) -> None:
        """The plain network after the last step."""
        _save_weights(self.model, net)

    def load_model(self) -> dict[str, Tensor]:
        """What `save_model` wrote: a state_dict.

        Raises:
            FileNotFoundError: there is none. DamagedFile: the file is damaged, or another program wrote it.
        """
        with _advice(f"the run's network cannot be had without it; {_REPEAT}"):
            return tensor_file.read(self.model, "network of a finished run", "pt", 1)[0]

    def save_rewind_point(self, net: nn.Module) -> None:
        """The network in training, at the step to which other runs go back."""
        _save_weights(self.rewind, net)

    def load_rewind_point(self) -> dict[str, Tensor]:
        """What `save_rewind_point` wrote: a state_dict.

        Raises:
            FileNotFoundError: there is none. DamagedFile: the file is damaged, or another program wrote it.
        """
        with _advice("rounds that go back to it need it: repeat the lottery (--overwrite)"):
            return tensor_file.read(self.rewind, "network to go back to", "pt", 1)[0]

    def save_snapshot(self, epoch: int, net: nn.Module) -> None:
        """The network in training, after `epoch` epochs."""
        _save_weights(self.snapshot(epoch), net)

    def load_snapshot(self, epoch: int) -> dict[str, Tensor]:
        """What `save_snapshot` wrote: a state_dict.

        Raises:
            FileNotFoundError: there is none. DamagedFile: the file is damaged, or another program wrote it.
        """
        with _advice(f"the network is kept while it is trained: repeat the run with --snapshots {epoch} --overwrite"):
            return tensor_file.read(self.snapshot(epoch), "network in training", "pt", 1)[0]

    def save_best(self, net: nn.Module) -> None:
        """The plain network of the best epoch so far."""
        _save_weights(self.best, net)

    def finish(self, result: Result) -> None:
        """Write the result; the checkpoint is of no use then."""
        write_json(self.result, result.as_dict())
        self.checkpoint.unlink(missing_ok=True)
        self.divergence.unlink(missing_ok=True)  # of another machine

    def load(self) -> Result:
        """The result of a finished run.

        Raises:
            FileNotFoundError: the folder holds no finished run.
            DamagedFile: (a ValueError) its result.json is damaged.
        """
        if not self.finished:
            raise FileNotFoundError(f"no finished run in {self.path} (no {self.result.name})")
        with _advice(_REPEAT):
            return self._read()

    def _read(self) -> Result:
        values = read_json(self.result)
        try:
            return Result.from_dict({**values, "run_dir": self.path})
        except (ValueError, TypeError, KeyError) as error:
            raise DamagedFile(self.result, f"not a run's result: {error}") from error


def _check_history(lines: tuple[Mapping[str, Any], ...]) -> None:
    """Raise TypeError or KeyError unless the tables and figures can be drawn from it."""
    if not lines:
        raise TypeError("history: expected an epoch or more, got none")
    for line in lines:
        if not (is_of(line["epoch"], int) and is_of(line["step"], int)):
            raise TypeError(f"history: expected numbers for epoch and step, got {line!r:.100}")
        number("history: test_accuracy", line.get("test_accuracy", 0.0), least=0.0, most=1.0)


def _save_weights(path: Path, net: nn.Module) -> None:
    tensor_file.write(path, net.state_dict(), {"format": "pt", "version": "1"})  # other programs look for "pt"


@contextlib.contextmanager
def _advice(todo: str) -> Iterator[None]:
    """Adds to the error about a file what to do."""
    try:
        yield
    except DamagedFile as error:
        raise DamagedFile(error.path, f"{error.reason}; {todo}") from error
    except FileNotFoundError as error:
        raise FileNotFoundError(f"{error}; {todo}") from error


def list_runs(folder: str | Path, runs: Iterable[Path]) -> None:
    """Say which run folders, kept elsewhere, are those of `folder`: `find_runs` finds them there."""
    Path(folder).mkdir(parents=True, exist_ok=True)
    places = sorted({os.path.relpath(run, folder) for run in runs})
    write_atomic(Path(folder) / _LIST, "".join(f"{place}\n" for place in places))


def find_runs(folder: str | Path) -> list[Result]:
    """Every finished run in `folder`: the folder itself, or those inside it and those it lists; sorted by configuration.

    Warns of a damaged result beside good ones.

    Raises:
        FileNotFoundError: no such folder, or no finished run in it. ValueError: none that is not damaged.
    """
    root = Path(folder)
    if not root.is_dir():
        raise FileNotFoundError(f"runs: no such folder: {root}")
    results: list[Result] = []
    damaged: list[DamagedFile] = []
    for path in sorted({*(file.parent for file in root.rglob("result.json")), *_listed(root)}):
        try:
            results.append(RunFolder(path).load())
        except DamagedFile as error:
            damaged.append(error)
    if damaged and not results:
        raise damaged[0]
    for reason in damaged:
        warnings.warn(f"runs: left out: {reason}", UserWarning, stacklevel=2)
    if not results:
        raise FileNotFoundError(f"runs: no finished run in {root}")
    return sorted(results, key=lambda r: json.dumps(r.config.as_dict(), sort_keys=True))


def _listed(root: Path) -> Iterator[Path]:
    for file in root.rglob(_LIST):
        for place in file.read_text().splitlines():
            yield Path(os.path.normpath(file.parent / place))
