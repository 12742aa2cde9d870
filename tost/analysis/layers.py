"""How many weights a method leaves in each layer; FORCE's Figs. 8 and 13."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from tost.analysis.setting import Setting, each
from tost.checks import filled
from tost.masks import LayerCount

__all__ = ["Layers", "analyze_layers"]


@dataclass(frozen=True)
class Layers:
    """What is left.

    Attributes:
        setting: networks and density.
        counts: method -> for each seed the layers in the order of the network.
    """

    kind: ClassVar[str] = "layers"
    setting: Setting
    counts: Mapping[str, tuple[tuple[LayerCount, ...], ...]]

    def mean_kept(self, method: str) -> list[float]:
        """Weights left in each layer, averaged over the seeds."""
        seeds = self.counts[method]
        return [sum(layer.kept for layer in layers) / len(seeds) for layers in zip(*seeds, strict=True)]

    def as_dict(self) -> dict[str, Any]:
        """Plain JSON types."""
        counts = {
            name: [[{**layer._asdict(), "shape": list(layer.shape)} for layer in layers] for layers in seeds]
            for name, seeds in self.counts.items()
        }
        return {"kind": self.kind, **self.setting.as_dict(), "layers": counts}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Layers:
        """What `as_dict` gave."""
        counts = {name: filled("seeds", [_read(layers) for layers in seeds]) for name, seeds in values["layers"].items()}
        return cls(Setting.from_dict(values), counts)


def _read(layers: Sequence[Mapping[str, Any]]) -> tuple[LayerCount, ...]:
    return filled("layers", [LayerCount(**{**layer, "shape": tuple(layer["shape"])}) for layer in layers])


def analyze_layers(
    setting: Setting,
    names: Sequence[str] = ("random", "magnitude", "snip", "grasp", "synflow", "iter_snip", "force"),
    progress: Callable[[int], object] = lambda done: None,
) -> Layers:
    """Prune with each method and seed. `progress`: called with the number of finished ones."""
    counts: dict[str, list[tuple[LayerCount, ...]]] = {}
    for name, config in each(setting, names, progress):
        counts.setdefault(name, []).append(setting.masks(config).per_layer())
    return Layers(setting, {name: tuple(seeds) for name, seeds in counts.items()})
