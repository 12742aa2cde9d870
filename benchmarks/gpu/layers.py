"""layers: single convolutions, every way to compute them, beside dense cuDNN of the same precision."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache

import torch

import tost
import tost_kernels as tk
from benchmarks.cases import Layer
from benchmarks.gpu import layer_variants as ways
from benchmarks.gpu.device import DTYPES, precision
from benchmarks.gpu.measure import Calls, copies_for, timed
from benchmarks.gpu.settings import Settings
from benchmarks.gpu.suite import Suite
from benchmarks.layer_calls import PARTS, module_of
from benchmarks.ledger import Record
from benchmarks.timing import Times
from tost import models
from tost_kernels.backend import why_not
from tost_kernels.layout import as_layout
from tost_kernels.plan import Plan

DENSE, MASKED, COMPILED, CSR, CHOSEN = "dense", "masked-dense eager", "torch.compile dense", "cuSPARSE CSR", "chosen"
# Our kernels, by backend and algorithm, and the layout each is measured in.
LAYOUTS = {
    "cuda gather": "batch_last",
    "cuda direct": "batch_last",
    "triton tiles": "batch_last",
    "triton blocks": "channels_last",
    "triton direct": "batch_last",
}
BACKENDS = ("cuda", "triton")

_Built = Callable[[], tuple[dict[str, Calls], str]]  # with the options that it runs by
_Rival = tuple[dict[str, Calls] | None, str]


@dataclass(frozen=True)
class Case:
    """One row. network: whose layer it is."""

    network: str
    layer: Layer
    mask: str
    sparsity: float
    precision: str

    @property
    def name(self) -> str:
        """For lists of what was left out."""
        return f"{self.layer.name} {self.mask} {100 * self.sparsity:g}% {self.precision}"


def cases(settings: Settings) -> list[Case]:
    """All of them, those of targets first: random masks at 95 and 98%, the wide 3x3 layers; tensor cores before fp32."""
    layers = [(network, layer) for network, of in settings.layers.items() for layer in of]
    rows = [
        Case(network, layer, mask, sparsity, kind)
        for (network, layer), mask, sparsity, kind in itertools.product(
            layers, settings.masks, settings.sparsities, settings.precisions
        )
    ]

    def rank(case: Case) -> tuple[int, int]:
        wide = case.layer.kernel == 3 and case.layer.channels >= 128 and case.layer.stride == 1
        doubts = 2 * ((case.sparsity < 0.95) + (case.mask != "random") + (not wide)) + (case.precision == "fp32")
        return doubts, layers.index((case.network, case.layer))

    return sorted(rows, key=rank)


def run(suite: Suite) -> None:
    """Measure the cases in their order, as far as the time allows."""
    for name in BACKENDS:
        reason = why_not("masked_conv2d", name)
        if reason is not None:
            suite.note(f"no {name} kernels: {reason}")
    for case in cases(suite.settings):
        if suite.wants(case.name):
            with suite.attempt(case.name), precision(case.precision):
                _measure(suite, case)
            suite.device.release()


def pattern_of(suite: Suite, case: Case) -> tk.Pattern:
    """The mask of a case, on the device."""
    if case.mask == "random":
        generator = torch.Generator().manual_seed(0)
        mask = torch.rand(case.layer.weight_shape, generator=generator) >= case.sparsity
    else:
        network, side = suite.settings.networks[case.network]
        mask = _synflow(network, side, case.sparsity, suite.device.name)[layer_of(network, side, case.layer)]
    return tk.Pattern(mask).to(suite.device.name)


@cache
def _synflow(network: str, side: int, sparsity: float, device: str) -> tost.Masks:
    torch.manual_seed(0)
    return tost.prune(models.build(network, 10, 3, (side, side)).to(device), "synflow", 1 - sparsity, input_shape=(3, side, side))


@cache
def layer_of(network: str, side: int, layer: Layer) -> str:
    """The name of the network's middle layer of this shape and stride: the first and last are often the odd ones."""
    names: list[str] = [
        name
        for name, module in models.build(network, 10, 3, (side, side)).named_modules()
        if isinstance(module, torch.nn.Conv2d)
        and tuple(module.weight.shape) == layer.weight_shape
        and module.stride == (layer.stride,) * 2
    ]
    if not names:
        raise ValueError(f"layers: expected one of the shape {layer.name} in {network}, found none")
    return names[len(names) // 2]


def _measure(suite: Suite, case: Case) -> None:
    settings, device = suite.settings, suite.device
    copies = copies_for(ways.activation_bytes(case.layer, settings.batch, case.precision), device.l2_bytes)
    problem = ways.Problem.of(case.layer, settings.batch, case.precision, copies, device.name)
    pattern = pattern_of(suite, case)
    right = ways.expected(problem, pattern)
    variants: dict[str, dict[str, Calls]] = {DENSE: ways.dense(problem)}
    options: dict[str, str] = {DENSE: "channels_last"}
    for name, choice, calls in _ours(suite, case, problem, pattern):
        key = f"{case.name}: {name} {choice}".strip()
        if key in suite.here.failures:
            continue
        with suite.attempt(key):
            built, ran_by = calls()
            ways.check(key, case.precision, built, right)
            variants[name], options[name] = _faster(suite, (variants.get(name), options.get(name, "")), (built, ran_by))
    variants[MASKED] = ways.masked_dense(problem, pattern)
    if case.layer in settings.compiled_layers and case.mask == settings.masks[0] and case.sparsity == settings.sparsities[-1]:
        variants[COMPILED] = ways.compiled(problem, settings.compiler)
    if case.layer in settings.csr and case.precision == "fp32":
        variants[CSR] = ways.csr(problem, pattern)
        ways.check(CSR, case.precision, variants[CSR], right)
    by_part = {part: {name: calls[part] for name, calls in variants.items() if part in calls} for part in (*PARTS, ways.ALL)}
    for part, each in by_part.items():
        suite.add(_records(case, part, options, pattern.nnz, settings.batch, timed(suite, each)))


def _ours(suite: Suite, case: Case, problem: ways.Problem, pattern: tk.Pattern) -> Iterator[tuple[str, str, _Built]]:
    """(variant, options, what builds its calls): tune's choice, then every algorithm of our kernels."""

    def chosen() -> tuple[dict[str, Calls], str]:
        plan, layout = tuned(case.layer, problem, pattern)
        return ways.ours(problem, pattern, plan, layout), f"{plan.backend} {plan.options}".strip() + f" on {layout}"

    yield CHOSEN, "", chosen
    for name, choices in kernels(suite.settings, case.precision).items():
        for choice in choices:
            yield name, choice, lambda name=name, choice=choice: (by_options(problem, pattern, name, choice), choice)  # type: ignore[misc]


def kernels(settings: Settings, precision: str) -> dict[str, tuple[str, ...]]:
    """Those of `Settings.options` that run here and have products of this precision."""
    return {
        name: choices
        for name, choices in settings.options.items()
        if why_not("masked_conv2d", name.split()[0]) is None and (name, precision) != ("cuda gather", "fp32")
    }


def by_options(problem: ways.Problem, pattern: tk.Pattern, name: str, choice: str) -> dict[str, Calls]:
    """The calls of a kernel, a key of LAYOUTS."""
    return ways.ours(problem, pattern, Plan(name.split()[0], choice), LAYOUTS[name])


def tuned(layer: Layer, problem: ways.Problem, pattern: tk.Pattern, cache: bool = True) -> tuple[Plan, str]:
    """What `tost_kernels.tune` picks for a training step, in the layout in which it takes less time. cache: tune's, on disk."""
    found: list[tuple[float, Plan, str]] = []
    for layout in ("batch_last", "channels_last"):
        x = as_layout(problem.x[0], layout).detach().requires_grad_()
        report = tk.tune(module_of(layer, pattern, x.dtype).to(x.device), x, cache=cache)
        case = next(case for case in report.cases if case.case.grads)
        found.append((case.milliseconds(case.plan) or 0.0, case.plan, layout))
    _, plan, layout = min(found, key=lambda row: row[0])
    return plan, layout


def _faster(suite: Suite, *rivals: _Rival) -> tuple[dict[str, Calls], str]:
    """Of two sets of options that which takes less for all three parts, at a first look; the first may be absent."""
    (before, _), new = rivals
    if before is None:
        assert new[0] is not None
        return new[0], new[1]
    looks = {str(i): calls[ways.ALL] for i, (calls, _) in enumerate(rivals) if calls is not None}
    best = timed(suite, looks, rounds=min(3, suite.settings.rounds)).fastest([(name,) for name in looks])[0]
    calls, options = rivals[int(best)]
    assert calls is not None
    return calls, options


def _records(case: Case, part: str, options: dict[str, str], kept: int, batch: int, times: Times) -> list[Record]:
    """bytes, flops in each case: what must at least be moved and computed."""
    layer = case.layer
    weights = torch.Size(layer.weight_shape).numel()
    passes = 3 if part == ways.ALL else 1
    records = []
    for name in times.ms:
        count = weights if name in (DENSE, MASKED, COMPILED) else kept
        moved = ways.activation_bytes(layer, batch, case.precision) + count * DTYPES[case.precision].itemsize
        about = {
            "layer": layer.name,
            "batch": batch,
            "mask": case.mask,
            "sparsity": case.sparsity,
            "density": kept / weights,
            "precision": case.precision,
            "part": part,
            "options": options.get(name, ""),
            "bytes": passes * moved,
            "flops": passes * 2 * layer.multiply_adds(batch, count),
        }
        ratio = times.ratio([DENSE], [name]) if DENSE in times.ms else None
        records.append(Record("layers", about, name, 1, times.summary(name), ratio, f"{DENSE} {case.precision}"))
    return records
