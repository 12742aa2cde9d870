"""How an op is registered: one schema, one fake and one autograd rule for all its compiled backends.

Schemas are defined here, in Python, and nowhere else: compiled code only adds kernels. A schema defined in C++ would be
missing without a compiler, and two definitions clash. Each backend is an op of its own, `tost::<name>_<backend>`, since two
kernels for the same dispatch key (CUDA and Triton) would silently replace each other.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch._C._functorch import unwrap_if_dead
from torch._functorch.pyfunctorch import retrieve_all_functorch_interpreters
from torch.autograd.function import once_differentiable as torch_once_differentiable

from tost_kernels.backend import COMPILED

LIBRARY = torch.library.Library("tost", "DEF")
LIBRARY.define("cpu_isa() -> str")  # the instruction set that the compiled CPU kernels use here
# What a plan string asks of one pass ("forward", "input_grad", "values_grad") of its convolutions, and the tiles (rows x
# columns x batch vectors, with commas) that they may choose for a result of these sizes.
LIBRARY.define("cpu_plan(str plan, str which) -> str")
LIBRARY.define("cpu_tiles(int rows, int columns, int batch) -> str")
_OPS: dict[tuple[str, str], Any] = {}


def _define(name: str, backend: str, schema: str) -> str:
    qualified = f"{name}_{backend}"
    LIBRARY.define(qualified + schema, tags=(torch.Tag.pt2_compliant_tag,))
    _OPS[name, backend] = getattr(torch.ops.tost, qualified).default
    return qualified


def define(name: str, schema: str, fake: Callable[..., Any], backends: tuple[str, ...] = COMPILED) -> None:
    """Define `tost::<name>_<backend>` for the compiled backends, with the fake (shapes, strides, dtypes) they share."""
    for backend in backends:
        qualified = _define(name, backend, schema)
        torch.library.register_fake(f"tost::{qualified}", fake, lib=LIBRARY)


def define_reference(name: str, schema: str, function: Callable[..., Any]) -> None:
    """Define `tost::<name>_reference`, which decomposes into `function`: plain torch, differentiable to any order."""
    qualified = _define(name, "reference", schema)
    LIBRARY.impl(qualified, function, "CompositeImplicitAutograd")


def op(name: str, backend: str) -> Any:
    """The op `tost::<name>_<backend>`."""
    return _OPS[name, backend]


def differentiate(name: str, function: type[torch.autograd.Function], backends: tuple[str, ...] = COMPILED) -> None:
    """Make `tost::<name>_<backend>` differentiable by `function`, whose first argument is the backend.

    The Function's forward calls the op again with grad mode off, which is how this kernel knows that it is to go on below
    autograd. Public functions go through `apply`.
    """
    # torch asks for it at every apply; working it out anew took a fifth of a small op's time (150 against 125 us).
    function.forward.__signature__ = inspect.signature(function.forward)  # type: ignore[attr-defined]
    for backend in backends:
        overload = op(name, backend)

        def kernel(keyset: Any, *args: Any, _backend: str = backend, _overload: Any = overload) -> Any:
            if torch.is_grad_enabled() and any(isinstance(a, Tensor) and a.requires_grad for a in args):
                return function.apply(_backend, *args)
            with torch._C._AutoDispatchBelowAutograd():
                return _overload.redispatch(keyset & torch._C._after_autograd_keyset, *args)

        LIBRARY.impl(f"{name}_{backend}", kernel, "Autograd", with_keyset=True)


def once_differentiable(backward: Callable[..., Any]) -> Callable[..., Any]:
    """torch's decorator, but asking for a second derivative raises wherever the gradient depends on what was saved, too.

    torch itself looks at the incoming gradients alone: with y = w x, differentiating dy/dx once more by w would quietly give 0.
    """

    def with_saved(ctx: Any, count: int, *tensors: Any) -> Any:
        return backward(ctx, *tensors[:count])

    strict, plain = torch_once_differentiable(with_saved), torch_once_differentiable(backward)

    @functools.wraps(backward)
    def wrapper(ctx: Any, *grads: Any) -> Any:
        if not torch.is_grad_enabled():  # no create_graph: nobody can ask for a second derivative
            return backward(ctx, *grads)
        # Neither a traced graph nor a functorch level can hold torch's delayed error; `apply` guards the latter.
        if torch.compiler.is_compiling() or torch._C._are_functorch_transforms_active():
            return plain(ctx, *grads)
        return strict(ctx, len(grads), *grads, *ctx.saved_tensors)

    return wrapper


def apply(function: type[torch.autograd.Function], *arguments: Any) -> Any:
    """function.apply, outermost, as torch.func.grad needs it. Raises RuntimeError inside two nested torch.func.grad."""
    if torch.compiler.is_compiling():
        if not (torch.is_grad_enabled() and any(isinstance(a, Tensor) and a.requires_grad for a in arguments)):
            return function.forward(*arguments)  # Dynamo would hand a ctx to it (torch 2.13)
        return function.apply(*arguments)
    if torch._C._are_functorch_transforms_active():
        levels = retrieve_all_functorch_interpreters()
        if sum(level.key() == torch._C._functorch.TransformType.Grad for level in levels) > 1:
            raise RuntimeError("compiled ops differentiate once: use tost_kernels.use_backend('reference') for higher orders")
        return function.apply(*arguments)
    # What Function.apply does outside of functorch, without binding the arguments to forward's signature.
    alive = [unwrap_if_dead(a) if isinstance(a, Tensor) else a for a in arguments]
    return super(torch.autograd.Function, function).apply(*alive)  # type: ignore[misc]


def run_below_autograd(name: str, backend: str, *arguments: Any) -> Any:
    """The op inside a Function's forward: past its Autograd kernel, which would only come back to the Function's forward."""
    overload = _OPS[name, backend]
    if torch.compiler.is_compiling() or torch._C._are_functorch_transforms_active():
        return overload(*arguments)
    with torch._C._AutoDispatchBelowAutograd():
        return overload(*arguments)


def autocast(x: Tensor, values: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor, Tensor | None]:
    """Input, values and bias of a masked op, cast as autocast casts torch's own: float64 stays."""
    if not torch.is_autocast_enabled(x.device.type):
        return x, values, bias
    dtype = torch.get_autocast_dtype(x.device.type)

    def cast(t: Tensor) -> Tensor:
        return t if t.dtype == torch.float64 else t.to(dtype)

    return cast(x), cast(values), None if bias is None else cast(bias)
