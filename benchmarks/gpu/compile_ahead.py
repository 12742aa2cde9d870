"""Compile what later sections measure, so that they find it in the compilers' caches on disk: run beside the tests.

Without an argument Inductor's kernels of the step section; with a precision the variants of Triton's that `tune` tries in the
layers section. What is timed meanwhile means nothing, and is not kept.
"""

from __future__ import annotations

import sys
import time
from contextlib import nullcontext

import torch

import tost_kernels as tk
from benchmarks.cases import Layer
from benchmarks.gpu.device import PRECISIONS, precision
from benchmarks.gpu.layer_variants import Problem
from benchmarks.gpu.layers import tuned
from benchmarks.gpu.settings import Settings, tiny
from benchmarks.gpu.step import build, compiler_of, ways
from benchmarks.networks import Step


def main(arguments: list[str]) -> None:
    """It may be stopped at any moment."""
    dry = "--dry-run" in arguments
    kinds = [kind for kind in PRECISIONS if kind in arguments]
    settings, name = (tiny(), "cpu") if dry else (Settings(), "cuda")
    if kinds:
        layers_ahead(settings, kinds[0], name)
    else:
        steps_ahead(settings, dry)


def layers_ahead(settings: Settings, kind: str, device: str) -> None:
    """Tune one layer of each kernel size and stride, the most important first: the others' variants are the same."""
    start = time.monotonic()
    first: dict[tuple[int, int], Layer] = {}
    for layer in (layer for of in settings.layers.values() for layer in of):
        first.setdefault((layer.kernel, layer.stride), layer)
    stream = torch.cuda.stream(torch.cuda.Stream()) if device == "cuda" else nullcontext()  # type: ignore[no-untyped-call]
    with precision(kind), stream:
        for layer in first.values():
            mask = torch.rand(layer.weight_shape) >= settings.step_sparsity
            tuned(layer, Problem.of(layer, settings.batch, kind, 1, device), tk.Pattern(mask).to(device), cache=False)
    print(f"{len(first)} layers tuned ahead in {time.monotonic() - start:.0f} s")


def steps_ahead(settings: Settings, dry: bool) -> None:
    """One step of each compiled variant."""
    start, count = time.monotonic(), 0
    for kind in ("tf32", "bf16"):
        for network in settings.steps:
            for way in ways(settings.step_sparsity, kind == "bf16", settings.modes):
                if way.mode is not None:
                    options = compiler_of(settings, way.mode)
                    with precision(kind):
                        model = build(network, settings.image)
                        Step(model, way.variant, settings.step_batch, "cpu" if dry else "cuda", settings.image, **options)()
                    torch.compiler.reset()
                    count += 1
    print(f"{count} training steps compiled ahead in {time.monotonic() - start:.0f} s")


if __name__ == "__main__":
    main(sys.argv[1:])
