"""Plan strings: what the GPU backends, which let one choose much, share of them.

A plan's options are `key=value` pairs with commas between them. A key holds for all three passes; with `forward.`,
`input_grad.` or `values_grad.` before it, for that one. A few keys are one for the whole plan, as one index serves all passes.
What a plan leaves open a static rule completes, once, in the forward pass, so that the backward pass repeats it whatever the
settings are by then. Keys and rule are each backend's own: tost_kernels/triton/options.py, tost_kernels/cuda_options.py.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Generic, TypeVar

import torch
from torch import Tensor

from tost_kernels.layout import layout_of
from tost_kernels.plan import float32_precision

if TYPE_CHECKING:
    from tost_kernels.pattern import Pattern

PASSES = ("forward", "input_grad", "values_grad")
_MOST_KNOWN = 4096  # plans

Asked = dict[tuple[str, str], "str | int"]  # (pass or "", key) -> value

Options = TypeVar("Options", bound=Any)  # a NamedTuple: a field a key, 0: does not apply, or left to the kernel


class Grammar(Generic[Options]):
    """The plan strings of one backend.

    plain: the options of each pass of the plan "", which the ops take, too. choices: key -> its values; a range is said to be one
    in errors. whole_plan: the keys that are one for all passes. check(plan, passes) raises ValueError unless a kernel exists for
    each pass and one index serves them all. rule(asked, op, x, pattern, geometry) are the passes of what was asked for, the rest
    filled in. index(passes, x, pattern, geometry) is the index that these take.
    """

    def __init__(
        self,
        backend: str,
        plain: Options,
        choices: Mapping[str, Sequence[str | int]],
        whole_plan: Sequence[str],
        check: Callable[[str, dict[str, Options]], None],
        rule: Callable[[Asked, str, Tensor, Pattern, Sequence[int]], dict[str, Options]],
        index: Callable[[dict[str, Options], Tensor, Pattern, Sequence[int]], Tensor],
    ) -> None:
        self._backend, self._plain, self._choices, self._whole_plan = backend, plain, choices, whole_plan
        self._check, self._rule, self._index = check, rule, index
        self._known_passes = functools.lru_cache(_MOST_KNOWN)(self._read)
        self._known_plans: dict[tuple[object, ...], str] = {}  # from all that a rule looks at to the complete plan

    def parse(self, plan: str) -> Asked:
        """What a plan string asks for, as {(pass or "", key): value}. Raises ValueError naming what is wrong."""
        who = f"{self._backend} plan"
        asked: Asked = {}
        for item in plan.split(",") if plan else ():
            name, equals, text = item.partition("=")
            which, dot, key = name.rpartition(".")
            if not equals or key not in self._choices or (dot and which not in PASSES):
                raise ValueError(f"{who}: expected key=value with a key of {(*self._choices,)}, got {item!r} in {plan!r}")
            if which and key in self._whole_plan:
                raise ValueError(f"{who}: expected one {key} for all passes, got {item!r} in {plan!r}")
            choices = self._choices[key]
            value = next((choice for choice in choices if str(choice) == text), None)
            if value is None:
                expected = f"{choices[0]} to {choices[-1]}" if isinstance(choices, range) else f"one of {choices}"
                raise ValueError(f"{who}: expected {key} to be {expected}, got {text!r} in {plan!r}")
            if (which, key) in asked:
                raise ValueError(f"{who}: expected each key once, got {name!r} again in {plan!r}")
            asked[which, key] = value
        return asked

    def of_pass(self, plan: str, which: str) -> Options:
        """The options of the pass `which` ("forward", ...) of a complete plan string, checked whole. Raises ValueError."""
        return self._passes(plan)[which]

    def _passes(self, plan: str) -> dict[str, Options]:
        # Every op asks, and reading the string takes longer than a small layer. torch.compile has no use for the cache.
        return self._read(plan) if torch.compiler.is_compiling() else self._known_passes(plan)

    def _read(self, plan: str) -> dict[str, Options]:
        asked = self.parse(plan)
        passes = {name: filled(asked, name, self._plain) for name in PASSES}
        self._check(plan, passes)
        return passes

    def resolve(self, op: str, plan: str, x: Tensor, pattern: Pattern, geometry: Sequence[int]) -> tuple[Tensor, str]:
        """The index that the ops take, and the complete plan string, for a call whose arguments are checked and cast.

        op: "masked_conv2d" or "masked_linear". plan: the options asked for; "": the static rule alone. geometry: stride,
        padding, dilation (two each) and groups; () for a linear layer. Raises ValueError naming what is wrong with the plan.
        """
        plan = self.complete(op, plan, x, pattern, geometry)
        index = self._index(self._passes(plan), x, pattern, geometry)
        # A constant of a traced graph cannot be asked whether it requires a gradient; what an op makes of it can.
        made_here = torch.compiler.is_compiling() and index is not pattern.index
        return index.detach() if made_here else index, plan

    def complete(self, op: str, plan: str, x: Tensor, pattern: Pattern, geometry: Sequence[int]) -> str:
        """`plan` with everything said that it left to the static rule."""
        if torch.compiler.is_compiling():  # the result is a constant of the graph
            return self._completed(op, plan, x, pattern, geometry)
        precision = product_precision(op, x)
        key = (op, plan, x.dtype, x.shape, layout_of(x), pattern.fingerprint, tuple(geometry), precision)
        try:
            known = self._known_plans.get(key)
        except TypeError:  # symbolic sizes, in a tracer other than torch.compile, have no hash
            return self._completed(op, plan, x, pattern, geometry)
        if known is None:
            known = self._completed(op, plan, x, pattern, geometry)
            if len(self._known_plans) >= _MOST_KNOWN:
                self._known_plans.clear()
            self._known_plans[key] = known
        return known

    def _completed(self, op: str, plan: str, x: Tensor, pattern: Pattern, geometry: Sequence[int]) -> str:
        passes = self._rule(self.parse(plan), op, x, pattern, geometry)
        self._check(plan, passes)
        return self._text(passes)

    def _text(self, passes: dict[str, Options]) -> str:
        """The plan string that asks for exactly this."""
        items = []
        for key in self._choices:
            values = [getattr(options, key) for options in passes.values()]
            if len(set(values)) == 1:
                items += [f"{key}={values[0]}"] if values[0] else []
            else:
                items += [f"{name}.{key}={value}" for name, value in zip(PASSES, values, strict=True) if value]
        return ",".join(items)


def filled(asked: Asked, which: str, default: Options) -> Options:
    """`default` with what is asked of the pass `which`."""
    found = {key: asked.get((which, key), asked.get(("", key))) for key in default._fields}
    return default._replace(**{key: value for key, value in found.items() if value is not None})  # type: ignore[no-any-return]


def product_precision(op: str, x: Tensor) -> str:
    """How torch, by its settings, would multiply numbers of x on CUDA: "ieee" or "tf32"."""
    return float32_precision(op) if x.dtype == torch.float32 else "ieee"
