"""What the number of steps T does to an iterative pruning method: saliency, accuracy and time; FORCE's Fig. 4."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from tost.analysis.saliency import BATCHES, saliency
from tost.analysis.setting import Setting, each
from tost.callbacks import NonFiniteLoss
from tost.checks import check_types, filled, integer
from tost.config import Config
from tost.environment import environment
from tost.experiment import compare
from tost.grid import Diverged
from tost.masks import Masks, PruneStep

__all__ = ["Iterations", "IterationsPoint", "analyze_iterations"]


@dataclass(frozen=True)
class IterationsPoint:
    """One method, number of steps and seed.

    Attributes:
        method: pruning method.
        steps: T.
        seed: of network, mask and batches.
        saliency: pruning saliency of the masked network before training, see `tost.analysis.saliency`.
        seconds: that the T steps took.
        test_accuracy: after training.
    """

    method: str
    steps: int
    seed: int
    saliency: float
    seconds: float
    test_accuracy: float


@dataclass(frozen=True)
class Iterations:
    """Points of every method, number of steps and seed.

    Attributes:
        setting: networks and density.
        batches: over which the gradients of the saliency are averaged.
        environment: what the seconds were measured on.
        points: in the order of method, T, seed.
    """

    kind: ClassVar[str] = "iterations"
    setting: Setting
    batches: int
    environment: dict[str, Any]
    points: tuple[IterationsPoint, ...]

    def as_dict(self) -> dict[str, Any]:
        """Plain JSON types."""
        return {
            "kind": self.kind,
            **self.setting.as_dict(),
            "training_steps": self.setting.config.steps,
            "epochs": self.setting.config.epochs if self.setting.config.steps is None else None,
            "batches": self.batches,
            "environment": self.environment,
            "points": [dataclasses.asdict(point) for point in self.points],
        }

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Iterations:
        """What `as_dict` gave."""
        length = {"steps": values["training_steps"], **({"epochs": values["epochs"]} if values["epochs"] is not None else {})}
        points = filled("points", [IterationsPoint(**point) for point in values["points"]])
        return check_types(cls(Setting.from_dict(values, **length), values["batches"], dict(values["environment"]), points))


def analyze_iterations(
    setting: Setting,
    names: Sequence[str] = ("iter_snip", "force"),
    iterations: Sequence[int] = (1, 2, 5, 10, 20, 50, 100),
    batches: int = BATCHES,
    *,
    jobs: int = 1,
    overwrite: bool = False,
    progress: Callable[[int], object] = lambda done: None,
    bars: bool = False,
    report: Callable[[str], None] = lambda line: None,
) -> Iterations:
    """Prune with each method, T and seed, one after the other with the clock running; then train each.

    Args:
        setting: networks, density, training.
        names: methods.
        iterations: numbers of steps T, all different.
        batches: over which the gradients of the saliency are averaged, the same images for all of a seed.
        jobs, overwrite, report: of the training, as in `tost.compare`; finished runs are read back.
        progress: called with the number of networks that were pruned.
        bars: progress bars of the training on stderr.

    Raises:
        NonFiniteLoss: a training diverged; the others are done.
    """
    if not iterations or len(set(iterations)) != len(iterations):
        raise ValueError(f"iterations: expected at least one and each once, got {list(iterations)}")
    for steps in iterations:
        integer("iterations", steps, least=1)
    measured: dict[tuple[str, int, int], tuple[float, float]] = {}
    done = 0
    for name in names:  # before minutes of pruning, not after
        dataclasses.replace(setting.config, method=name, method_steps=min(iterations)).check_names()
    for name, config in each(setting, names, lambda _: None):
        for steps in iterations:
            measured[name, steps, config.seed] = _prune(setting, dataclasses.replace(config, method_steps=steps), batches)
            done += 1
            progress(done)
    variants = {f"{name}, T = {steps}": {"method": name, "method_steps": steps} for name in names for steps in iterations}
    grid = compare(setting.config, variants, setting.seeds, jobs=jobs, overwrite=overwrite, progress=bars, report=report)
    (cell,) = grid.cells
    points = []
    for name in names:
        for steps in iterations:
            for seed, run in zip(setting.seeds, grid.results[cell][f"{name}, T = {steps}"], strict=True):
                if isinstance(run, Diverged):
                    raise NonFiniteLoss(f"{name}, T = {steps}, seed {seed}: {run.reason}")
                points.append(IterationsPoint(name, steps, seed, *measured[name, steps, seed], run.test_accuracy))
    return Iterations(setting, batches, environment(), tuple(points))


def _prune(setting: Setting, config: Config, batches: int) -> tuple[float, float]:
    """(pruning saliency, seconds)"""
    seconds: list[float] = []

    def after(step: PruneStep) -> None:
        seconds.append(step.seconds)

    masks: Masks = setting.masks(config, after)
    return saliency(setting.model(config), masks, setting.batches(config), batches).pruning, sum(seconds)
