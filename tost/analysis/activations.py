"""How many activations are next to nothing, layer by layer; ToST's Table 1."""

from __future__ import annotations

import dataclasses
import warnings
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from tost.analysis.of_runs import Origin, labels, networks
from tost.checks import number
from tost.data import eval_batches
from tost.ghosts import Ghost, GhostSwish, add_ghosts, ghosts_of
from tost.recipe import Recipe
from tost.runs import Result

__all__ = ["Activations", "LayerActivations", "NetworkActivations", "activations_of", "analyze_activations"]

THRESHOLD = 1e-2  # ToST's
_BATCH = 128
_FUNCTIONS: dict[Any, str] = {
    F.relu: "relu", F.relu_: "relu", torch.relu: "relu", torch.relu_: "relu", Tensor.relu: "relu", Tensor.relu_: "relu",
    F.relu6: "relu6", F.silu: "swish", F.mish: "mish", F.gelu: "gelu", F.elu: "elu", F.leaky_relu: "leaky_relu",
    F.hardswish: "hardswish", F.hardtanh: "hardtanh", torch.tanh: "tanh", F.softplus: "softplus",
}  # fmt: skip


@dataclass(frozen=True)
class LayerActivations:
    """The results of one activation function over all images.

    Attributes:
        name: of the layer that it comes behind, or its own.
        function: "relu", "pswish", "mish", ...
        near_zero: how many are at most the threshold in size.
        count: how many there are.
    """

    name: str
    function: str
    near_zero: int
    count: int

    @property
    def fraction(self) -> float:
        """near_zero / count"""
        return self.near_zero / self.count


@dataclass(frozen=True)
class NetworkActivations:
    """One network's activations, in the order in which they are computed."""

    origin: Origin
    layers: tuple[LayerActivations, ...]

    @property
    def mean(self) -> float:
        """Mean of the layers' fractions: each layer counts the same, however large."""
        return sum(layer.fraction for layer in self.layers) / len(self.layers)

    @property
    def overall(self) -> float:
        """Fraction of all activations."""
        return sum(layer.near_zero for layer in self.layers) / sum(layer.count for layer in self.layers)

    @property
    def functions(self) -> str:
        """Which there are, the most frequent first."""
        return ", ".join(name for name, _ in Counter(layer.function for layer in self.layers).most_common())


@dataclass(frozen=True)
class Activations:
    """Those of every network.

    Attributes:
        title: what the runs share.
        threshold: up to which an activation counts as none.
        images: number of test images.
        networks: in the order of the runs and epochs.
    """

    kind: ClassVar[str] = "activations"

    title: str
    threshold: float
    images: int
    networks: tuple[NetworkActivations, ...]

    def as_dict(self) -> dict[str, Any]:
        """Plain JSON types."""
        return {"kind": self.kind, **dataclasses.asdict(self)}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Activations:
        """What `as_dict` gave, or what JSON made of it."""
        found = (
            NetworkActivations(Origin(**one["origin"]), tuple(LayerActivations(**layer) for layer in one["layers"]))
            for one in values["networks"]
        )
        return cls(values["title"], values["threshold"], values["images"], tuple(found))


def analyze_activations(
    results: Sequence[Result],
    epochs: Sequence[int] | None = None,
    threshold: float = THRESHOLD,
    progress: Callable[[int], object] = lambda done: None,
    data_dir: str | Path | None = None,
) -> Activations:
    """Count on the test images, in eval mode, what the activation functions of every network return.

    Args:
        results: finished runs.
        epochs: after which their networks were kept; None: the finished networks. Where ghosts live, both forms are measured.
        threshold: an activation of at most this size counts as none.
        progress: called with the number of epochs of runs that are done.
        data_dir: of the data set, where it has moved since the training; None: where it was.

    Raises:
        ValueError, FileNotFoundError: as `tost.analysis.of_runs.networks`. ValueError: a network has no activation function.
    """
    number("threshold", threshold, least=0.0)
    found, images = [], 0
    for origin, snapshot in networks(results, epochs, progress=progress, data_dir=data_dir):
        images = len(snapshot.dataset.test)
        batches = (inputs for inputs, _ in eval_batches(snapshot.dataset, _BATCH))
        layers = activations_of(snapshot.net, batches, threshold)
        if not layers:
            raise ValueError(
                f"runs: {origin.variant}: expected a network with activation functions, got {type(snapshot.net).__name__}"
            )
        found.append(NetworkActivations(origin, layers))
    return Activations(labels([result.config for result in results]).title, threshold, images, tuple(found))


@torch.no_grad()
def activations_of(net: nn.Module, batches: Iterable[Tensor], threshold: float = THRESHOLD) -> tuple[LayerActivations, ...]:
    """Count what every activation function of `net` returns for the images of `batches`.

    ReLUs of any kind are seen, as modules, functions and inside of fused tails, ghost swishes and the usual functions of
    torch.nn too. A ReLU behind a convolution has that one's name, with and without ghosts.

    Args:
        net: dense, masked dense or sparse, with ghosts or without; it is measured in the mode that it is in, and left alone.
        batches: float (N, C, H, W).
        threshold: up to which an activation counts as none.
    """
    watch = _Watch(_wired(net), threshold)
    with watch.hooks():
        for inputs in batches:
            watch.calls.clear()
            with watch:
                watch.net(inputs)
    return watch.found


_EVERY_RELU = Recipe(ghost_skip=False, ghost_swish=True, rescale_init=False, label_smoothing=0.0)


def _wired(net: nn.Module) -> nn.Module:
    """The same computation, with each ReLU that torch.fx sees where a ghost swish would be: a layer has one name in all forms."""
    if ghosts_of(net):
        return net
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # of ReLUs that it passes by: they are seen anyway
        try:
            wired = add_ghosts(net, _EVERY_RELU)
        except ValueError:  # it cannot be traced, or has no ReLU: names are all that is lost
            return net
    for ghost in ghosts_of(wired).values():
        ghost.set_strength(0.0, torch.inf)
    return wired


class _Watch(TorchFunctionMode):
    """Sees what activation functions return inside the `with`: those in ghosts' tails by hooks, all others as calls of torch.

    Attributes:
        calls: of each name in this forward pass.
    """

    def __init__(self, net: nn.Module, threshold: float) -> None:
        super().__init__()
        self.net = net
        self.calls: Counter[str] = Counter()
        self._threshold = threshold
        self._found: dict[str, LayerActivations] = {}
        self._path: list[str] = []  # of the modules that are being called; those inside a ghost are not looked at
        self._in_ghost = False

    @property
    def found(self) -> tuple[LayerActivations, ...]:
        return tuple(self._found.values())

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if func in _FUNCTIONS and not self._in_ghost:
            self._count(self._path[-1] or "the root", _FUNCTIONS[func], result)
        return result

    def hooks(self) -> ExitStack:
        """Modules tell their names and ghosts their results until it is closed."""
        stack = ExitStack()
        paths = {path.replace(".", "_"): path for path, _ in self.net.named_modules()}
        for path, module in self.net.named_modules():
            if isinstance(module, Ghost | GhostSwish):
                if module.has_act:
                    before, after = self._ghost_hooks(paths, path.rpartition(".")[2])
                    stack.callback(module.register_forward_pre_hook(before).remove)
                    stack.callback(module.register_forward_hook(after).remove)
            else:
                stack.callback(module.register_forward_pre_hook(lambda *_, path=path: self._path.append(path)).remove)
                stack.callback(module.register_forward_hook(lambda *_: self._leave()).remove)
        return stack

    def _leave(self) -> None:
        self._path.pop()

    def _ghost_hooks(self, paths: Mapping[str, str], name: str) -> tuple[Callable[..., None], Callable[..., None]]:
        def before(module: nn.Module, inputs: Any) -> None:
            self._in_ghost = True

        def after(module: nn.Module, inputs: Any, result: Tensor) -> None:
            self._in_ghost = False
            assert isinstance(module, Ghost | GhostSwish)
            self._count(paths.get(name, name), module.act, result)

        return before, after

    def _count(self, name: str, function: str, result: Tensor) -> None:
        self.calls[name] += 1
        name = name if self.calls[name] == 1 else f"{name} ({self.calls[name]})"
        old = self._found.get(name, LayerActivations(name, function, 0, 0))
        near_zero = int((result.abs() <= self._threshold).sum())
        self._found[name] = LayerActivations(name, function, old.near_zero + near_zero, old.count + result.numel())
