"""`lottery`: sparse networks by iterative magnitude pruning with rewinding, the Lottery Ticket Hypothesis.

    train dense -> [prune the smallest weights -> go back to an early step -> train] as often as it takes

Frankle and Carbin, arXiv 1803.03635; rewinding to a step after the first: arXiv 1903.01611 and 1912.05671. The file is not
called lottery.py because `tost.lottery` is the function.
"""

from __future__ import annotations

import contextlib
import dataclasses
import re
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import torch
from torch import nn

from tost import distributed
from tost.callbacks import Callback, NetworkAt, NonFiniteLoss, Stopped
from tost.checks import integer, number
from tost.config import CHECKPOINT_SECONDS, Config
from tost.data import Dataset, load
from tost.files import DamagedFile, read_json, write_json
from tost.masks import Masks, prune
from tost.masks.layers import prunable_layers
from tost.preparation import Start, initial_model, train_batches, trained_model
from tost.runs import Result, RunFolder
from tost.training import Conduct, train_in

__all__ = [
    "Lottery",
    "Round",
    "check_lottery",
    "forget_rounds",
    "lottery",
    "rewind_step",
    "rounds_of",
    "rounds_to",
]


@dataclass(frozen=True)
class Round:
    """One training of a lottery.

    Attributes:
        number: 0 is the dense one.
        kept: weights that it keeps, of the layers that `include` and `exclude` leave to prune.
        total: all weights of those layers.
        result: of the training; its folder is `result.run_dir`.
    """

    number: int
    kept: int
    total: int
    result: Result

    @property
    def density(self) -> float:
        """`kept / total`."""
        return self.kept / self.total

    def as_dict(self) -> dict[str, Any]:
        """Plain JSON types."""
        result = self.result
        return {
            "round": self.number,
            "density": self.density,
            "kept": self.kept,
            "total": self.total,
            "test_accuracy": result.test_accuracy,
            "test_loss": result.test_loss,
            "best": dict(result.best) if result.best is not None else None,
            "masks_fingerprint": result.masks_fingerprint,
            "run_dir": str(result.run_dir),
        }


@dataclass(frozen=True)
class Lottery:
    """What `lottery` found, round by round; `path`, lottery.json in the folder of the last round, says the same: see `load`.

    Attributes:
        config: as given, but for the method, which names the lottery's settings.
        rate: fraction of the weights that each round removed.
        rewind: the step to which each round went back; None: to none, each went on with the weights of the one before.
        rounds: the dense one first; the last has the density asked for.
    """

    kind: ClassVar[str] = "lottery"
    config: Config
    rate: float
    rewind: int | None
    rounds: tuple[Round, ...]

    @property
    def path(self) -> Path:
        return RunFolder(self.rounds[-1].result.run_dir).lottery

    def as_dict(self) -> dict[str, Any]:
        """Plain JSON types."""
        return {
            "kind": self.kind,
            "config": self.config.as_dict(),
            "rate": self.rate,
            "rewind": self.rewind,
            "rounds": [one.as_dict() for one in self.rounds],
        }

    @classmethod
    def load(cls, path: str | Path) -> Lottery:
        """What `lottery` wrote to lottery.json; its rounds are the folders beside that of `path`, wherever they were moved.

        Raises:
            FileNotFoundError: there is no such file, or a round is gone. DamagedFile: (a ValueError) one is damaged.
        """
        file = Path(path)
        values = read_json(file)
        # "." and ".." have no parent to speak of
        place = (file.parent if file.parent.name not in ("", "..") else file.parent.resolve()).parent
        try:
            rate = number("rate", values["rate"], above=0.0, below=1.0)
            rewind = None if values["rewind"] is None else integer("rewind", values["rewind"], least=0)
            config, rounds = Config.from_dict(values["config"]), []
            for i, entry in enumerate(values["rounds"]):
                kept, total = integer("kept", entry["kept"], least=0), integer("total", entry["total"], least=1)
                rounds.append(Round(i, kept, total, RunFolder(place / Path(entry["run_dir"]).name).load()))
            if not rounds:
                raise ValueError("rounds: expected at least one, got none")
            return cls(config, rate, rewind, tuple(rounds))
        except DamagedFile:
            raise  # a round
        except (ValueError, TypeError, KeyError) as error:
            raise DamagedFile(file, f"not a lottery's record: {error}") from error


def lottery(
    config: Config,
    *,
    rate: float = 0.2,
    rewind: int | str = "init",
    overwrite: bool = False,
    progress: bool = False,
    report: Callable[[str], None] = lambda line: None,
    callbacks: Callable[[int], Sequence[Callback]] = lambda number: (),
    device: str | torch.device | None = None,
    checkpoint_seconds: float = CHECKPOINT_SECONDS,
    tensorboard: bool = False,
    workers: int = 0,
) -> Lottery:
    """Look for a winning ticket of `config.density` by iterative magnitude pruning.

    Round 0 trains the dense network. Round L keeps exactly round((1 - rate)^L * total) weights, the last one exactly
    round(density * total): those with the largest magnitude at the end of the round before, all layers together, among those
    that it had kept. They go back to what they were after `rewind` steps of round 0 and are trained again: weights, biases and
    BatchNorm statistics go back bit for bit, learning rate, batches and the strength of ghosts go on from that step, so a round
    has `rewind` steps less than round 0. The optimizer begins without momentum, and dropout draws from its beginning.

    Every round follows `config.recipe`, the dense one too: its ghosts live, fade, and go back like all else. A re-scaled
    initialization is part of how the dense network begins, and later rounds go back to it; it is not learned anew for their
    masks. `config.method` and `config.method_steps` are not used. With `config.ema` the average is what is pruned, and what goes
    back is the network. Weights that a round removes never return, so there is no `config.keep_alive`.

    Each round is a run folder, `<config.out>/lottery-<hash>/round-<number>-<weights kept>/`: `tost report` reads it. The hash
    is that of all but the final density: a lottery that goes further takes up the rounds that are there, except the last of a
    shorter one where that, to end at its density, kept more weights than a whole round does. What was cut off, between rounds or
    within one, goes on with the same bits as in `train`. The ticket of a round is masks.safetensors in its
    folder, with the weights in rewind.safetensors of round 0 (by the names of the dense network; pruned ones not yet 0). The
    control of arXiv 1803.03635, the same masks and weights drawn anew, is a `train` with `masks` that file and `mask_check`
    "reinitialised".

    Args:
        config: what to train. `density` is that of the last round; `backend` is that of the sparse rounds.
        rate: fraction of the weights left that each round removes.
        rewind: "init" or 0: before the first step (arXiv 1803.03635). A step, as 500 or "500it", or the end of an epoch, "2ep".
            "none": nothing goes back, each round trains the weights of the one before once more, from step 0 on.
        overwrite: repeat every round.
        progress: show a bar on stderr, one a round.
        report: gets a line of text as each round ends.
        callbacks: round number -> callbacks of its training, as in `train`.
        device, checkpoint_seconds, tensorboard, workers: as in `train`.

    Raises:
        TypeError, ValueError: an argument is wrong, or the masks of a round that is there are not those that follow from the
            round before; and what `train` raises.

    Warns:
        UserWarning: a round leaves a layer without any weight.

    Works under torchrun as `train` does.
    """
    rate = number("rate", rate, above=0.0, below=1.0)
    _check_config(config)
    conduct = Conduct(
        overwrite=overwrite, device=device, checkpoint_seconds=checkpoint_seconds, tensorboard=tensorboard, workers=workers
    )
    with distributed.processes(device) as me:
        dataset = load(config.dataset, config.data_dir)
        plan = _plan(config, dataset, rate, rewind)
        dense, last = plan.folders[0], len(plan.folders) - 1
        record = plan.folders[last].lottery
        rounds: list[Round] = []
        masks: Masks | None = None
        for i, folder in enumerate(plan.folders):
            # rank 0 asks when it is through with the round before, so that all find its files whole
            finished_earlier = distributed.from_main(folder.finished and not overwrite)
            if me.is_main and not finished_earlier:
                record.unlink(missing_ok=True)  # of the lottery that is overwritten
            start, around = None, list(callbacks(i))
            if i > 0:
                trained = plan.folders[i - 1].load_model()
                model = trained_model(config, dataset, trained)
                density = plan.counts[i] / plan.total
                masks = _pruned(model, config, density, masks, f"round {i} of {last}")
                if not overwrite:
                    _check_follows(folder, masks)
                if not finished_earlier:
                    state = trained if plan.rewind is None else dense.load_rewind_point()
                    start = Start(state, masks, plan.rewind or 0)
            elif plan.rewind is not None:
                around.append(NetworkAt(plan.rewind, dense.save_rewind_point if me.is_main else lambda net: None))
            title = f"round {i} of {last}, {100 * plan.counts[i] / plan.total:.3g}% kept" if progress else None
            of_round = dataclasses.replace(conduct, title=title, callbacks=around)
            with _told_of(f"round {i} of {last}"):
                result = train_in(folder, plan.config_of(i), of_round, start)
            rounds.append(Round(i, plan.counts[i], plan.total, result))
            if me.is_main:
                report(_line(rounds[i], last, finished_earlier))
        found = Lottery(dataclasses.replace(plan.config, density=config.density), rate, plan.rewind, tuple(rounds))
        if me.is_main and not record.is_file():
            with plan.folders[last].held():  # what a killed process left half written is gone
                write_json(record, found.as_dict())
        return found


def check_lottery(config: Config, *, rate: float = 0.2, rewind: int | str = "init") -> None:
    """Raise what `lottery` would for these arguments, before anything is trained."""
    _check_config(config)
    _plan(config, load(config.dataset, config.data_dir), number("rate", rate, above=0.0, below=1.0), rewind)


def rounds_to(density: float, rate: float = 0.2) -> list[int]:
    """The rounds of a lottery down to `density`, the dense one first, each as the weights that it keeps of a billion."""
    return _counts(10**9, rate, density)


def forget_rounds(config: Config, *, rate: float = 0.2, rewind: int | str = "init") -> None:
    """Make every round that is there of a lottery, to whatever density, an unfinished one that begins anew."""
    with distributed.processes() as me:
        dense, _ = rounds_of(config, rate=rate, rewind=rewind)[0]
        for path in sorted(dense.path.parent.glob("round-*")) if me.is_main else ():
            folder = RunFolder(path)
            with folder.held():
                folder.forget()


def rounds_of(config: Config, *, rate: float = 0.2, rewind: int | str = "init") -> list[tuple[RunFolder, Config]]:
    """Where each round of a lottery is, or will be, trained, and what; the dense one first."""
    plan = _plan(config, load(config.dataset, config.data_dir), rate, rewind)
    return [(folder, plan.config_of(number)) for number, folder in enumerate(plan.folders)]


class _Plan(NamedTuple):
    """What a lottery is going to do.

    config: of all its rounds but for density and backend. rewind: the step they go back to. counts, folders: of each round, how
    many weights it keeps and where it lives.
    """

    config: Config
    rewind: int | None
    counts: list[int]
    folders: list[RunFolder]

    @property
    def total(self) -> int:
        return self.counts[0]

    def config_of(self, number: int) -> Config:
        backend = self.config.backend if number else "dense"
        return dataclasses.replace(self.config, backend=backend, density=self.counts[number] / self.total)


def _plan(config: Config, dataset: Dataset, rate: float, rewind: int | str) -> _Plan:
    steps_per_epoch = len(train_batches(config, dataset))
    step = rewind_step(rewind, steps_per_epoch, config.total_steps(steps_per_epoch))
    layers = prunable_layers(initial_model(config, dataset), config.include, config.exclude)
    counts = _counts(sum(layer.weight.numel() for layer in layers), rate, config.density)
    # a method of its own: a round is not to be taken for an erk run of the same density
    method = f"lottery rate={rate} rewind={'none' if step is None else step}"
    common = dataclasses.replace(config, method=method, method_steps=None, density=1.0)
    place = Path(config.out) / f"lottery-{common.hash}"
    return _Plan(common, step, counts, [RunFolder(place / f"round-{i:02d}-{kept}") for i, kept in enumerate(counts)])


def rewind_step(rewind: int | str, steps_per_epoch: int, total_steps: int) -> int | None:
    """The step that `lottery`'s argument `rewind` means; None: "none".

    Raises:
        TypeError, ValueError: it means nothing, or a step that leaves none to train.
    """
    step: int | None = None
    if isinstance(rewind, str):
        named = re.fullmatch(r"([0-9]+)(it|ep)?", rewind)
        if rewind == "init":
            step = 0
        elif named:
            step = int(named[1]) * (steps_per_epoch if named[2] == "ep" else 1)
        elif rewind != "none":
            raise ValueError(
                f"rewind: expected 'init', 'none', a step as in 500 or '500it', or an epoch as in '2ep', got {rewind!r}"
            )
    else:
        step = integer("rewind", rewind, least=0)
    if step is not None and step >= total_steps:
        raise ValueError(f"rewind: expected a step before the last of {total_steps}, got {rewind!r} (step {step})")
    return step


def _pruned(model: nn.Module, config: Config, density: float, within: Masks | None, round: str) -> Masks:
    """The largest weights of `model` among those `within`; a layer that keeps none is told with the round."""
    with warnings.catch_warnings():
        warnings.filterwarnings(
            "ignore", message=".* leaves no weight in ", category=UserWarning
        )  # it advises what cannot be had
        masks = prune(model, "magnitude", density, include=config.include, exclude=config.exclude, within=within)
    if masks.empty_layers():
        warnings.warn(
            f"{round}, density {density:.4g}, leaves no weight in {', '.join(masks.empty_layers())}; "
            "where the network needs them, choose a higher density or `exclude` them",
            UserWarning,
            stacklevel=3,
        )
    return masks


@contextlib.contextmanager
def _told_of(round: str) -> Iterator[None]:
    """What ends a training inside says in which round."""
    try:
        yield
    except Stopped as stop:
        raise Stopped(f"{round}: {stop}", stop.signal) from None
    except NonFiniteLoss as error:
        raise NonFiniteLoss(f"{round}: {error}") from None


def _check_config(config: Config) -> None:
    if config.backend == "dense":
        raise ValueError("backend: expected that of the sparse rounds (sparse, masked-dense, reference), got 'dense'")
    for name, expected in (("masks", None), ("weights", None), ("mask_check", "none"), ("keep_alive", False)):
        value = getattr(config, name)
        if value != expected:
            raise ValueError(f"{name}: expected {expected!r}, for a lottery finds masks and weights by itself, got {value!r}")
    dataclasses.replace(config, backend="dense").check_names()  # all but the method


def _counts(total: int, rate: float, density: float) -> list[int]:
    """How many of `total` weights each round keeps, round 0 all: falling, the last exactly round(density * total).

    A round that would remove nothing, for so few are left, is left out.
    """
    final = round(density * total)
    if final == 0:
        raise ValueError(f"density: {density} of {total} weights is less than one weight")
    if final == total:
        raise ValueError(f"density: expected less than 1, or there is nothing to prune, got {density}")
    counts = [total]
    exponent = 0
    while counts[-1] > final:
        exponent += 1
        kept = max(final, round((1.0 - rate) ** exponent * total))
        if kept < counts[-1]:
            counts.append(kept)
    return counts


def _check_follows(folder: RunFolder, masks: Masks) -> None:
    if (folder.finished or folder.can_go_on) and folder.load_masks() != masks:
        raise ValueError(
            f"{folder.masks}: expected the masks that follow from the round before, got others (was that one trained anew?): "
            f"remove {folder.path} and the rounds behind it, or repeat the lottery (--overwrite)"
        )


def _line(one: Round, last: int, finished_earlier: bool) -> str:
    result = one.result
    took = "finished earlier" if finished_earlier else f"in {result.seconds:.0f} s"
    kept = f"{one.kept:,} of {one.total:,} weights"
    return f"round {one.number} of {last}  {kept}: {100 * result.test_accuracy:.2f}%, {took}  ({result.run_dir})"
