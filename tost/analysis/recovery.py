"""How many weights each step of a pruning method removes, and how many come back; FORCE's Fig. 9."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from tost.analysis.setting import Setting, each
from tost.checks import filled
from tost.masks import PruneStep

__all__ = ["Recovery", "RecoveryStep", "analyze_recovery"]


@dataclass(frozen=True)
class RecoveryStep:
    """A step of a method, numbered from 1: weights kept after it, removed by it, and recovered by it."""

    method: str
    seed: int
    number: int
    kept: int
    pruned: int
    recovered: int


@dataclass(frozen=True)
class Recovery:
    """The steps of every method and seed, in their order."""

    kind: ClassVar[str] = "recovery"
    setting: Setting
    steps: tuple[RecoveryStep, ...]

    def as_dict(self) -> dict[str, Any]:
        """Plain JSON types."""
        return {"kind": self.kind, **self.setting.as_dict(), "steps": [dataclasses.asdict(step) for step in self.steps]}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Recovery:
        """What `as_dict` gave."""
        return cls(Setting.from_dict(values), filled("steps", [RecoveryStep(**step) for step in values["steps"]]))


def analyze_recovery(
    setting: Setting,
    names: Sequence[str] = ("force", "iter_snip"),
    progress: Callable[[int], object] = lambda done: None,
) -> Recovery:
    """Prune with each method and seed, and count. `progress`: called with the number of finished ones."""
    found: list[RecoveryStep] = []
    for name, config in each(setting, names, progress):

        def count(step: PruneStep, name: str = name, seed: int = config.seed) -> None:
            found.append(RecoveryStep(name, seed, step.number, step.kept, step.pruned, step.recovered))

        setting.masks(config, count)
    return Recovery(setting, tuple(found))
