"""`finalize`: the trained network -> the plain network again; `recalibrate_bn` for one finalized too early."""

from __future__ import annotations

import warnings
from collections.abc import Iterable
from typing import Any

import torch
from torch import nn

from tost.ghosts.branch import rounded
from tost.ghosts.strength import ghosts_of
from tost.ghosts.wire import Rewired, unwire
from tost.user_batches import check_iterable, inputs_of
from tost_kernels.nn.surgery import duplicate

__all__ = ["finalize", "recalibrate_bn"]


def finalize(net: nn.Module, inplace: bool = False, warn: bool = True) -> nn.Module:
    """Removes the ghosts: the network's own class and forward pass with exact ReLU again, its parameters as they are now.

    Nothing of the ghosts is left, except ghosts of a permanent recipe, which stay: such a network stays rewired, so save its
    state_dict and load that into `add_ghosts(plain network, recipe)`. A network without ghosts comes back unchanged. Where the
    fade has not ended (alpha > 0, or a swish with beta < beta_end) this changes what the network computes: a UserWarning says so,
    and `recalibrate_bn` repairs the BatchNorm statistics.

    Args:
        net: network from `add_ghosts`, dense or sparse.
        inplace: change `net` itself instead of a copy. Parameters stay the same objects (and the optimizer's) only then.
        warn: whether to warn of an unfinished fade.
    """
    if not isinstance(net, nn.Module):
        raise TypeError(f"finalize: net: expected a torch.nn.Module, got {type(net).__name__}")
    if warn:
        _warn_if_fading(net)
    if not inplace:
        net = duplicate(net)
    for module in list(net.modules()):
        if isinstance(module, Rewired) and not module._wiring.recipe.permanent:
            unwire(module)
    return net


def _warn_if_fading(net: nn.Module) -> None:
    for name, ghost in ghosts_of(net).items():
        recipe = ghost.recipe
        if recipe.permanent or not recipe.has_ghosts:
            continue
        alpha, beta = ghost.strength()
        gate = alpha > 0.0
        swish = recipe.ghost_swish and ghost.has_act and rounded(beta) < rounded(recipe.beta_end)
        if gate or swish:
            warnings.warn(
                f"finalize: the fade has not ended at {name or 'the root'!r} (alpha = {alpha:g}, beta = {beta:g} of "
                f"{recipe.beta_end:g}), so finalizing changes what the network computes; "
                "tost.ghosts.recalibrate_bn(net, data) adapts its BatchNorm statistics",
                UserWarning,
                stacklevel=3,
            )
            return


@torch.no_grad()
def recalibrate_bn(net: nn.Module, data: Iterable[Any], inplace: bool = False) -> nn.Module:
    """Measures the running statistics of every BatchNorm of `net` anew, as the mean over the batches of `data`.

    Only the statistics move: no weight changes, dropout stays off. Modes and momenta are left as found.

    Args:
        net: any network, on the device of its parameters; usually fresh from `finalize`.
        data: (inputs, targets) batches, or plain input batches; inputs are moved to the device of `net`.
        inplace: change `net` itself instead of a copy.

    Raises:
        ValueError: `data` is empty. TypeError: `net` is no module, `data` cannot be iterated, or a batch is neither a tensor
            nor starts with one.
    """
    if not isinstance(net, nn.Module):
        raise TypeError(f"recalibrate_bn: net: expected a torch.nn.Module, got {type(net).__name__}")
    check_iterable(data, "recalibrate_bn: data")
    if not inplace:
        net = duplicate(net)
    norms = [
        module for module in net.modules() if isinstance(module, nn.modules.batchnorm._BatchNorm) and module.track_running_stats
    ]
    if not norms:
        return net
    modes = {module: module.training for module in net.modules()}
    momenta = [norm.momentum for norm in norms]
    device = next(net.parameters()).device
    seen = 0
    try:
        net.eval()
        for norm in norms:
            norm.reset_running_stats()
            norm.momentum = None  # torch's cumulative mean
            norm.train()
        for batch in data:
            net(inputs_of(batch, "recalibrate_bn: data").to(device))
            seen += 1
        if seen == 0:
            raise ValueError("recalibrate_bn: data: expected at least one batch, got none")
    finally:
        for norm, momentum in zip(norms, momenta, strict=True):
            norm.momentum = momentum
        for module, mode in modes.items():
            module.training = mode
    return net
