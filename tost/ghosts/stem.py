"""`GhostStem`: the BatchNorm behind a ResNet's first convolution, with the stem's activation in the same op.

The stem has no ghost skip (its convolution changes the number of channels from the image's), so its tail is
act(bn1(conv1(x))), act being the ghost swish or ReLU.
"""

from __future__ import annotations

from typing import Any, TypeGuard

from torch import Tensor, nn

from tost.ghosts import tail as tails
from tost.models.resnet import ResNet
from tost.recipe import Recipe
from tost_kernels.nn import BatchNorm2d

__all__ = ["AbsorbedActivation", "GhostStem", "can_absorb"]


def can_absorb(net: nn.Module) -> TypeGuard[ResNet]:
    """Whether `net` is a `tost.models.ResNet` whose stem is the plain one: BatchNorm2d, then ReLU."""
    # By type, not by attribute names: only of our own ResNet is it known that `act` follows `bn1` and is used once.
    return isinstance(net, ResNet) and type(net.bn1) in (nn.BatchNorm2d, BatchNorm2d) and type(net.act) is nn.ReLU


class GhostStem(nn.BatchNorm2d):
    """`bn1` and the activation behind it. (N, C, H, W) -> same shape, in the layout of the input.

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
    """Holds the place of the ReLU that a GhostStem applies."""

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


def _follow_checkpoint(stem: nn.Module, incompatible: Any) -> None:
    """After load_state_dict: the activation follows the beta that was loaded."""
    if isinstance(stem, GhostStem) and not stem.tail.beta.is_meta:
        stem.set_strength(*stem.strength())
