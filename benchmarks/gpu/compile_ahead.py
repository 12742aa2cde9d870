"""Compile what the step section measures, so that it finds Inductor's kernels in the cache on disk: run beside the tests."""

from __future__ import annotations

import sys
import time

import torch

from benchmarks.gpu.device import precision
from benchmarks.gpu.settings import Settings, tiny
from benchmarks.gpu.step import build, compiler_of, ways
from benchmarks.networks import Step


def main(arguments: list[str]) -> None:
    """One step of each compiled variant; it may be stopped at any moment."""
    dry = "--dry-run" in arguments
    settings = tiny() if dry else Settings()
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
