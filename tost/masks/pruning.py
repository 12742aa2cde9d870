"""`prune`: choose which weights of a network to keep. `score`: what a method thinks of each of them."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from tost.checks import integer, number, sample_shapes
from tost.choices import check_choice
from tost.isolation import isolated
from tost.masks.effective import InputShape
from tost.masks.layers import Layer, prunable_layers
from tost.masks.masks import Masks, as_masks
from tost.masks.methods import Method, methods
from tost.masks.probe import Data, Loss, Probe
from tost.masks.steps import PruneStep, flat_scores, steps
from tost.progress import step_bar
from tost.user_batches import check_iterable


def prune(
    model: nn.Module,
    method: str | Method,
    density: float,
    data: Data | None = None,
    input_shape: InputShape | None = None,
    loss: Loss | None = None,
    include: str | Sequence[str] | None = None,
    exclude: str | Sequence[str] | None = None,
    seed: int = 0,
    *,
    within: Mapping[str, Tensor] | None = None,
    keep_alive: bool = False,
    progress: bool = False,
    on_step: Callable[[PruneStep], object] | None = None,
) -> Masks:
    """Choose the weights to keep: exactly `round(density * total)` of them.

    Prunable are the weights of all Conv2d and Linear layers, stem, shortcuts and classifier included. Nothing else is pruned,
    nor counted in `density`: no biases, normalisation or embeddings, no Conv1d, Conv3d, transposed convolution or recurrent
    layer, and of nn.MultiheadAttention only `out_proj`, not the projections of queries, keys and values. Ties go to the first
    in the order of `model.named_modules()`.

    Args:
        model: a dense network; scored on the device it is on. It comes back as it was: weights, gradients, BatchNorm
            statistics, flags; so do all global random generators. (Hooks on the model do run.) Layers have the names they have
            in `model`: in what torch.compile, DataParallel or DistributedDataParallel return, "_orig_mod.fc" or "module.fc",
            which do not fit the network inside. Prune that network, before it is wrapped.
        method: a name out of `methods()`, or a `Method`.
        density: fraction of the prunable weights to keep, in (0, 1].
        data: iterable of batches (inputs, targets), for the methods that need it; a fresh batch is taken for every step,
            from the start again when they end. Batches as in training: around 128 samples. Inputs that are a tuple or list
            are the arguments of the model, a mapping its keyword arguments.
        input_shape: shape of one sample, e.g. (3, 32, 32), for the methods that need it, or a tuple or mapping of shapes for
            several inputs; default: that of `data`. SynFlow feeds one sample of ones. By the shapes of `data` integers are 1 as
            well (an index of an embedding), and booleans (a padding mask) are those of the first sample of the batch.
        loss: (outputs, targets) -> scalar, outputs being whatever the model returns; default: cross-entropy.
        include, exclude: fnmatch patterns on module names, e.g. "layer1.*", exclude=["conv1", "fc"]; the layers left out
            have no mask, and do not count in `density`. Default: every layer.
        seed: of everything random (dropout and the order of a shuffling DataLoader too). On one machine, the same seed gives
            the same masks as far as the model's own kernels are deterministic (on a GPU not all are).
        within: masks of an earlier pruning, one for each layer, by any of its names: only weights that they keep are kept, and
            the first scores are taken on the network with these alone. `density` still counts all weights.
        keep_alive: repair what the method chose, so that every layer keeps at least one weight on a path from an input to an
            output: those with the best scores of the last step (|weight| where they are equal) come in, as many with the
            worst go elsewhere; see `Masks.kept_alive`. Needs `input_shape` or `data`, whatever the method needs.
        progress: a bar on stderr for methods of several steps, where stderr is a terminal.
        on_step: called with a `PruneStep` after every step. What it draws at random does not change the masks.

    Returns:
        The masks, one for each prunable layer that `include` and `exclude` leave.

    Raises:
        TypeError, ValueError: an argument is wrong; a layer is sparse, pruned, tied or not initialised; a weight or score is
            not finite.

    Warns:
        UserWarning: layers end without any weight; `masks.empty_layers()` names them. `keep_alive` prevents it.
    """
    density = number("density", density, above=0.0, most=1.0)
    if on_step is not None and not callable(on_step):
        raise TypeError(f"on_step: expected a function of a PruneStep, got {type(on_step).__name__}")
    if keep_alive and within is not None:
        raise ValueError("keep_alive: expected False with `within`, to which a repair could not keep, got True")
    if keep_alive and data is None and input_shape is None:
        raise ValueError("input_shape: keep_alive needs the shape of a sample, such as (3, 32, 32), or `data`; got None")
    with _probing(model, method, data, input_shape, loss, include, exclude, seed) as (chosen, layers, probe):
        total = sum(layer.weight.numel() for layer in layers)
        k = round(density * total)
        if k == 0:
            raise ValueError(f"density: {density} of {total} weights is less than one weight")
        allowed = None if within is None else torch.cat([part.flatten() for part in _of_layers("within", within, model, layers)])
        if allowed is not None and k > int(allowed.count_nonzero()):
            raise ValueError(f"within: expected masks that keep {k} weights or more, got {int(allowed.count_nonzero())}")
        with step_bar(progress and chosen.steps > 1) as bar:
            task = bar.add_task(chosen.name, total=chosen.steps)
            for step in steps(chosen, probe, layers, density, k, allowed):
                bar.update(task, completed=step.number)
                scores = step.scores.clone() if keep_alive and step.number == step.steps else None  # the observer's are its own
                if on_step is not None:
                    with isolated(seed, _devices(model)):
                        on_step(step)
        masks = step.masks
        if scores is not None:
            masks = _repaired(masks, model, scores, input_shape, probe)
    if masks.empty_layers():
        if keep_alive:
            remedy = "the model does not use them"
        elif within is not None:  # with which there is no `keep_alive`
            remedy = "more weights would stay at a higher density"
        else:
            remedy = "keep_alive=True (--keep-alive true) leaves some in each that the model uses"
        warnings.warn(
            f"{chosen.name} at density {density:g} leaves no weight in {', '.join(masks.empty_layers())}; {remedy}",
            UserWarning,
            stacklevel=2,
        )
    return masks


def _repaired(masks: Masks, model: nn.Module, flat: Tensor, input_shape: InputShape | None, probe: Probe) -> Masks:
    """`masks` with every layer alive, by the scores `flat`."""
    parts = flat.split_with_sizes([layer.total for layer in masks.per_layer()])
    scores = {layer.name: part.reshape(layer.shape) for layer, part in zip(masks.per_layer(), parts, strict=True)}
    if input_shape is not None:
        return masks.kept_alive(model, input_shape, scores=scores)
    return masks.kept_alive(model, inputs=probe.sample(), scores=scores)


def score(
    model: nn.Module,
    method: str | Method,
    data: Data | None = None,
    input_shape: InputShape | None = None,
    loss: Loss | None = None,
    include: str | Sequence[str] | None = None,
    exclude: str | Sequence[str] | None = None,
    seed: int = 0,
    *,
    masks: Mapping[str, Tensor] | None = None,
) -> dict[str, Tensor]:
    """The scores that a method gives to the weights of a network, or of a masked one: what a step of `prune` compares.

    Args:
        model, method, data, input_shape, loss, include, exclude, seed: as for `prune`.
        masks: one for each layer to be scored, by any of its names, of its weight's shape: the scores are taken on the network
            with these alone. Removed weights get a score too, what they would have if they came back; only methods with
            `recover` let them compete by it. Default: nothing is removed.

    Returns:
        Layer name -> scores, float32 or float64 on the CPU, in the shape of the weight.

    Raises:
        TypeError, ValueError: as `prune`; the masks are not those of the layers.
    """
    with _probing(model, method, data, input_shape, loss, include, exclude, seed) as (chosen, layers, probe):
        if masks is not None:
            probe.mask(_of_layers("masks", masks, model, layers))
        flat = flat_scores(chosen, probe, layers)
    parts = flat.split_with_sizes([layer.weight.numel() for layer in layers])
    return {layer.name: part.reshape(layer.weight.shape).clone() for layer, part in zip(layers, parts, strict=True)}


def _of_layers(argument: str, masks: Mapping[str, Tensor], model: nn.Module, layers: Sequence[Layer]) -> list[Tensor]:
    """The masks of exactly these layers, in their order, bool on the CPU; ValueError if they are not."""
    masks = as_masks(argument, masks)
    first = {layer.module: layer.name for layer in layers}
    aliases = {name: first[module] for name, module in model.named_modules(remove_duplicate=False) if module in first}
    names: dict[str, str] = {}  # layer -> the name that its mask has
    for name in masks:
        layer = aliases.get(name, name)
        if layer in names:
            raise ValueError(f"{argument}: {names[layer]!r} and {name!r} are one module, but have a mask each")
        names[layer] = name
    expected = {layer.name: tuple(layer.weight.shape) for layer in layers}
    shapes = {layer.name: layer.shape for layer in masks.per_layer()}
    got = {layer: shapes[name] for layer, name in names.items()}
    if got != expected:
        wrong = ", ".join(name for name in {**expected, **got} if expected.get(name) != got.get(name))
        raise ValueError(f"{argument}: expected one mask of the weight's shape for each layer, got no such for {wrong}")
    return [masks[names[layer]] for layer in expected]


@contextmanager
def _probing(
    model: nn.Module,
    method: str | Method,
    data: Data | None,
    input_shape: InputShape | None,
    loss: Loss | None,
    include: str | Sequence[str] | None,
    exclude: str | Sequence[str] | None,
    seed: int,
) -> Iterator[tuple[Method, list[Layer], Probe]]:
    """(method, layers, probe) of checked arguments; inside, everything random is seeded and the process isolated."""
    if not isinstance(method, Method):
        method = methods()[check_choice("method", method, methods())]
    seed = integer("seed", seed, least=0, below=2**63)
    shapes = None if input_shape is None else sample_shapes(input_shape)
    if loss is not None and not callable(loss):
        raise TypeError(f"loss: expected a function (outputs, targets) -> scalar, got {type(loss).__name__}")
    if data is not None:
        check_iterable(data, "data")
    if method.needs == "data" and data is None:
        raise ValueError(f"data: method {method.name!r} needs an iterable of batches (inputs, targets), got None")
    if method.needs == "input_shape" and data is None and input_shape is None:
        raise ValueError(
            f"input_shape: method {method.name!r} needs the shape of a sample, such as (3, 32, 32), or `data`; got None"
        )
    layers = prunable_layers(model, include, exclude)
    for layer in layers:
        if not torch.isfinite(layer.weight).all():
            raise ValueError(f"model: the weight of layer {layer.name!r} is not finite")
    with isolated(seed, _devices(model)):
        generator = torch.Generator().manual_seed(seed)
        yield (
            method,
            layers,
            Probe(
                model,
                layers,
                method.prepare,
                generator,
                data=data,
                input_shape=shapes,
                loss=loss,
                batches=method.batches,
            ),
        )


def _devices(model: nn.Module) -> set[torch.device]:
    return {tensor.device for tensor in (*model.parameters(), *model.buffers())}
