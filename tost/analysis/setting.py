"""What all analyses of pruning at initialisation share: networks by seed, their masks, and what they were made with."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from torch import nn

from tost.config import Config
from tost.data import Dataset, TrainBatches, load
from tost.masks import Masks, PruneStep, methods
from tost.preparation import initial_model, make_masks, scoring_batches

__all__ = ["Setting"]

# what an analysis without training reads of a configuration
_READ = ("model", "dataset", "validation", "method_steps", "density", "include", "exclude", "keep_alive")


@dataclass(frozen=True)
class Setting:
    """Networks of one kind, freshly initialised, one a seed.

    Attributes:
        config: network, data set, density and what else decides a mask; its method and seed do not matter.
        seeds: of the networks.

    Raises:
        ValueError: no seed, or one twice.
    """

    config: Config
    seeds: tuple[int, ...]

    def __post_init__(self) -> None:
        if not self.seeds or len(set(self.seeds)) != len(self.seeds):
            raise ValueError(f"seeds: expected at least one and each once, got {list(self.seeds)}")

    @cached_property
    def dataset(self) -> Dataset:
        return load(self.config.dataset, self.config.data_dir)

    def of(self, method: str, seed: int, **changes: Any) -> Config:
        """The configuration of one method and seed, with other `changes`; a method of one step keeps its one step.

        Raises:
            ValueError: a name is unknown.
        """
        config = dataclasses.replace(self.config, method=method, seed=seed, **changes)
        if method in methods() and methods()[method].steps == 1:
            config = dataclasses.replace(config, method_steps=None)
        config.check_names()
        return config

    def model(self, config: Config) -> nn.Module:
        """The dense network that is trained with the seed of `config`."""
        return initial_model(config, self.dataset)

    def masks(self, config: Config, on_step: Callable[[PruneStep], object] | None = None) -> Masks:
        """The masks that a run of `config` trains; `on_step` as in `tost.prune`."""
        return make_masks(config, self.dataset, on_step=on_step)

    def batches(self, config: Config) -> TrainBatches:
        """Training images to measure a masked network on: batches as its masks are chosen on, in another order."""
        return scoring_batches(config, self.dataset, stream="analysis")

    def as_dict(self) -> dict[str, Any]:
        """Plain JSON types, no paths."""
        values = self.config.as_dict()
        return {**{name: values[name] for name in _READ}, "seeds": list(self.seeds)}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any], **training: Any) -> Setting:
        """What `as_dict` gave, among other values; `training`: further fields of the configuration."""
        return cls(Config.from_dict({**{name: values[name] for name in _READ}, **training}), tuple(values["seeds"]))


def each(setting: Setting, names: Sequence[str], progress: Callable[[int], object]) -> Iterator[tuple[str, Config]]:
    """(method, configuration) of every method and seed; `progress` is called with how many are done.

    Raises:
        ValueError: no method, or one twice or unknown.
    """
    if not names or len(set(names)) != len(names):
        raise ValueError(f"methods: expected at least one and each once, got {list(names)}")
    configs = [(name, setting.of(name, seed)) for name in names for seed in setting.seeds]
    for done, item in enumerate(configs, 1):
        yield item
        progress(done)


def is_iterative(config: Config) -> bool:
    """Whether the method of `config` takes more than one step."""
    return (config.method_steps or methods()[config.method].steps) > 1
