"""Times ghost_skip_add against eager torch: BatchNorm, activation and add, forward and backward, batch-last.

    python benchmarks/ghost_skip_add.py [--channels 64 --size 32 --batch 64 --rounds 15 --threads 1 --dtype float32]

Variants are interleaved in every round, the median over the rounds is printed, in ms (of CPU time where there is one thread: it
does not count what other programs take). torch's side runs on contiguous tensors,
the layout in which its BatchNorm is fastest. Both sides run with freed memory kept by malloc (see `keep_memory`).
"""

from __future__ import annotations

import argparse
import ctypes
import os
import statistics
import time
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

import tost_kernels as tk


def keep_memory() -> bool:
    """Have malloc keep large blocks: else every activation is unmapped and page-faulted again, on both sides."""
    try:
        libc = ctypes.CDLL("libc.so.6")
        return bool(libc.mallopt(-3, 1 << 30) and libc.mallopt(-1, (1 << 31) - 1))  # M_MMAP_THRESHOLD, M_TRIM_THRESHOLD
    except (OSError, AttributeError):
        return False


Pair = tuple[Callable[[], Tensor], Callable[[], Tensor], list[Tensor]]


def tails(shape: tuple[int, ...], dtype: torch.dtype) -> dict[str, Pair]:
    """name -> (fused, torch, leaves of both). Neither side updates running statistics."""
    channels = shape[1]
    weights = [torch.rand(channels).requires_grad_() for _ in range(3)]
    biases = [torch.randn(channels).requires_grad_() for _ in range(3)]
    plain = [torch.randn(shape).to(dtype).requires_grad_() for _ in range(3)]
    fused = [tk.to_batch_last(t.detach()).requires_grad_() for t in plain]
    norms = [tk.Norm(w, b, batch_stats=True) for w, b in zip(weights, biases, strict=True)]
    alpha, beta = torch.tensor(0.7), torch.tensor(2.0)

    def normed(i: int) -> Tensor:
        return F.batch_norm(plain[i], None, None, weights[i], biases[i], training=True)

    def swish(z: Tensor) -> Tensor:
        return z * torch.sigmoid(beta.to(dtype) * z)

    leaves = [*plain, *fused, *weights, *biases]
    return {
        "bn + relu": (
            lambda: tk.ghost_skip_add(fused[0], norm=norms[0], act="relu").out,
            lambda: F.relu(normed(0)),
            leaves,
        ),
        "bn + shortcut + relu": (
            lambda: tk.ghost_skip_add(fused[0], shortcut=fused[2], norm=norms[0], act="relu").out,
            lambda: F.relu(normed(0) + plain[2]),
            leaves,
        ),
        "bn + ghost bn + shortcut + pswish": (
            lambda: (
                tk.ghost_skip_add(
                    fused[0], fused[1], alpha, fused[2], norm=norms[0], ghost_norm=norms[1], act="pswish", beta=beta
                ).out
            ),
            lambda: swish(normed(0) + alpha.to(dtype) * normed(1) + plain[2]),
            leaves,
        ),
    }


def once(clock: Callable[[], float], function: Callable[[], Tensor], grad: Tensor, leaves: list[Tensor]) -> tuple[float, float]:
    start = clock()
    out = function()
    middle = clock()
    out.backward(grad)
    end = clock()
    for leaf in leaves:
        leaf.grad = None
    return (middle - start) * 1e3, (end - middle) * 1e3


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, value in (("channels", 64), ("size", 32), ("batch", 64), ("rounds", 15), ("threads", 1)):
        parser.add_argument(f"--{name}", type=int, default=value)
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    kept = keep_memory()
    clock = time.process_time if options.threads == 1 else time.perf_counter
    shape = (options.batch, options.channels, options.size, options.size)
    dtype = getattr(torch, options.dtype)
    print(f"{shape} {options.dtype}, {options.threads} thread(s), memory kept: {kept}, torch {torch.__version__}, ", end="")
    print(f"{torch.ops.tost.cpu_isa()}, {os.cpu_count()} cores; ms, median of {options.rounds}")
    print(f"{'':36}{'torch fwd':>10}{'bwd':>8}{'fused fwd':>12}{'bwd':>8}{'ratio':>8}")
    grad = torch.randn(shape).to(dtype)
    for name, (fused, plain, leaves) in tails(shape, dtype).items():
        grad_fused = tk.to_batch_last(grad)
        times: dict[str, list[tuple[float, float]]] = {"torch": [], "fused": []}
        for round_ in range(options.rounds + 2):
            for side, function, incoming in (("torch", plain, grad), ("fused", fused, grad_fused)):
                timed = once(clock, function, incoming, leaves)
                if round_ >= 2:
                    times[side].append(timed)
        (a, b), (c, d) = ([statistics.median(column) for column in zip(*times[s], strict=True)] for s in ("torch", "fused"))
        print(f"{name:36}{a:10.2f}{b:8.2f}{c:12.2f}{d:8.2f}{(a + b) / (c + d):8.2f}")


if __name__ == "__main__":
    main()
