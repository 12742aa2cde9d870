"""What operations do to channels: which stay what they are, and which of their results are constant.

A rule gets a `Call` and gives the channels of the result, or None: then nothing is known of it, and the channels that went in
stay where they are.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from tost.shrinking.channels import Array, Channels, Slots
from tost.tracer import INPLACE

__all__ = ["Call", "keeps_count", "rule_for"]


@dataclass(frozen=True, eq=False)
class Call:
    """One operation of the graph on one example: its node and module, its arguments as they are, and what is known of them."""

    node: fx.Node
    module: nn.Module | None
    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]
    result: Tensor
    known: Mapping[fx.Node, Channels]
    slots: Slots

    @property
    def first(self) -> Channels | None:
        """Of the first argument, where that is a tensor of the graph."""
        node = self.node.args[0] if self.node.args else self.node.kwargs.get("input")
        return self.known.get(node) if isinstance(node, fx.Node) else None

    @property
    def tensor(self) -> Tensor:
        """The first argument."""
        return self.args[0] if self.args else self.kwargs["input"]  # type: ignore[no-any-return]

    @property
    def name(self) -> str:
        """What it is called in messages."""
        if self.node.op == "call_module":
            return f"{str(self.node.target)!r}"
        return str(getattr(self.node.target, "__name__", self.node.target)).strip("_")

    def argument(self, place: int, name: str, default: Any = None) -> Any:
        return self.args[place] if len(self.args) > place else self.kwargs.get(name, default)


Rule = Callable[[Call], Channels | None]


def _same(call: Call) -> Channels | None:
    return call.first


def _elementwise(call: Call) -> Channels | None:
    """A function of the numbers at one place of all operands."""
    known = {node: call.known[node] for node in call.node.all_input_nodes if node in call.known}
    if not known:
        return None
    values = dict(zip(call.node.all_input_nodes, _leaves(call), strict=True))
    width = call.result.dim()
    axis = next(iter(known.values())).axis
    count = call.result.shape[axis]
    vectors: dict[fx.Node, Any] = {}
    members = []
    for node, value in values.items():
        if not isinstance(value, Tensor):
            vectors[node] = value
            continue
        from_end = width - axis  # of the channels' axis; a tensor of fewer dimensions is one number along it
        along = value.shape[-from_end] if value.dim() >= from_end else 1
        if node in known:
            if value.dim() != width or known[node].axis != axis or along != count:
                return None
            members.append(known[node])
            vectors[node] = torch.from_numpy(known[node].constants.copy())
        elif along == 1:
            vectors[node] = torch.full((count,), math.nan, dtype=torch.float64)
        else:
            return None  # a parameter with a number for each channel
    unknown = np.any([np.isnan(v.numpy()) for v in vectors.values() if isinstance(v, Tensor)], axis=0)
    zero = np.any([v.numpy() == 0 for v in vectors.values() if isinstance(v, Tensor)], axis=0)
    result = _on_vectors(call, vectors)
    constants = np.where(unknown, np.nan, result)
    if call.node.target in _PRODUCTS:
        constants = np.where(zero, 0.0, constants)
    for other in members[1:]:
        call.slots.unite(members[0].slots, other.slots)
    spoiled = np.isnan(constants) & np.any([~np.isnan(member.constants) for member in members], axis=0)
    call.slots.note(members[0].slots[spoiled], f"{call.name} puts it together with a channel that is alive")
    return Channels(axis, members[0].slots, constants)


def _on_vectors(call: Call, vectors: Mapping[fx.Node, Any]) -> Array:
    args = fx.map_arg(call.node.args, lambda node: vectors[node])
    kwargs: Any = fx.map_arg(call.node.kwargs, lambda node: vectors[node])
    if call.module is not None:
        return call.module(*args, **kwargs).numpy()  # type: ignore[no-any-return]
    if call.node.op == "call_method":
        return getattr(args[0], str(call.node.target))(*args[1:], **kwargs).numpy()  # type: ignore[no-any-return]
    target: Any = call.node.target
    return target(*args, **kwargs).numpy()  # type: ignore[no-any-return]


def _leaves(call: Call) -> list[Any]:
    """The values of the nodes among the arguments, in the order of `all_input_nodes`."""
    found: dict[fx.Node, Any] = {}

    def collect(argument: Any, value: Any) -> None:
        if isinstance(argument, fx.Node):
            found[argument] = value
        elif isinstance(argument, list | tuple):
            for inner, inside in zip(argument, value, strict=True):
                collect(inner, inside)

    for argument, value in zip(call.node.args, call.args, strict=True):
        collect(argument, value)
    for name, argument in call.node.kwargs.items():
        collect(argument, call.kwargs[name])
    return [found[node] for node in call.node.all_input_nodes]


def _only_zeros(call: Call, channels: Channels) -> Channels:
    """`channels` behind an operation that changes a constant at the border, unless that is 0."""
    constants = np.where(channels.constants == 0, 0.0, np.nan)
    leaked = ~np.isnan(channels.constants) & np.isnan(constants)
    call.slots.note(channels.slots[leaked], f"its constant would leak into the padding of {call.name}")
    return Channels(channels.axis, channels.slots, constants)


def _of_images(call: Call) -> Channels | None:
    """The channels of (N, C, pixels...), where every number of the result is one of, or a mean of, those of its channel."""
    x = call.first
    if x is None or x.axis != 1 or call.tensor.dim() < 3 or call.result.dim() != call.tensor.dim():
        return None
    return x


def _averaged(call: Call) -> Channels | None:
    """Means of windows: those at the border count the padding's zeros."""
    x = _of_images(call)
    if x is None:
        return None
    if call.module is not None:
        options: dict[str, Any] = vars(call.module)
    else:
        names = ("kernel_size", "stride", "padding", "ceil_mode", "count_include_pad", "divisor_override")
        options = {**dict(zip(names, call.args[1:], strict=False)), **call.kwargs}
    padding = options.get("padding", 0)
    padded = any(padding) if isinstance(padding, Sequence) else padding != 0
    as_they_are = options.get("divisor_override") is None and not (padded and options.get("count_include_pad", True))
    return x if as_they_are else _only_zeros(call, x)


def _padded(call: Call) -> Channels | None:
    """A border of a constant, or of the image's own pixels."""
    x = _of_images(call)
    if x is None:
        return None
    module = call.module
    if module is not None:
        constant = isinstance(module, nn.modules.padding._ConstantPadNd)
        value: Any = getattr(module, "value", 0.0)
    else:
        sides = call.argument(1, "pad")
        if not isinstance(sides, Sequence) or len(sides) > 2 * (call.tensor.dim() - 2):
            return None
        constant = call.argument(2, "mode", "constant") == "constant"
        value = call.argument(3, "value") or 0.0
    if not constant:
        return x
    if value == 0:
        return _only_zeros(call, x)
    return Channels(x.axis, x.slots, np.where(x.constants == value, x.constants, np.nan))


def _joined(call: Call) -> Channels | None:
    """torch.cat: along the channels they lie side by side, along another axis they are one."""
    nodes: Any = call.node.args[0] if call.node.args else call.node.kwargs.get("tensors")
    known = [call.known[node] for node in nodes if node in call.known] if isinstance(nodes, list | tuple) else []
    dim = call.argument(1, "dim", call.kwargs.get("axis", 0))
    if not known or not isinstance(dim, int) or any(part.axis != known[0].axis for part in known):
        return None
    axis = known[0].axis
    along = dim % call.result.dim() == axis
    values = call.argument(0, "tensors")
    if len(known) < len(nodes) and not (along and all(value.dim() == call.result.dim() for value in values)):
        return None
    parts = [call.known.get(node) or _fixed(call, axis, value) for node, value in zip(nodes, values, strict=True)]
    if along:
        return Channels(axis, np.concatenate([p.slots for p in parts]), np.concatenate([p.constants for p in parts]))
    for part in parts[1:]:
        call.slots.unite(parts[0].slots, part.slots)
    equal = np.all([part.constants == parts[0].constants for part in parts], axis=0)
    return Channels(axis, parts[0].slots, np.where(equal, parts[0].constants, np.nan))


def _fixed(call: Call, axis: int, value: Tensor) -> Channels:
    """Channels of the network's input, or of what follows from pinned ones alone: their number cannot change."""
    slots = call.slots.new(value.shape[axis])
    call.slots.pin(slots, f"{call.name} joins the network's input to it, or what is not known to have channels")
    return Channels(axis, slots, np.full(len(slots), np.nan))


def _reduced(call: Call) -> Channels | None:
    """The mean, sum or maximum over axes without channels."""
    x = call.first
    dims = call.argument(1, "dim")
    dims = [dims] if isinstance(dims, int) else dims
    if x is None or not isinstance(dims, Sequence) or not dims or not all(isinstance(dim, int) for dim in dims):
        return None
    gone = {dim % call.tensor.dim() for dim in dims}
    if x.axis in gone:
        return None
    keeps_axes = call.result.dim() == call.tensor.dim()
    axis = x.axis if keeps_axes else x.axis - sum(dim < x.axis for dim in gone)
    total = call.node.target in (torch.sum, "sum")
    return Channels(axis, x.slots, np.where(x.constants == 0, 0.0, np.nan) if total else x.constants)


def _moved(call: Call) -> Channels | None:
    """The same numbers in other places: where, an example that holds the number of its channel tells."""
    x = call.first
    if x is None or (call.name == "squeeze" and _may_drop(call, x.axis)):
        return None
    shape = [1] * call.tensor.dim()
    shape[x.axis] = -1
    places = torch.arange(len(x.slots)).reshape(shape).expand(call.tensor.shape)
    if call.node.op == "call_module":
        assert call.module is not None
        there = call.module(places)
    elif call.node.op == "call_method":
        method = "reshape" if call.node.target == "view" else str(call.node.target)
        there = getattr(places, method)(*call.args[1:], **call.kwargs)
    else:
        target: Any = call.node.target
        there = target(places, *call.args[1:], **call.kwargs)
    axis = _axis_of(there)
    if axis is None:
        return None
    along = there.movedim(axis, 0).reshape(there.shape[axis], -1)[:, 0].numpy()
    return Channels(axis, x.slots[along], x.constants[along])


def _may_drop(call: Call, axis: int) -> bool:
    """Whether a squeeze drops `axis` where it has a single channel left."""
    dims = call.argument(1, "dim")
    if dims is None:
        return True
    return axis in [dim % call.tensor.dim() for dim in ([dims] if isinstance(dims, int) else dims)]


def _axis_of(places: Tensor) -> int | None:
    """The only axis along which `places` varies."""
    varying = [axis for axis in range(places.dim()) if not bool((places == places.narrow(axis, 0, 1)).all())]
    return varying[0] if len(varying) == 1 else None


def _reshaped(call: Call) -> Channels | None:
    """view, reshape: where forward leaves the number of channels open, by a -1, or takes it from a tensor that has as many."""
    found = _moved(call)
    sizes = call.node.args[1:]
    if len(sizes) == 1 and isinstance(sizes[0], list | tuple):
        sizes = tuple(sizes[0])
    counted = [(node, of) for node in call.node.all_input_nodes if (of := _counted(call, node)) is not None]
    if found is not None and len(sizes) == call.result.dim():
        if sizes[found.axis] == -1 and not counted:
            return found
        alone = len(counted) == 1 and sizes[found.axis] is counted[0][0] and sizes.count(counted[0][0]) == 1
        if alone and len(counted[0][1].slots) == len(found.slots):  # they go together, so it counts those that are left
            call.slots.unite(found.slots, counted[0][1].slots)
            return found
    for _, of in counted:
        call.slots.pin(of.slots, f"{call.name} depends on how many there are")
    return None


def _counted(call: Call, node: fx.Node) -> Channels | None:
    """The channels whose number `node` is, by `x.size(1)`, `x.size()[1]` or `x.shape[1]`."""
    if node.op == "call_method" and node.target == "size" and len(node.args) == 2:
        of, dim = node.args
    elif node.op == "call_function" and node.target is operator.getitem:
        sizes, dim = node.args
        if not isinstance(sizes, fx.Node) or not (
            sizes.target == "size" or (sizes.target is getattr and sizes.args[1] == "shape")
        ):
            return None
        of = sizes.args[0]
    else:
        return None
    known = call.known.get(of) if isinstance(of, fx.Node) else None
    return known if known is not None and dim == known.axis else None


def _expanded(call: Call) -> Channels | None:
    """x.expand_as(other), both with as many channels."""
    x = call.first
    others = [call.known[node] for node in call.node.all_input_nodes[1:] if node in call.known]
    if x is None or len(others) != 1 or call.tensor.dim() != call.result.dim():
        return None
    if others[0].axis != x.axis or len(others[0].slots) != len(x.slots):
        return None
    call.slots.unite(x.slots, others[0].slots)
    return x


def _indexed(call: Call) -> Channels | None:
    """x[...]: only where all channels are taken."""
    x, index = call.first, call.node.args[1]
    if x is None:
        return None
    parts = index if isinstance(index, tuple) else (index,)
    taken = [part for part in parts if part is not None]  # None makes a new axis
    if Ellipsis in taken or not all(isinstance(part, int | slice) for part in taken):
        return None
    if len(taken) > x.axis and taken[x.axis] != slice(None):
        return None
    return _moved(call)


_PRODUCTS = (operator.mul, torch.mul, torch.multiply, "mul", "mul_", "multiply", INPLACE["imul"])

_ELEMENTWISE: tuple[Any, ...] = (
    operator.add, operator.sub, operator.mul, operator.truediv, operator.neg, torch.add, torch.sub, torch.mul, torch.multiply,
    torch.div, torch.neg, torch.relu, torch.relu_, torch.sigmoid, torch.tanh, torch.abs, torch.square, torch.clamp,
    torch.maximum, torch.minimum, F.relu, F.relu_, F.relu6, F.leaky_relu, F.elu, F.selu, F.celu, F.gelu, F.silu, F.mish,
    F.hardswish, F.hardsigmoid, F.hardtanh, F.softplus, F.softsign, F.sigmoid, F.tanh, F.logsigmoid, F.tanhshrink,
    "add", "add_", "sub", "sub_", "mul", "mul_", "multiply", "div", "div_", "neg", "relu", "relu_", "sigmoid", "tanh", "abs",
    "square", "clamp", "clamp_", "clamp_min", "clamp_max",
    *(INPLACE[name] for name in ("iadd", "isub", "imul", "itruediv")),
)  # fmt: skip
_ACTIVATIONS = (
    nn.ReLU, nn.ReLU6, nn.LeakyReLU, nn.ELU, nn.SELU, nn.CELU, nn.GELU, nn.SiLU, nn.Mish, nn.Hardswish, nn.Hardsigmoid,
    nn.Hardtanh, nn.Sigmoid, nn.Tanh, nn.Softplus, nn.Softsign, nn.LogSigmoid, nn.Tanhshrink, nn.Threshold,
)  # fmt: skip
_SAME_MODULES = (nn.Identity, nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d, nn.AlphaDropout)
_POOLS = (
    nn.modules.pooling._MaxPoolNd, nn.modules.pooling._AdaptiveAvgPoolNd, nn.modules.pooling._AdaptiveMaxPoolNd,
)  # fmt: skip

_RESIZERS = (nn.Upsample, nn.UpsamplingNearest2d, nn.UpsamplingBilinear2d)

_RULES: dict[Any, Rule] = {
    **dict.fromkeys(_ELEMENTWISE, _elementwise),
    **dict.fromkeys(("contiguous", "clone", "detach", torch.clone, torch.detach), _same),
    **dict.fromkeys((F.max_pool1d, F.max_pool2d, F.max_pool3d, F.adaptive_avg_pool1d, F.adaptive_avg_pool2d), _of_images),
    **dict.fromkeys((F.adaptive_avg_pool3d, F.adaptive_max_pool1d, F.adaptive_max_pool2d, F.interpolate), _of_images),
    **dict.fromkeys((F.avg_pool1d, F.avg_pool2d, F.avg_pool3d), _averaged),
    F.pad: _padded,
    **dict.fromkeys((torch.cat, torch.concat, torch.concatenate), _joined),
    **dict.fromkeys((torch.mean, torch.sum, torch.amax, "mean", "sum", "amax"), _reduced),
    **dict.fromkeys((torch.flatten, "flatten", torch.permute, "permute", torch.transpose, "transpose"), _moved),
    **dict.fromkeys((torch.squeeze, "squeeze", torch.unsqueeze, "unsqueeze", torch.movedim, "movedim"), _moved),
    **dict.fromkeys((torch.reshape, "reshape", "view"), _reshaped),
    operator.getitem: _indexed,
    "expand_as": _expanded,
}
_RESHAPES = ("view", "reshape", torch.reshape)


def rule_for(node: fx.Node, module: nn.Module | None, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Rule | None:
    """The rule for a call, None where there is none. Modules by their exact types, or those of torch that they keep."""
    if node.op == "call_module":
        return _rule_for_module(module)
    target: Any = node.target
    if target is F.dropout or target in (F.dropout1d, F.dropout2d, F.dropout3d):
        training = args[2] if len(args) > 2 else kwargs.get("training", True)
        return None if training else _same
    return _RULES.get(target) if target.__hash__ is not None else None


def _rule_for_module(module: nn.Module | None) -> Rule | None:
    kind = type(module)
    if module is None or module._forward_hooks or module._forward_pre_hooks:
        return None
    if kind in _ACTIVATIONS or (kind is nn.PReLU and module.num_parameters == 1):
        return _elementwise
    if kind in _SAME_MODULES:
        return _same
    if kind is nn.Flatten:
        return _moved
    if not f"{kind.__module__}.".startswith(("torch.nn.", "tost_kernels.nn.")):
        return None
    if isinstance(module, nn.modules.pooling._AvgPoolNd):
        return _averaged
    if isinstance(module, _POOLS + _RESIZERS):
        return _of_images
    pads = (
        nn.modules.padding._ConstantPadNd, nn.modules.padding._ReflectionPadNd, nn.modules.padding._ReplicationPadNd,
        nn.modules.padding._CircularPadNd,
    )  # fmt: skip
    return _padded if isinstance(module, pads) else None


def keeps_count(node: fx.Node, axis: int, rank: int) -> bool:
    """Whether an operation on a tensor whose result is none tells nothing of how many channels it has."""
    if node.op == "call_method":
        if node.target == "size":
            dim = node.args[1] if len(node.args) > 1 else node.kwargs.get("dim")
            return (
                _sizes_without(node, axis, rank)
                if dim is None
                else isinstance(dim, int) and (dim % rank != axis or _reshapes_alone(node, dim))
            )
        return node.target in ("dim", "type", "is_floating_point", "ndimension", "get_device")
    if node.op == "call_function" and node.target is getattr:
        attribute = node.args[1]
        return _sizes_without(node, axis, rank) if attribute == "shape" else attribute in ("device", "dtype", "ndim", "is_cuda")
    return False


def _sizes_without(node: fx.Node, axis: int, rank: int) -> bool:
    """Whether nothing is made of the size along `axis` of all those that `node` gives."""
    for user in node.users:
        if user.op != "call_function" or user.target is not operator.getitem:
            return False
        index: Any = user.args[1]
        ends = (index.start, index.stop, index.step) if isinstance(index, slice) else (index,)
        if not all(isinstance(end, int | None) for end in ends):
            return False
        taken = range(rank)[index]
        if axis in (taken if isinstance(taken, range) else (taken,)) and not _reshapes_alone(user, index):
            return False
    return True


def _reshapes_alone(count: fx.Node, dim: Any) -> bool:
    """Whether a number of channels, the size along `dim`, is used only where `_reshaped` looks at it and `_counted` finds it."""
    users = count.users
    return not users or (isinstance(dim, int) and dim >= 0 and all(user.target in _RESHAPES for user in users))
