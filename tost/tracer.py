"""torch.fx's tracer, made to keep what a graph can keep and to refuse, with the place, what it cannot.

Ghosts are wired into its graphs (`tost.ghosts`), dead filters are found in them (`tost.shrinking`).
"""

from __future__ import annotations

import inspect
import math
import operator
import sys
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any, ClassVar, NoReturn

import torch
from torch import Tensor, fx, nn
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves

import tost_kernels

__all__ = ["INPLACE", "INPLACE_ADD", "NOT_TRACED", "PLAIN", "Flag", "Tracer", "Untraceable", "where"]

NOT_TRACED = "move this code into a module without Conv2d, BatchNorm2d and ReLU, which is not traced"
# Attributes of these types are read once, by the trace, where forward reads them.
PLAIN = (bool, int, float, str, type(None))
_OF_EVERY_MODULE = frozenset(dir(nn.Module()))
_TORCH = str(inspect.getfile(torch))[: -len("__init__.py")]


class Untraceable(ValueError):
    """The network's forward pass is no fixed graph, or none in which an op may be replaced by one that is not in place."""


class Flag(int):
    """The attribute `training` of the module at `path`, for as long as nothing is computed from it."""

    path: str


def where(node: fx.Node) -> str:
    """The file and line that `node` comes from."""
    return "its return" if node.op == "output" else str(node.meta.get("where", "its forward"))


class Tracer(fx.Tracer):
    """Traces `net` in one mode. Layers are leaves, `x += y` stays in place, every node knows its line.

    An autograd.Function and the functions of tost_kernels are one node each. What would be frozen or lost raises Untraceable:
    tensors made in forward, and contexts like no_grad and autocast.

    Args:
        training: the mode of all modules. What forward may ask or change besides differs too: gradients and autocast are on
            only in training.
        flags: whether forward gets its modes as Flags, which tell in the graph whose they were.
    """

    proxy_buffer_attributes = True
    subject: ClassVar[str]  # function and argument in whose name it refuses: "add_ghosts: net"

    def __init__(self, net: nn.Module, training: bool, flags: bool = False) -> None:
        super().__init__(autowrap_modules=(math, tost_kernels))  # type: ignore[arg-type]
        self.net = net
        self.training = training
        self.flags = flags
        # Path of a module -> attribute -> value, of the plain attributes that forward has read.
        self.reads: dict[str, dict[str, Any]] = {}
        self.reads_mode = False
        self.innermost: nn.Module | None = None

    def run(self, frozen: dict[str, Any]) -> fx.Graph:
        """The graph, with the arguments `frozen` at these values."""
        for module in self.net.modules():
            module.training = self.training
        modes = torch.set_grad_enabled(self.training), _autocast(self.training)
        with modes[0], modes[1], _functions_are_leaves(self), _NoTensors(self), _reads_seen(self):
            try:
                return self.trace(self.net, concrete_args=frozen)
            except Untraceable:
                raise
            except Exception as error:
                frames = [frame for frame in traceback.extract_tb(error.__traceback__) if not _not_the_users(frame.filename)]
                place = f"{frames[-1].filename}:{frames[-1].lineno}" if frames else "its forward"
                inside = f" in {type(self.innermost).__name__}" if self.innermost is not None else ""
                first_line = str(error).splitlines()[0] if str(error) else ""
                self.refuse(
                    f"{type(error).__name__}: {first_line}",
                    f"a graph cannot branch on values or sizes of tensors: use a function under torch.fx.wrap, or {NOT_TRACED}",
                    place=place + inside,
                    cause=error,
                )

    def refuse(self, what: str, todo: str, *, place: str | None = None, cause: BaseException | None = None) -> NoReturn:
        """Raises Untraceable; `place` is by default where the user's code is now."""
        kind = type(self.net).__name__
        raise Untraceable(
            f"{self.subject}: expected a network that torch.fx can trace, got {kind}: {place or _place()}: {what}; {todo}"
        ) from cause

    def call_module(self, m: nn.Module, forward: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        outer, self.innermost = self.innermost, m
        result = super().call_module(m, forward, args, kwargs)
        self.innermost = outer  # not after an exception: then it says where
        return result

    def proxy(self, node: fx.Node) -> fx.Proxy:
        # torch's own functions believe what passes for a tensor, and crash where a size does
        return fx.Proxy(node, self) if _is_size(node) else _Proxy(node, self)

    def create_node(self, *args: Any, **kwargs: Any) -> fx.Node:
        modes = (torch.is_grad_enabled(), torch.is_autocast_enabled("cpu"), torch.is_autocast_enabled("cuda"))
        if modes != (self.training,) * 3:
            self.refuse("a context of gradients or autocast, which a graph would lose", NOT_TRACED)
        node = super().create_node(*args, **kwargs)
        node.meta["where"] = _place()
        return node

    def create_arg(self, a: Any) -> Any:
        if isinstance(a, Tensor) and not isinstance(a, nn.Parameter) and self.tensor_attrs.get(a) is None:
            self.refuse("a tensor that is no part of the network", "register it as a buffer")
        return super().create_arg(a)


def _is_size(node: fx.Node) -> bool:
    """Whether a value is made of nothing but the sizes of tensors."""
    if node.op == "call_method" and node.target in ("size", "dim", "numel", "ndimension"):
        size = True
    elif node.op == "call_function" and node.target is getattr:
        size = node.args[1] in ("shape", "ndim")
    else:
        inputs = node.all_input_nodes
        size = node.op == "call_function" and bool(inputs) and all(source.meta.get("size", False) for source in inputs)
    node.meta["size"] = size
    return size


class _Proxy(fx.Proxy):
    """The stand-in for a tensor.

    `x += y` is in place: fx takes it for x = x + y, and what else holds x would miss the change.
    """

    @property  # type: ignore[misc]
    def __class__(self) -> type:
        """To the user's code it is a tensor, so that isinstance(x, Tensor) takes the way it takes without tracing."""
        return type(self) if _not_the_users(sys._getframe(1).f_code.co_filename) else Tensor


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


INPLACE = {
    name: _add_inplace_operator(name)
    for name in ("iadd", "isub", "imul", "itruediv", "ifloordiv", "imod", "ipow", "iand", "ior", "ixor", "imatmul")
}
INPLACE_ADD = INPLACE["iadd"]


class _NoTensors(TorchFunctionMode):
    """Refuses tensors that do not follow from the input."""

    def __init__(self, tracer: Tracer) -> None:
        super().__init__()
        self.tracer = tracer

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if isinstance(result, Tensor):
            self.tracer.refuse(
                f"{getattr(func, '__name__', func)} makes a tensor that a graph would freeze",
                f"compute it from the input (x.new_zeros, torch.rand_like(x)), register it as a buffer, or {NOT_TRACED}",
            )
        return result


@contextmanager
def _functions_are_leaves(tracer: Tracer) -> Iterator[None]:
    """Makes `Function.apply` one node: looked into, its own backward pass would be lost."""
    original = torch.autograd.Function.__dict__["apply"]

    def apply(cls: type[torch.autograd.Function], *args: Any, **kwargs: Any) -> Any:
        def call(*args: Any, **kwargs: Any) -> Any:
            return original.__get__(None, cls)(*args, **kwargs)

        call.__name__ = call.__qualname__ = f"apply_{cls.__name__}"
        if any(isinstance(leaf, fx.Proxy) for leaf in tree_leaves((args, kwargs))):
            return tracer.create_proxy("call_function", call, args, kwargs)
        return call(*args, **kwargs)

    torch.autograd.Function.apply = classmethod(apply)  # type: ignore[method-assign, assignment]
    try:
        yield
    finally:
        torch.autograd.Function.apply = original  # type: ignore[method-assign]


@contextmanager
def _reads_seen(tracer: Tracer) -> Iterator[None]:
    """Tells the tracer which plain attributes of the network's modules are read."""
    paths = {id(module): path for path, module in tracer.net.named_modules()}

    def read(module: nn.Module, name: str) -> Any:
        value = object.__getattribute__(module, name)
        if not isinstance(value, PLAIN) or id(module) not in paths:
            return value
        path = paths[id(module)]
        if name == "training":
            tracer.reads_mode = True
            if tracer.flags:
                value = Flag(bool(value))
                value.path = path
        elif name not in _OF_EVERY_MODULE:
            of_instance = name in object.__getattribute__(module, "__dict__")
            if of_instance or getattr(type(module), name, module) is value:  # a property may change by itself
                tracer.reads.setdefault(path, {})[name] = value
        return value

    nn.Module.__getattribute__ = read  # type: ignore[method-assign, assignment]
    try:
        yield
    finally:
        del nn.Module.__getattribute__


@contextmanager
def _autocast(enabled: bool) -> Iterator[None]:
    before = {kind: torch.is_autocast_enabled(kind) for kind in ("cpu", "cuda")}
    try:
        for kind in before:
            torch.set_autocast_enabled(kind, enabled)
        yield
    finally:
        for kind, state in before.items():
            torch.set_autocast_enabled(kind, state)


def _not_the_users(file: str) -> bool:
    return file == __file__ or file.startswith(_TORCH) or file.endswith(("contextlib.py", "<eval_with_key>"))


def _place() -> str:
    """The file and line of the innermost frame of the user's code."""
    frame: FrameType | None = sys._getframe(1)
    while frame is not None and frame.f_code is not Tracer.run.__code__:
        if not _not_the_users(frame.f_code.co_filename):
            return f"{frame.f_code.co_filename}:{frame.f_lineno}"
        frame = frame.f_back
    return "its forward"
