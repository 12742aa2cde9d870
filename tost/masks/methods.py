"""The registry: each method is a score, a selection, a distribution, a schedule, and how the network is prepared for scoring."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, get_args

from torch import nn

from tost.checks import integer
from tost.choices import check_choice
from tost.masks import scores
from tost.masks.distributions import Distribution, erk, globally, uniform
from tost.masks.early import early_magnitude
from tost.masks.probe import linearized, training
from tost.masks.schedules import Schedule, exponential
from tost.masks.scores import Score
from tost.masks.selection import Selection, per_layer

Needs = Literal["nothing", "data", "input_shape"]


@dataclass(frozen=True)
class Method:
    """A way to choose masks: a score x a selection x a distribution x a schedule, any of each with any of the others.

    `dataclasses.replace(methods()["snip"], distribution=erk, selection=per_filter)` makes a variant that `prune` takes too.
    Without `recover` the masks of the steps are nested under every combination.

    Attributes:
        name: what `prune` calls it.
        summary: one line.
        paper: address of the paper.
        score: the score of every weight; the largest are kept.
        needs: the argument of `prune` the score reads ("input_shape" may come from data instead).
        prepare: brings the private copy of the network into the state for scoring; None: the score only reads weights.
        selection: which weights of a layer are kept: the best (`per_layer`), or the best of each filter (`per_filter`).
        distribution: how many weights each layer keeps; `globally`: as many as win when all weights of the network compete.
        schedule: the density to reach at each of `steps`; the scores are computed anew at each step, on the masked network.
        steps: number of steps.
        batches: batches a step, over which gradients are averaged, signed (`early`: on which it trains, at most); 1 for a
            method that needs no data.
        recover: whether removed weights compete again at the next step.
    """

    name: str
    summary: str
    paper: str
    score: Score
    needs: Needs = "nothing"
    prepare: Callable[[nn.Module], None] | None = None
    selection: Selection = per_layer
    distribution: Distribution = globally
    schedule: Schedule = exponential
    steps: int = 1
    batches: int = 1
    recover: bool = False

    def __post_init__(self) -> None:
        for field in ("score", "prepare", "selection", "distribution", "schedule"):
            part = getattr(self, field)
            if not (callable(part) or (field == "prepare" and part is None)):
                raise TypeError(f"{field}: expected a function, got {type(part).__name__} ({part!r})")
        check_choice("needs", self.needs, get_args(Needs))
        if not isinstance(self.recover, bool):
            raise TypeError(f"recover: expected True or False, got {type(self.recover).__name__} ({self.recover!r})")
        for field in ("steps", "batches"):
            integer(field, getattr(self, field), least=1)
        if self.batches > 1 and self.needs != "data":
            raise ValueError(f"batches: expected 1 for a method whose score reads no data, got {self.batches}")

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
            name="snip_mb",
            summary="snip with gradients averaged over 60 batches, as many as iter_snip sees",
            paper="https://arxiv.org/abs/2006.09081",
            score=scores.connection_sensitivity,
            needs="data",
            prepare=training,
            batches=60,
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
            name="grasp_mb",
            summary="grasp with gradients averaged over 60 batches, as many as grasp_it sees",
            paper="https://arxiv.org/abs/2006.09081",
            score=scores.gradient_flow,
            needs="data",
            prepare=training,
            batches=60,
        ),
        Method(
            name="grasp_it",
            summary="the weights with the largest gradients, in 60 steps, a fresh batch and fresh scores at each",
            paper="https://arxiv.org/abs/2006.09081",
            score=scores.squared_gradient,
            needs="data",
            prepare=training,
            steps=60,
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
        Method(
            name="early",
            summary="the largest weights after a dense training of up to 1000 batches, which ends when they stay the same",
            paper="https://arxiv.org/abs/1909.11957",
            score=early_magnitude,
            needs="data",
            prepare=training,
            batches=1000,
        ),
    )
}


def methods() -> dict[str, Method]:
    """The methods `prune` knows, by name; `str(method)` is a one-line description with the paper."""
    return dict(_METHODS)
