"""`add_ghosts`: a plain network -> the network ToST trains."""

from __future__ import annotations

import warnings
from typing import NamedTuple

from torch import fx, nn

from tost.ghosts.joints import Joint, convs_of_their_own, find_joints, find_swishes, relus_that_stay, settle_inplace
from tost.ghosts.strength import ghosts_of
from tost.ghosts.trace import Trace, trace
from tost.ghosts.wire import GHOSTS, wire
from tost.recipe import Recipe
from tost.tracer import Untraceable
from tost_kernels.nn.surgery import duplicate

__all__ = ["add_ghosts", "check_ghosts"]


def add_ghosts(net: nn.Module, recipe: Recipe, inplace: bool = False) -> nn.Module:
    """Gives `net` the ghosts `recipe` asks for. ToST: Jaiswal et al., ICML 2022; the rule for other networks is ours.

    The forward pass is traced with torch.fx. Then:

    * **Ghost skip**: one across each convolution with a kernel larger than 1x1, also grouped and depthwise, but those that read
      the network's input (no weights lie before them), and subclasses that compute something of their own. It is a 1x1
      convolution of the same channels, stride and groups, without bias, its weights starting at 1e-4, with a BatchNorm of its
      own; it reads the pixel under the kernel's centre, and is added behind the convolution's BatchNorm (where its result goes
      nowhere else) and before the activation: act(bn(conv(x)) + alpha * bn_g(ghost(x)) [+ shortcut]). A convolution that is
      called more than once has one ghost for all calls.
    * **Ghost swish** in the place of each ReLU that the trace sees, as a module, function or method.
    * **Fusion**, which a recipe without ghosts has too: convolution -> [BatchNorm2d] -> [+ shortcut [ending in a BatchNorm2d]] ->
      [ReLU] is one op behind the convolution. A BatchNorm2d takes part if it is no subclass, has no hooks and is called once.

    Layers of torch.nn and modules without Conv2d, BatchNorm2d and ReLU are called as they are. While the ghosts live the modules
    around the layers, fused BatchNorms and replaced ReLUs are not called, so hooks put on them later do not run; a ReLU that has
    hooks now stays ReLU. Only `forward` has ghosts: other methods that call layers see plain ones.

    Numbers, bools, strings and None that forward reads from modules, as in `x * self.scale` or `if self.use_skip`, are frozen:
    `set_strength` raises if one was changed. Modes are not: `F.dropout(x, training=self.training)` follows its module.

    `net` keeps its modules, parameter names and hooks and is still an instance of its class; `net.ghosts` is what was added. It
    can be copied, moved, compiled, sparsified and densified, but not pickled: save its state_dict. Works on dense, masked-dense
    and sparse networks, and on a part of a network: `net.backbone = add_ghosts(net.backbone, recipe)`. Draws no random numbers.

    Args:
        net: the network, without ghosts.
        recipe: `ghost_skip`, `ghost_swish`, `swish`, `alpha_start`, `beta_start`, `beta_end`, `permanent` matter here.
        inplace: change `net` itself instead of a copy. Parameters stay the same objects only then.

    Returns:
        The network with ghosts, at the strength `alpha_start`, `beta_start`. Warns if one of the two kinds of ghosts the recipe
        asks for has no place in it, of convolutions and ReLUs that it passes by, and if a recipe without ghosts meets a network
        that cannot be traced, or has an in-place operation that is seen elsewhere: such a network stays as it is.

    Raises:
        TypeError: `net` is no module, or `recipe` no Recipe.
        ValueError: `net` has ghosts already or another attribute named `ghosts`; its forward pass cannot be traced, or would not
            be the same as a graph (the message names the place and what to do); nothing the recipe asks for has a place in it.
    """
    plan = _plan(net, recipe)
    for message in plan.warnings:
        warnings.warn(f"add_ghosts: net: {message}", UserWarning, stacklevel=2)
    if not inplace:
        net = duplicate(net)
    if plan.joints or plan.swishes:
        wire(net, plan.traced, recipe, plan.joints, plan.swishes)
    return net


def check_ghosts(net: nn.Module, recipe: Recipe) -> None:
    """Raises what `add_ghosts(net, recipe)` would, changes nothing and does not warn."""
    _plan(net, recipe)


class _Plan(NamedTuple):
    traced: Trace
    joints: list[Joint]
    swishes: list[fx.Node]
    warnings: list[str]


def _plan(net: nn.Module, recipe: Recipe) -> _Plan:
    """What is to be done to `net`: nothing where it cannot be traced and the recipe asks for no ghosts."""
    if not isinstance(net, nn.Module):
        raise TypeError(f"add_ghosts: net: expected a torch.nn.Module, got {type(net).__name__}")
    if not isinstance(recipe, Recipe):
        raise TypeError(f"add_ghosts: recipe: expected a tost.Recipe, got {type(recipe).__name__}")
    for name in ghosts_of(net):
        raise ValueError(
            f"add_ghosts: net: expected a network without ghosts, got one with a ghost at {name!r}; finalize it first"
        )
    if hasattr(net, GHOSTS):
        raise ValueError(
            f"add_ghosts: net: expected no attribute {GHOSTS!r}, where the ghosts go; {type(net).__name__} has one: rename it"
        )
    modules = dict(net.named_modules(remove_duplicate=False))
    try:
        traced = trace(net)
        graph = traced.graph
        settle_inplace(graph, modules)
        joints = find_joints(graph, modules, recipe)
        swishes = find_swishes(graph, modules, joints) if recipe.ghost_swish else []
    except Untraceable as error:
        if recipe.has_ghosts:
            raise
        return _Plan(Trace(fx.Graph(), {}), [], [], [f"nothing is fused: {str(error).removeprefix('add_ghosts: net: ')}"])
    missing, messages = [], []
    if recipe.ghost_skip and not any(joint.has_ghost for joint in joints):
        missing.append("ghost skips (it has no convolution with a kernel larger than 1x1 besides those that read its input)")
    if recipe.ghost_swish and not swishes and not any(joint.act for joint in joints):
        missing.append("ghost swish (the trace meets no ReLU)")
    if missing:
        messages.append(f"{type(net).__name__} has no place for {' and '.join(missing)}")
    convs = convs_of_their_own(graph, modules) if recipe.ghost_skip else []
    if convs:
        kinds = ", ".join(sorted({type(conv).__name__ for conv in convs}))
        messages.append(f"{len(convs)} of its convolutions have a forward of their own ({kinds}), so they get no ghost skip")
    relus = relus_that_stay(graph, modules, joints, swishes) if recipe.ghost_swish else []
    if relus:
        names = ", ".join(map(repr, relus[:3])) + (", ..." if len(relus) > 3 else "")
        messages.append(f"{len(relus)} of its ReLUs stay ReLU, being inside layers, with hooks, or of a subclass: {names}")
    if len(missing) == recipe.ghost_skip + recipe.ghost_swish and missing:
        raise ValueError(f"add_ghosts: net: {'; '.join(messages)}; use a Recipe that does not ask for what it cannot have")
    return _Plan(traced, joints, swishes, messages)
