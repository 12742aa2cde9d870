"""`train`: one run, from a configuration to a finished run folder.

    prune -> [re-scaled initialization, on the dense network] -> sparsify -> add_ghosts -> steps -> finalize

The loop itself knows no ghosts, schedules or files: they are callbacks.
"""

from __future__ import annotations

import copy
import dataclasses
import hashlib
import math
import statistics
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import prune as torch_prune

import tost_kernels as tk
from tost import models
from tost.accounting import account
from tost.allocator import keep_freed_memory
from tost.callbacks import Callback, Evaluate, GhostFade, LearningRate, ProgressBar, Record, Run
from tost.config import Config
from tost.data import Dataset, TrainBatches, eval_batches, load
from tost.ghosts import add_ghosts, finalize
from tost.ghosts.add import check_ghosts
from tost.init import rescale_init
from tost.isolation import isolated
from tost.losses import cross_entropy
from tost.masks import Masks, prune
from tost.runs import Result, RunFolder
from tost.seeds import derive_seed
from tost_kernels.plan import own_plans

__all__ = ["NonFiniteLoss", "Prepared", "Result", "evaluate", "prepare", "train", "training_form"]


class NonFiniteLoss(ArithmeticError):
    """The loss became NaN or infinite; the run is not finished and its folder holds no result."""


@dataclass(frozen=True)
class Prepared:
    """What a run starts from.

    Attributes:
        dense: the initial dense network: as drawn, pruned weights included; or, where the recipe says so, re-scaled and 0
            outside the masks.
        masks: which weights stay; None for a dense run.
        weights_fingerprint: hash of the initial weights before re-scaling: equal for the runs of a pair.
    """

    dense: nn.Module
    masks: Masks | None
    weights_fingerprint: str


def prepare(config: Config, dataset: Dataset) -> Prepared:
    """Initial weights, masks and re-scaled initialization; weights and masks do not depend on the recipe.

    Raises:
        ValueError: the recipe asks for ghosts and the network has no place for them; and what the steps raise.
    """
    model = initial_model(config, dataset)
    if is_rewired(config):
        check_ghosts(model, config.recipe)  # before minutes of pruning and re-scaling, not after
    digest = hashlib.sha256()
    for name, value in model.state_dict().items():
        digest.update(name.encode() + value.detach().numpy().tobytes())
    masks = None if config.backend == "dense" else make_masks(config, model, dataset)
    if config.recipe.rescale_init:
        model = rescale_init(
            model,
            masks if masks is not None else {},
            TrainBatches(dataset, config.batch_size, config.seed, stream="rescale"),
            config.recipe,
            seed=derive_seed("rescale", config.seed),
        )
    return Prepared(model, masks, digest.hexdigest()[:16])


def initial_model(config: Config, dataset: Dataset) -> nn.Module:
    """The dense network that the seed decides; the global random generators are left as found."""
    channels, height, width = dataset.input_shape
    with isolated(derive_seed("weights", config.seed), devices=()):
        return models.build(config.model, dataset.num_classes, channels, (height, width))


def make_masks(config: Config, model: nn.Module, dataset: Dataset) -> Masks:
    """The masks of a configuration: chosen on about ten unaugmented training images a class, as SNIP does; a method of
    several steps gets fresh ones at each.
    """
    images = min(10 * dataset.num_classes, len(dataset.train))
    batches = TrainBatches(dataset, images, config.seed, stream="prune", augment=False)
    return prune(
        model,
        config.method,
        config.density,
        data=batches,
        input_shape=dataset.input_shape,
        include=config.include,
        exclude=config.exclude,
        seed=derive_seed("prune", config.seed),
    )


def training_form(config: Config, prepared: Prepared) -> nn.Module:
    """The network that is trained: dense, masked dense or sparse, with the recipe's ghosts.

    `prepared.dense` is left alone.
    """
    if prepared.masks is None:
        net = copy.deepcopy(prepared.dense)
    elif config.backend == "masked-dense":
        net = prepared.masks.apply_to(prepared.dense)
    else:
        net = tk.sparsify(prepared.dense, prepared.masks)
    return add_ghosts(net, config.recipe, inplace=True) if is_rewired(config) else net


def is_rewired(config: Config) -> bool:
    """Whether `add_ghosts` has a part in the training form."""
    # on the sparse network a recipe without ghosts still fuses BatchNorm, shortcut and activation
    return config.recipe.has_ghosts or config.backend in ("sparse", "reference")


def kernels_of(config: Config) -> str:
    """What computes the masked layers of a configuration.

    "cpu": the compiled kernels, wherever they pay. "reference": the specification in plain torch. "dense": torch's own dense
    operations: without a mask, on weight times mask, or, where there is no compiled kernel, on the scattered weights.
    """
    if config.backend == "reference":
        return "reference"
    compiled = config.backend == "sparse" and tk.backend.why_not("masked_conv2d", "cpu") is None
    return "cpu" if compiled else "dense"


def input_form(config: Config) -> Callable[[Tensor], Tensor]:
    """What is done to each batch of inputs before the network sees it."""
    if kernels_of(config) == "cpu":
        return tk.to_batch_last  # once, here: the sparse kernels keep the layout from layer to layer
    return lambda inputs: inputs


def forced_backend(config: Config) -> AbstractContextManager[None]:
    """The context in which a configuration's network runs."""
    return tk.use_backend("reference") if config.backend == "reference" else nullcontext()


def tune_layers(config: Config, net: nn.Module, input_shape: tuple[int, ...]) -> None:
    """Where `config` asks for it, choose the fastest kernels of the training form `net` for its batches (`tk.tune`)."""
    if config.tune and config.backend == "sparse":
        tk.tune(net, input_form(config)(torch.zeros(config.batch_size, *input_shape)))


@torch.no_grad()
def evaluate(
    net: nn.Module, dataset: Dataset, batch_size: int, to_input: Callable[[Tensor], Tensor] = lambda x: x
) -> tuple[float, float]:
    """(accuracy, mean cross entropy) on the test images, in eval mode; the network's mode is restored."""
    was_training = net.training
    net.eval()
    correct, loss = 0, 0.0
    try:
        for inputs, targets in eval_batches(dataset, batch_size):
            logits = net(to_input(inputs))
            correct += int((logits.argmax(1) == targets).sum())
            loss += float(F.cross_entropy(logits, targets, reduction="sum"))
    finally:
        net.train(was_training)
    count = len(dataset.test)
    return correct / count, loss / count


def train(config: Config, *, overwrite: bool = False, progress: bool = False, callbacks: Sequence[Callback] = ()) -> Result:
    """Train the network that `config` describes; its folder is `<config.out>/<config.hash>/`.

    A run that is finished already is read back, not repeated. Equal configurations give equal bits on the same machine
    with the same number of threads; with `config.tune` only while its cache stays.

    Args:
        config: what to train.
        overwrite: repeat a finished run.
        progress: show a bar on stderr.
        callbacks: called after the built-in ones, before the record is written: what they put into `run.line` is in it.

    Raises:
        ValueError, FileNotFoundError: a name or number in `config`, or a file it needs, is wrong.
        NonFiniteLoss: the training diverged.
    """
    config.check_names()
    folder = RunFolder.of(config)
    if folder.finished and not overwrite:
        return dataclasses.replace(folder.load(), config=config)  # `out` may be spelled differently now
    keep_freed_memory()
    started = time.perf_counter()
    dataset = load(config.dataset, config.data_dir)
    batches = TrainBatches(dataset, config.batch_size, config.seed)
    folder.path.parent.mkdir(parents=True, exist_ok=True)  # a place that cannot be is told before the work, not after
    prepared = prepare(config, dataset)
    folder.start(config)
    if prepared.masks is not None:
        folder.save_masks(prepared.masks)
    to_input = input_form(config)

    def measure(net: nn.Module) -> tuple[float, float]:
        return evaluate(net, dataset, config.batch_size, to_input)

    fade = GhostFade() if config.recipe.has_ghosts else None
    record = Record(folder.record)
    around: list[Callback] = [LearningRate()]
    around += [fade] if fade else []
    # permanent ghosts are part of the finalized form
    around += [Evaluate(measure, alive=lambda: fade is not None and fade.alive and not config.recipe.permanent)]
    around += [ProgressBar(f"{config.hash} {config.model}")] if progress else []
    around += [*callbacks, record]

    with forced_backend(config), own_plans():
        net = training_form(config, prepared)
        tune_layers(config, net, dataset.input_shape)
        ghost_weights = account(net).ghost_weights
        run = Run(config, net, optimizer_of(config, net), config.total_steps(len(batches)))
        steps(run, batches, cross_entropy(config.recipe.label_smoothing), to_input, around)
        net = finalize(net, inplace=True)
        accuracy, loss = measure(net)
    if not math.isfinite(loss):
        raise NonFiniteLoss(f"the test loss of the finalized network is {loss}: lower lr or add warmup_steps")

    accounting = account(net)
    folder.save_model(plain_form(net, prepared.masks).state_dict())
    live = fade.live_seconds if fade else []
    rest = run.step_seconds[len(live) :] or run.step_seconds
    result = Result(
        config=config,
        run_dir=folder.path,
        test_accuracy=accuracy,
        test_loss=loss,
        history=tuple(record.history),
        accounting=accounting,
        ghost_weights_at_start=ghost_weights,
        masks_fingerprint=prepared.masks.fingerprint[:16] if prepared.masks is not None else None,
        weights_fingerprint=prepared.weights_fingerprint,
        batches_fingerprint=batches.fingerprint,
        seconds=time.perf_counter() - started,
        ms_per_step=1e3 * statistics.median(rest),
        ms_per_step_with_ghosts=1e3 * statistics.median(live) if live else None,
        kernels=kernels_of(config),
        threads=torch.get_num_threads(),
        torch=torch.__version__,
    )
    folder.finish(result)
    return result


def optimizer_of(config: Config, net: nn.Module) -> torch.optim.Optimizer:
    """SGD over the parameters of `net`, without weight decay for biases and BatchNorms."""
    return torch.optim.SGD(
        tk.param_groups(net, config.weight_decay),
        lr=config.lr,
        momentum=config.momentum,
        nesterov=config.nesterov,
        fused=True,  # one pass over a parameter, not four; 95% sparse ResNet-18: 0.3 instead of 0.8 ms (dense: 5.8, 12.2)
    )


def training_step(
    net: nn.Module,
    optimizer: torch.optim.Optimizer,
    loss_of: Callable[[Tensor, Tensor], Tensor],
    inputs: Tensor,
    targets: Tensor,
) -> float:
    """Forward, backward and update on one batch; the loss before the update."""
    loss = loss_of(net(inputs), targets)
    optimizer.zero_grad(set_to_none=True)
    loss.backward()  # type: ignore[no-untyped-call]
    optimizer.step()
    return loss.item()


def steps(
    run: Run,
    batches: TrainBatches,
    loss_of: Callable[[Tensor, Tensor], Tensor],
    to_input: Callable[[Tensor], Tensor],
    callbacks: Sequence[Callback],
) -> None:
    """The training loop: `run.total_steps` steps, epoch after epoch."""
    run.net.train()
    try:
        for callback in callbacks:
            callback.on_start(run)
        while not run.finished:
            for inputs, targets in batches.epoch(run.epoch):
                for callback in callbacks:
                    callback.before_step(run)
                start = time.perf_counter()
                run.loss = training_step(run.net, run.optimizer, loss_of, to_input(inputs), targets)
                run.step_seconds.append(time.perf_counter() - start)
                run.step += 1
                if not math.isfinite(run.loss):
                    raise NonFiniteLoss(
                        f"the loss became {run.loss} at step {run.step} of {run.total_steps} "
                        f"(lr {run.line.get('lr')}): lower lr or add warmup_steps"
                    )
                for callback in callbacks:
                    callback.after_step(run)
                if run.step == run.total_steps:
                    break
            run.epoch += 1
            for callback in callbacks:
                callback.on_epoch_end(run)
    finally:
        for callback in callbacks:
            callback.on_end(run)


def plain_form(net: nn.Module, masks: Masks | None) -> nn.Module:
    """Turn a sparse or masked dense network into the plain dense one, with zeros where weights are pruned."""
    net = tk.densify(net, inplace=True)
    for name in masks or ():
        module = net.get_submodule(name)
        if torch_prune.is_pruned(module):
            torch_prune.remove(module, "weight")  # type: ignore[no-untyped-call]
    return net
