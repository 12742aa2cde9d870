"""`train`: one run, from a configuration to a finished run folder.

    prune -> [re-scaled initialization] -> sparsify -> add_ghosts -> steps -> finalize

A run that was cut off goes on from its last checkpoint. The loop itself (tost/loop.py) knows no ghosts, schedules or files:
they are callbacks.
"""

from __future__ import annotations

import contextlib
import dataclasses
import math
import statistics
import time
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tost import distributed
from tost.accounting import account
from tost.allocator import keep_freed_memory
from tost.callbacks import (
    Average,
    Callback,
    Checkpoint,
    Evaluate,
    GhostFade,
    KeepBest,
    LearningRate,
    NetworkAt,
    NonFiniteLoss,
    ProgressBar,
    Record,
    RecordPath,
    SoftFilters,
    StopAtNonFinite,
    StopAtSignal,
    Stopped,
    TensorBoard,
)
from tost.checks import integer
from tost.config import CHECKPOINT_SECONDS, Config
from tost.data import Dataset, eval_batches, load, near
from tost.ghosts import finalize
from tost.graphed import update_of
from tost.isolation import isolated
from tost.loop import Run, steps
from tost.masks import Masks
from tost.optim import SolutionPath
from tost.preparation import (
    LAYOUTS,
    Prepared,
    Start,
    cudnn_search,
    forced_backend,
    initial_model,
    kernels_of,
    layout_of,
    plain_form,
    prepare,
    prepare_from,
    set_layout,
    split_images,
    train_batches,
    training_form,
    tune_layers,
    weights_fingerprint,
)
from tost.run_state import Fingerprints, restore, state_of
from tost.runs import Result, RunFolder
from tost.seeds import derive_seed
from tost.teacher import loss_of
from tost.update import optimizer_of
from tost_kernels.nn.surgery import duplicate
from tost_kernels.plan import own_plans

__all__ = ["NonFiniteLoss", "Result", "Stopped", "evaluate", "train"]

EVAL_BATCH = 128  # images at a time at least: without gradients more of them fit than in training


def train(
    config: Config,
    *,
    overwrite: bool = False,
    progress: bool = False,
    callbacks: Sequence[Callback] = (),
    device: str | torch.device | None = None,
    checkpoint_seconds: float = CHECKPOINT_SECONDS,
    tensorboard: bool = False,
    workers: int = 0,
    snapshots: Sequence[int] = (),
) -> Result:
    """Train the network that `config` describes; its folder is `<config.out>/<config.hash>/`.

    A run that is finished already is read back, not repeated; one that was cut off goes on from its last checkpoint, with the
    same bits on a CPU as if it had never stopped. Equal configurations give equal bits on the same machine with the same
    number of threads and processes; with `config.tune` only while its cache stays, and on CUDA only within one process, as
    cuDNN then searches too (`torch.backends.cudnn.benchmark`). Under torchrun every process calls this; each takes its share of
    every batch, rank 0 chooses the masks and writes the files.

    Args:
        config: what to train.
        overwrite: begin anew where a run is finished or was cut off.
        progress: show a bar on stderr.
        callbacks: called after the built-in ones, before the record is written: what they put into `run.line` is in it.
        device: "cpu" or "cuda"; None: CUDA where there is some.
        checkpoint_seconds: save at the end of each epoch, and amid one when this much time has passed since the last save.
        tensorboard: also write curves to the folder `tensorboard` in the run's folder.
        workers: processes that decode pictures, for data sets read from folders.
        snapshots: epochs after which the network in training is kept in the run's folder (0: before the first step).

    Raises:
        ValueError, FileNotFoundError: a name or number in `config`, or a file it needs, is wrong. The run is finished, or was
            cut off, behind an epoch of `snapshots` that it did not keep.
        NonFiniteLoss: the training diverged; the last good checkpoint stays.
        Stopped: Ctrl-C, SIGTERM or a callback asked to stop; the same call goes on.
        BlockingIOError: another process is training this run.
        OSError: no space or no permission.
        tost.distributed.PeerLost: under torchrun, another process is gone.
    """
    config.check_names()
    conduct = Conduct(
        overwrite=overwrite,
        title=f"{config.hash} {config.model_name}" if progress else None,
        callbacks=callbacks,
        device=device,
        checkpoint_seconds=checkpoint_seconds,
        tensorboard=tensorboard,
        workers=workers,
        snapshots=snapshots,
    )
    return train_in(RunFolder.of(config), config, conduct)


@dataclass(frozen=True)
class Conduct:
    """How a run is carried out and watched; none of it changes what comes out. Fields as in `train`.

    Attributes:
        title: of the progress bar; None: there is none.
    """

    overwrite: bool = False
    title: str | None = None
    callbacks: Sequence[Callback] = ()
    device: str | torch.device | None = None
    checkpoint_seconds: float = CHECKPOINT_SECONDS
    tensorboard: bool = False
    workers: int = 0
    snapshots: Sequence[int] = ()

    def __post_init__(self) -> None:
        for epoch in self.snapshots:
            integer("snapshots", epoch, least=0)


def train_in(folder: RunFolder, config: Config, conduct: Conduct, start: Start | None = None) -> Result:
    """`train` in a folder of the caller's choice; with `start` from trained weights on. Returns and raises what `train` does.

    The caller sees to it that `folder` stands for all that decides the result: `config` and `start`. Under torchrun every
    process gives the same `start`.
    """
    with distributed.processes(conduct.device) as me:
        if distributed.from_main(folder.finished and not conduct.overwrite):
            with contextlib.suppress(OSError):  # finished runs may lie in a place that is read-only now
                folder.checkpoint.unlink(missing_ok=True)  # of a process that was killed between the result and this
            result = dataclasses.replace(folder.load(), config=config)  # `out` may be spelled differently now
            _check_kept(folder, conduct.snapshots, result.history[-1]["epoch"])
            return result
        config.check_files()
        keep_freed_memory()
        with (
            folder.held() if me.is_main else nullcontext(),
            isolated(derive_seed("steps", config.seed, me.rank), [me.device]),
            forced_backend(config),
            cudnn_search(config, me.device),
            own_plans(),
        ):
            try:
                return _train(folder, config, conduct, start, me)
            except NonFiniteLoss as error:
                if me.is_main:
                    folder.save_divergence(str(error))
                raise


def _train(folder: RunFolder, config: Config, conduct: Conduct, start: Start | None, me: distributed.Processes) -> Result:
    started = time.perf_counter()
    dataset = load(config.dataset, config.data_dir)
    _, held_out = split_images(config, dataset)
    images = near(dataset, me.device)
    batches = train_batches(config, images, (me.rank, me.world), conduct.workers)
    at_once = _images_at_once(config, me.world)
    total_steps = config.total_steps(len(batches))
    snapshots = _snapshot_steps(conduct.snapshots, len(batches), total_steps)
    loss = loss_of(config, dataset, me.device)
    record = Record(folder.record if me.is_main else None)
    board = [TensorBoard(folder.path / "tensorboard", record)] if conduct.tensorboard and me.is_main else []

    state = folder.load_checkpoint() if distributed.from_main(folder.can_go_on and not conduct.overwrite) else None
    prepared = _prepare_everywhere(config, dataset, folder, me, start, resumed=state is not None)
    layout = layout_of(config, me.device)
    net = set_layout(training_form(config, prepared).to(me.device), layout)
    if state is None and me.is_main:
        folder.start(config, prepared.masks)  # not before the masks are known to fit the network
    layout = tune_layers(config, net, (at_once, *dataset.input_shape), me.device)
    ghost_weights = account(net).ghost_weights

    def to_input(inputs: Tensor) -> Tensor:
        return LAYOUTS[layout](inputs.to(me.device, non_blocking=True))

    def measure(part: str, subset: Tensor | None) -> Callable[[nn.Module], tuple[float, float]]:
        return lambda net: evaluate(net, images, max(config.batch_size, EVAL_BATCH), to_input, part, subset, conduct.workers)

    optimizer = optimizer_of(config, net)
    run = Run(config, net, optimizer, total_steps, prepared.step, *divmod(prepared.step, len(batches)))
    batches.skip(prepared.step)
    update = update_of(config, net, optimizer, loss, to_input, me.device, me.world)
    fade = GhostFade(update.rewrap)
    best = KeepBest(lambda net: folder.save_best(finished_form(net, prepared.masks)) if me.is_main else None)
    stop = StopAtSignal()
    measured = {"test": measure("test", None)}
    if held_out is not None:
        measured["validation"] = measure("train", held_out)

    def save() -> None:
        if me.is_main:
            elapsed = before + time.perf_counter() - started
            folder.save_checkpoint(state_of(run, batches, update, around, fingerprints, elapsed))

    around: list[Callback] = [LearningRate()]
    around += [SoftFilters()] if config.soft_filter else []
    around += [fade] if config.recipe.has_ghosts else []
    around += [Average(config.ema)] if config.ema is not None else []
    # permanent ghosts are part of the finalized form
    around += [Evaluate(measured, alive=lambda: config.recipe.has_ghosts and fade.alive and not config.recipe.permanent), best]
    around += [ProgressBar(conduct.title)] if conduct.title is not None and me.is_main else []
    if me.is_main:
        around += [NetworkAt(step, partial(folder.save_snapshot, epoch)) for epoch, step in snapshots.items()]
        around += [RecordPath(SolutionPath(folder.path_points))] if config.optimizer == "splitlbi" else []
    around += [*conduct.callbacks, record]
    around += [*board, StopAtNonFinite(), stop, Checkpoint(save, conduct.checkpoint_seconds, lambda: stop.number)]

    masks_fingerprint = prepared.masks.fingerprint[:16] if prepared.masks is not None else None
    before, fingerprints = 0.0, Fingerprints(prepared.weights_fingerprint, masks_fingerprint)
    if state is not None:
        before, fingerprints = restore(state, run, batches, update, around, masks_fingerprint)
    _check_kept(folder, [epoch for epoch, step in snapshots.items() if step < run.step], run.epoch)
    steps(run, batches, update, around)

    final = finalize(run.result_net, inplace=True, warn=run.averaged is None)
    accuracy, test_loss = measured["test"](final)
    if not math.isfinite(test_loss):
        raise NonFiniteLoss(f"the test loss of the finalized network is {test_loss}: lower lr or add warmup_steps")
    live, rest = run.step_seconds[: fade.live_steps], run.step_seconds[fade.live_steps :]
    result = Result(
        config=config,
        run_dir=folder.path,
        test_accuracy=accuracy,
        test_loss=test_loss,
        best=best.best or None,
        history=tuple(record.history),
        accounting=account(final),
        ghost_weights_at_start=ghost_weights,
        masks_fingerprint=fingerprints.masks,
        weights_fingerprint=fingerprints.weights,
        batches_fingerprint=batches.fingerprint,
        seconds=before + time.perf_counter() - started,
        ms_per_step=1e3 * statistics.median(rest or live),
        ms_per_step_with_ghosts=1e3 * statistics.median(live) if live else None,
        images_per_second=statistics.median(line["images_per_second"] for line in record.history),
        kernels=kernels_of(config, me.device),
        device=str(me.device),
        processes=me.world,
        threads=torch.get_num_threads(),
        torch=torch.__version__,
        not_recorded=update.not_recorded,
    )
    if me.is_main:
        folder.save_model(plain_form(final, prepared.masks))
        folder.finish(result)
    return result


def _snapshot_steps(epochs: Sequence[int], steps_per_epoch: int, total_steps: int) -> dict[int, int]:
    """Epoch -> how many steps are done by its end."""
    last = math.ceil(total_steps / steps_per_epoch)
    for epoch in epochs:
        if epoch > last:
            raise ValueError(f"snapshots: expected epochs up to the last, {last}, got {epoch}")
    return {epoch: min(epoch * steps_per_epoch, total_steps) for epoch in epochs}


def _check_kept(folder: RunFolder, snapshots: Sequence[int], done: int) -> None:
    """Raise ValueError, in every process, if a run that has done so many epochs did not keep all these."""
    absent = [epoch for epoch in snapshots if not folder.snapshot(epoch).is_file()]
    if distributed.from_main(bool(absent)):
        raise ValueError(
            f"snapshots: expected those of epochs {', '.join(map(str, snapshots))} in {folder.path}, which has done {done}, got "
            f"none of {', '.join(map(str, absent))}: they are kept while a run is trained, so repeat it (--overwrite)"
        )


def _images_at_once(config: Config, processes: int) -> int:
    """How many images one forward pass gets."""
    parts = config.accumulate * processes
    if config.batch_size % parts:
        raise ValueError(f"batch_size: expected a multiple of {parts} (accumulate x processes), got {config.batch_size}")
    return config.batch_size // parts


def _prepare_everywhere(
    config: Config, dataset: Dataset, folder: RunFolder, me: distributed.Processes, start: Start | None, resumed: bool
) -> Prepared:
    """What the run starts from, the same in every process; rank 0 chooses the masks, and re-scales."""
    if start is not None and not resumed:
        prepared = prepare_from(config, dataset, start)
    elif me.is_main and not resumed:
        prepared = prepare(config, dataset)
    else:
        model = initial_model(config, dataset)
        masks = folder.load_masks() if me.is_main and config.backend != "dense" else None
        prepared = Prepared(model, masks, weights_fingerprint(model))
    distributed.assert_same("initial weights", prepared.weights_fingerprint)
    return dataclasses.replace(prepared, masks=distributed.broadcast_masks(prepared.masks))


def finished_form(net: nn.Module, masks: Masks | None) -> nn.Module:
    """A plain copy of a network amid its training: what `finalize` and `plain_form` would make of it."""
    return plain_form(finalize(duplicate(net), inplace=True, warn=False), masks)


@torch.no_grad()
def evaluate(
    net: nn.Module,
    dataset: Dataset,
    batch_size: int,
    to_input: Callable[[Tensor], Tensor] = lambda x: x,
    part: str = "test",
    subset: Tensor | None = None,
    workers: int = 0,
) -> tuple[float, float]:
    """(accuracy, mean cross entropy) on images of `dataset`, in eval mode; the network's mode is restored.

    Args:
        net: the network.
        dataset: the images.
        batch_size: images at a time.
        to_input: what is done to inputs before the network sees them.
        part: "test" or "train".
        subset: int64 indices of the images to use; None: all.
        workers: processes that decode pictures.

    Several processes share the images.
    """
    images = subset if subset is not None else torch.arange(len(dataset.test if part == "test" else dataset.train))
    distributed.sync_buffers(net)
    was_training = net.training
    net.eval()
    correct, loss, count = 0.0, 0.0, 0.0
    try:
        for inputs, targets in eval_batches(dataset, batch_size, part, distributed.share_of(images), workers):
            logits = net(to_input(inputs))
            targets = targets.to(logits.device)
            correct += int((logits.argmax(1) == targets).sum())
            loss += float(F.cross_entropy(logits, targets, reduction="sum"))
            count += len(targets)
    finally:
        net.train(was_training)
    correct, loss, count = distributed.totals(correct, loss, count)
    return correct / count, loss / count
