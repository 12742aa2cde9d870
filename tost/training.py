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
from tost.init import rescale_init
from tost.losses import cross_entropy
from tost.masks import Masks, prune
from tost.runs import Result, RunFolder
from tost.seeds import derive_seed

__all__ = ["NonFiniteLoss", "Prepared", "Result", "evaluate", "prepare", "train", "training_form"]


class NonFiniteLoss(ArithmeticError):
    """The loss became NaN or infinite; the run is not finished and its folder holds no result."""


@dataclass(frozen=True)
class Prepared:
    """What a run starts from.

    Attributes:
        dense: the initial dense network, pruned weights still in place, re-scaled where the recipe says so.
        masks: which weights stay; None for a dense run.
        weights_fingerprint: hash of the initial weights before re-scaling: equal for the runs of a pair.
    """

    dense: nn.Module
    masks: Masks | None
    weights_fingerprint: str


def prepare(config: Config, dataset: Dataset) -> Prepared:
    """Initial weights, masks and re-scaled initialization; weights and masks do not depend on the recipe."""
    model = initial_model(config, dataset)
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
    """The dense network that the seed decides; torch's global generator is left as found."""
    channels, height, width = dataset.input_shape
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(derive_seed("weights", config.seed))
        return models.build(config.model, dataset.num_classes, channels, (height, width))


def make_masks(config: Config, model: nn.Module, dataset: Dataset) -> Masks:
    """The masks of a configuration: chosen on about ten unaugmented training images a class, as SNIP does; a method of
    several steps gets fresh ones at each.
    """
    images = min(10 * dataset.num_classes, len(dataset.train_targets))
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
    """The network that is trained: sparse or masked dense, with the recipe's ghosts; `prepared.dense` is left alone."""
    if prepared.masks is None:
        net = copy.deepcopy(prepared.dense)
    elif config.backend == "masked-dense":
        net = prepared.masks.apply_to(prepared.dense)
    else:
        net = tk.sparsify(prepared.dense, prepared.masks)
    # on the sparse network a recipe without ghosts still fuses BatchNorm, shortcut and activation
    if config.recipe.has_ghosts or config.backend in ("sparse", "reference"):
        net = add_ghosts(net, config.recipe, inplace=True)
    return net


def kernels_of(config: Config) -> str:
    """What computes the sparse layers of a configuration: "cpu" (compiled), "reference" (plain torch) or "dense"."""
    if config.backend in ("dense", "masked-dense"):
        return "dense"
    compiled = config.backend == "sparse" and tk.backend.why_not("masked_conv2d", "cpu") is None
    return "cpu" if compiled else "reference"


def input_form(config: Config) -> Callable[[Tensor], Tensor]:
    """What is done to each batch of inputs before the network sees it."""
    if kernels_of(config) == "cpu":
        return tk.to_batch_last  # once, here: the sparse kernels keep the layout from layer to layer
    return lambda inputs: inputs


def forced_backend(config: Config) -> AbstractContextManager[None]:
    """The context in which a configuration's network runs."""
    return tk.use_backend("reference") if config.backend == "reference" else nullcontext()


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
    count = len(dataset.test_targets)
    return correct / count, loss / count


def train(config: Config, *, overwrite: bool = False, progress: bool = False, callbacks: Sequence[Callback] = ()) -> Result:
    """Train the network that `config` describes; its folder is `<config.out>/<config.hash>/`.

    A run that is finished already is read back, not repeated. Equal configurations give equal bits on the same machine
    with the same number of threads.

    Args:
        config: what to train.
        overwrite: repeat a finished run.
        progress: show a bar on stderr.
        callbacks: called after the built-in ones.

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
    folder.start(config)
    prepared = prepare(config, dataset)
    if prepared.masks is not None:
        folder.save_masks(prepared.masks)
    to_input = input_form(config)

    def measure(net: nn.Module) -> tuple[float, float]:
        return evaluate(net, dataset, config.batch_size, to_input)

    fade = GhostFade() if config.recipe.has_ghosts else None
    record = Record(folder.record)
    around: list[Callback] = [LearningRate()]
    around += [fade] if fade else []
    around += [Evaluate(measure, alive=lambda: fade is not None and fade.alive)]
    around += [ProgressBar(f"{config.hash} {config.model}")] if progress else []
    around += [record, *callbacks]

    with forced_backend(config):
        net = training_form(config, prepared)
        ghost_weights = account(net).ghost_weights
        optimizer = torch.optim.SGD(
            tk.param_groups(net, config.weight_decay),
            lr=config.lr,
            momentum=config.momentum,
            nesterov=config.nesterov,
        )
        run = Run(config, net, optimizer, config.total_steps(len(batches)))
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
                loss = loss_of(run.net(to_input(inputs)), targets)
                run.optimizer.zero_grad(set_to_none=True)
                loss.backward()  # type: ignore[no-untyped-call]
                run.optimizer.step()
                run.loss = loss.item()
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
    net = tk.densify(net, inplace=True)  # torch cannot copy a masked network that has been trained
    for name in masks or ():
        module = net.get_submodule(name)
        if torch_prune.is_pruned(module):
            torch_prune.remove(module, "weight")  # type: ignore[no-untyped-call]
    return net
