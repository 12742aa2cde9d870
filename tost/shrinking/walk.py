"""Runs the graph once on an example, and writes down the channels of every tensor and the layers that mix them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from torch import Tensor, fx, nn

from tost.shrinking.channels import Array, Channels, Slots
from tost.shrinking.layers import Mixer, Norm, geometry
from tost.shrinking.rules import Call, keeps_count, rule_for
from tost.tracer import where

__all__ = ["Layer", "Walk"]


class Layer:
    """A layer of the network and the slots of its channels.

    inputs, outputs: slots. seen: float64, the constants of its inputs, the same at all its calls, else NaN. made: the
    same of its outputs. positions: pixels or rows of its results, over all calls and the whole batch.
    """

    def __init__(self, path: str, kind: Mixer | Norm, inputs: Array, outputs: Array) -> None:
        self.path = path
        self.kind = kind
        self.inputs = inputs
        self.outputs = outputs
        self.seen: Array | None = None
        self.made: Array | None = None
        self.positions = 0

    @property
    def mixes(self) -> bool:
        """Whether its outputs can be removed without its inputs."""
        return isinstance(self.kind, Mixer) and self.kind.groups == 1

    def called(self, seen: Array, made: Array) -> None:
        self.seen = seen if self.seen is None else np.where(self.seen == seen, seen, np.nan)
        self.made = made if self.made is None else np.where(self.made == made, made, np.nan)


class Walk(fx.Interpreter):
    """The walk. `run` it on the arguments; then `slots` and `layers` (in the order of the calls) are there.

    kinds: the layers of the network as numbers. fixed: those that have to stay as they are, and why.
    """

    def __init__(self, code: fx.GraphModule, kinds: Mapping[nn.Module, Mixer | Norm], fixed: Mapping[nn.Module, str]) -> None:
        super().__init__(code)
        self.extra_traceback = False  # it would put a page into every message
        self.kinds = kinds
        self.fixed = fixed
        self.slots = Slots()
        self.known: dict[fx.Node, Channels] = {}
        self.layers: dict[nn.Module, Layer] = {}
        self.lone_image = False  # whether a convolution was given an image without a batch

    def run_node(self, n: fx.Node) -> Any:
        versions = {node: value._version for node, value in self.env.items() if isinstance(value, Tensor)}
        ranks = {node: self.env[node].dim() for node in n.all_input_nodes if isinstance(self.env[node], Tensor)}
        value = super().run_node(n)
        if n.op == "output":
            self._pin(n, "it is part of the network's output")
        elif n.op.startswith("call_"):
            if not isinstance(value, Tensor) and all(
                keeps_count(n, self.known[x].axis, ranks[x]) for x in ranks if x in self.known
            ):
                return value
            found = self._channels(n, value) if isinstance(value, Tensor) else None
            if found is None:
                self._pin(n, f"{_name(n)} ({where(n)}) is not known here, or depends on the number of channels")
            else:
                constants = np.where(np.isfinite(found.constants), found.constants, np.nan)
                self.known[n] = Channels(found.axis, found.slots, constants)
        for node, version in versions.items():
            if self.env[node]._version != version:
                self._written(node, n, value)
        return value

    def _pin(self, node: fx.Node, reason: str) -> None:
        for argument in node.all_input_nodes:
            if argument in self.known:
                self.slots.pin(self.known[argument].slots, reason)

    def _written(self, node: fx.Node, writer: fx.Node, value: Any) -> None:
        """The memory of `node` now holds, at least in part, what `writer` has computed."""
        if node not in self.known:
            return
        changed, result = self.known[node], self.known.get(writer)
        held = self.env[node]
        if (
            result is not None
            and held.data_ptr() == value.data_ptr()
            and held.stride() == value.stride()
            and held.shape == value.shape
        ):
            self.known[node] = result
        else:
            self.known[node] = Channels(changed.axis, changed.slots, np.full(len(changed.slots), np.nan))

    def _channels(self, node: fx.Node, value: Tensor) -> Channels | None:
        args, kwargs = self.fetch_args_kwargs_from_env(node)
        module = self.fetch_attr(str(node.target)) if node.op == "call_module" else None
        call = Call(node, module, args, kwargs, value, self.known, self.slots)
        kind = self.kinds.get(module) if module is not None else None
        if isinstance(kind, Mixer):
            assert module is not None
            return self._mixed(call, module, kind)
        if isinstance(kind, Norm):
            assert module is not None
            return self._normed(call, module, kind)
        rule = rule_for(node, module, args, kwargs)
        return rule(call) if rule is not None else None

    def _mixed(self, call: Call, module: nn.Module, kind: Mixer) -> Channels:
        rank: int = call.result.dim()
        linear = geometry(module)[0] == "in_features"
        # an image alone has its channels first
        axis = rank - 1 if linear else rank - len(module.kernel_size) - 1  # type: ignore[arg-type]
        self.lone_image |= axis == 0 and not linear
        x = call.first if call.first is not None and call.first.axis == axis else None
        layer = self.layers.get(module)
        if layer is None:
            inputs = x.slots if x is not None else self.slots.new(kind.inputs)
            layer = self.layers[module] = Layer(str(call.node.target), kind, inputs, self.slots.new(kind.outputs))
            if kind.groups > 1:
                members = np.concatenate([inputs.reshape(kind.groups, -1), layer.outputs.reshape(kind.groups, -1)], 1)
                self.slots.unite(members[:, :1].repeat(members.shape[1], 1).flatten(), members.flatten())
        elif x is not None:
            self.slots.unite(layer.inputs, x.slots)
        if x is None:
            self.slots.pin(layer.inputs, f"{layer.path!r} reads the network's input, or what is not known to have channels")
            if call.first is not None:
                self.slots.pin(call.first.slots, f"{layer.path!r} reads it along another axis than that of its channels")
        seen = x.constants if x is not None else np.full(kind.inputs, np.nan)
        made = kind.constants(seen)
        layer.positions += call.result.numel() // kind.outputs
        if kind.groups > 1:
            leaked = np.isnan(made) & ~np.isnan(kind.constants(np.where(np.isnan(seen), np.nan, 0.0)))
            self.slots.note(layer.outputs[leaked], f"its constant would leak into the padding of {layer.path!r}")
        return self._done(call, module, layer, seen, made, axis)

    def _normed(self, call: Call, module: nn.Module, kind: Norm) -> Channels | None:
        x = call.first
        if x is not None and x.axis != 1:
            return None
        layer = self.layers.get(module)
        if layer is None:
            slots = x.slots if x is not None else self.slots.new(kind.features)
            layer = self.layers[module] = Layer(str(call.node.target), kind, slots, slots)
        elif x is not None:
            self.slots.unite(layer.inputs, x.slots)
        if x is None:
            self.slots.pin(layer.inputs, f"{layer.path!r} reads the network's input, or what is not known to have channels")
        seen = x.constants if x is not None else np.full(kind.features, np.nan)
        return self._done(call, module, layer, seen, kind.constants(seen), 1)

    def _done(self, call: Call, module: nn.Module, layer: Layer, seen: Array, made: Array, axis: int) -> Channels:
        reason = self.fixed.get(module)
        if reason is not None:
            self.slots.pin(layer.inputs, f"{layer.path!r} stays as it is: {reason}")
            self.slots.pin(layer.outputs, f"{layer.path!r} stays as it is: {reason}")
            made = np.full(len(made), np.nan)
        layer.called(seen, made)
        return Channels(axis, layer.outputs, made)


def _name(node: fx.Node) -> str:
    return f"{str(node.target)!r}" if node.op == "call_module" else str(getattr(node.target, "__name__", node.target)).strip("_")
