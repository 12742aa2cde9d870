"""Which kept weights lie on a path from an input to an output: the others compute nothing that anybody reads.

Vysogorets and Kempe, "Connectivity Matters: Neural Network Pruning Through the Lens of Effective Sparsity"
(https://arxiv.org/abs/2107.02306), call the density of these weights the effective density.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call, functionalize
from torch.fx import GraphModule
from torch.fx.experimental.proxy_tensor import make_fx
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.utils import parametrize
from torch.nn.utils import prune as torch_prune
from torch.utils._pytree import tree_leaves

from tost.checks import sample_shapes
from tost.isolation import isolated, plain_tensors
from tost.masks.flow import HALF, Kept, Reach, ReachInterpreter
from tost.user_batches import describe, map_tensors, sample_of_ones, tensors_in
from tost_kernels.nn import densify
from tost_kernels.nn.surgery import duplicate

# the shape of one sample; for several inputs a sequence of shapes, or a mapping of names to shapes
InputShape = Sequence[int] | Sequence[Sequence[int]] | Mapping[str, Sequence[int]]


class Paths:
    """The paths of one network, traced once, for any masks of its layers.

    The network runs once, on a private copy on the CPU in eval mode, and its elementary operations are written down. They are
    then run again on zeros and ones, "an input reaches this number" instead of the number, and backwards on "this number reaches
    an output"; each is made 0 or 1 again behind every operation, so nothing over- or underflows in a network of any depth, and
    the answer is exact. A path goes through an operation from each of its operands; what dropout, normalisation and softmax do to
    one number because of others is no path, and neither are biases. No path goes through a product with a constant 0, or to
    what a constant condition does not choose; a parameter without a mask is never 0.

    Args:
        model: dense, pruned, parametrized or sparse; what it has for weights does not matter, nor do they change.
        names: the layers that have masks; each is a module with a parameter `weight`. All other layers count as dense.
        input_shape: of one sample, such as (3, 32, 32), or a tuple or mapping of such shapes for several arguments of `forward`.
        inputs: a batch of examples instead of `input_shape`, a tensor, or a tuple or mapping of tensors: for networks that
            read something else than floating-point numbers.

    Raises:
        TypeError: an argument has the wrong type.
        ValueError: a name is no layer; the model fails on such an input; what it does depends on
            values, so that it cannot be traced.
    """

    def __init__(
        self,
        model: nn.Module,
        names: Sequence[str],
        input_shape: InputShape | None = None,
        inputs: Any = None,
    ) -> None:
        if not isinstance(model, nn.Module):
            raise TypeError(f"model: expected an nn.Module, got {type(model).__name__}")
        args, kwargs = _arguments(input_shape, inputs)
        with isolated(0, {t.device for t in (*model.parameters(), *model.buffers())}), plain_tensors():
            net = _plain(model, names)
            self._graph, self._values = _trace(net, args, kwargs)
            parameters = {id(parameter): name for name, parameter in net.named_parameters()}
            modules = dict(net.named_modules(remove_duplicate=False))
            self._shapes = {name: tuple(_weight(modules[name]).shape) for name in names}
            self._keys = {name: parameters[id(_weight(modules[name]))] for name in names}
        for name, key in self._keys.items():
            if list(self._keys.values()).count(key) > 1:
                raise ValueError(f"model: {name!r} has a mask, and so has another layer with the same weight {key!r}")
        # a number or a flag that is handed over as it is is no input
        leaves = tree_leaves((args, kwargs))
        self._inputs = [Reach(torch.ones_like(x, dtype=torch.float32)) if isinstance(x, Tensor) else x for x in leaves]

    def through(self, masks: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Those of the kept weights that lie on a path from an input to an output, when these `masks` are on the layers.

        Args:
            masks: layer -> bool tensor of the weight's shape, for exactly the layers given as `names`.

        Returns:
            Layer -> bool tensor on the CPU, a subset of its mask.

        Raises:
            ValueError: other layers or shapes; or the network holds an operation whose paths are not known here.
        """
        for name, shape in self._shapes.items():
            if tuple(masks[name].shape) != shape:
                raise ValueError(f"model: the mask of {name!r} has shape {tuple(masks[name].shape)}, its weight {shape}")
        with isolated(0, ()), plain_tensors():
            leaves = {name: masks[name].detach().cpu().float().requires_grad_() for name in self._shapes}
            values: dict[str, Any] = dict(self._values)
            values.update((self._keys[name], Kept(leaf)) for name, leaf in leaves.items())
            outputs = self._outputs([*values.values(), *self._inputs])
            reached = [leaf.tensor.sum() for leaf in tree_leaves(outputs) if isinstance(leaf, Reach)]
            flow = torch.stack(reached).sum() if reached else torch.zeros(())
            if not flow.requires_grad:  # no layer with a mask is between inputs and outputs
                return {name: torch.zeros(shape, dtype=torch.bool) for name, shape in self._shapes.items()}
            gradients = torch.autograd.grad(flow, list(leaves.values()), allow_unused=True, materialize_grads=True)
        # A gradient counts the places at which a reached input and a needed output meet: whole numbers, but for the rounding
        # of the convolution.
        return {
            name: (leaf.detach() > 0) & (gradient > HALF)
            for (name, leaf), gradient in zip(leaves.items(), gradients, strict=True)
        }

    def _outputs(self, arguments: Sequence[Any]) -> Any:
        try:
            return ReachInterpreter(self._graph).run(*arguments)
        except torch.OutOfMemoryError:
            raise
        except (RuntimeError, TypeError, AttributeError, IndexError, KeyError) as error:  # a use of an operation that is new here
            reason = str(error).partition("\n")[0]
            raise ValueError(f"model: its paths cannot be followed: {type(error).__name__}: {reason}") from error


def _arguments(input_shape: Any, inputs: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Positional and keyword arguments of `forward` with which the network is traced."""
    if (input_shape is None) == (inputs is None):
        raise TypeError("input_shape, inputs: expected one of the two: the shape of a sample, or a batch of examples")
    if inputs is None:
        inputs = sample_of_ones(sample_shapes(input_shape), torch.float32, "cpu")
    elif not tensors_in(inputs):
        raise TypeError(f"inputs: expected a tensor, or a tuple or mapping of tensors, got {type(inputs).__name__}")
    inputs = map_tensors(lambda x: x.detach().cpu().float() if x.is_floating_point() else x.detach().cpu(), inputs)
    if isinstance(inputs, Mapping):
        return (), dict(inputs)
    return (tuple(inputs) if isinstance(inputs, list | tuple) else (inputs,)), {}


def _plain(model: nn.Module, names: Sequence[str]) -> nn.Module:
    """A copy on the CPU, in eval mode, in which each of `names` has a plain parameter `weight`."""
    net = densify(duplicate(model), inplace=True).cpu().float().eval()
    modules = dict(net.named_modules(remove_duplicate=False))
    for name in names:
        module = modules.get(name)
        if module is None:
            raise ValueError(f"model: has no module {name!r}, for which there is a mask")
        if parametrize.is_parametrized(module, "weight"):
            parametrize.remove_parametrizations(module, "weight")
        elif "weight_orig" in module._parameters and "weight_mask" in module._buffers:
            torch_prune.remove(module, "weight")  # type: ignore[no-untyped-call]
        if not isinstance(module._parameters.get("weight"), nn.Parameter):
            raise ValueError(
                f"model: {name!r}, for which there is a mask, is a {type(module).__name__} without a parameter 'weight'"
            )
    return net


def _weight(module: nn.Module) -> nn.Parameter:
    weight = module._parameters["weight"]
    assert weight is not None
    return weight


@contextmanager
def _elementary(net: nn.Module) -> Iterator[None]:
    """Inside, attention and recurrent layers run as elementary operations, not in one kernel that hides them."""
    mkldnn: Any = torch.backends.mkldnn
    enabled = mkldnn.enabled
    if any(isinstance(module, nn.RNNBase) for module in net.modules()):
        mkldnn.enabled = False  # not mkldnn.flags(), which warns where there is no GPU of Intel
    try:
        with sdpa_kernel(SDPBackend.MATH):
            yield
    finally:
        mkldnn.enabled = enabled


def _trace(net: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[GraphModule, dict[str, Tensor]]:
    """The operations of `net`, and the value of each parameter and buffer that they read, in the order of the placeholders.

    Parameters are other numbers than the network's, none of them 0: a layer without a mask is dense, whatever it starts from.
    """
    state = {**dict(net.named_parameters()), **dict(net.named_buffers())}

    def run(state: dict[str, Tensor], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        return functional_call(net, state, args, kwargs)

    try:
        with torch.no_grad(), _elementary(net):
            graph = make_fx(functionalize(run, remove="mutations"))(state, args, kwargs)
    except torch.OutOfMemoryError:
        raise
    except Exception as error:  # whatever the model's own code raises
        reason = f"{type(error).__name__}: {str(error).partition(chr(10))[0]}"
        if "tracing tensor" in reason:  # with advice on how to trace
            reason = "what it does depends on values that it computes (`if`, `while`, .item())"
        got = describe(kwargs or (args if len(args) > 1 else args[0]))
        raise ValueError(f"model: it cannot be run and traced on an input of {got}: {reason}") from error
    graph.graph.eliminate_dead_code()
    graph.recompile()
    random = torch.Generator().manual_seed(0)
    parameters = {id(parameter) for parameter in net.parameters()}
    values = {
        name: torch.rand(value.shape, generator=random) + 0.5 if id(value) in parameters else value.detach()
        for name, value in state.items()
    }
    return graph, values
