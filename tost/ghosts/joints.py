"""Where the ghosts of a network belong: its graph -> joints, each the tail of a convolution or BatchNorm.

    convolution -> [BatchNorm2d] -> [+ shortcut, whose last step may be a BatchNorm2d] -> [ReLU]

Everything behind the convolution is one op (`tost.ghosts.branch.Ghost`) where each value in between is used once.
"""

from __future__ import annotations

import operator
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import fx, nn
from torch.nn.utils.parametrize import type_before_parametrizations

from tost.ghosts.branch import FUSABLE
from tost.recipe import Recipe
from tost.tracer import INPLACE_ADD, Untraceable, where
from tost_kernels.nn import Conv2d, SparseConv2d, SparseModule

__all__ = ["Joint", "convs_of_their_own", "find_joints", "find_swishes", "input_of", "relus_that_stay", "settle_inplace"]

# Convolutions whose every output pixel is known to lie above which input pixel; a subclass may pad or widen its input first.
_CONV_FORWARDS = (nn.Conv2d.forward, Conv2d.forward, SparseConv2d.forward)
_RELU_FUNCTIONS = {F.relu, F.relu_, torch.relu, torch.relu_}
_ADD_FUNCTIONS = {operator.add, torch.add, INPLACE_ADD}
_INPLACE_ADDS = (INPLACE_ADD, "add_")
# Calls whose result shares no memory with their arguments; any other may return its argument, or a view of it.
_NEW_FUNCTIONS = {
    operator.add, operator.sub, operator.mul, operator.truediv, torch.add, torch.sub, torch.mul, torch.cat, torch.matmul,
    torch.mean, torch.sigmoid, F.conv2d, F.linear, F.avg_pool2d, F.adaptive_avg_pool2d,
}  # fmt: skip
_NEW_METHODS = {"size", "dim", "numel", "clone", "add", "sub", "mul", "div", "mean", "sum", "sigmoid", "matmul"}
_NEW_ATTRIBUTES = {"shape", "ndim", "device", "dtype"}
_NEW_MODULES = (
    nn.Conv2d, nn.ConvTranspose2d, nn.Linear, SparseModule, nn.modules.batchnorm._NormBase, nn.GroupNorm, nn.LayerNorm,
    nn.modules.pooling._MaxPoolNd, nn.modules.pooling._AvgPoolNd, nn.modules.pooling._AdaptiveAvgPoolNd,
    nn.modules.pooling._AdaptiveMaxPoolNd, nn.GELU, nn.SiLU, nn.Sigmoid, nn.Tanh,
)  # fmt: skip


@dataclass(frozen=True)
class Joint:
    """One fused tail, by the nodes of the graph that it takes the place of, and the convolution that it has a ghost across.

    conv: the convolution whose result enters, None where it is another value. norm, add, act: the BatchNorm2d behind it, the
    sum with a shortcut, the ReLU; None where there is none. main: which operand of `add` the convolution's result is, 0 or 1.
    shortcut_norm: the last step of the shortcut, where that is a BatchNorm2d.
    """

    conv: fx.Node | None
    norm: fx.Node | None
    add: fx.Node | None = None
    main: int = 0
    shortcut_norm: fx.Node | None = None
    act: fx.Node | None = None
    has_ghost: bool = False

    @property
    def end(self) -> fx.Node:
        """The node whose value the tail computes."""
        end = self.act or self.add or self.norm or self.conv
        assert end is not None
        return end

    @property
    def keeps_dtype_of(self) -> str | None:
        """The argument of `Ghost` whose dtype the result has, as the sum is in place: "u" or "shortcut"; None where it is not."""
        if self.add is None or self.add.target not in _INPLACE_ADDS:
            return None
        return "shortcut" if self.main else "u"

    @property
    def replaced(self) -> list[fx.Node]:
        """The nodes that the tail computes, the last one first."""
        return [node for node in (self.act, self.add, self.shortcut_norm, self.norm) if node is not None]

    @property
    def pays(self) -> bool:
        """Whether fusing saves a pass over memory."""
        return len(self.replaced) > 1


def input_of(node: fx.Node) -> fx.Node | None:
    """The tensor that a module or activation is called on; None where it is no value of the graph."""
    found: Any = node.args[0] if node.args else node.kwargs.get("input")
    return found if isinstance(found, fx.Node) else None


def find_joints(graph: fx.Graph, modules: Mapping[str, nn.Module], recipe: Recipe) -> list[Joint]:
    """The joints of a graph that `settle_inplace` has seen, in the order of their ends; those without a ghost where they pay."""
    look = _Look(graph, modules)
    order = {node: place for place, node in enumerate(graph.nodes)}
    branches = {branch.end: branch for branch in look.branches(recipe)}
    joints: dict[fx.Node, Joint] = {}
    swallowed: set[fx.Node] = set()
    for end, branch in branches.items():
        joint = branch
        add = look.next(end)
        operands = look.operands(add) if add is not None else None
        if add is not None and operands is not None and operands[0] is not operands[1]:
            main = operands.index(end)
            other = branches.get(operands[1 - main])
            if other is None or look.next(other.end) is not add or (branch.has_ghost, -main) > (other.has_ghost, main - 1):
                norm = other.norm if other is not None and look.next(other.end) is add and not other.has_ghost else None
                joint = replace(branch, add=add, main=main, shortcut_norm=norm)
                if norm is not None:
                    swallowed.add(norm)
        following = look.next(joint.end)
        if following is not None and look.is_relu(following):
            joint = replace(joint, act=following)
        joints[end] = joint
    kept = [
        joint
        for end, joint in joints.items()
        if end not in swallowed and (joint.has_ghost or joint.pays or (recipe.ghost_swish and joint.act is not None))
    ]
    for joint in kept:
        _check_aliases(graph, joint.replaced, look)
    return sorted(kept, key=lambda joint: order[joint.end])


def find_swishes(graph: fx.Graph, modules: Mapping[str, nn.Module], joints: list[Joint]) -> list[fx.Node]:
    """The ReLUs that no joint computes."""
    look = _Look(graph, modules)
    taken = {joint.act for joint in joints}
    found = [node for node in graph.nodes if look.is_relu(node) and node not in taken]
    _check_aliases(graph, found, look)
    return found


def convs_of_their_own(graph: fx.Graph, modules: Mapping[str, nn.Module]) -> list[nn.Module]:
    """The convolutions that would have a ghost skip, did they not compute something else than their base class."""
    look = _Look(graph, modules)
    found = {look.module(node): None for node in graph.nodes if look.is_spatial(node) and not look.may_have_ghost(node)}
    return [conv for conv in found if conv is not None]


def relus_that_stay(graph: fx.Graph, modules: Mapping[str, nn.Module], joints: list[Joint], swishes: list[fx.Node]) -> list[str]:
    """The names of the nn.ReLU modules that run, but not as nodes that `joints` or `swishes` replace: most are inside layers."""
    replaced = {*swishes, *(joint.act for joint in joints)}
    left = [str(node.target) for node in graph.nodes if node.op == "call_module" and node not in replaced]
    found = {
        inner: f"{path}.{name}".rstrip(".")
        for path in left
        for name, inner in modules[path].named_modules()
        if isinstance(inner, nn.ReLU)
    }
    return list(found.values())


def settle_inplace(graph: fx.Graph, modules: Mapping[str, nn.Module]) -> None:
    """Makes the uses of a tensor behind an in-place ReLU or sum uses of its result, which they are.

    Then the op may be replaced by one that is not in place. The network computes the same.
    """
    look = _Look(graph, modules)
    for node in graph.nodes:
        if look.changes_its_input(node):
            changed = node.args[0] if node.args else node.kwargs["input"]
            after = _after(node)
            changed.replace_all_uses_with(node, delete_user_cb=lambda user, after=after: user in after)


class _Look:
    """What the nodes of a graph are."""

    def __init__(self, graph: fx.Graph, modules: Mapping[str, nn.Module]) -> None:
        self.graph = graph
        self.modules = modules
        self.calls = Counter(modules[str(node.target)] for node in graph.nodes if node.op == "call_module")

    def module(self, node: fx.Node) -> nn.Module | None:
        return self.modules[str(node.target)] if node.op == "call_module" else None

    def next(self, node: fx.Node) -> fx.Node | None:
        """The only use of a value, None where there are more: then it must exist."""
        return next(iter(node.users)) if len(node.users) == 1 else None

    def branches(self, recipe: Recipe) -> list[Joint]:
        """Every convolution with the BatchNorm behind it, and every other BatchNorm."""
        found = []
        taken: set[fx.Node] = set()
        for node in self.graph.nodes:
            if isinstance(self.module(node), nn.Conv2d | SparseConv2d) and input_of(node) is not None:
                norm = self.next(node)
                norm = norm if norm is not None and self.is_norm(norm) else None
                taken |= {norm} if norm is not None else set()
                found.append(Joint(node, norm, has_ghost=recipe.ghost_skip and self.may_have_ghost(node)))
            elif self.is_norm(node) and node not in taken:
                found.append(Joint(None, node))
        return found

    def may_have_ghost(self, node: fx.Node) -> bool:
        """Whether `node` is a spatial convolution of a known kind."""
        conv = self.module(node)
        if not self.is_spatial(node) or conv is None or "forward" in vars(conv):
            return False
        kind = type_before_parametrizations(conv)
        own_core = getattr(kind, "_conv_forward", None) not in (None, nn.Conv2d._conv_forward)
        return getattr(kind, "forward", None) in _CONV_FORWARDS and not own_core

    def is_spatial(self, node: fx.Node) -> bool:
        """Whether `node` is a convolution with a kernel larger than 1x1 that does not read the network's input."""
        conv = self.module(node)
        if not isinstance(conv, nn.Conv2d | SparseConv2d) or input_of(node) is None:
            return False
        return tuple(conv.kernel_size) != (1, 1) and self.is_behind_weights(node)

    def is_behind_weights(self, node: fx.Node) -> bool:
        """Whether a layer with weights lies between the network's input and what `node` reads."""
        seen, front = {node}, [node]
        while front:
            for source in front.pop().all_input_nodes:
                module = self.module(source)
                if isinstance(module, SparseModule) or (module is not None and any(p.dim() > 1 for p in module.parameters())):
                    return True
                if source not in seen:
                    seen.add(source)
                    front.append(source)
        return False

    def is_norm(self, node: fx.Node) -> bool:
        """Whether `node` is a BatchNorm2d that a tail can compute: no subclass, called once, without hooks."""
        module = self.module(node)
        if module is None or type(module) not in FUSABLE or _has_hooks(module):
            return False
        return self.calls[module] == 1 and input_of(node) is not None

    def is_relu(self, node: fx.Node) -> bool:
        """Whether `node` is a ReLU, in whatever form."""
        if input_of(node) is None:
            return False
        if node.op == "call_module":
            module = self.module(node)
            return type(module) is nn.ReLU and not _has_hooks(module)
        if node.op == "call_function":
            return node.target in _RELU_FUNCTIONS
        return node.op == "call_method" and node.target in ("relu", "relu_")

    def operands(self, node: fx.Node) -> tuple[fx.Node, fx.Node] | None:
        """The two summands where `node` is a plain sum of two tensors of the graph."""
        is_add = node.target in _ADD_FUNCTIONS if node.op == "call_function" else False
        is_add = is_add or (node.op == "call_method" and node.target in ("add", "add_"))
        if not is_add or len(node.args) != 2 or node.kwargs:
            return None
        first, second = node.args
        if isinstance(first, fx.Node) and isinstance(second, fx.Node):
            return first, second
        return None

    def changes_its_input(self, node: fx.Node) -> bool:
        """Whether `node` is an in-place ReLU, or an in-place sum with the result of a convolution or BatchNorm."""
        if self.is_relu(node):
            module = self.module(node)
            flag: Any = node.args[1] if len(node.args) > 1 else node.kwargs.get("inplace", False)
            return (
                bool(getattr(module, "inplace", False) or flag) or str(getattr(node.target, "__name__", node.target)) == "relu_"
            )
        operands = self.operands(node)
        if operands is None or node.target not in _INPLACE_ADDS:
            return False
        return any(isinstance(self.module(operand), nn.Conv2d | SparseConv2d | nn.BatchNorm2d) for operand in operands)

    def makes_new(self, node: fx.Node) -> bool:
        """Whether the value of `node` shares no memory with another."""
        if node.op == "call_module":
            module = self.module(node)
            return isinstance(module, _NEW_MODULES) or (isinstance(module, nn.ReLU) and not module.inplace)
        if node.op == "call_function" and node.target is getattr:
            return node.args[1] in _NEW_ATTRIBUTES
        if node.op == "call_function":
            return node.target in _NEW_FUNCTIONS or (self.is_relu(node) and not self.changes_its_input(node))
        return node.op == "placeholder" or (node.op == "call_method" and node.target in _NEW_METHODS)


def _has_hooks(module: nn.Module | None) -> bool:
    return module is not None and any(
        (module._forward_pre_hooks, module._forward_hooks, module._backward_pre_hooks, module._backward_hooks)
    )


def _after(node: fx.Node) -> set[fx.Node]:
    found = set()
    while node.next.op != "root":
        node = node.next
        found.add(node)
    return found


def _check_aliases(graph: fx.Graph, nodes: list[fx.Node], look: _Look) -> None:
    """Raises where an op that will no longer be in place is seen to be by another view of its tensor."""
    for node in nodes:
        if not look.changes_its_input(node):
            continue
        changed = node.args[0] if node.args else node.kwargs["input"]
        assert isinstance(changed, fx.Node)
        aliases, front = {changed}, [changed]
        while front:
            alias = front.pop()
            up = [] if look.makes_new(alias) else alias.all_input_nodes
            down = [user for user in alias.users if user is not node and user.op != "output" and not look.makes_new(user)]
            for other in (*up, *down):
                if other not in aliases and other is not node:
                    aliases.add(other)
                    front.append(other)
        after = _after(node)
        for alias in aliases:
            late = [user for user in alias.users if user in after and user not in aliases]
            if late and alias is not changed:
                raise Untraceable(
                    "add_ghosts: net: expected no in-place operation on a tensor that is used under another name too, got one at "
                    f"{where(node)}, and a use at {where(late[0])}; make the ReLU or the sum out of place"
                )
