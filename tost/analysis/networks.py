"""The network of a run after some epoch, or of a finished run, as modules of plain torch that can be looked into."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from tost.choices import check_choice
from tost.config import Config
from tost.data import Dataset, load
from tost.files import DamagedFile, read_json
from tost.ghosts import add_ghosts, finalize, ghosts_of
from tost.ghosts.wire import GHOSTS
from tost.masks import Masks
from tost.preparation import train_batches, trained_model
from tost.runs import RunFolder

__all__ = ["FORMS", "Snapshot", "active", "config_in", "network_of"]

FORMS = ("training", "finalized")


@dataclass(frozen=True)
class Snapshot:
    """A network of a run.

    Attributes:
        config: of the run.
        dataset: that it was trained on.
        net: dense modules, masked where the run has masks (`torch.nn.utils.prune`; weights outside the masks are 0), on the CPU
            and in eval mode. Its ghosts compute in plain torch, and can be differentiated twice, inside
            `tost_kernels.use_backend("reference")`, and in float64 anyway.
        masks: of the run; None: a dense run.
        epoch: epochs done.
        step: steps done.
        form: "training" (with ghosts, as strong as they were) or "finalized" (without them, but for permanent ones).
    """

    config: Config
    dataset: Dataset
    net: nn.Module
    masks: Masks | None
    epoch: int
    step: int
    form: str

    @property
    def has_live_ghosts(self) -> bool:
        """Whether there are ghosts in `net` that make it compute something else than the plain network."""
        return any(ghost.act in ("pswish", "mish") or getattr(ghost, "live", False) for ghost in ghosts_of(self.net).values())


def network_of(
    run: RunFolder | str | Path, epoch: int | None = None, form: str = "finalized", data_dir: str | Path | None = None
) -> Snapshot:
    """The network of a run, whatever backend trained it.

    Args:
        run: its folder; a round of a lottery is one too.
        epoch: after which the network was kept (`tost.train(..., snapshots=...)`), 0 is before the first step; None: the network
            of the finished run, whose ghosts are gone: both forms are one.
        form: "training": as it was trained at that moment. "finalized": what it would have been, had it been finalized then.
            Of a run with an average of the weights (`config.ema`) snapshots are the network in training, the finished one is the
            average.
        data_dir: of the data set, where it has moved since the training; None: where it was.

    Raises:
        FileNotFoundError: no run there, or it did not keep that network.
        ValueError: a file is damaged, or belongs to another network; an unknown form.
    """
    check_choice("form", form, FORMS)
    folder = run if isinstance(run, RunFolder) else RunFolder(Path(run))
    config = config_in(folder)
    dataset = load(config.dataset, config.data_dir if data_dir is None else data_dir)
    state = _plain_names(folder.load_model() if epoch is None else folder.load_snapshot(epoch))
    masks = None if config.backend == "dense" else folder.load_masks()
    try:
        net = _built(config, dataset, state, masks)
    except (RuntimeError, ValueError) as error:
        reason = " ".join(str(error).split())
        raise ValueError(f"run: the network in {folder.path} does not fit {config.model} for {dataset.name}: {reason}") from error
    if form == "finalized":
        net = finalize(net, inplace=True, warn=False)
    steps_per_epoch = len(train_batches(config, dataset))
    total = config.total_steps(steps_per_epoch)
    last = -(-total // steps_per_epoch)
    step = total if epoch is None else min(epoch * steps_per_epoch, total)
    return Snapshot(config, dataset, net.eval(), masks, last if epoch is None else epoch, step, form)


def active(net: nn.Module, masks: Mapping[str, Tensor] | None) -> dict[str, tuple[nn.Parameter, Tensor]]:
    """The weights of a network of `network_of` that are there: name in the plain network -> (parameter, bool mask of its shape).

    Those of every Conv2d and Linear, where there is no mask all of them; in the order of the network. No biases, nothing of
    BatchNorm, and nothing of the ghosts, so that the same weights are meant in every form and for every recipe.
    """
    ghosts = {module for ghost in ghosts_of(net).values() for module in ghost.modules()}
    found = {}
    for name, module in net.named_modules():
        if not isinstance(module, nn.Conv2d | nn.Linear) or module in ghosts:
            continue
        parameter = module._parameters.get("weight_orig", module._parameters.get("weight"))
        assert parameter is not None
        mask = masks[name] if masks is not None and name in masks else None
        everything = torch.ones_like(parameter, dtype=torch.bool)
        found[f"{name}.weight"] = parameter, everything if mask is None else mask.to(parameter.device)
    return found


def config_in(folder: RunFolder) -> Config:
    """What the run there trains, finished or not. FileNotFoundError: there is no run. DamagedFile: its file is damaged."""
    if not folder.config.is_file():
        raise FileNotFoundError(f"run: expected the folder of a run, got {folder.path} without {folder.config.name}")
    try:
        return Config.from_dict(read_json(folder.config))
    except (ValueError, TypeError) as error:
        raise DamagedFile(folder.config, f"not a run's configuration: {error}") from error


def _built(config: Config, dataset: Dataset, state: Mapping[str, Tensor], masks: Masks | None) -> nn.Module:
    """The training form: dense modules, masks, and the ghosts that `state` has, as strong as it says."""
    net = trained_model(config, dataset, state)
    names = net.state_dict().keys()
    # a network without ghosts has strengths too, where its tails were fused for the sparse kernels
    ghosts = {name: value for name, value in state.items() if name not in names} if config.recipe.has_ghosts else {}
    if masks is not None:
        net = masks.apply_to(masks.apply_to(net, inplace=True, form="zeros"), inplace=True)
    if ghosts:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # training has warned of what has no place for ghosts
            net = add_ghosts(net, config.recipe, inplace=True)
        net.get_submodule(GHOSTS).load_state_dict({name.removeprefix(f"{GHOSTS}."): value for name, value in ghosts.items()})
    return net


def _plain_names(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A state_dict of a sparse or masked dense network, by the names of the dense one."""
    masked = {name.removesuffix("_mask") for name in state if name.endswith(".weight_mask")}
    return {
        name.removesuffix("_orig") if name.removesuffix("_orig") in masked else name: value
        for name, value in state.items()
        if name.removesuffix("_mask") not in masked or not name.endswith("_mask")
    }
