"""The masked convolution on one CPU thread against torch's dense one, on 3x3 layers of a ResNet.

    OMP_NUM_THREADS=1 THP_MEM_ALLOC_ENABLE=1 python benchmarks/masked_conv2d.py

Prints milliseconds of dense (the faster of contiguous and channels_last) and of the compiled kernels on batch-last tensors,
for random masks, and the ratios. Times are the thread's own CPU time, which other load on the machine disturbs less than it
does the wall clock; variants are interleaved and the median is taken. THP_MEM_ALLOC_ENABLE=1 spares both sides most page
faults of fresh outputs.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable

import torch
import torch.nn.functional as F

import tost_kernels as tk

LAYERS = ((64, 32), (128, 16), (256, 8), (512, 4))  # channels, image side
SPARSITIES = (0.9, 0.95, 0.98)


def milliseconds(functions: list[Callable[[], object]], rounds: int) -> list[float]:
    """Median CPU time of each function; one call of every function a round, after one unmeasured round."""
    times: list[list[float]] = [[] for _ in functions]
    for r in range(rounds + 1):
        for function, taken in zip(functions, times, strict=True):
            start = time.thread_time()
            function()
            if r:
                taken.append(1e3 * (time.thread_time() - start))
    return [statistics.median(taken) for taken in times]


def sparse_calls(x: torch.Tensor, grad: torch.Tensor, pattern: tk.Pattern, plan: str) -> list[Callable[[], object]]:
    """Forward, input gradient and values gradient of a padded 3x3 layer."""
    values = torch.randn(pattern.nnz)
    geometry = (list(pattern.shape), [1, 1], [1, 1], [1, 1], 1, plan)
    ops, index, shape = torch.ops.tost, pattern.index, list(x.shape)
    return [
        lambda: ops.masked_conv2d_cpu(x, values, None, index, *geometry),
        lambda: ops.masked_conv2d_input_grad_cpu(grad, values, index, shape, "batch_last", *geometry),
        lambda: ops.masked_conv2d_values_grad_cpu(grad, x, index, pattern.nnz, *geometry),
    ]


def dense_calls(x: torch.Tensor, grad: torch.Tensor, weight: torch.Tensor) -> list[Callable[[], object]]:
    """Forward and backward (both gradients) in the contiguous and in the channels_last layout."""
    calls: list[Callable[[], object]] = []
    for layout in (torch.contiguous_format, torch.channels_last):
        a, g, w = (t.contiguous(memory_format=layout) for t in (x, grad, weight))
        calls.append(lambda a=a, w=w: F.conv2d(a, w, None, 1, 1))  # type: ignore[misc]
        calls.append(
            lambda a=a, g=g, w=w: torch.ops.aten.convolution_backward(  # type: ignore[misc]
                g, a, w, None, [1, 1], [1, 1], [1, 1], False, [0, 0], 1, [True, True, False]
            )
        )
    return calls


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch", type=int, default=64, help="images (default: 64)")
    parser.add_argument("--rounds", type=int, default=9, help="measured rounds (default: 9)")
    parser.add_argument("--plan", default="", help='kernel options, e.g. "tile=4x4,block=32" (default: the static rule)')
    options = parser.parse_args()
    torch.manual_seed(0)
    torch.set_num_threads(1)
    print(f"torch {torch.__version__}, {torch.ops.tost.cpu_isa()}, batch {options.batch}, 1 thread; ms (ratio to dense)")
    print()
    print("| layer | sparsity | dense forward / all | forward | input gradient | values gradient | all three |")
    print("|---|---|---|---|---|---|---|")
    for channels, side in LAYERS:
        x, grad = (torch.randn(options.batch, channels, side, side) for _ in range(2))
        x_last, grad_last = tk.to_batch_last(x), tk.to_batch_last(grad)
        calls = dense_calls(x, grad, torch.randn(channels, channels, 3, 3))
        for sparsity in SPARSITIES:
            pattern = tk.Pattern(torch.rand(channels, channels, 3, 3) >= sparsity)
            sparse = sparse_calls(x_last, grad_last, pattern, options.plan)
            *dense, forward, input_grad, values_grad = milliseconds([*calls, *sparse], options.rounds)
            dense_forward = min(dense[0], dense[2])
            dense_all, total = min(dense[0] + dense[1], dense[2] + dense[3]), forward + input_grad + values_grad
            print(
                f"| {channels}@{side} | {sparsity:.0%} | {dense_forward:.1f} / {dense_all:.1f} | "
                f"{forward:.2f} ({dense_forward / forward:.1f}x) | {input_grad:.2f} | {values_grad:.2f} | "
                f"{total:.2f} ({dense_all / total:.1f}x) |",
                flush=True,
            )


if __name__ == "__main__":
    main()
