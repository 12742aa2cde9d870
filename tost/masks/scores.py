"""The score of every weight: a function of a `Probe`, one tensor a layer in the weight's shape; the largest are kept.

Those with gradients are generators: the tensors of a large network are never there all at once.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator

from torch import Tensor

from tost.isolation import one_thread
from tost.masks.probe import Probe

Score = Callable[[Probe], Iterable[Tensor]]

GRASP_TEMPERATURE = 200.0


def random(probe: Probe) -> list[Tensor]:
    """Independent uniform numbers."""
    return probe.draw()


def magnitude(probe: Probe) -> Iterator[Tensor]:
    """|w|"""
    return (weight.abs() for weight in probe.weights)


def connection_sensitivity(probe: Probe) -> Iterator[Tensor]:
    """|w * dL/dw|: by how much, to first order, the loss changes if the weight goes (SNIP).

    The gradient is taken at the masked network, `w` is the unmasked weight: for FORCE that is the sensitivity a removed
    weight would have if it came back; for the other methods removed weights do not compete. Gradients are averaged, signed,
    over the method's batches.
    """
    return ((w * g).abs_() for w, g in zip(probe.weights, probe.mean_loss_gradients(), strict=True))


def squared_gradient(probe: Probe) -> Iterator[Tensor]:
    """(dL/dw)^2: the share of the weight in |dL/dw|^2, which its removal takes away, to lowest order (GRASP-It).

    Gradients are averaged, signed, over the method's batches, and then squared.
    """
    return (g.square() for g in probe.mean_loss_gradients())


def synaptic_flow(probe: Probe) -> Iterator[Tensor]:
    """|w * dR/dw|, R = the sum of the outputs for an input of ones, in the linearized network (SynFlow).

    It is the weight of all paths from inputs to outputs that run through the connection. Torch's convolutions in double precision
    give other last bits with other numbers of threads; with one thread, the same mask comes out under all settings.
    """
    with one_thread():
        gradients = probe.gradients(probe.flow())
    return ((w * g).abs_() for w, g in zip(probe.weights, gradients, strict=True))


def gradient_flow(probe: Probe) -> Iterator[Tensor]:
    """w * (H g), g = dL/dw and H the Hessian of the loss of outputs / 200 (GraSP).

    Removing the weight changes |g|^2 by -2 w (H g) to first order, so the largest are kept: the norm of the gradient falls
    least, or grows. L is the mean over the method's batches.
    """
    return (w * hg for w, hg in zip(probe.weights, probe.mean_curved_gradients(GRASP_TEMPERATURE), strict=True))
