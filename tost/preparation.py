"""From a configuration to the network that is trained, and from that to the plain one.

weights -> masks -> [re-scaled initialization, on the dense network] -> sparsify -> add_ghosts -> ... -> plain
"""

from __future__ import annotations

import copy
import dataclasses
import hashlib
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from torch.nn.utils import prune as torch_prune

import tost_kernels as tk
from tost import distributed, models, tensor_file
from tost.config import Config
from tost.data import Dataset, TrainBatches, eval_batches, validation_split
from tost.ghosts import add_ghosts
from tost.ghosts.add import check_ghosts
from tost.init import rescale_init
from tost.isolation import isolated
from tost.masks import Masks, PruneStep, methods, prune
from tost.model_address import is_address
from tost.seeds import derive_seed
from tost.update import precision_of
from tost_kernels.plan import remembered_backends
from tost_kernels.tuning.cuda_timer import searching

__all__ = [
    "LAYOUTS",
    "Prepared",
    "Start",
    "cudnn_search",
    "forced_backend",
    "initial_model",
    "is_rewired",
    "kernels_of",
    "layout_of",
    "make_masks",
    "plain_form",
    "prepare",
    "prepare_from",
    "scoring_batches",
    "set_layout",
    "split_images",
    "train_batches",
    "trained_model",
    "training_form",
    "tune_layers",
    "weights_fingerprint",
]


@dataclass(frozen=True)
class Prepared:
    """What a run starts from.

    Attributes:
        dense: the initial dense network: as drawn, pruned weights included; or, where the recipe says so, re-scaled and 0
            outside the masks.
        masks: which weights stay; None for a dense run.
        weights_fingerprint: hash of the initial weights before re-scaling: equal for the runs of a pair.
        step: the step that the run begins with.
        ghosts: state of the ghosts at that step, by the names they have in the training form; empty: as `add_ghosts` makes them.
    """

    dense: nn.Module
    masks: Masks | None
    weights_fingerprint: str
    step: int = 0
    ghosts: Mapping[str, Tensor] = field(default_factory=dict)


@dataclass(frozen=True)
class Start:
    """Where a run begins whose weights are not drawn by its seed, but were trained already.

    Attributes:
        state: the dense network's state_dict; with those of the ghosts in its training form, where they are to go on too.
        masks: which weights stay; None for a dense run.
        step: the step to begin with: of the learning rate, the batches and the ghosts' strength. The optimizer is new.
    """

    state: Mapping[str, Tensor]
    masks: Masks | None
    step: int = 0


def prepare(config: Config, dataset: Dataset) -> Prepared:
    """Initial weights, masks and re-scaled initialization; weights and masks do not depend on the recipe.

    Raises:
        ValueError: the recipe asks for ghosts and the network has no place for them; and what the steps raise.
    """
    model = initial_model(config, dataset)
    if is_rewired(config):
        check_ghosts(model, config.recipe)  # before minutes of pruning and re-scaling, not after
    fingerprint = weights_fingerprint(model)
    masks = None if config.backend == "dense" else make_masks(config, dataset)
    if config.recipe.rescale_init:
        model = rescale_init(
            model,
            masks if masks is not None else {},
            TrainBatches(dataset, config.batch_size, config.seed, stream="rescale", subset=split_images(config, dataset)[0]),
            config.recipe,
            seed=derive_seed("rescale", config.seed),
        )
    return Prepared(model, masks, fingerprint)


def prepare_from(config: Config, dataset: Dataset, start: Start) -> Prepared:
    """What a run starts from that begins with the weights of `start`: they are not re-scaled, whatever the recipe says.

    Raises:
        RuntimeError: they are those of another network.
    """
    model = trained_model(config, dataset, start.state)
    names = model.state_dict().keys()
    ghosts = {name: value for name, value in start.state.items() if name not in names}
    return Prepared(model, start.masks, weights_fingerprint(model), start.step, ghosts)


def train_batches(config: Config, dataset: Dataset, shard: tuple[int, int] = (0, 1), workers: int = 0) -> TrainBatches:
    """The batches of a configuration's training, or one process's share of them."""
    subset, _ = split_images(config, dataset)
    return TrainBatches(
        dataset, config.batch_size, config.seed, cutout=config.cutout, subset=subset, shard=shard, workers=workers
    )


def split_images(config: Config, dataset: Dataset) -> tuple[Tensor | None, Tensor | None]:
    """Indices, int64 (n,), of the training images that are trained on (None: all) and of those held out (None: none)."""
    if not config.validation:
        return None, None
    try:
        return validation_split(dataset, config.validation)
    except ValueError as error:
        raise ValueError(f"validation: {error}") from error


def weights_fingerprint(model: nn.Module) -> str:
    """16 hex digits over the names and values of a network's parameters and buffers."""
    digest = hashlib.sha256()
    for name, value in model.state_dict().items():
        digest.update(name.encode() + value.detach().numpy().tobytes())
    return digest.hexdigest()[:16]


def initial_model(config: Config, dataset: Dataset) -> nn.Module:
    """The dense network that a run begins with: the seed decides it, or `config.weights`; the global random generators are left
    as found.

    Where the weights are re-initialised as a control, not the one that the masks are chosen on.

    Raises:
        ValueError, TypeError: a network of the user's cannot be built, or does not turn images into logits; the weights are those
            of another network. FileNotFoundError, DamagedFile: no good file of weights.
    """
    if config.mask_check == "reinitialised":
        return _drawn("reinitialised", config, dataset)
    return _chosen_on(config, dataset)


def _chosen_on(config: Config, dataset: Dataset) -> nn.Module:
    """The dense network that masks are chosen on."""
    if (file := config.weights_file) is None:
        return _drawn("weights", config, dataset)
    try:
        return trained_model(config, dataset, tensor_file.read(file, "network of a run", "pt", 1)[0])
    except RuntimeError as error:
        reason = " ".join(str(error).split())
        raise ValueError(f"weights: {file} does not fit {config.model} for {dataset.name}: {reason}") from error


def _drawn(stream: str, config: Config, dataset: Dataset) -> nn.Module:
    channels, height, width = dataset.input_shape
    with isolated(derive_seed(stream, config.seed), devices=()):
        model = models.build(config.model, dataset.num_classes, channels, (height, width))
        if is_address(config.model):
            # real ones, as many as in training: networks may normalise over the batch, or look at the pixels
            size = min(config.batch_size // config.accumulate, len(dataset.train))
            images, _ = next(eval_batches(dataset, size, "train"))
            models.check_outputs(config.model, model, dataset.num_classes, images)
    return model


def trained_model(config: Config, dataset: Dataset, state: Mapping[str, Tensor]) -> nn.Module:
    """The dense network with the weights and buffers of `state`; what `state` holds of ghosts is left out.

    Raises:
        RuntimeError: they are those of another network.
    """
    model = _drawn("weights", config, dataset)
    names = model.state_dict().keys()
    model.load_state_dict({name: value for name, value in state.items() if name in names})
    return model


_MOST_IMAGES = 1000  # in one batch that a mask is chosen on; ten a class would be 10,000 pictures of ImageNet


def scoring_batches(config: Config, dataset: Dataset, stream: str = "prune") -> TrainBatches:
    """Batches of about ten unaugmented training images a class (at most 1,000, none of them held out), as SNIP is given.

    `stream` names the order of the images, one for each purpose.
    """
    training, _ = split_images(config, dataset)
    images = min(10 * dataset.num_classes, _MOST_IMAGES, len(dataset.train) if training is None else len(training))
    return TrainBatches(dataset, images, config.seed, stream=stream, augment=False, subset=training)


def make_masks(
    config: Config, dataset: Dataset, *, progress: bool = False, on_step: Callable[[PruneStep], object] | None = None
) -> Masks:
    """The masks of a configuration: those of its file; or chosen by its method on the weights that the run begins
    with and `scoring_batches`, of which a method of several steps gets a fresh one at each.

    Args:
        progress: a bar on stderr for methods of several steps.
        on_step: called with a `PruneStep` after each.

    Raises:
        FileNotFoundError, DamagedFile: no good file of masks. What `tost.prune` raises.
    """
    file = config.masks_file
    masks = Masks.load(file) if file is not None else _chosen(config, dataset, progress, on_step)
    return masks.shuffled(derive_seed("shuffled", config.seed)) if config.mask_check == "shuffled" else masks


def _chosen(config: Config, dataset: Dataset, progress: bool, on_step: Callable[[PruneStep], object] | None) -> Masks:
    method = methods()[config.method]
    return prune(
        _chosen_on(config, dataset),
        method if config.method_steps is None else dataclasses.replace(method, steps=config.method_steps),
        config.density,
        data=scoring_batches(config, dataset),
        input_shape=dataset.input_shape,
        include=config.include,
        exclude=config.exclude,
        seed=derive_seed("prune", config.seed),
        keep_alive=config.keep_alive,
        progress=progress,
        on_step=on_step,
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
    if is_rewired(config):
        net = add_ghosts(net, config.recipe, inplace=True)
        stray = net.load_state_dict(prepared.ghosts, strict=False).unexpected_keys if prepared.ghosts else ()
        if stray:
            raise ValueError(f"the state to begin with: expected that of {config.model}, got also {', '.join(stray)}")
    return net


def is_rewired(config: Config) -> bool:
    """Whether `add_ghosts` has a part in the training form."""
    # on the sparse network a recipe without ghosts still fuses BatchNorm, shortcut and activation
    return config.recipe.has_ghosts or config.backend in ("sparse", "reference")


def kernels_of(config: Config, device: torch.device) -> str:
    """What computes the masked layers of a configuration on `device`.

    "cpu": the compiled kernels, wherever they pay. "tuned (triton, dense)", say: on CUDA, what `tune_layers` chose among.
    "reference": the specification in plain torch. "dense": torch's own dense operations: without a mask, on weight times mask,
    or, where there is no compiled kernel, on the scattered weights.
    """
    if config.backend == "reference":
        return "reference"
    chosen = remembered_backends("cuda") if device.type == "cuda" and config.backend == "sparse" else []
    if config.tune and chosen:
        return f"tuned ({', '.join(chosen)})"
    compiled = device.type == "cpu" and tk.backend.why_not("masked_conv2d", "cpu") is None
    return "cpu" if config.backend == "sparse" and compiled else "dense"


# name -> what is done to each batch of images before the network sees it; every layer keeps the layout from there on
LAYOUTS: dict[str, Callable[[Tensor], Tensor]] = {
    "batch_last": tk.to_batch_last,
    "channels_last": lambda images: images.contiguous(memory_format=torch.channels_last),
    "contiguous": lambda images: images.contiguous(),
}


def layout_of(config: Config, device: torch.device) -> str:
    """The memory format of the images that suits what computes the layers: a name of LAYOUTS. `tune_layers` may know better.

    torch's dense convolutions are faster on channels_last; ResNet-20, batch 128, 2 threads of a Zen 4: 249 instead of 317 ms a
    step.
    """
    return "batch_last" if kernels_of(config, device) == "cpu" else "channels_last"


def set_layout(net: nn.Module, layout: str) -> nn.Module:
    """Bring the dense convolutions of `net` into the memory format that goes with `layout`; returns `net`."""
    if layout != "batch_last":
        memory_format = torch.channels_last if layout == "channels_last" else torch.contiguous_format
        net.to(memory_format=memory_format)  # type: ignore[call-overload]
    return net


def forced_backend(config: Config) -> AbstractContextManager[None]:
    """The context in which a configuration's network runs."""
    return tk.use_backend("reference") if config.backend == "reference" else nullcontext()


def cudnn_search(config: Config, device: torch.device) -> AbstractContextManager[None]:
    """The context in which a tuned network runs on CUDA: dense layers were timed with cuDNN's own search, and must run by it.

    Its findings are on no disk: another process may find others, whose sums are rounded otherwise.
    """
    return searching(device.type if config.tune and config.backend == "sparse" else "cpu")


def tune_layers(config: Config, net: nn.Module, shape: tuple[int, ...], device: torch.device) -> str:
    """Where `config` asks for it, choose the fastest kernels (`tk.tune`) of the training form `net`, which is on `device`.

    `shape`: (N, C, H, W) of what it meets in one forward pass: one part of this process's share of a batch. Returns the memory
    format for the images, a name of LAYOUTS: `layout_of`'s, but where there was a choice on CUDA (`tk.best_layout`) the faster.
    Rank 0's holds for all: DDP wants tensors alike everywhere.
    """
    layout = layout_of(config, device)
    if not (config.tune and config.backend == "sparse"):
        return layout
    images = torch.zeros(shape, device=device)
    with precision_of(config, device):
        if device.type == "cuda":
            best = tk.best_layout(net, images)
            layout = "batch_last" if distributed.from_main(best == "batch_last") else "channels_last"
            if layout == best:
                return layout
        tk.tune(net, LAYOUTS[layout](images))
    return layout


def plain_form(net: nn.Module, masks: Masks | None) -> nn.Module:
    """Turn a sparse or masked dense network into the plain dense one, with zeros where weights are pruned."""
    net = tk.densify(net, inplace=True)
    for name in masks or ():
        module = net.get_submodule(name)
        if torch_prune.is_pruned(module):
            torch_prune.remove(module, "weight")  # type: ignore[no-untyped-call]
    return net
