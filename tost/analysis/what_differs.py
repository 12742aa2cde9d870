"""What tells the runs of a picture apart: the settings that differ, the seed aside."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tost.analysis.of_runs import Label
from tost.config import Config
from tost.recipe import Recipe, recipe_name

__all__ = ["what_differs"]

_NEVER = ("seed", "out", "data_dir", "cuda_graph", "tune", "split_lbi")  # the last: its options are there by themselves
_SAID = ("kappa", "nu")  # of SplitLBI, which a title names also where all runs share them


def what_differs(configs: Sequence[Config]) -> Label:
    """What all runs share, and of each the settings that not all have: runs of one name differ in the seed alone.

    E.g. `lenet5 on mnist5k, splitlbi, kappa 1` and ("nu 20", "nu 20", "nu 100"); "" where there is no difference.

    Raises:
        ValueError: no run, or two that do not even differ in the seed.
    """
    if not configs:
        raise ValueError("runs: expected at least one, got none")
    settings = [_settings(config) for config in configs]
    names = dict.fromkeys(name for values in settings for name in values)
    differ = [name for name in names if len({values[name] for values in settings if name in values}) > 1]
    variants = tuple(", ".join(f"{name} {values[name]}" for name in differ if name in values) for values in settings)
    ((variant, seed), count), *_ = Counter(zip(variants, (c.seed for c in configs), strict=True)).most_common(1)
    if count > 1:
        raise ValueError(f"runs: expected each once, got {count} of seed {seed}" + (f" and {variant}" if variant else ""))
    shared = {name: value for name, value in settings[0].items() if all(values.get(name) == value for values in settings)}
    title = " on ".join(shared[name] for name in ("model", "dataset") if name in shared)
    parts = [title, shared.get("optimizer", ""), *(f"{name} {shared[name]}" for name in _SAID if name in shared)]
    return Label(", ".join(filter(None, parts)), variants)


def _settings(config: Config) -> dict[str, str]:
    """Name -> value as a text, of all that has an effect."""
    config = config.in_effect
    values: dict[str, Any] = {f.name: getattr(config, f.name) for f in dataclasses.fields(config) if f.name not in _NEVER}
    values["model"] = config.model_name
    values |= dataclasses.asdict(config.split_lbi) if config.split_lbi is not None else {}
    return {name: _text(name, value) for name, value in values.items()}


def _text(name: str, value: object) -> str:
    if isinstance(value, Recipe):
        return recipe_name(value)
    if isinstance(value, float):
        return f"{value:g}"
    if isinstance(value, tuple):
        return " ".join(_text(name, item) for item in value)
    if name in ("masks", "teacher") and isinstance(value, str):
        return Path(value).name  # no record says where files lie
    return str(value).lower() if value is None or isinstance(value, bool) else str(value)
