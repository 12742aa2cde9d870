"""Records that were written before records had a kind -> as they are written now."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from tost.accounting import Accounting
from tost.grid import Grid

__all__ = ["modern"]

_LOTTERY = {"config", "rate", "rewind", "rounds"}
_NOT_RECORDED = "not recorded"


def modern(values: Mapping[str, Any]) -> Mapping[str, Any]:
    """`values` with the kind that they have by what is in them; those that have one, and others, as they are."""
    if "kind" in values:
        return values
    if values.keys() == _LOTTERY:
        return {"kind": "lottery", **values}
    if "densities" in values and "variants" in values:
        return _of_methods(values)
    return values


def _of_methods(values: Mapping[str, Any]) -> dict[str, Any]:
    """Of `tost analyze methods`, which `tost compare` does now: of each run what it came to; numbers not recorded are 0."""
    config = values["config"]
    baselines = [name for name in ("random", "snip") if name in values["variants"]]
    return {
        "kind": Grid.kind,
        "config": config,
        "variants": values["variants"],
        "baselines": baselines,
        "seeds": values["seeds"],
        "cells": [
            {
                "model": config["model"],
                "dataset": config["dataset"],
                "method": "",
                "density": entry["density"],
                "variants": {
                    name: {"runs": [_run(run, config, entry["density"]) for run in found["runs"]]}
                    for name, found in entry["variants"].items()
                },
            }
            for entry in values["densities"]
        ],
        "step_times": [],
        "environment": values.get("environment", {}),
    }


def _run(run: Mapping[str, Any], config: Mapping[str, Any], density: float) -> dict[str, Any]:
    kept, total = run["weights_kept"], run["weights_prunable"]
    accuracy = run["test_accuracy"]
    return {
        "config": {"seed": run["seed"], "density": density},
        "run_dir": _NOT_RECORDED,
        "test_accuracy": accuracy,
        "test_loss": run["test_loss"],
        "best": None,
        "history": [{"epoch": config["epochs"], "step": config["steps"] or 0, "test_accuracy": accuracy}],
        # networks without ghosts
        "accounting": dataclasses.asdict(Accounting(kept, total, kept / total, 0, parameters=0)),
        "ghost_weights_at_start": 0,
        "masks_fingerprint": run["masks_fingerprint"],
        "weights_fingerprint": _NOT_RECORDED,
        "batches_fingerprint": _NOT_RECORDED,
        "seconds": run["seconds"],
        "ms_per_step": 0.0,
        "ms_per_step_with_ghosts": None,
        "images_per_second": 0.0,
        "kernels": _NOT_RECORDED,
        "device": "cpu",
        "processes": 1,
        "threads": 0,
        "torch": _NOT_RECORDED,
    }
