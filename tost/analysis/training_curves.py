"""Loss, accuracy and density of several runs, epoch by epoch, from their records."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from tost.analysis.what_differs import what_differs
from tost.checks import check_types, filled
from tost.runs import Result

__all__ = ["TrainingCurve", "TrainingCurves", "analyze_curves"]

_VALUES = ("train_loss", "test_loss", "test_accuracy", "support_density")


@dataclass(frozen=True)
class TrainingCurve:
    """One run. None: not measured after this epoch.

    Attributes:
        variant: what tells its setting from the others; "" where all runs have the same.
        seed: of the run.
        run: hash of its configuration.
        epochs: done, a number for each value below.
        train_loss: mean over the steps of the epoch.
        test_loss, test_accuracy: of the network W in training, on the test images; the accuracy as a fraction.
        support_density: fraction of the weights in the support of Gamma, of the layers that have one; only of SplitLBI.
    """

    variant: str
    seed: int
    run: str
    epochs: tuple[int, ...]
    train_loss: tuple[float | None, ...]
    test_loss: tuple[float | None, ...]
    test_accuracy: tuple[float | None, ...]
    support_density: tuple[float | None, ...]

    def __post_init__(self) -> None:
        for name in _VALUES:
            if len(getattr(self, name)) != len(self.epochs):
                raise ValueError(f"{name}: expected {len(self.epochs)} values, one an epoch, got {len(getattr(self, name))}")


@dataclass(frozen=True)
class TrainingCurves:
    """Those of every run.

    Attributes:
        title: what the runs share.
        runs: in the order in which they were given.
    """

    kind: ClassVar[str] = "curves"

    title: str
    runs: tuple[TrainingCurve, ...]

    def __post_init__(self) -> None:
        filled("runs", self.runs)

    def as_dict(self) -> dict[str, Any]:
        """Plain JSON types."""
        return {"kind": self.kind, **dataclasses.asdict(self)}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> TrainingCurves:
        """What `as_dict` gave, or what JSON made of it."""
        runs = (
            TrainingCurve(one["variant"], one["seed"], one["run"], *(tuple(one[name]) for name in ("epochs", *_VALUES)))
            for one in values["runs"]
        )
        return check_types(cls(values["title"], tuple(runs)))


def analyze_curves(results: Sequence[Result]) -> TrainingCurves:
    """The training of finished runs (Figs. 3, 4 and 6 of https://arxiv.org/abs/2007.02010, where kappa and nu differ).

    Raises:
        ValueError: no run, or two of the same setting and seed.
    """
    label = what_differs([result.config for result in results])
    runs = (
        TrainingCurve(
            variant,
            result.config.seed,
            result.config.hash,
            tuple(line["epoch"] for line in result.history),
            *(tuple(line.get(name) for line in result.history) for name in _VALUES),
        )
        for variant, result in zip(label.variants, results, strict=True)
    )
    return TrainingCurves(label.title, tuple(runs))
