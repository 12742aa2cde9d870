"""Plan: which backend, and which of its variants, runs one op on one input shape.

A Pattern is what the mask alone decides; a Plan is the choice on top of it. It reaches an op as a string, so that compiling,
faking and vmapping stay simple, and it is fixed in the forward pass: the backward pass repeats it, in whatever thread.

`plan_for` chooses: the backend forced by `use_backend`; else what `tune` found for this case in this process; else a static
rule.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from tost_kernels import backend
from tost_kernels.layout import is_batch_last, layout_of
from tost_kernels.pattern import Pattern

# Where the compiled CPU kernels win against the dense library, which needs the input in a layout of its own (measured;
# see docs/notes/cpu-masked-conv2d.md). They do one multiply-add a kept weight, over rows of the batch.
DENSEST = 0.4
FEW_KEPT_PER_OUTPUT = 256  # batch-last inputs at any density: two layout changes cost more than so few multiply-adds
SMALLEST_BATCH = 4


@dataclass(frozen=True)
class Plan:
    """backend: a name of `backend.BACKENDS`. options: the variant within it, e.g. "tile=4x4"; "" = the kernel's own rule.

    An option holds for forward pass and both gradients; "input_grad.tile=2x4" (or "forward.", "values_grad.") for one.
    """

    backend: str
    options: str = ""


class Case(NamedTuple):
    """What tuning distinguishes: everything about a call of a masked op that decides how long it takes.

    The mask counts by its shape, in steps of a fifth its density, and in sixteenths how many filters and channels it leaves
    alive: the kernels' time follows from how many weights are kept and whether they crowd, hardly from which. So a run with
    another seed's mask of the same kind finds what an earlier one measured; the mask's fingerprint would make each seed pay for
    tuning again.
    """

    op: str
    weight: tuple[int, ...]  # shape
    density: int  # round(4 * log2(density)); NOTHING_KEPT for 0
    live: tuple[int, int]  # sixteenths, rounded up, of the filters and of the input channels that keep a weight
    input: tuple[int, ...]  # shape
    layout: str
    dtype: str
    precision: str  # of float32 products on CUDA, from torch's settings: "ieee" or "tf32"; "" elsewhere
    device: str
    geometry: tuple[int, ...]  # of a convolution: stride, padding, dilation (two each), groups
    bias: bool
    grads: str  # which gradients the backward pass will want: "", "x", "values" or "x+values"
    threads: int


NOTHING_KEPT = -1000
_GRADS = {(False, False): "", (True, False): "x", (False, True): "values", (True, True): "x+values"}

# A case without its input's shape -> shape -> plan. The shapes stand apart for torch.compile: compared one by one they leave
# a symbolic batch size symbolic wherever it is none of the tuned ones.
_TUNED: dict[Case, dict[tuple[int, ...], Plan]] = {}
# From everything about a call that is quick to ask for (strides, not the layout they stand for) to its plan. Without it
# the choice would cost more than small ops take.
_SEEN: dict[tuple[object, ...], Plan] = {}
_MOST_SEEN = 4096


class _Watch(threading.local):
    """Who is told of each case in this thread."""

    tell: Callable[[Case, Pattern], None] | None = None


_WATCH = _Watch()


def remember(case: Case, plan: Plan) -> None:
    """From now on calls of this case run by `plan`. torch.compile compiles affected graphs anew."""
    _TUNED.setdefault(case._replace(input=()), {})[case.input] = plan
    _SEEN.clear()


def forget() -> None:
    """Back to the static rule everywhere."""
    _TUNED.clear()
    _SEEN.clear()


def remembered_backends(device: str) -> list[str]:
    """The backends of the plans remembered for "cpu" or "cuda", in the order of `backend.BACKENDS`."""
    names = {plan.backend for kind, plans in _TUNED.items() if kind.device == device for plan in plans.values()}
    return [name for name in backend.BACKENDS if name in names]


@contextmanager
def own_plans() -> Iterator[None]:
    """What is remembered or forgotten inside the block is undone after it."""
    before = {kind: dict(shapes) for kind, shapes in _TUNED.items()}
    try:
        yield
    finally:
        forget()
        _TUNED.update(before)


@contextmanager
def watching(tell: Callable[[Case, Pattern], None]) -> Iterator[None]:
    """Call `tell` for every masked op that asks for its plan in this thread inside the block."""
    before = _WATCH.tell
    _WATCH.tell = tell
    try:
        yield
    finally:
        _WATCH.tell = before


def plan_for(op: str, x: Tensor, values: Tensor, pattern: Pattern, bias: Tensor | None, geometry: tuple[int, ...]) -> Plan:
    """The plan of a call whose arguments are checked and cast. geometry: as in `Case`.

    Raises RuntimeError if a forced backend cannot run it.
    """
    compiling = torch.compiler.is_compiling()
    if not compiling and _WATCH.tell is not None:
        _WATCH.tell(_kind(op, x, values, pattern, bias, geometry)._replace(input=tuple(x.shape)), pattern)
    if backend.forced() is not None:
        return static_plan(op, x, pattern)
    if compiling:  # the choice is a constant of the graph
        return _choose(op, x, values, pattern, bias, geometry)
    key = (
        op, pattern.fingerprint, x.shape, x.stride(), x.dtype, precision_of(op, x), x.device, geometry, bias is None,
        x.requires_grad, values.requires_grad, torch.is_grad_enabled(), torch.get_num_threads(),
    )  # fmt: skip
    try:
        plan = _SEEN.get(key)
    except TypeError:  # symbolic sizes, in a tracer other than torch.compile, have no hash
        return static_plan(op, x, pattern)
    if plan is None:
        plan = _choose(op, x, values, pattern, bias, geometry)
        if len(_SEEN) >= _MOST_SEEN:
            _SEEN.clear()
        _SEEN[key] = plan
    return plan


def _choose(op: str, x: Tensor, values: Tensor, pattern: Pattern, bias: Tensor | None, geometry: tuple[int, ...]) -> Plan:
    if _TUNED:
        for shape, plan in _TUNED.get(_kind(op, x, values, pattern, bias, geometry), {}).items():
            if all(size == wanted for size, wanted in zip(x.shape, shape, strict=True)):
                return plan
    return static_plan(op, x, pattern)


def _kind(op: str, x: Tensor, values: Tensor, pattern: Pattern, bias: Tensor | None, geometry: tuple[int, ...]) -> Case:
    """The call's case, but for the shape of its input."""
    grad = torch.is_grad_enabled()
    return Case(
        op, pattern.shape, density_step(pattern.density), live_steps(pattern), (), layout_of(x),
        str(x.dtype).removeprefix("torch."), precision_of(op, x), x.device.type, geometry, bias is not None,
        _GRADS[grad and x.requires_grad, grad and values.requires_grad], _threads(),
    )  # fmt: skip


@torch.compiler.assume_constant_result  # type: ignore[untyped-decorator]
def _threads() -> int:
    return torch.get_num_threads()


def live_steps(pattern: Pattern) -> tuple[int, int]:
    """`Case.live` of a mask."""
    filters, channels = (-(-16 * alive // size) for alive, size in zip(pattern.live, pattern.shape[:2], strict=True))
    return filters, channels


def precision_of(op: str, x: Tensor) -> str:
    """`Case.precision` of a call: how torch, and so every backend, multiplies float32 numbers on CUDA."""
    if x.device.type != "cuda" or x.dtype != torch.float32:
        return ""
    return float32_precision(op)  # type: ignore[no-any-return]


@torch.compiler.assume_constant_result  # type: ignore[untyped-decorator]
def float32_precision(op: str) -> str:
    """ "tf32" or "ieee": how torch, by its settings of now, multiplies float32 numbers on CUDA.

    Its older settings (allow_tf32, set_float32_matmul_precision) end in the newer ones, which alone never raise."""
    settings: Any = torch.backends.cudnn.conv if op == "masked_conv2d" else torch.backends.cuda.matmul  # type: ignore[attr-defined]
    return "tf32" if settings.fp32_precision == "tf32" else "ieee"


def density_step(density: float) -> int:
    """`Case.density` of a mask that keeps this fraction."""
    return round(4 * math.log2(density)) if density > 0 else NOTHING_KEPT


def static_plan(op: str, x: Tensor, pattern: Pattern) -> Plan:
    """The plan for a masked op on `x` (batch first) when nothing was tuned: the compiled kernel where it pays, else dense.

    On CUDA always dense: no rule known tells in advance where a sparse kernel beats cuDNN on tensor cores, and a layer must
    never become slower by being sparse. There the kernels come in by `tune`, which measures. A backend forced by
    `use_backend` is always obeyed.
    """
    return Plan(backend.pick(op, ("cpu", "dense") if _cpu_kernel_pays(x, pattern) else ("dense",), x))


def _cpu_kernel_pays(x: Tensor, pattern: Pattern) -> bool:
    if x.device.type != "cpu":
        return False
    if is_full_pointwise(pattern) and is_batch_last(x):
        return True  # a matrix product of its own, whatever the size (docs/notes/dense-pointwise.md)
    if is_depthwise(x, pattern):
        # Read and written once where it lies. For one image dense needs no layout change, and in other layouts the changes
        # cost more than the convolution (docs/notes/depthwise.md).
        return is_batch_last(x) and x.shape[0] > 1
    if x.shape[0] < SMALLEST_BATCH:
        return False
    few_kept = pattern.nnz <= FEW_KEPT_PER_OUTPUT * pattern.shape[0]
    return pattern.density <= DENSEST or (few_kept and is_batch_last(x))


def dense_weight_may_pay(shape: Sequence[int]) -> bool:
    """Whether a compiled kernel may win with all the weights of a convolution (O, I / groups, kh, kw) on a batch-last input."""
    return math.prod(shape[1:]) <= FEW_KEPT_PER_OUTPUT or tuple(shape[2:]) == (1, 1)


def is_full_pointwise(pattern: Pattern) -> bool:
    """Whether it is the pattern of a dense 1x1 convolution, as a ghost's."""
    return len(pattern.shape) == 4 and pattern.shape[2:] == (1, 1) and pattern.density == 1


def is_depthwise(x: Tensor, pattern: Pattern) -> bool:
    """Whether the pattern is that of a convolution on `x` with one input channel a group and more than one group."""
    return len(pattern.shape) == 4 and pattern.shape[1] == 1 and x.shape[1] > 1
