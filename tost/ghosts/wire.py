"""Rewriting a network's graph, and giving the network the rewritten forward pass until `unwire` takes it back.

The network's class becomes a subclass of its own class whose `forward` is the code of the graph. Nothing else of it changes: its
modules, names, hooks and methods stay, and what is added lives in one place, its ModuleDict `ghosts`.
"""

from __future__ import annotations

import copy
import inspect
from collections.abc import Iterator
from typing import Any, NamedTuple

from torch import fx, nn

from tost.ghosts.branch import Ghost, GhostSwish
from tost.ghosts.joints import Joint, input_of
from tost.ghosts.trace import Trace
from tost.recipe import Recipe
from tost.tracer import NOT_TRACED, PLAIN

__all__ = ["GHOSTS", "Rewired", "check_attributes", "unwire", "wire"]

GHOSTS = "ghosts"


class Wiring(NamedTuple):
    """The class that a network had before, the recipe of its ghosts, and the attributes that its graph has frozen."""

    plain_class: type[nn.Module]
    recipe: Recipe
    attributes: dict[str, dict[str, Any]]


class Rewired:
    """What every network that has ghosts is, beside its own class."""

    _wiring: Wiring  # of the class: instance attributes are the user's

    def __deepcopy__(self, memo: dict[int, Any]) -> Any:
        copied = type(self).__new__(type(self))
        memo[id(self)] = copied
        vars(copied).update(copy.deepcopy(vars(self), memo))
        return copied

    def __reduce_ex__(self, protocol: Any) -> Any:
        raise RuntimeError(
            f"a {self._wiring.plain_class.__name__} with ghosts cannot be pickled, as its class exists in this program only: "
            "save its state_dict(), or finalize it first"
        )


class RewiredSequential(Rewired):
    """The ghosts of an nn.Sequential are none of its items."""

    _modules: dict[str, nn.Module]

    def __iter__(self) -> Iterator[nn.Module]:
        return (module for name, module in self._modules.items() if name != GHOSTS)

    def __len__(self) -> int:
        return sum(1 for _ in self)


def wire(net: nn.Module, traced: Trace, recipe: Recipe, joints: list[Joint], swishes: list[fx.Node]) -> None:
    """Puts the ghosts into the graph, which is changed, and `net`."""
    graph = traced.graph
    modules = dict(net.named_modules(remove_duplicate=False))
    ghosts = nn.ModuleDict()
    firsts: dict[nn.Module | None, Ghost] = {}
    for joint in joints:
        head = joint.conv or joint.norm
        assert head is not None
        across = modules[str(joint.conv.target)] if joint.conv is not None and joint.has_ghost else None
        layer = modules[str(head.target)]
        ghost = Ghost(recipe, across, joint.act is not None, _device_of(layer), firsts.get(across), joint.keeps_dtype_of)
        if across is not None:
            firsts.setdefault(across, ghost)
        name = _new_name(ghosts, str(head.target))
        ghosts[name] = ghost.train(layer.training)
        _replace(graph, joint, f"{GHOSTS}.{name}")
    for node in swishes:
        name = _new_name(ghosts, str(node.target) if node.op == "call_module" else node.name)
        ghosts[name] = GhostSwish(recipe, _device_of(net)).train(net.training)
        with graph.inserting_before(node):
            new = graph.call_module(f"{GHOSTS}.{name}", (input_of(node),))
        node.replace_all_uses_with(new)
        graph.erase_node(node)
    ghosts.training = net.training
    net.add_module(GHOSTS, ghosts)
    plain_class = type(net)
    forward = type(fx.GraphModule(net, graph)).forward
    forward.__signature__ = inspect.signature(plain_class.forward)  # type: ignore[attr-defined]
    members = {"forward": forward, "_wiring": Wiring(plain_class, recipe, traced.attributes), "__doc__": plain_class.__doc__}
    rewired = RewiredSequential if issubclass(plain_class, nn.Sequential) else Rewired
    net.__class__ = type(f"Ghosted{plain_class.__name__}", (rewired, plain_class), members)


def check_attributes(net: nn.Module) -> None:
    """Raises ValueError if an attribute that the trace has read was changed since; `net` is a Rewired network."""
    assert isinstance(net, Rewired)
    for path, attributes in net._wiring.attributes.items():
        module = net.get_submodule(path)
        for name, value in attributes.items():
            now = getattr(module, name, None)
            if now is not value and not (isinstance(now, PLAIN) and now == value):
                place = f"{path or 'the root'!r} ({_kind(module)})"
                got = repr(now) if isinstance(now, PLAIN) else type(now).__name__
                raise ValueError(
                    f"set_strength: net: expected the attribute {name!r} of {place} to stay {value!r}, got {got}: "
                    f"forward read it when the ghosts were added; finalize the network and add them anew, or {NOT_TRACED}"
                )


def _kind(module: nn.Module) -> str:
    kind = module._wiring.plain_class if isinstance(module, Rewired) else type(module)
    return kind.__name__


def unwire(net: nn.Module) -> None:
    """The plain network again: the same modules and parameters, without what `wire` added."""
    wiring = vars(type(net)).get("_wiring")
    if wiring is None:
        raise ValueError(
            f"finalize: net: its class was changed to {type(net).__name__} after add_ghosts; undo that first (as with "
            "torch.nn.utils.parametrize.remove_parametrizations)"
        )
    del net._modules[GHOSTS]
    net.__class__ = wiring.plain_class


def _replace(graph: fx.Graph, joint: Joint, target: str) -> None:
    """The nodes of a joint become one call, at the first place where all its inputs are there."""
    first = joint.add or joint.norm or joint.act
    place = graph.inserting_before(first) if first is not None else graph.inserting_after(joint.end)
    end = joint.end
    users = list(end.users)
    with place:
        kwargs: dict[str, Any] = {}
        if joint.has_ghost and joint.conv is not None:
            kwargs["x"] = input_of(joint.conv)
        u = input_of(joint.norm) if joint.norm is not None else joint.conv
        if joint.norm is not None:
            kwargs["norm"] = graph.create_node("get_attr", str(joint.norm.target))
        if joint.add is not None:
            kwargs["shortcut"] = joint.add.args[1 - joint.main]
        if joint.shortcut_norm is not None:
            kwargs["shortcut"] = input_of(joint.shortcut_norm)
            kwargs["shortcut_norm"] = graph.create_node("get_attr", str(joint.shortcut_norm.target))
        new = graph.call_module(target, (u,), kwargs)
    for user in users:
        user.replace_input_with(end, new)
    for node in joint.replaced:
        graph.erase_node(node)


def _device_of(module: nn.Module) -> Any:
    return next((tensor.device for tensor in (*module.parameters(), *module.buffers())), None)


def _new_name(taken: nn.ModuleDict, path: str) -> str:
    """`path` as a name in a ModuleDict; a second one of the same path gets a number."""
    name = stem = path.replace(".", "_") or "root"
    count = 1
    while name in taken or hasattr(taken, name):
        count += 1
        name = f"{stem}_{count}"
    return name
