"""The whole state of a run in progress, as a tree that a checkpoint can hold, and back."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import torch

from tost.data import TrainBatches
from tost.distributed import PeerLost
from tost.loop import Callback, Run
from tost.random_state import random_state, set_random_state
from tost.update import Update, load_optimizer

__all__ = ["Fingerprints", "restore", "state_of"]


class Fingerprints(NamedTuple):
    """Of the initial weights, and of the masks (None: a dense run)."""

    weights: str
    masks: str | None


def state_of(
    run: Run,
    batches: TrainBatches,
    update: Update,
    callbacks: Sequence[Callback],
    fingerprints: Fingerprints,
    seconds: float,
) -> dict[str, Any]:
    """Everything that decides how the run goes on, and what it has measured so far."""
    return {
        "config": run.config.hash,
        "fingerprints": fingerprints._asdict(),
        "seconds": seconds,
        "position": {"step": run.step, "epoch": run.epoch, "batch": run.batch},
        "line": run.line,
        "step_seconds": torch.tensor(run.step_seconds, dtype=torch.float64),
        "batches": batches.chain,
        "net": dict(run.net.state_dict()),
        "optimizer": run.optimizer.state_dict(),
        "scaler": update.scaler.state_dict(),
        "random": random_state(update.device),
        "callbacks": {name: state for name, callback in _named(callbacks) if (state := callback.state_dict())},
    }


def restore(
    state: dict[str, Any],
    run: Run,
    batches: TrainBatches,
    update: Update,
    callbacks: Sequence[Callback],
    masks: str | None,
) -> tuple[float, Fingerprints]:
    """Put `run` and what belongs to it where `state_of` found them; returns the seconds spent by then, and the fingerprints of
    what the run began with (another version of torch may draw other weights).

    `masks` is the fingerprint of those that `run.net` has.

    Raises:
        ValueError: the state is not one of this run. PeerLost: another process is gone.
    """
    try:
        if state["config"] != run.config.hash:
            raise KeyError(f"that of run {state['config']}")
        fingerprints = Fingerprints(**state["fingerprints"])
        if fingerprints.masks != masks:
            raise ValueError(f"with the masks {fingerprints.masks}, not {masks} as in masks.safetensors")
        for name in ("step", "epoch", "batch"):
            setattr(run, name, int(state["position"][name]))
        run.line = dict(state["line"])
        run.step_seconds = state["step_seconds"].tolist()
        batches.chain = state["batches"]
        run.net.load_state_dict(state["net"])
        for name, callback in _named(callbacks):
            if name in state["callbacks"]:
                callback.load_state_dict(state["callbacks"][name], run)
        load_optimizer(run.optimizer, state["optimizer"])  # after the callbacks: dead ghosts have left the optimizer
        _match_strides(run.optimizer)
        update.scaler.load_state_dict(state["scaler"])
        set_random_state(state["random"], update.device)
        return float(state["seconds"]), fingerprints
    except PeerLost:
        raise  # a RuntimeError: the ghosts' end wraps the network anew, with the others
    except (KeyError, ValueError, TypeError, AttributeError, RuntimeError) as error:
        wrong = f"expected the state of run {run.config.hash}, got another: {error}"
        raise ValueError(f"checkpoint: {wrong}; to begin anew remove the run's folder") from error


def _match_strides(optimizer: torch.optim.Optimizer) -> None:
    """Give the optimizer's tensors the memory format of their parameters, as they have when training makes them.

    A checkpoint holds contiguous tensors, and fused optimizers pair the numbers of a parameter and its state as they lie in
    memory.
    """
    for parameter, values in optimizer.state.items():
        for name, value in values.items():
            if isinstance(value, torch.Tensor) and value.shape == parameter.shape and value.stride() != parameter.stride():
                values[name] = torch.empty_like(parameter, dtype=value.dtype).copy_(value)


def _named(callbacks: Sequence[Callback]) -> Iterator[tuple[str, Callback]]:
    """Class name -> callback; a second one of a class is called NAME.2."""
    seen: dict[str, int] = {}
    for callback in callbacks:
        name = type(callback).__name__
        seen[name] = seen.get(name, 0) + 1
        yield name if seen[name] == 1 else f"{name}.{seen[name]}", callback
