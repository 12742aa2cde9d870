"""`shrink`: what is dead in a network is removed from it, and it computes what it did."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from tost.accounting import weight_count
from tost.checks import sample_shapes
from tost.isolation import isolated, plain_tensors
from tost.shrinking.channels import Array
from tost.shrinking.cut import Cut, cut_out
from tost.shrinking.graph import Graph, Untraceable, check_modules, graph_of
from tost.shrinking.layers import Mixer, Norm, geometry, is_mixer, is_norm, why_fixed
from tost.shrinking.needs import Needs
from tost.shrinking.report import KeptDead, LayerChange, ShrinkReport
from tost.shrinking.saved import save
from tost.shrinking.walk import Layer, Walk
from tost.user_batches import call, describe, map_tensors, sample_of_ones, tensors_in
from tost_kernels.nn.surgery import duplicate

__all__ = ["Shrunk", "shrink"]

Zeroed = dict[str, tuple[int, ...]]
# Both networks compute in float64; their sums have another order, no more. Of the largest output, and where all are almost 0.
_TOLERANCE, _FLOOR = 1e-6, 1e-10


@dataclass(frozen=True, eq=False)
class Shrunk:
    """A network that has become smaller.

    Attributes:
        model: of the class of the original, with the same modules under the same names, smaller ones.
        report: what was removed, and what was not.
        cuts: what is left of each layer that was changed.
    """

    model: nn.Module
    report: ShrinkReport
    cuts: dict[str, Cut]

    def save(self, path: str | Path) -> None:
        """Write the weights and the cuts into one safetensors file, for `tost.load_shrunk`.

        Raises:
            OSError: it cannot be written. ValueError: the state of the network holds something else than tensors.
        """
        save(path, self.model, self.cuts)


def shrink(
    model: nn.Module,
    example_input: Any = None,
    input_shape: Any = None,
    *,
    zero_constants: bool = False,
    inplace: bool = False,
) -> Shrunk:
    """Removes dead filters, and all that only they feed, from the layers of `model`: it computes the same with less.

    In evaluation mode the outputs are those of `model` up to rounding. A filter goes if its result, a constant, is read by
    nobody, is 0 where it is read, or is read where it can be added to a bias (a linear layer, a convolution whose weights meet
    no padding there). It also goes if no filter that stays has a weight for it. A channel of a sum goes if that holds for the
    sum. Any other stays, and `report.kept` says why; so do channels that an operation handles which is not known here. In
    training mode BatchNorm sees a constant channel with its own, batch statistics, so a removed one may have added something
    else there. Layers with a mask (`SparseModule`, torch.nn.utils.prune, `Masks.apply_to`) keep what is left of it in the same
    form. Parameters of layers that were changed are new ones: build the optimizer after this.

    The rules are derived in docs/notes/shrink.md. The result is run beside `model`, both in float64, before it is handed out.

    Args:
        model: a network that torch.fx can trace, dense with zeros, masked or sparse, without ghosts (`tost.finalize`).
        example_input: a batch, or a tuple or mapping of tensors for several arguments of forward.
        input_shape: instead of it the shape of one sample, such as (3, 32, 32), or a tuple or mapping of such shapes.
        zero_constants: first make weight and bias 0 of each BatchNorm channel (or the bias of a dead filter) whose constant
            keeps it from being removed, as it would leak into a padding. This changes what the network computes.
        inplace: change `model` itself instead of a copy.

    Raises:
        TypeError: an argument has the wrong type.
        ValueError: `model` cannot be run on such an input, or torch.fx cannot trace it (`Untraceable`, with the place); or its
            forward depends on the number of channels in a way that its graph does not show. `model` is then as it was.
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"shrink: model: expected a torch.nn.Module, got {type(model).__name__}")
    if is_mixer(model) or is_norm(model):
        raise ValueError(f"shrink: model: a lone {type(model).__name__} has nothing to remove; put it into an nn.Sequential")
    check_modules(model)
    example = _example(example_input, input_shape)
    with isolated(0, {t.device for t in (*model.parameters(), *model.buffers())}):
        with plain_tensors():
            probe = _plain(model)
            graph = _graph(probe, example)
            fixed = _fixed(probe, graph)
            view, zeroed = _look(probe, graph, fixed, zero_constants)
            cuts, added = view.cuts(probe)
            _check(model, view.outputs, cuts, added, example)
        small = model if inplace else duplicate(model)
        before, macs = _parameters(model), view.macs(model)
        kinds = {name: type(module).__name__ for name, module in model.named_modules(remove_duplicate=False)}
        cut_out(small, cuts, added)
    macs_left = view.macs(small)
    report = ShrinkReport(
        layers=view.changes(kinds),
        kept=view.kept(),
        zeroed=zeroed,
        folded=tuple(added),
        parameters=(before, _parameters(small)),
        macs=(macs[0], macs_left[0]),
        macs_kept=(macs[1], macs_left[1]),
    )
    return Shrunk(small, report, cuts)


class _View:
    """One walk through the network, and what of it is needed."""

    def __init__(self, graph: Graph, probe: nn.Module, fixed: Mapping[nn.Module, str]) -> None:
        kinds: dict[nn.Module, Mixer | Norm] = {}
        for module in probe.modules():
            if is_mixer(module):
                kinds[module] = Mixer(module)
            elif is_norm(module):
                kinds[module] = Norm(module)
        walk = Walk(graph.code, kinds, fixed)
        arguments = map_tensors(lambda t: t.clone(), graph.arguments)  # forward may write into them
        torch.default_generator.manual_seed(0)  # what forward draws is the same at every run
        with torch.no_grad():
            self.outputs = walk.run(*arguments)
        self._samples = 1 if walk.lone_image else _samples(graph.arguments)
        self.layers = list(walk.layers.values())
        self.needs = Needs(walk.slots, self.layers)

    def cuts(self, probe: nn.Module) -> tuple[dict[str, Cut], dict[str, Tensor]]:
        """What is left of each layer that changes, and what biases gain."""
        cuts: dict[str, Cut] = {}
        added: dict[str, Tensor] = {}
        for layer in self.layers:
            ins, outs = self.needs.of(layer.inputs), self.needs.of(layer.outputs)
            if ins.all() and outs.all():
                continue
            kind = layer.kind
            groups, bias = 1, True
            if isinstance(kind, Mixer):
                bias = probe.get_submodule(layer.path).bias is not None
                groups = 1 if layer.mixes else kind.groups * int(outs.sum()) // kind.outputs
                if layer.mixes and layer.seen is not None:
                    gain = kind.added(outs, ~ins, layer.seen)
                    if gain.any():
                        added[layer.path], bias = torch.from_numpy(gain), True
            of = len(ins), len(outs)
            cuts[layer.path] = Cut(_places(ins), _places(outs), of, groups, bias)
        return cuts, added

    def changes(self, kinds: Mapping[str, str]) -> tuple[LayerChange, ...]:
        return tuple(
            LayerChange(
                layer.path,
                kinds[layer.path],
                len(layer.inputs),
                len(layer.outputs),
                int(self.needs.of(layer.inputs).sum()),
                int(self.needs.of(layer.outputs).sum()),
                int(_dead(layer).sum()),
            )
            for layer in self.layers
        )

    def kept(self) -> tuple[KeptDead, ...]:
        """The dead filters that stay, gathered by their reasons."""
        found: dict[tuple[str, str], list[int]] = {}
        for layer in self.layers:
            stay = _dead(layer) & self.needs.of(layer.outputs)
            for place in np.flatnonzero(stay).tolist():
                found.setdefault((layer.path, self.needs.reason(int(layer.outputs[place]))), []).append(place)
        return tuple(KeptDead(layer, tuple(places), reason) for (layer, reason), places in found.items())

    def macs(self, net: nn.Module) -> tuple[int, int]:
        """Multiply-adds of one input in the layers of `net`, with all weights and with those that are kept."""
        counts = [
            (layer.positions // self._samples, weight_count(net.get_submodule(layer.path)))
            for layer in self.layers
            if isinstance(layer.kind, Mixer)
        ]
        return sum(n * dense for n, (_, dense) in counts), sum(n * kept for n, (kept, _) in counts)

    def sources(self, probe: nn.Module) -> set[tuple[str, int]]:
        """(layer, place) of what makes the constants, other than 0, of the channels that stay."""
        found = set()
        for layer in self.layers:
            module = probe.get_submodule(layer.path)
            if layer.made is None or module.bias is None:
                continue
            made = self.needs.of(layer.outputs) & ~np.isnan(layer.made) & (layer.made != 0)
            if isinstance(layer.kind, Mixer):
                made &= _dead(layer)
            found |= {(layer.path, place) for place in np.flatnonzero(made).tolist()}
        return found

    def stays(self, source: tuple[str, int]) -> bool:
        layer = next(layer for layer in self.layers if layer.path == source[0])
        return bool(self.needs.of(layer.outputs)[source[1]])


def _dead(layer: Layer) -> Array:
    """bool (outputs,): the filters without a weight; none of a BatchNorm's."""
    if isinstance(layer.kind, Mixer):
        return ~layer.kind.used.any(1)  # type: ignore[no-any-return]
    return np.zeros(len(layer.outputs), dtype=bool)


def _look(probe: nn.Module, graph: Graph, fixed: Mapping[nn.Module, str], zero: bool) -> tuple[_View, Zeroed]:
    """The view of the network, with `zero` of that without the constants that keep dead filters."""
    view = _View(graph, probe, fixed)
    if not zero:
        return view, {}
    original = {name: value.clone() for name, value in probe.state_dict().items()}
    chosen: set[tuple[str, int]] = set()
    refused: set[tuple[str, int]] = set()
    while True:
        useless = {source for source in chosen if view.stays(source)}
        new = view.sources(probe) - refused - chosen
        if not useless and not new:
            return view, _by_layer(chosen)
        refused |= useless
        chosen = chosen - useless if useless else chosen | new
        probe.load_state_dict(original)
        _zero(probe, _by_layer(chosen))
        view = _View(graph, probe, fixed)


def _by_layer(sources: Iterable[tuple[str, int]]) -> Zeroed:
    result: dict[str, list[int]] = {}
    for layer, place in sorted(sources):
        result.setdefault(layer, []).append(place)
    return {layer: tuple(places) for layer, places in result.items()}


@torch.no_grad()
def _zero(net: nn.Module, zeroed: Zeroed) -> None:
    for path, places in zeroed.items():
        module: Any = net.get_submodule(path)
        for vector in (module.weight, module.bias) if is_norm(module) else (module.bias,):
            vector[list(places)] = 0


def _example(example: Any, shape: Any) -> Any:
    """A float64 batch on the CPU."""
    if (example is None) == (shape is None):
        raise TypeError("example_input, input_shape: expected one of the two: a batch, or the shape of a sample")
    if example is None:
        random = torch.Generator().manual_seed(0)
        ones = sample_of_ones(sample_shapes(shape), torch.float64, "cpu")
        return map_tensors(lambda t: torch.randn((2, *t.shape[1:]), generator=random, dtype=t.dtype), ones)
    if not tensors_in(example):
        raise TypeError(f"example_input: expected a tensor, or a tuple or mapping of tensors, got {type(example).__name__}")
    if any(t.is_meta or t.numel() == 0 for t in tensors_in(example)):
        raise ValueError(f"example_input: expected a batch with numbers, got one that is empty or on meta: {describe(example)}")
    return map_tensors(lambda t: t.detach().cpu().double() if t.is_floating_point() else t.detach().cpu(), example)


def _samples(arguments: Any) -> int:
    """How many samples a batch has: of its tensors, those with the most dimensions are the images; others may be options."""
    most = max(tensors_in(arguments), key=Tensor.dim)
    return most.shape[0] if most.dim() else 1


def _plain(model: nn.Module) -> nn.Module:
    """A copy on the CPU, in evaluation mode and float64."""
    return duplicate(model).cpu().double().eval()


def _graph(probe: nn.Module, example: Any) -> Graph:
    """The graph; it is seen to run on the example."""
    try:
        with torch.no_grad():
            call(probe, map_tensors(lambda t: t.clone(), example))
    except torch.OutOfMemoryError:
        raise
    except Exception as error:  # whatever the user's code raises
        raise ValueError(f"shrink: model: it failed on the example: {_line(error)}") from error
    if isinstance(example, Mapping):
        return graph_of(probe, (), example)
    return graph_of(probe, tuple(example) if isinstance(example, list | tuple) else (example,), {})


def _fixed(probe: nn.Module, graph: Graph) -> dict[nn.Module, str]:
    """The layers that stay as they are, and why."""
    owners = Counter(id(t) for module in probe.modules() for t in _tensors(module))
    read = {id(_attribute(probe, str(node.target))) for node in graph.code.graph.nodes if node.op == "get_attr"}
    paths = {module: path for path, module in probe.named_modules()}
    fixed: dict[nn.Module, str] = {}
    for module in probe.modules():
        if not (is_mixer(module) or is_norm(module)):
            continue
        inner = [tensor for inside in module.modules() for tensor in _tensors(inside)]
        sizes = {*geometry(module), "groups"} & set(graph.reads.get(paths[module], {}))
        reason = why_fixed(module)
        if reason is None and any(owners[id(tensor)] > 1 for tensor in inner):
            reason = "it shares a tensor with another module"
        if reason is None and any(id(tensor) in read for tensor in inner):
            reason = "forward reads its parameters"
        if reason is None and sizes:
            reason = f"forward reads its {min(sizes)}"
        if reason is not None:
            fixed[module] = reason
    return fixed


def _tensors(module: nn.Module) -> list[Tensor]:
    return [t for t in (*module._parameters.values(), *module._buffers.values()) if t is not None]


def _attribute(net: nn.Module, path: str) -> Any:
    owner, _, name = path.rpartition(".")
    return getattr(net.get_submodule(owner), name)


def _places(stay: Array) -> tuple[int, ...]:
    return tuple(np.flatnonzero(stay).tolist())


def _check(model: nn.Module, outputs: Any, cuts: Mapping[str, Cut], added: Mapping[str, Tensor], example: Any) -> None:
    """Runs what is left of the network on the example, of which `outputs` are those of the graph of all of it.

    Raises:
        Untraceable: they are not the same.
    """
    after = _plain(model)
    cut_out(after, cuts, added)
    expected = tree_leaves(outputs)
    torch.default_generator.manual_seed(0)
    with torch.no_grad():
        try:
            got = tree_leaves(call(after, map_tensors(lambda t: t.clone(), example)))
            problem = (
                next((p for p in map(_difference, expected, got) if p), None) if len(got) == len(expected) else "their number"
            )
        except (RuntimeError, ValueError, TypeError, IndexError) as error:
            problem = _line(error)
    if problem is not None:
        raise Untraceable(
            "shrink: model: its forward depends on the number of channels in a way that its graph does not show, so nothing was "
            f"removed; without the dead filters it gives something else: {problem}"
        )


def _difference(expected: Any, got: Any) -> str | None:
    if not isinstance(expected, Tensor):
        return None if expected == got else f"{got!r:.50} instead of {expected!r:.50}"
    if expected.shape != got.shape:
        return f"shape {tuple(got.shape)} instead of {tuple(expected.shape)}"
    wide = torch.complex128 if expected.is_complex() or got.is_complex() else torch.float64
    expected, got = expected.to(wide), got.to(wide)
    finite = expected[expected.isfinite()].abs()
    atol = _TOLERANCE * float(finite.max()) + _FLOOR if finite.numel() else 0.0
    other = ~torch.isclose(got, expected, rtol=0.0, atol=atol, equal_nan=True)
    return f"outputs that differ by {float((got - expected)[other].abs().max()):.3g}" if other.any() else None


def _parameters(net: nn.Module) -> int:
    return sum(parameter.numel() for parameter in net.parameters())


def _line(error: Exception) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"
