"""How long one training step takes: dense, masked dense and sparse, without and with living ghosts.

All variants are measured in one process on the same batches, a few steps of each in turn, so that a slow moment of the
machine hits all of them. Compare ratios; milliseconds hold for one machine.
"""

from __future__ import annotations

import dataclasses
import itertools
import statistics
import time
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from tost.allocator import keep_freed_memory
from tost.config import Config
from tost.data import Dataset, TrainBatches
from tost.losses import cross_entropy
from tost.masks import Masks
from tost.preparation import LAYOUTS, Prepared, kernels_of, layout_of, prepare, set_layout, training_form, tune_layers
from tost.recipe import Recipe
from tost.update import Update, optimizer_of
from tost_kernels.plan import own_plans

_BACKENDS = ("dense", "masked-dense", "sparse")
_CPU = torch.device("cpu")
_STEPS_A_TURN = 2
_LR = 1e-3  # the weights should not run away; the duration does not depend on it


@dataclass(frozen=True)
class StepTime:
    """Duration of a training step (forward, backward, update).

    Attributes:
        backend: dense, masked-dense or sparse.
        kernels: what computed the sparse layers, see `tost.runs.Result`.
        ghosts: whether ghost skips and ghost swish were alive.
        layout: memory format of the images; for the dense backends the faster of contiguous and channels_last.
        ms: median in milliseconds.
        ms_low, ms_high: quartiles.
        steps: how many steps were timed.
    """

    backend: str
    kernels: str
    ghosts: bool
    layout: str
    ms: float
    ms_low: float
    ms_high: float
    steps: int


def measure_step_times(config: Config, dataset: Dataset, recipe: Recipe, rounds: int = 12) -> list[StepTime]:
    """Time `config`'s step on every backend, vanilla and with the ghosts of `recipe` at their first strength.

    Args:
        config: network, masks and batch size; its recipe and backend do not matter.
        dataset: the images.
        recipe: says which ghosts; where it has none only the vanilla steps are timed.
        rounds: turns of 2 steps for each variant, after one turn of warm-up.
    """
    if rounds < 2:
        raise ValueError(f"rounds: expected at least 2, got {rounds}")
    keep_freed_memory()
    plain = dataclasses.replace(config, recipe=Recipe.vanilla(), backend="sparse", lr=_LR)
    prepared = prepare(plain, dataset)
    assert prepared.masks is not None
    ghosts = dataclasses.replace(recipe, rescale_init=False)
    recipes = [Recipe.vanilla(), ghosts] if ghosts.has_ghosts else [Recipe.vanilla()]
    variants = [
        _Variant(dataclasses.replace(plain, recipe=r, backend=backend), prepared.dense, prepared.masks, layout)
        for r in recipes
        for backend in _BACKENDS
        for layout in ([layout_of(plain, _CPU)] if backend == "sparse" else ["contiguous", "channels_last"])
    ]
    batches = TrainBatches(dataset, config.batch_size, config.seed)
    with own_plans():
        for variant in variants:
            tune_layers(variant.config, variant.net, (config.batch_size // config.accumulate, *dataset.input_shape), _CPU)
        _take_turns(variants, batches, rounds)
    best: dict[tuple[str, bool], StepTime] = {}
    for time_ in (variant.result() for variant in variants):
        key = time_.backend, time_.ghosts
        if key not in best or time_.ms < best[key].ms:
            best[key] = time_
    return sorted(best.values(), key=lambda t: (t.ghosts, _BACKENDS.index(t.backend)))


def _take_turns(variants: list[_Variant], batches: TrainBatches, rounds: int) -> None:
    endless = itertools.chain.from_iterable(batches.epoch(e) for e in itertools.count())
    for turn in range(rounds + 1):
        here = list(itertools.islice(endless, _STEPS_A_TURN))
        for variant in variants:
            seconds = [variant.step(inputs, targets) for inputs, targets in here]
            if turn > 0:
                variant.seconds += seconds


class _Variant:
    """A network, its optimizer, and the durations of its steps."""

    def __init__(self, config: Config, dense: nn.Module, masks: Masks, layout: str) -> None:
        self.config = config
        self.seconds: list[float] = []
        without_mask = config.backend == "dense"
        self.net = training_form(config, Prepared(dense, None if without_mask else masks, ""))
        set_layout(self.net, layout).train()
        self.layout = layout
        loss_of = cross_entropy(config.recipe.label_smoothing)
        self.update = Update(
            config,
            self.net,
            optimizer_of(config, self.net),
            lambda outputs, inputs, targets: loss_of(outputs, targets),
            LAYOUTS[layout],
            _CPU,
        )

    def step(self, inputs: Tensor, targets: Tensor) -> float:
        start = time.perf_counter()
        self.update(inputs, targets)
        return time.perf_counter() - start

    def result(self) -> StepTime:
        low, median, high = statistics.quantiles([1e3 * s for s in self.seconds], n=4)
        return StepTime(
            backend=self.config.backend,
            kernels=kernels_of(self.config, _CPU),
            ghosts=self.config.recipe.has_ghosts,
            layout=self.layout,
            ms=median,
            ms_low=low,
            ms_high=high,
            steps=len(self.seconds),
        )
