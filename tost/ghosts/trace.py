"""The network as a graph of its layers: torch.fx's symbolic trace, with an error where a graph would not be the network.

A trace runs `forward` once, with stand-ins for tensors, and keeps the calls it sees. What Python decides on the way is frozen:
branches on `self.training`, random numbers, tensors made on the spot, attributes set. Each of these is an error here that
names the place.
"""

from __future__ import annotations

import inspect
import operator
import random
import sys
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

import numpy as np
import torch
from torch import Tensor, fx, nn
from torch.nn.utils.parametrize import type_before_parametrizations
from torch.overrides import TorchFunctionMode

from tost.isolation import isolated
from tost_kernels.nn import SparseConv2d, SparseModule

__all__ = ["INPLACE_ADD", "Untraceable", "trace", "where"]

# What `add_ghosts` looks for. A module without any of them inside is called as it is, and never looked into.
_SOUGHT = (nn.Conv2d, SparseConv2d, nn.BatchNorm2d, nn.ReLU)
# Layers whose subclasses are layers too, wherever they are defined.
_LAYERS = (nn.Conv2d, nn.BatchNorm2d, nn.ReLU, nn.Linear, SparseModule)
_NOT_TRACED = "move this code into a module without Conv2d, BatchNorm2d and ReLU, which is not traced"
_PACKAGES = ("torch.nn.", "torch.ao.nn.", "tost_kernels.nn.")


class Untraceable(ValueError):
    """The network's forward pass is no fixed graph."""


def trace(net: nn.Module) -> fx.Graph:
    """The graph of `net.forward`, the same in training and in evaluation mode. `net` is left as it was.

    An argument of `forward` whose default is None, a bool or a string keeps that value: the traced code checks it at each call.
    Every node has its place in the user's code, see `where`.

    Raises:
        Untraceable: there is no such graph; the message names the place and what to do.
    """
    if "forward" in vars(net):
        raise _error(net, "its root", "forward is an attribute of the instance", "define it in the class")
    _check_hooks(net)
    with _put_back(net) as check_attributes:
        graphs = []
        for mode in (True, False):
            for module in net.modules():
                module.training = mode
            graphs.append(_trace_once(net))
            check_attributes()
    train, evaluate = graphs
    for first, second in zip(train.nodes, evaluate.nodes, strict=False):
        if first.format_node() != second.format_node():
            raise _error(
                net, where(first), "the forward pass is another one in training than in evaluation mode",
                "use modules that know their mode (nn.Dropout for F.dropout(x, training=self.training)), or " + _NOT_TRACED,
            )  # fmt: skip
    return train


def where(node: fx.Node) -> str:
    """The file and line that `node` comes from."""
    return str(node.meta.get("where", "its forward"))


def _error(net: nn.Module, place: str, what: str, todo: str) -> Untraceable:
    return Untraceable(
        f"add_ghosts: net: expected a network that torch.fx can trace, got {type(net).__name__}: {place}: {what}; {todo}"
    )


def _trace_once(net: nn.Module) -> fx.Graph:
    tracer = _Tracer()
    frozen = _frozen_arguments(net)
    with isolated(0, ()):
        before = _random_state()
        try:
            with _NoTensors(net):
                graph = tracer.trace(net, concrete_args=frozen)
        except Untraceable:
            raise
        except Exception as error:
            inside = f" in {type(tracer.innermost).__name__}" if tracer.innermost is not None else ""
            raise _error(
                net, _place_of(error) + inside, f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}",
                f"a graph cannot branch on values or sizes of tensors: use a function under torch.fx.wrap, or {_NOT_TRACED}",
            ) from error  # fmt: skip
        if _random_state() != before:
            raise _error(
                net, "its forward", "Python or numpy draws random numbers, which a graph would freeze",
                _NOT_TRACED,
            )  # fmt: skip
    _check_frozen_at_call(graph, frozen)
    return graph


class _Tracer(fx.Tracer):
    """fx's tracer: layers are leaves, `x += y` stays in place, no tensor becomes a constant, every node knows its line."""

    proxy_buffer_attributes = True

    def __init__(self) -> None:
        super().__init__()
        self.innermost: nn.Module | None = None

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        kind = type_before_parametrizations(m)
        if isinstance(m, _LAYERS) or not any(isinstance(inner, _SOUGHT) for inner in m.modules()):
            return True
        return f"{kind.__module__}.".startswith(_PACKAGES) and not isinstance(m, nn.Sequential)

    def call_module(self, m: nn.Module, forward: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        outer, self.innermost = self.innermost, m
        result = super().call_module(m, forward, args, kwargs)
        self.innermost = outer  # not after an exception: then it says where
        return result

    def proxy(self, node: fx.Node) -> fx.Proxy:
        return _Proxy(node, self)

    def create_node(self, *args: Any, **kwargs: Any) -> fx.Node:
        node = super().create_node(*args, **kwargs)
        node.meta["where"] = _place_of_caller()
        return node

    def create_arg(self, a: Any) -> Any:
        if isinstance(a, Tensor) and not isinstance(a, nn.Parameter) and self.tensor_attrs.get(a) is None:
            raise _error(self.root, _place_of_caller(), "a tensor that is no part of the network", "register it as a buffer")
        return super().create_arg(a)


class _NoTensors(TorchFunctionMode):
    """Raises where `forward` makes a tensor that does not follow from its input."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if isinstance(result, Tensor):
            raise _error(
                self.net, _place_of_caller(), f"{getattr(func, '__name__', func)} makes a tensor that a graph would freeze",
                f"compute it from the input (x.new_zeros, torch.rand_like(x)), register it as a buffer, or {_NOT_TRACED}",
            )  # fmt: skip
        return result


class _Proxy(fx.Proxy):
    """A Proxy for which `x += y` is in place: fx takes it for x = x + y, and what else holds x would miss the change."""


def _add_inplace_operator(name: str) -> Callable[[Any, Any], Any]:
    in_place = getattr(operator, name)

    # Not the operator itself: fx writes that as a statement, which would rebind the name of x where x is a number.
    def function(x: Any, y: Any) -> Any:
        return in_place(x, y)

    function.__name__ = function.__qualname__ = f"_{name}"
    globals()[f"_{name}"] = function

    def method(self: fx.Proxy, other: Any) -> fx.Proxy:
        return self.tracer.create_proxy("call_function", function, (self, other), {})

    setattr(_Proxy, f"__{name}__", method)
    return function


_INPLACE = {
    name: _add_inplace_operator(name)
    for name in ("iadd", "isub", "imul", "itruediv", "ifloordiv", "imod", "ipow", "iand", "ior", "ixor", "imatmul")
}
INPLACE_ADD = _INPLACE["iadd"]


def _frozen_arguments(net: nn.Module) -> dict[str, Any]:
    """The arguments of `forward` that can only mean a choice between graphs. Numbers may be part of the arithmetic."""
    parameters = inspect.signature(type(net).forward).parameters.values()
    return {p.name: p.default for p in parameters if p.default is None or isinstance(p.default, bool | str)}


def expect_default(name: str, value: Any, default: Any) -> None:
    """Part of the traced code: raises ValueError unless the argument has the value it was traced with."""
    if value is not default and (default is None or value != default):
        got = repr(value) if isinstance(value, bool | int | float | str) else type(value).__name__
        raise ValueError(
            f"forward: {name}: expected its default {default!r}, got {got}: with ghosts the network is the graph of its defaults"
        )


def _check_frozen_at_call(graph: fx.Graph, frozen: dict[str, Any]) -> None:
    """Gives the frozen arguments their own names back and checks of our own."""
    for node in graph.nodes:
        node.type = None  # annotations may be strings that mean nothing where the code is compiled
    placeholders = [node for node in graph.nodes if node.op == "placeholder"]
    for node in placeholders:
        name = str(node.target)[: -len("_1")]
        if str(node.target) in frozen or not str(node.target).endswith("_1") or name not in frozen:
            continue
        for user in list(node.users):
            for check in list(user.users):
                graph.erase_node(check)
            graph.erase_node(user)
        node.target = name
        with graph.inserting_after(placeholders[-1]):
            graph.call_function(expect_default, (name, node, frozen[name]))


def _check_hooks(net: nn.Module) -> None:
    """The modules that the graph replaces by what they call must have no hooks."""
    tracer = _Tracer()
    for name, module in net.named_modules():
        hooks = (module._forward_pre_hooks, module._forward_hooks, module._backward_pre_hooks, module._backward_hooks)
        if module is not net and any(hooks) and not tracer.is_leaf_module(module, name) and not _inside_leaf(tracer, net, name):
            raise Untraceable(
                f"add_ghosts: net: expected no hooks on {name!r} ({type(module).__name__}): what is inside is called without it "
                "while the ghosts live, so its hooks would not run; remove them first, or put them on the layers inside"
            )


def _inside_leaf(tracer: _Tracer, net: nn.Module, name: str) -> bool:
    parts = name.split(".")
    outer = [".".join(parts[:i]) for i in range(1, len(parts))]
    return any(tracer.is_leaf_module(net.get_submodule(path), path) for path in outer)


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
def _put_back(net: nn.Module) -> Iterator[Callable[[], None]]:
    """Restores the attributes of every module after the `with`; inside, the function it gives raises if one has changed."""
    saved = [
        (name, module, {key: (value, _members(value)) for key, value in vars(module).items()})
        for name, module in net.named_modules()
    ]

    def check() -> None:
        for name, module, attributes in saved:
            now = vars(module)
            for key in sorted(now.keys() | attributes.keys()):
                before, members = attributes.get(key, (None, None))
                if key != "training" and not (now.get(key) is before and _same_members(before, members)):
                    place = f"{repr(name) if name else 'its root'} ({type(module).__name__})"
                    raise _error(
                        net, place, f"forward changes the attribute {key!r}",
                        "a graph would not: return the value, or use a forward hook on a layer",
                    )  # fmt: skip

    try:
        yield check
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


def _ours(file: str) -> bool:
    return file == __file__ or file.startswith(_TORCH) or file.endswith(("contextlib.py", "<eval_with_key>"))


_TORCH = str(inspect.getfile(torch))[: -len("__init__.py")]


def _place_of_caller() -> str:
    frame: FrameType | None = sys._getframe(1)
    while frame is not None and frame.f_code is not _trace_once.__code__:
        if not _ours(frame.f_code.co_filename):
            return f"{frame.f_code.co_filename}:{frame.f_lineno}"
        frame = frame.f_back
    return "its forward"


def _place_of(error: BaseException) -> str:
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if not _ours(frame.filename)]
    return f"{frames[-1].filename}:{frames[-1].lineno}" if frames else "its forward"
