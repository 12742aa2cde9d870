"""The operations of a network on "an input reaches this number" instead of on numbers; see `effective.Paths`."""

from __future__ import annotations

import operator
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.fx import GraphModule, Interpreter
from torch.utils._pytree import tree_leaves, tree_map

Rule = Callable[[Any, tuple[Any, ...], dict[str, Any]], Any]


@dataclass(frozen=True, eq=False)
class Reach:
    """In the place of a tensor that depends on the inputs: 1.0 where an input reaches it, else 0.0. Has a graph."""

    tensor: Tensor


@dataclass(frozen=True, eq=False)
class Kept:
    """In the place of a tensor made of weights that have a mask: 1.0 where one is kept, else 0.0. Has a graph."""

    tensor: Tensor


class _Binary(torch.autograd.Function):
    """1 where the value is above `least`, forwards; 1 where the gradient is above `least_back`, backwards."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, least: float, least_back: float) -> Tensor:
        ctx.least_back = least_back
        return (x > least).to(x.dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        return (gradient > ctx.least_back).to(gradient.dtype), None, None


def _binary(x: Tensor, least: float = 0.0, least_back: float = 0.0) -> Tensor:
    return _Binary.apply(x, least, least_back)  # type: ignore[no-any-return, no-untyped-call]


# Sums of products of zeros and ones are whole numbers. A convolution by Winograd's or Fourier's way rounds, forwards and
# backwards, and what should be 0 is 1e-7. Other operations have fractions, and make 0 of nothing but zeros.
HALF = 0.5


class ReachInterpreter(Interpreter):
    """Runs the operations of a traced network. Arguments and results are Reach, Kept, or, for constants, what they are."""

    def __init__(self, graph: GraphModule) -> None:
        super().__init__(graph)
        self.extra_traceback = False  # it would put a page into every message

    def call_function(self, target: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        leaves = tree_leaves((args, kwargs))
        if target is operator.getitem or not any(isinstance(leaf, Reach | Kept) for leaf in leaves):
            with torch.no_grad():
                return super().call_function(target, args, kwargs)
        target = _not_in_place(target)
        rule = _RULES.get(_name(target))
        if rule is None and torch.Tag.pointwise in target.tags:
            rule = _pointwise
        if rule is None and target.is_view and _name(target) != "as_strided":  # which depends on the memory, not on the shape
            rule = _moved
        if rule is None:
            raise ValueError(f"model: it runs {target}, and the paths through this operation are not known here")
        return rule(target, args, kwargs)


def _not_in_place(target: Any) -> Any:
    """The operation that returns what `target` writes into its first operand; nobody reads what was there before."""
    if not _name(target).endswith("_"):
        return target
    packet = getattr(torch.ops.aten, _name(target)[:-1], None)
    arguments = [str(argument.type) for argument in target._schema.arguments]
    same = [getattr(packet, name) for name in (packet.overloads() if packet is not None else ())]
    return next((op for op in same if [str(argument.type) for argument in op._schema.arguments] == arguments), target)


def _raw(value: Any) -> Any:
    return value.tensor if isinstance(value, Reach | Kept) else value


def _is(kind: type[Reach] | type[Kept], *values: Any) -> bool:
    return any(isinstance(leaf, kind) for leaf in tree_leaves(values))


def _pointwise(target: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Reach | Kept:
    """Each number of the result depends on the numbers in the same place of all operands."""
    leaves = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor | Reach | Kept)]
    shape = torch.broadcast_shapes(*(_raw(leaf).shape for leaf in leaves))  # type: ignore[no-untyped-call]
    reaches = [leaf.tensor.expand(shape) for leaf in leaves if isinstance(leaf, Reach)]
    kept = [leaf.tensor.expand(shape) for leaf in leaves if isinstance(leaf, Kept)]
    product = _name(target) == "mul"
    # nothing goes through a product with a constant 0
    zeros = [torch.as_tensor(factor) != 0 for factor in args if product and not isinstance(factor, Reach | Kept)]
    if reaches:
        reach = torch.stack(reaches).sum(0) if len(reaches) > 1 else reaches[0]
        if kept and not product:
            raise ValueError(f"model: {target} takes activations and weights with a mask; their paths are not known here")
        for mask in (*kept, *zeros):
            reach = reach * mask
        return Reach(_binary(reach))
    if product:  # also with a mask that the model applies itself
        for mask in (*kept[1:], *zeros):
            kept[0] = kept[0] * mask
        return Kept(kept[0])
    return Kept(_binary(torch.stack(kept).sum(0)) if len(kept) > 1 else kept[0])


def _moved(target: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """The numbers of the result are those of the operands in other places, or sums of them with positive factors."""
    reaching = _is(Reach, args, kwargs)

    def operand(value: Any) -> Any:
        if isinstance(value, Tensor) and value.is_floating_point():
            return torch.zeros_like(value) if reaching else (value != 0).float()  # no input reaches a constant
        return torch.zeros_like(value.tensor) if reaching and isinstance(value, Kept) else _raw(value)

    args, kwargs = tree_map(operand, args), tree_map(operand, kwargs)
    return tree_map(lambda t: Reach(_binary(t)) if reaching else Kept(t), target(*args, **kwargs))


def _chosen(target: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Numbers at places that do not depend on the inputs."""
    if _is(Reach, args[1:], kwargs):
        raise ValueError(f"model: {target} takes indices that depend on the inputs; their paths are not known here")
    return _moved(target, args, kwargs)


def _viewed(target: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """In another shape: a copy where the memory is not what it was when the network was traced."""
    return _moved(torch.reshape, args, kwargs)


def _padded(target: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """No input reaches the border, whatever its value is."""
    return _moved(target, args[:2], {})


def _first_operand(target: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Number by number the first operand, as far as paths go."""
    if _is(Reach, args[1:], kwargs) or _is(Kept, args[1:], kwargs):
        raise ValueError(f"model: {target} takes factors that depend on the inputs; their paths are not known here")
    results = len(target._schema.returns)
    return args[0] if results == 1 else (args[0], *[None] * (results - 1))


def _shape_only(target: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """The first operand gives its shape alone; the numbers are those of the second, or constants."""
    second = args[1] if len(args) > 1 else None
    if isinstance(second, Reach | Kept):
        return type(second)(second.tensor.expand(_raw(args[0]).shape))
    with torch.no_grad():
        return target(*map(_raw, args), **kwargs)


def _picked(target: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Number by number one of two operands: of the other none, where a constant says which."""
    where, yes, no = args if _name(target) == "where" else (args[1], args[2], args[0])
    if not isinstance(where, Tensor):
        return _pointwise(target, args, kwargs)
    yes, no = (value if isinstance(value, Reach | Kept) else (torch.as_tensor(value) != 0).float() for value in (yes, no))
    return _moved(torch.where, (where, yes, no), {})


def _averaged(target: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Means of windows; the last argument of the operation is a divisor of the user's, which may be negative."""
    return _moved(target, args[:6], {})


def _reduced(target: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """A number that depends on all those it is made of: sum, mean, maximum, variance, norm."""
    names = [argument.name for argument in target._schema.arguments]
    given = {**dict(zip(names, args, strict=False)), **kwargs}
    x, dim, keepdim = given.pop(names[0]), given.get("dim"), given.get("keepdim", False)
    dims = list(range(x.tensor.dim())) if dim is None or dim == [] else dim
    total = x.tensor.sum(dims, keepdim) if x.tensor.dim() else x.tensor
    # The mean or the spread of a layer's weights, as weight standardisation takes them, is a constant here.
    result = Reach(_binary(total)) if isinstance(x, Reach) else torch.ones_like(total.detach())
    if _name(target) == "var_mean":
        return result, result
    results = len(target._schema.returns)
    return result if results == 1 else (result, *[None] * (results - 1))  # max and min: where it is found


def _max_pooled(target: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """A path from every number in the window: a sum, not the maximum, which would lead back to one of them."""
    given = dict(zip((argument.name for argument in target._schema.arguments), args, strict=False))
    x, rank = args[0].tensor, 3 if "3d" in _name(target) else 2
    sizes = given["kernel_size"], given.get("stride") or given["kernel_size"], given.get("padding", 0), given.get("dilation", 1)
    kernel, stride, padding, dilation = (_per_axis(size, rank) for size in sizes)
    with torch.no_grad():
        shape = target(x, *args[1:], **kwargs)[0].shape[-rank:]
    flat = x.reshape(-1, 1, *x.shape[-rank:])  # channels do not mix
    border: list[int] = []
    for axis in reversed(range(rank)):  # ceil_mode may look over the end
        covered = (shape[axis] - 1) * stride[axis] + dilation[axis] * (kernel[axis] - 1) + 1
        border += [padding[axis], max(covered - x.shape[axis - rank] - padding[axis], 0)]
    convolve = F.conv3d if rank == 3 else F.conv2d
    sums = convolve(F.pad(_binary(flat, least_back=HALF), border), torch.ones(1, 1, *kernel), stride=stride, dilation=dilation)
    for axis, size in zip(range(-rank, 0), shape, strict=True):
        sums = sums.narrow(axis, 0, size)
    return Reach(_binary(sums.reshape(*x.shape[:-rank], *shape), HALF)), None


def _pooled_to(target: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Maxima of windows that make an output of a given size."""
    pool = F.adaptive_avg_pool3d if "3d" in _name(target) else F.adaptive_avg_pool2d
    return Reach(_binary(pool(args[0].tensor, args[1]))), None


def _per_axis(value: Any, rank: int) -> list[int]:
    values = [value] if isinstance(value, int) else list(value)
    return values * rank if len(values) == 1 else values


def _name(target: Any) -> str:
    return str(target.overloadpacket.__name__)


def _contracted(a: Any, b: Any, product: Callable[[Tensor, Tensor], Tensor]) -> Reach | Kept:
    """Sums of products. A path leads through a product where the weight is kept, and from both sides where none is a weight."""

    def structure(value: Any) -> Tensor:
        if isinstance(value, Reach):
            return _binary(value.tensor, least_back=HALF)
        return value.tensor if isinstance(value, Kept) else (value != 0).float()

    left, right = structure(a), structure(b)
    if isinstance(a, Reach) and isinstance(b, Reach):
        result = product(left, torch.ones_like(right)) + product(torch.ones_like(left), right)
    else:
        result = product(left, right)
    result = _binary(result, HALF)
    return Reach(result) if _is(Reach, a, b) else Kept(result)


def _convolved(target: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    return _contracted(args[0], args[1], lambda x, weight: target(x, weight, None, *args[3:], **kwargs))


def _multiplied(target: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    return _contracted(args[0], args[1], target)


def _multiplied_and_added(target: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """beta * args[0] + alpha * args[1] @ args[2]"""
    product = _contracted(args[1], args[2], torch.matmul)
    if not isinstance(args[0], Reach | Kept):
        return product
    return _pointwise(torch.ops.aten.add.Tensor, (args[0], product), {})


def _embedded(target: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Each number of a vector depends on the index that chose it."""
    indices = args[1]
    if not isinstance(indices, Reach):
        raise ValueError(f"model: {target} takes a table that depends on weights with a mask; its paths are not known here")
    return Reach(indices.tensor.unsqueeze(-1).expand(*indices.tensor.shape, _raw(args[0]).shape[-1]))


def _gated(target: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """One half of the numbers, each times a function of one of the other half."""
    halves = args[0].tensor.chunk(2, args[1] if len(args) > 1 else -1)
    return Reach(_binary(halves[0] + halves[1]))


def _rules(rule: Rule, names: str) -> dict[str, Rule]:
    return dict.fromkeys(names.split(), rule)


# operation of torch.ops.aten -> rule; elementwise operations and views are known by their tags
_RULES: dict[str, Rule] = {
    **_rules(_convolved, "convolution"),
    **_rules(_multiplied, "mm bmm mv dot"),
    **_rules(_multiplied_and_added, "addmm baddbmm addmv"),
    **_rules(_max_pooled, "max_pool2d_with_indices max_pool3d_with_indices"),
    **_rules(
        _first_operand,
        "native_batch_norm _native_batch_norm_legit _native_batch_norm_legit_no_training native_layer_norm native_group_norm "
        "_fused_rms_norm _softmax _log_softmax _safe_softmax log_sigmoid_forward native_dropout _to_copy "
        "detach alias",
    ),
    **_rules(
        _reduced,
        "sum mean amax amin max min var std var_mean linalg_vector_norm norm logsumexp prod",
    ),
    **_rules(_padded, "constant_pad_nd"),
    **_rules(_viewed, "view _unsafe_view _reshape_alias"),
    **_rules(_chosen, "index index_select gather"),
    **_rules(
        _moved,
        "cat stack cumsum flip roll repeat tril triu "
        "unsafe_split unsafe_split_with_sizes slice_scatter select_scatter index_put im2col col2im "
        "pixel_shuffle pixel_unshuffle channel_shuffle native_channel_shuffle "
        "reflection_pad1d reflection_pad2d reflection_pad3d replication_pad1d replication_pad2d replication_pad3d "
        "_adaptive_avg_pool2d _adaptive_avg_pool3d upsample_nearest1d upsample_nearest2d "
        "upsample_nearest3d _upsample_nearest_exact1d _upsample_nearest_exact2d upsample_linear1d upsample_bilinear2d "
        "upsample_trilinear3d _upsample_nearest_exact3d",
    ),
    **_rules(
        _shape_only,
        "zeros_like ones_like full_like empty_like rand_like randn_like new_zeros new_ones new_full new_empty copy fill zero",
    ),
    **_rules(_pointwise, "_prelu_kernel hardswish leaky_relu"),  # leaky_relu: no tag before torch 2.13
    **_rules(_pooled_to, "adaptive_max_pool2d adaptive_max_pool3d"),
    **_rules(_embedded, "embedding"),
    **_rules(_gated, "glu"),
    **_rules(_picked, "where masked_fill"),
    **_rules(_averaged, "avg_pool1d avg_pool2d avg_pool3d"),
}
