"""The network's forward pass in evaluation mode as a graph, by torch.fx, or an error that says why there is none."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any, NoReturn

from torch import fx, nn
from torch._dynamo import OptimizedModule
from torch.nn.modules.lazy import LazyModuleMixin
from torch.optim.swa_utils import AveragedModel

from tost.ghosts.wire import Rewired
from tost.shrinking.layers import is_mixer, is_norm
from tost.tracer import Tracer, Untraceable
from tost_kernels.nn import SparseModule

__all__ = ["Graph", "Untraceable", "check_modules", "graph_of"]

_PACKAGES = ("torch.nn.", "torch.ao.nn.", "tost_kernels.nn.")
# What holds a network, and the attribute where.
_WRAPPERS = {
    nn.DataParallel: "module",
    nn.parallel.DistributedDataParallel: "module",
    AveragedModel: "module",
    OptimizedModule: "_orig_mod",
}
_ADVICE = (
    "nothing was removed. A graph cannot branch on values or sizes of tensors, nor assign to parts of them: put such code into a "
    "function under torch.fx.wrap, whose channels then stay"
)


class Graph:
    """code: runs the network. arguments: of it, in order. reads: path of a module -> its attributes that forward reads."""

    def __init__(self, code: fx.GraphModule, arguments: list[Any], reads: Mapping[str, Mapping[str, Any]]) -> None:
        self.code = code
        self.arguments = arguments
        self.reads = reads


class _Tracer(Tracer):
    """Looks into every module of the user's."""

    subject = "shrink: model"

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        if isinstance(m, nn.Sequential | nn.ModuleList | nn.ModuleDict):
            return False
        return is_mixer(m) or is_norm(m) or isinstance(m, SparseModule) or f"{type(m).__module__}.".startswith(_PACKAGES)

    def refuse(self, what: str, todo: str, *, place: str | None = None, cause: BaseException | None = None) -> NoReturn:
        super().refuse(what, _ADVICE, place=place, cause=cause)


def graph_of(net: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Graph:
    """The graph of `net`, a private copy in evaluation mode, for a call with these arguments.

    Arguments of forward that are not given are fixed at their defaults; so are numbers, bools, strings and None that are given.

    Raises:
        Untraceable: (a ValueError) there is none; the message names the place in the user's code.
        TypeError: forward does not take these arguments.
    """
    try:
        bound = inspect.signature(net.forward).bind(*args, **kwargs)
    except TypeError as error:
        raise TypeError(f"example_input: forward of {type(net).__name__} does not take it: {error}") from error
    bound.apply_defaults()
    kinds = [parameter.kind for parameter in inspect.signature(net.forward).parameters.values()]
    if any(kind in (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD) for kind in kinds):
        raise Untraceable(
            f"shrink: model: expected a network that torch.fx can trace, got {type(net).__name__}, whose forward takes *args or "
            "**kwargs; name its arguments"
        )
    fixed = {
        name: value for name, value in bound.arguments.items() if value is None or isinstance(value, bool | int | float | str)
    }
    tracer = _Tracer(net, training=False)
    graph = tracer.run(fixed)
    buffers: dict[str, Any] = dict(net.named_buffers())
    assigned = next((name for name, buffer in buffers.items() if isinstance(buffer, fx.Proxy)), None)
    if assigned is not None:
        what = f"an assignment to the buffer {assigned!r}, which a graph would lose; write into it in place, as add_ does"
        tracer.refuse(what, "", place="its forward")
    return Graph(fx.GraphModule(net, graph), list(bound.arguments.values()), tracer.reads)


def check_modules(net: nn.Module) -> None:
    """Raises TypeError or ValueError for modules that a graph would call in another way, or not at all."""
    for name, module in net.named_modules():
        inner = next((inner for wrapper, inner in _WRAPPERS.items() if isinstance(module, wrapper)), None)
        if inner is not None:
            path = f"model.{name}" if name else "model"
            raise TypeError(
                f"shrink: {path}: {type(module).__name__} only wraps the network: use {path}.{inner}, and wrap the result"
            )
        label = f"{name!r} ({type(module).__name__})" if name else f"{type(module).__name__}"
        if isinstance(module, Rewired):
            raise ValueError(f"shrink: model: {label} has ghosts or fused tails: use tost.finalize(model) first")
        if isinstance(module, LazyModuleMixin) and module.has_uninitialized_params():  # type: ignore[misc]
            raise ValueError(f"shrink: model: {label} has no weight yet: run one batch through the network first")
        if any(t.is_meta for t in (*module._parameters.values(), *module._buffers.values()) if t is not None):
            raise ValueError(f"shrink: model: {label} is on the device meta, without numbers: load its weights first")
        hooks = (module._forward_pre_hooks, module._forward_hooks)
        if any(hooks) and not (is_mixer(module) or is_norm(module)):
            raise ValueError(f"shrink: model: expected no hooks on {label}, which a graph does not show: remove them first")
        if "forward" in vars(module):
            raise ValueError(f"shrink: model: {label}: forward is an attribute of the instance: define it in the class")
