"""The network as a graph of its layers: torch.fx's symbolic trace, with an error where a graph would not be the network.

A trace runs `forward` once, with stand-ins for tensors, and keeps the calls it sees. What Python decides on the way is frozen:
branches on `self.training`, random numbers, tensors made on the spot, attributes set. Each of these is an error here that
names the place.
"""

from __future__ import annotations

import inspect
import random
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import fx, nn
from torch.nn.modules.lazy import LazyModuleMixin
from torch.nn.utils.parametrize import type_before_parametrizations

from tost.isolation import isolated
from tost.tracer import NOT_TRACED, Flag, Tracer, Untraceable, where
from tost_kernels.nn import SparseConv2d, SparseModule

__all__ = ["Trace", "expect_default", "trace"]


# What `add_ghosts` looks for. A module without any of them inside is called as it is, and never looked into.
_SOUGHT = (nn.Conv2d, SparseConv2d, nn.BatchNorm2d, nn.ReLU)
# Layers whose subclasses are layers too, wherever they are defined.
_LAYERS = (nn.Conv2d, nn.BatchNorm2d, nn.ReLU, nn.Linear, SparseModule)
_PACKAGES = ("torch.nn.", "torch.ao.nn.", "tost_kernels.nn.")
# What holds a network, and the attribute where.
_WRAPPERS = (
    ((nn.DataParallel, nn.parallel.DistributedDataParallel), "module"),
    (torch._dynamo.OptimizedModule, "_orig_mod"),
)


class _Tracer(Tracer):
    """Looks into every module that has something of what is sought inside."""

    subject = "add_ghosts: net"

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        kind = type_before_parametrizations(m)
        if isinstance(m, _LAYERS) or not any(isinstance(inner, _SOUGHT) for inner in m.modules()):
            return True
        return f"{kind.__module__}.".startswith(_PACKAGES) and not isinstance(m, nn.Sequential)


class Trace(NamedTuple):
    """The graph, and what it has frozen: path of a module -> attribute -> value."""

    graph: fx.Graph
    attributes: dict[str, dict[str, Any]]


def trace(net: nn.Module) -> Trace:
    """The graph of `net.forward`, the same in training and in evaluation mode. `net` is left as it was.

    An argument of `forward` whose default is None, a bool or a string keeps that value: the traced code checks it at each call.
    Every node has its place in the user's code, see `where`. Numbers, bools, strings and None that forward reads from its
    modules are in the graph as they are now; `training` is read at each call.

    Raises:
        Untraceable: there is no such graph; the message names the place and what to do.
    """
    _check_modules(net)
    frozen = _frozen_arguments(net)
    tracers = [_Tracer(net, training=True), _Tracer(net, training=False)]
    with _attributes_put_back(net) as changed:
        graphs = [_graph_of(tracer, frozen, changed) for tracer in tracers]
        if any(tracer.reads_mode for tracer in tracers):
            graphs += [_graph_of(_Tracer(net, training, flags=True), frozen, changed) for training in (True, False)]
    graph = graphs[0]
    for nodes in zip(*[list(each.nodes) for each in graphs], strict=False):
        node = nodes[0]
        try:
            if any(_called(node) != _called(other) for other in nodes):
                raise _UnlikeError
            node.args, node.kwargs = _merged([(other.args, other.kwargs) for other in nodes], node)
        except _UnlikeError:
            tracers[0].refuse(
                "the forward pass is another one in training than in evaluation mode",
                f"let a module decide that (nn.Dropout does), pass on the `training` of one module as it is, or {NOT_TRACED}",
                place=where(node),
            )
    _check_frozen_at_call(net, graph, frozen)
    attributes: dict[str, dict[str, Any]] = {}
    for tracer in tracers:
        for path, values in tracer.reads.items():
            attributes.setdefault(path, {}).update(values)
    return Trace(graph, attributes)


def _graph_of(tracer: Tracer, frozen: dict[str, Any], changed: Callable[[], Iterator[tuple[str, str]]]) -> fx.Graph:
    with isolated(0, ()):
        before = _random_state()
        graph = tracer.run(frozen)
        if _random_state() != before:
            tracer.refuse("Python or numpy draws random numbers, which a graph would freeze", NOT_TRACED, place="its forward")
    for place, attribute in changed():
        tracer.refuse(
            f"forward changes the attribute {attribute!r}",
            "a graph would not: return the value, or use a forward hook on a layer",
            place=place,
        )
    return graph


class _UnlikeError(Exception):
    pass


def _called(node: fx.Node) -> tuple[object, ...]:
    """What a node calls; functions by their names, as closures are made anew."""
    target = node.target
    names = (getattr(target, "__module__", None), getattr(target, "__qualname__", str(target)))
    return node.op, node.name, target if isinstance(target, str) else names


def _merged(values: Sequence[Any], node: fx.Node) -> Any:
    """The arguments of `node` in both modes, first training, and with Flags if there are: a mode is read from its module."""
    first, second = values[:2]
    if all(isinstance(value, fx.Node) and value.name == first.name for value in values):
        return first
    if first is True and second is False:
        owners = {value.path for value in values if isinstance(value, Flag)}
        if len(owners) != 1:
            raise _UnlikeError
        with node.graph.inserting_before(node):
            return node.graph.create_node("get_attr", f"{owners.pop()}.training".lstrip("."))
    if isinstance(first, tuple | list) and all(type(value) is type(first) and len(value) == len(first) for value in values):
        members = [_merged(each, node) for each in zip(*values, strict=True)]
        return members if isinstance(first, list) else tuple(members)
    if isinstance(first, dict) and all(isinstance(value, dict) and list(value) == list(first) for value in values):
        return {key: _merged([value[key] for value in values], node) for key in first}
    if repr(first) != repr(second):  # slices hold nodes, and NaN is no number that equals itself
        raise _UnlikeError
    return first


def _check_modules(net: nn.Module) -> None:
    """Raises for modules that a graph would call in another way, or not at all."""
    tracer = _Tracer(net, training=True)
    for kinds, inner in _WRAPPERS:
        if isinstance(net, kinds):
            tracer.refuse(
                f"{type(net).__name__} only wraps the network", f"use net.{inner}, and wrap the result", place="its root"
            )
    if "forward" in vars(net):
        tracer.refuse("forward is an attribute of the instance", "define it in the class", place="its root")
    for name, module in net.named_modules():
        if isinstance(module, LazyModuleMixin) and module.has_uninitialized_params():  # type: ignore[misc]
            tracer.refuse("a layer that has no weight yet", "run one batch through the network first", place=repr(name))
        hooks = (module._forward_pre_hooks, module._forward_hooks, module._backward_pre_hooks, module._backward_hooks)
        if module is not net and any(hooks) and not _is_or_is_in_a_leaf(tracer, net, name):
            raise Untraceable(
                f"add_ghosts: net: expected no hooks on {name!r} ({type(module).__name__}): what is inside is called without it "
                "while the ghosts live, so its hooks would not run; remove them first, or put them on the layers inside"
            )


def _is_or_is_in_a_leaf(tracer: Tracer, net: nn.Module, name: str) -> bool:
    parts = name.split(".")
    paths = [".".join(parts[: i + 1]) for i in range(len(parts))]
    return any(tracer.is_leaf_module(net.get_submodule(path), path) for path in paths)


def _frozen_arguments(net: nn.Module) -> dict[str, Any]:
    """The arguments of `forward` that can only mean a choice between graphs. Numbers may be part of the arithmetic."""
    return {name: p.default for name, p in _arguments(net).items() if p.default is None or isinstance(p.default, bool | str)}


def _arguments(net: nn.Module) -> dict[str, inspect.Parameter]:
    """The named arguments of `forward`, in the order of fx's placeholders; those of *args and **kwargs are behind them."""
    parameters = list(inspect.signature(type(net).forward).parameters.values())[1:]
    return {p.name: p for p in parameters if p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)}


def expect_default(name: str, value: Any, default: Any) -> None:
    """Part of the traced code: raises ValueError unless the argument has the value it was traced with."""
    if value is not default and (default is None or value != default):
        got = repr(value) if isinstance(value, bool | int | float | str) else type(value).__name__
        raise ValueError(
            f"forward: {name}: expected its default {default!r}, got {got}: with ghosts the network is the graph of its defaults"
        )


def _check_frozen_at_call(net: nn.Module, graph: fx.Graph, frozen: dict[str, Any]) -> None:
    """Gives the frozen arguments their own names back, and checks of our own."""
    for node in graph.nodes:
        node.type = None  # annotations may be strings that mean nothing where the code is compiled
    placeholders = [node for node in graph.nodes if node.op == "placeholder"]
    # By place: fx's name for an argument that it holds fixed, `a_1`, may be the name of another.
    for node, name in zip(placeholders, _arguments(net), strict=False):
        if name not in frozen:
            continue
        for user in list(node.users):
            for check in list(user.users):
                graph.erase_node(check)
            graph.erase_node(user)
        node.target = name
        with graph.inserting_after(placeholders[-1]):
            graph.call_function(expect_default, (name, node, frozen[name]))


def _random_state() -> tuple[object, str]:
    return random.getstate(), repr(np.random.get_state())  # noqa: NPY002 (the global generator is the one that forward may draw from)


def _members(value: Any) -> list[Any] | None:
    """What a list or dict holds; None for anything else."""
    if isinstance(value, dict):
        return [*value.keys(), *value.values()]
    return list(value) if isinstance(value, list) else None


def _same_members(value: Any, members: list[Any] | None) -> bool:
    return list(map(id, _members(value) or ())) == list(map(id, members or ()))


@contextmanager
def _attributes_put_back(net: nn.Module) -> Iterator[Callable[[], Iterator[tuple[str, str]]]]:
    """Restores the attributes of every module after the `with`; inside, gives a function that lists (module, attribute)."""
    saved = [
        (name, module, {key: (value, _members(value)) for key, value in vars(module).items()})
        for name, module in net.named_modules()
    ]

    def changed() -> Iterator[tuple[str, str]]:
        for name, module, attributes in saved:
            now = vars(module)
            for key in sorted(now.keys() | attributes.keys()):
                before, members = attributes.get(key, (None, None))
                if key != "training" and not (now.get(key) is before and _same_members(before, members)):
                    yield f"{repr(name) if name else 'its root'} ({type(module).__name__})", key

    try:
        yield changed
    finally:
        for _, module, attributes in saved:
            vars(module).clear()
            vars(module).update({key: value for key, (value, _) in attributes.items()})
            for value, members in attributes.values():
                if members is None or _same_members(value, members):
                    continue
                if isinstance(value, list):
                    value[:] = members
                else:
                    value.clear()
                    value.update(zip(members[: len(members) // 2], members[len(members) // 2 :], strict=True))
