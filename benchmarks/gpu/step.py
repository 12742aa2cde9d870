"""step: a whole training step, ours beside masked-dense and dense, eager, compiled and as one CUDA graph."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.gpu.device import precision
from benchmarks.gpu.settings import Settings
from benchmarks.gpu.suite import Suite
from benchmarks.ledger import Record
from benchmarks.networks import CLASSES, Step, Variant, check
from benchmarks.timing import interleave
from tost import models
from tost.config import Config
from tost.graphed import GraphedUpdate
from tost.update import optimizer_of

MASKED, DENSE, OURS, GRAPH, DENSE_GRAPH = "masked-dense eager", "dense eager", "ours eager", "ours recorded", "dense graph"
COMPILED = {"default": "torch.compile dense", "reduce-overhead": "torch.compile dense reduce-overhead"}


@dataclass(frozen=True)
class Way:
    """One variant. mode: of torch.compile; graph: the whole step is one CUDA graph: ours by tost, as `tost.train` runs it."""

    name: str
    variant: Variant
    mode: str | None = None
    graph: bool = False


def ways(sparsity: float, amp: bool, modes: tuple[str, ...]) -> list[Way]:
    """The most important first: what the targets compare."""

    def of(kind: str, layout: str) -> Variant:
        has_mask = kind in ("masked", "sparse")
        plan = "tuned" if kind == "sparse" else "rule"
        return Variant(kind, layout, sparsity if has_mask else None, plan=plan, amp=amp)

    rows = [Way(f"{MASKED} {layout}", of("masked", layout)) for layout in ("contiguous", "channels_last")]
    rows.append(Way(GRAPH, of("sparse", "batch_last"), graph=True))
    rows += [Way(COMPILED[mode], of("compiled", "channels_last"), mode=mode) for mode in modes]
    rows.append(Way(OURS, of("sparse", "batch_last")))
    rows.append(Way(DENSE, of("dense", "channels_last")))
    rows.append(Way(DENSE_GRAPH, of("dense", "channels_last"), graph=True))
    return rows


def run(suite: Suite) -> None:
    """Both networks in TF32 and bf16 first; then in fp32, for which nothing is compiled."""
    settings = suite.settings
    for kind in ("tf32", "bf16", "fp32"):
        for network in settings.steps:
            case = f"{network} {kind}"
            if suite.wants(case):
                with suite.attempt(case), precision(kind):
                    _measure(suite, network, kind)
                torch.compiler.reset()
                suite.device.release()


def build(network: str, image: tuple[int, ...]) -> nn.Module:
    """A freshly initialised dense network for these images."""
    torch.manual_seed(0)
    return models.build(network, CLASSES, image[0], (image[1], image[2]))


def compiler_of(settings: Settings, mode: str | None) -> dict[str, str]:
    """torch.compile's arguments: a mode is Inductor's, another backend has none."""
    has_mode = mode is not None and "backend" not in settings.compiler
    return settings.compiler | ({"mode": mode} if has_mode and mode is not None else {})


def recorded(suite: Suite, step: Step) -> Callable[[], object]:
    """tost's own update: the batch is copied into place, the graph replayed, the loss read. More than the baselines do."""
    config = Config(batch_size=len(step.images), amp="bf16" if step.half else "none", lr=1e-6, weight_decay=5e-4, cuda_graph=True)
    optimizer = optimizer_of(config, step.net)
    for group in optimizer.param_groups:
        group["lr"] = torch.as_tensor(group["lr"])  # on a GPU it is one already
    device = step.images.device
    update = GraphedUpdate(config, step.net, optimizer, _loss_of, lambda x: x, device, suite.device.recorder())
    update(step.images, step.targets)
    return lambda: update(step.images, step.targets)


def _loss_of(outputs: Tensor, inputs: Tensor, targets: Tensor) -> Tensor:
    return F.cross_entropy(outputs, targets)


def graphed(suite: Suite, step: Step) -> Callable[[], object]:
    """The whole step as one graph: gradients, momentum and statistics stay where the first steps put them."""
    for _ in range(2):
        step.update()
    return suite.device.capture(step.update)


def _measure(suite: Suite, network: str, kind: str) -> None:
    settings, device = suite.settings, suite.device
    model = build(network, settings.image)
    with precision("fp32"):
        check(model, min(settings.step_batch, 16), settings.step_sparsity, device.name, settings.image)
    calls: dict[str, Callable[[], object]] = {}
    for way in ways(settings.step_sparsity, kind == "bf16", settings.modes if kind != "fp32" else ()):
        key = f"{network} {kind}: {way.name}"
        if key in suite.here.failures:
            continue
        if not suite.budget.allows(0.0):
            suite.here.left_out.append(key)
            continue
        with suite.attempt(key):
            options = compiler_of(settings, way.mode)
            step = Step(model, way.variant, settings.step_batch, device.name, settings.image, **options)
            if way.graph:
                calls[way.name] = (recorded if way.variant.kind == "sparse" else graphed)(suite, step)
            else:
                calls[way.name] = step.update
            for _ in range(3):  # compiles, tries algorithms, records what reduce-overhead replays
                calls[way.name]()
            loss = float(step.update())
            if not math.isfinite(loss):
                raise ArithmeticError(f"{key}: expected a finite loss, got {loss}")
    if not calls:
        return
    # by the wall clock, as a user waits for it: many steps are queued, the device is awaited once
    times = interleave(calls, settings.rounds, measure=device.wall, shortest_ms=20 * settings.shortest_ms)
    masked = [name for name in calls if name.startswith(MASKED)]
    against = times.fastest([(name,) for name in masked])[0] if masked else None
    for name in calls:
        about = {"network": network, "batch": settings.step_batch, "sparsity": settings.step_sparsity, "precision": kind}
        ratio = times.ratio([against], [name]) if against else None
        suite.add([Record("step", about, name, 1, times.summary(name), ratio, against)])
        if name == GRAPH:
            for mode in COMPILED.values():
                if mode in calls:
                    suite.add([Record("step", about, name, 1, times.summary(name), times.ratio([mode], [name]), mode)])
