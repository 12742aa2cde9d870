"""The networks that an analysis of runs looks at: which there are, and what they are called in a picture."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from tost.analysis.networks import FORMS, Snapshot, network_of
from tost.config import Config
from tost.recipe import recipe_name
from tost.runs import Result, RunFolder

__all__ = ["Label", "Origin", "kept_epochs", "labels", "networks"]


@dataclass(frozen=True)
class Origin:
    """Where a network comes from.

    Attributes:
        variant: what tells its run from those of the same seed, such as the recipe.
        seed: of the run.
        run: hash of the configuration.
        epoch: epochs done; 0 is before the first step.
        form: "training", with the ghosts that live, or "finalized".
    """

    variant: str
    seed: int
    run: str
    epoch: int
    form: str

    def as_dict(self) -> dict[str, Any]:
        """Plain JSON types."""
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Origin:
        """What `as_dict` gave."""
        return cls(**values)


class Label(NamedTuple):
    """What all runs of an analysis share, and for each what tells it from the others of its seed."""

    title: str
    variants: tuple[str, ...]


def labels(configs: Sequence[Config]) -> Label:
    """E.g. `resnet20 on mnist5k, erk mask, 95% sparse` and ("vanilla", "tost"): the recipe, and whatever else differs."""
    parts = [(config.model_name, f"on {config.dataset}", _mask(config)) for config in configs]
    shared = [len(set(column)) == 1 for column in zip(*parts, strict=True)]
    words = [part for part, same in zip(parts[0], shared, strict=True) if same]
    title = ", ".join(filter(None, (" ".join(words[: sum(shared[:2])]), *words[sum(shared[:2]) :])))
    variants = []
    for config, part in zip(configs, parts, strict=True):
        others = [text for text, same in zip(part, shared, strict=True) if not same]
        variants.append(", ".join([recipe_name(config.recipe), *others]))
    count = Counter((variant, config.seed) for variant, config in zip(variants, configs, strict=True))
    named = [
        variant if count[variant, config.seed] == 1 else f"{variant} ({config.hash})"
        for variant, config in zip(variants, configs, strict=True)
    ]
    return Label(title.removeprefix("on "), tuple(named))


def _mask(config: Config) -> str:
    if config.backend == "dense":
        return "dense"
    return "given mask" if config.masks is not None else f"{config.method} mask, {100 * (1 - config.density):g}% sparse"


def kept_epochs(results: Sequence[Result]) -> tuple[int, ...]:
    """The epochs after which there is a network of all of these runs."""
    epochs = [{*RunFolder(result.run_dir).snapshots, _last(result)} for result in results]
    return tuple(sorted(set.intersection(*epochs)))


def networks(
    results: Sequence[Result],
    epochs: Sequence[int] | None = None,
    forms: Sequence[str] = FORMS,
    progress: Callable[[int], object] = lambda done: None,
    data_dir: str | Path | None = None,
) -> Iterator[tuple[Origin, Snapshot]]:
    """Every network that is asked for, run by run.

    Args:
        results: finished runs.
        epochs: after which their networks were kept; None, or the number of the last epoch: the finished network.
        forms: one or both of "training" and "finalized". Where no temporary ghosts live both are one, which is given once, as
            "finalized".
        progress: called with the number of epochs of runs that the caller is through with.
        data_dir: of the data set, where it has moved since the training.

    Raises:
        ValueError: no run, or runs on several data sets; no epoch, one twice, or one that a training does not have.
            FileNotFoundError: a run did not keep one of the networks. All of them are raised before any network is loaded.
    """
    if not results:
        raise ValueError("runs: expected at least one, got none")
    datasets = sorted({result.config.dataset for result in results})
    if len(datasets) > 1:
        raise ValueError(f"runs: expected runs on one data set, to be compared on the same images, got {', '.join(datasets)}")
    if epochs is not None and (not epochs or len(set(epochs)) != len(epochs)):
        raise ValueError(f"epochs: expected at least one and each once, got {list(epochs)}")
    wanted = [(result, epoch) for result in results for epoch in (epochs if epochs is not None else (_last(result),))]
    for result, epoch in wanted:
        folder = RunFolder(result.run_dir)
        if not 0 <= epoch <= _last(result):
            raise ValueError(f"epochs: expected 0 to {_last(result)} (the training of {folder.path}), got {epoch}")
        if epoch != _last(result) and not folder.snapshot(epoch).is_file():
            kept = ", ".join(map(str, (*folder.snapshots, _last(result))))
            raise FileNotFoundError(
                f"epochs: no network after epoch {epoch} in {folder.path}, which has those after {kept}; repeat the run with "
                f"--snapshots {epoch} --overwrite"
            )
    variants = dict(zip([result.run_dir for result in results], labels([r.config for r in results]).variants, strict=True))
    return _networks([(result, epoch, variants[result.run_dir]) for result, epoch in wanted], forms, progress, data_dir)


def _networks(
    wanted: Sequence[tuple[Result, int, str]],
    forms: Sequence[str],
    progress: Callable[[int], object],
    data_dir: str | Path | None,
) -> Iterator[tuple[Origin, Snapshot]]:
    for done, (result, epoch, variant) in enumerate(wanted, 1):
        for form in forms:
            found = network_of(result.run_dir, None if epoch == _last(result) else epoch, form, data_dir)
            alive = form == "training" and found.has_live_ghosts and not found.config.recipe.permanent
            if alive or form == "finalized" or len(forms) == 1:
                origin = Origin(variant, result.config.seed, result.config.hash, epoch, "training" if alive else "finalized")
                yield origin, found
        progress(done)


def _last(result: Result) -> int:
    """Epochs of the whole training."""
    return int(result.history[-1]["epoch"])
