#!/usr/bin/env python3
"""Masks with all the steps and batches of their methods: weights kept, time and peak memory.

    python -m benchmarks.pruning --networks resnet50 --methods synflow --densities 0.05 --threads 2
    python -m benchmarks.pruning --networks resnet20 vgg16 mobilenet --batch 16

One line a mask; random data. It ends in an error where a mask has not exactly k weights. The peak is the resident memory of
the whole process so far, so ask for one method at a time where it matters.
"""

from __future__ import annotations

import argparse
import resource
import time
import warnings
from dataclasses import replace

import torch
from torch import nn

import tost
from tost.masks import methods, prune

DENSITIES = (0.5, 0.1, 0.02, 0.005, 0.001)


def parser() -> argparse.ArgumentParser:
    """The command line."""
    top = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    top.add_argument("--networks", nargs="+", default=["resnet20", "vgg16", "mobilenet"], help="names of tost.models, 3x32x32")
    top.add_argument("--methods", nargs="+", default=sorted(methods()), help="names of tost.methods()")
    top.add_argument("--densities", nargs="+", type=float, default=DENSITIES)
    top.add_argument("--batch", type=int, default=100, help="images a batch")
    top.add_argument("--steps", type=int, help="at most so many steps, and batches a step; default: as the method says")
    top.add_argument("--threads", type=int, default=1)
    return top


def measure(model: nn.Module, name: str, density: float, batch: int, most: int | None) -> str:
    """One line about one mask."""
    method = methods()[name]
    if most is not None:
        method = replace(method, steps=min(method.steps, most), batches=min(method.batches, most))
    generator = torch.Generator().manual_seed(0)
    data = [
        (torch.randn(batch, 3, 32, 32, generator=generator), torch.randint(0, 10, (batch,), generator=generator))
        for _ in range(8)
    ]
    began, cpu = time.perf_counter(), time.process_time()
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", ".*leaves no weight", UserWarning)
        masks = prune(model, method, density, data=data)
    seconds, cpu = time.perf_counter() - began, time.process_time() - cpu
    if masks.kept != round(density * masks.total):
        raise ValueError(f"{name}: expected {round(density * masks.total)} weights, got {masks.kept}")
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    return (
        f"{name:10} density {density:<6g} {method.steps} steps, {method.batches} batches: "
        f"{masks.kept:>10,} of {masks.total:,} kept, mask {masks.fingerprint[:12]}, "
        f"{seconds:.1f} s, {cpu:.1f} s of CPU time, peak {peak:.2f} GiB"
    )


def main() -> None:
    options = parser().parse_args()
    torch.set_num_threads(options.threads)
    for network in options.networks:
        torch.manual_seed(0)
        model = tost.models.build(network, 10, 3, (32, 32))
        print(f"{network}, {options.threads} threads, torch {torch.__version__}", flush=True)
        for name in options.methods:
            for density in options.densities:
                print("  " + measure(model, name, density, options.batch, options.steps), flush=True)


if __name__ == "__main__":
    main()
