"""The registry: each method is a score, a distribution, a schedule, and how the network is prepared for scoring."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from torch import nn

from tost.checks import integer
from tost.masks import scores
from tost.masks.distributions import Distribution, erk, globally, uniform
from tost.masks.probe import linearized, training
from tost.masks.schedules import Schedule, exponential
from tost.masks.scores import Score


@dataclass(frozen=True)
class Method:
    """A way to choose masks. `dataclasses.replace(methods()["snip"], batches=10)` makes a variant that `prune` takes too.

    Attributes:
        name: what `prune` calls it.
        summary: one line.
        paper: address of the paper.
        score: the score of every weight; the largest are kept.
        needs: the argument of `prune` the score reads ("input_shape" may come from data instead).
        prepare: brings the private copy of the network into the state for scoring; None: the score only reads weights.
        distribution: how many weights each layer keeps; `globally`: one competition.
        schedule: the density to reach at each of `steps`; the scores are computed anew at each step, on the masked network.
        steps: number of steps.
        batches: batches a step, over which gradients are averaged, signed; 1 for a method that needs no data.
        recover: whether removed weights compete again at the next step.
    """

    name: str
    summary: str
    paper: str
    score: Score
    needs: Literal["nothing", "data", "input_shape"] = "nothing"
    prepare: Callable[[nn.Module], None] | None = None
    distribution: Distribution = globally
    schedule: Schedule = exponential
    steps: int = 1
    batches: int = 1
    recover: bool = False

    def __post_init__(self) -> None:
        for field in ("steps", "batches"):
            integer(field, getattr(self, field), least=1)
        if self.batches > 1 and self.needs != "data":
            raise ValueError(f"batches: expected 1 for a method whose score reads no data, got {self.batches}")
        if self.steps > 1 and not self.recover and self.distribution is not globally:
            # Rounding may give a layer one weight MORE at a lower budget; it could not be found among the kept ones.
            raise ValueError("distribution: a method of several steps without recovery must let all layers compete (`globally`)")

    def __str__(self) -> str:
        return f"{self.name}: {self.summary} ({self.paper})"


_METHODS = {
    method.name: method
    for method in (
        Method(
            name="random",
            summary="uniformly random weights, the same density in every layer",
            paper="https://arxiv.org/abs/2202.02643",
            score=scores.random,
            distribution=uniform,
        ),
        Method(
            name="erk",
            summary="uniformly random weights, small layers denser (Erdős-Rényi-Kernel)",
            paper="https://arxiv.org/abs/1911.11134",
            score=scores.random,
            distribution=erk,
        ),
        Method(
            name="magnitude",
            summary="the largest weights of the whole network",
            paper="https://arxiv.org/abs/1506.02626",
            score=scores.magnitude,
        ),
        Method(
            name="snip",
            summary="the weights whose removal changes the loss most, one batch",
            paper="https://arxiv.org/abs/1810.02340",
            score=scores.connection_sensitivity,
            needs="data",
            prepare=training,
        ),
        Method(
            name="synflow",
            summary="the weights that carry most of the flow from inputs to outputs, 100 steps without data",
            paper="https://arxiv.org/abs/2006.05467",
            score=scores.synaptic_flow,
            needs="input_shape",
            prepare=linearized,
            steps=100,
        ),
        Method(
            name="grasp",
            summary="the weights whose removal would reduce the gradient flow most, one batch",
            paper="https://arxiv.org/abs/2002.07376",
            score=scores.gradient_flow,
            needs="data",
            prepare=training,
        ),
        Method(
            name="iter_snip",
            summary="snip in 60 steps, a fresh batch and fresh scores at each",
            paper="https://arxiv.org/abs/2006.09081",
            score=scores.connection_sensitivity,
            needs="data",
            prepare=training,
            steps=60,
        ),
        Method(
            name="force",
            summary="iter_snip in which removed weights can return",
            paper="https://arxiv.org/abs/2006.09081",
            score=scores.connection_sensitivity,
            needs="data",
            prepare=training,
            steps=60,
            recover=True,
        ),
    )
}


def methods() -> dict[str, Method]:
    """The methods `prune` knows, by name; `str(method)` is a one-line description with the paper."""
    return dict(_METHODS)
