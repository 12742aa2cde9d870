"""`GhostNorm`: a BatchNorm and the ReLU right behind it as one op, and where such pairs are.

Such a pair has no ghost skip (only a BasicBlock's convolutions do), so its tail is act(bn(x)), act being the ghost swish
or ReLU.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from itertools import pairwise
from typing import Any, NamedTuple

from torch import Tensor, nn

from tost.ghosts import tail as tails
from tost.models.resnet import ResNet
from tost.recipe import Recipe
from tost_kernels.nn import BatchNorm2d

__all__ = ["AbsorbedActivation", "GhostNorm", "Pair", "pairs_of"]


class Pair(NamedTuple):
    """`owner` holds a BatchNorm2d under the name `bn` and calls what it holds under the name `act`, a ReLU, on its output."""

    owner: nn.Module
    bn: str
    act: str


def pairs_of(net: nn.Module) -> Iterator[Pair]:
    """The places of `net` where a ReLU follows a BatchNorm2d: neighbours in an nn.Sequential, and the stem of our ResNets.

    Only there the order is known from the types. Left out are subclasses, modules with hooks, which the fused op would not
    run, and a BatchNorm that has another place in the network, where no ReLU may follow.
    """
    uses = Counter(child for module in net.modules() for child in module._modules.values())
    for owner in net.modules():
        names: list[tuple[str, str]] = []
        if isinstance(owner, ResNet):
            names = [("bn1", "act")]
        elif type(owner).forward is nn.Sequential.forward:
            names = list(pairwise(owner._modules))
        for bn, act in names:
            first, second = owner._modules.get(bn), owner._modules.get(act)
            fitting = type(first) in (nn.BatchNorm2d, BatchNorm2d) and type(second) is nn.ReLU and uses[first] == 1
            if fitting and not (_has_hooks(first) or _has_hooks(second)):
                yield Pair(owner, bn, act)


def _has_hooks(module: nn.Module | None) -> bool:
    return module is not None and any(
        (module._forward_pre_hooks, module._forward_hooks, module._backward_pre_hooks, module._backward_hooks)
    )


class GhostNorm(nn.BatchNorm2d):
    """A BatchNorm2d and the activation behind it. (N, C, H, W) -> same shape, in the layout of the input.

    Parameters and buffers are the plain BatchNorm's own, under its names; `tail` is added, which holds beta.
    """

    def __init__(self, bn: nn.BatchNorm2d, recipe: Recipe) -> None:
        super().__init__(bn.num_features, bn.eps, bn.momentum, bn.affine, bn.track_running_stats, device="meta")
        self.recipe = recipe
        self.training = bn.training
        # The same dicts, so that whatever happens to a tensor here (.to, load_state_dict) has happened to the plain one.
        self.__dict__["_parameters"], self.__dict__["_buffers"] = bn._parameters, bn._buffers
        self._shell = (bn,)
        device = next((t.device for t in (*bn.parameters(), *bn.buffers())), None)
        self.tail = tails.new_tail(recipe, device).train(self.training)
        self.register_load_state_dict_post_hook(_follow_checkpoint)  # type: ignore[no-untyped-call]

    def forward(self, input: Tensor) -> Tensor:
        out: Tensor = self.tail(input, norm=self)
        return out

    def set_strength(self, alpha: float, beta: float) -> None:
        """Fills the tail; see `tost.ghosts.set_strength`."""
        tails.fill(self.tail, self.recipe, alpha, beta)

    def strength(self) -> tuple[float, float]:
        """(alpha, beta) as they are now; waits for the device."""
        return tails.read(self.tail)

    def plain(self) -> nn.BatchNorm2d:
        """The BatchNorm again, without the activation."""
        (bn,) = self._shell
        bn.training = self.training
        return bn

    def extra_repr(self) -> str:
        return f"{self.num_features}, permanent={self.recipe.permanent}"


class AbsorbedActivation(nn.Identity):
    """Holds the place of the ReLU that a GhostNorm applies. Each place has its own, also where the ReLU is a shared one."""

    def __init__(self, act: nn.Module, recipe: Recipe) -> None:
        super().__init__()
        self.recipe = recipe
        self.training = act.training
        self._shell = (act,)

    def plain(self) -> nn.Module:
        """The activation again."""
        (act,) = self._shell
        act.training = self.training
        return act


def _follow_checkpoint(norm: nn.Module, incompatible: Any) -> None:
    """After load_state_dict: the activation follows the beta that was loaded."""
    if isinstance(norm, GhostNorm) and not norm.tail.beta.is_meta:
        norm.set_strength(*norm.strength())
