"""`add_ghosts`: a plain network -> the network ToST trains."""

from __future__ import annotations

from torch import nn

from tost.ghosts.block import GhostBlock, check_block
from tost.ghosts.norm import AbsorbedActivation, GhostNorm, pairs_of
from tost.models.resnet import BasicBlock
from tost.recipe import Recipe
from tost_kernels.nn.surgery import duplicate, replace_modules

__all__ = ["add_ghosts", "check_ghosts"]


def add_ghosts(net: nn.Module, recipe: Recipe, inplace: bool = False) -> nn.Module:
    """Gives `net` the ghosts `recipe` asks for.

    Each `tost.models.resnet.BasicBlock` becomes a `GhostBlock` around the same submodules, under the same names. Elsewhere a
    ReLU right behind a BatchNorm2d (in an nn.Sequential, as in VGG, or in the stem of a `tost.models.resnet.ResNet`) becomes
    the ghost swish: the two are a `GhostNorm` then, and what is called between them is no longer seen. Works on dense,
    masked-dense and sparse networks; call it after `tost_kernels.sparsify`. A recipe without ghosts only fuses BatchNorms,
    shortcuts and ReLUs; the function stays what it is. Draws no random numbers. ToST: Jaiswal et al., ICML 2022.

    Args:
        net: the network, without ghosts.
        recipe: `ghost_skip`, `ghost_swish`, `alpha_start`, `beta_start`, `beta_end`, `permanent` matter here.
        inplace: change `net` itself instead of a copy. Parameters stay the same objects only then.

    Returns:
        The network with ghosts, at the strength `alpha_start`, `beta_start`.

    Raises:
        TypeError: `net` is no module, `recipe` no Recipe, or a BasicBlock's activation is no nn.ReLU.
        ValueError: `net` has ghosts already; the recipe asks for ghost skips and `net` has no BasicBlock, or for ghost swish
            and there is no BatchNorm2d with a ReLU behind it either.
    """
    check_ghosts(net, recipe)
    if not inplace:
        net = duplicate(net)
    blocks: dict[nn.Module, nn.Module] = {}
    for owner, bn, act in list(pairs_of(net)):
        norm, relu = owner._modules[bn], owner._modules[act]
        assert isinstance(norm, nn.BatchNorm2d)
        assert relu is not None
        owner._modules[bn] = GhostNorm(norm, recipe)
        owner._modules[act] = AbsorbedActivation(relu, recipe)
    for module in list(net.modules()):
        if isinstance(module, BasicBlock):
            blocks[module] = GhostBlock(module, recipe)
    return replace_modules(net, blocks)


def check_ghosts(net: nn.Module, recipe: Recipe) -> None:
    """Raises what `add_ghosts(net, recipe)` would, and changes nothing."""
    if not isinstance(net, nn.Module):
        raise TypeError(f"add_ghosts: net: expected a torch.nn.Module, got {type(net).__name__}")
    if not isinstance(recipe, Recipe):
        raise TypeError(f"add_ghosts: recipe: expected a tost.Recipe, got {type(recipe).__name__}")
    blocks = 0
    for name, module in net.named_modules():
        if isinstance(module, GhostBlock | GhostNorm):
            raise ValueError(
                f"add_ghosts: net: expected a network without ghosts, got one with a {type(module).__name__} at "
                f"{name or 'its root'!r}; finalize it first"
            )
        if isinstance(module, BasicBlock):
            check_block(module)
            blocks += 1
    if recipe.ghost_skip and blocks == 0:
        raise ValueError(
            f"add_ghosts: net: expected a network with tost.models.resnet.BasicBlock modules, got {type(net).__name__} with "
            "none; for other networks use a Recipe with ghost_skip=False"
        )
    if recipe.ghost_swish and blocks == 0 and next(pairs_of(net), None) is None:
        raise ValueError(
            f"add_ghosts: net: expected a ReLU right behind a BatchNorm2d in an nn.Sequential, or a BasicBlock, got "
            f"{type(net).__name__} with none; use a Recipe with ghost_swish=False"
        )
