"""Every CUDA and Triton kernel on small, odd shapes, forward and backward, checked against dense: for compute-sanitizer.

python -m benchmarks.gpu.small_shapes [cuda] [triton] [--dry-run]
"""

from __future__ import annotations

import sys

import torch

import tost_kernels as tk
from benchmarks.cases import Layer
from benchmarks.fused import TAILS, Parameters
from benchmarks.gpu import layer_variants as ways
from benchmarks.gpu.device import Cuda, StandIn, precision
from benchmarks.gpu.emulate import emulate_cuda
from benchmarks.gpu.fused import OPS
from benchmarks.gpu.layers import BACKENDS, by_options, kernels
from benchmarks.gpu.settings import Settings, tiny
from tost_kernels.backend import why_not

# The batch of the last lets 16 bytes be copied at once.
LAYERS = ("5-7@2n3", "5-7@5n3", "20-18@4s2n2", "8@5g2n2", "17-9@3k1n3", "6@7d2n2", "18-20@3n8")


def main(arguments: list[str]) -> None:
    """Run them all, or those of the backends named; the last line says how many."""
    dry = "--dry-run" in arguments
    device = StandIn() if dry else Cuda()
    settings = tiny() if dry else Settings()
    if dry:
        emulate_cuda()
    wanted = [name for name in BACKENDS if name in arguments] or BACKENDS
    torch.manual_seed(0)
    counts = dict.fromkeys(wanted, 0)
    with device.stream():
        for backend in wanted:
            for name in LAYERS[: 1 if dry else None]:
                counts[backend] += _layer(Layer.parse(name), backend, settings, device)
            for name in settings.fused_ops:
                counts[backend] += _tail(name, backend, device)
        device.synchronize()
    said = [f"{count} {name}" if count else f"no {name} ({why_not('pswish', name)})" for name, count in counts.items()]
    print(f"calls of kernels on small shapes: {', '.join(said)}")


def _layer(layer: Layer, backend: str, settings: Settings, device: StandIn) -> int:
    count = 0
    for kind in ("fp32", "bf16", *(("tf32",) if backend == "cuda" else ())):  # Triton would compile each variant
        of_kind = {name: choices for name, choices in kernels(settings, kind).items() if name.startswith(backend)}
        problem = ways.Problem.of(layer, 1, kind, 1, device.name)
        pattern = tk.Pattern(torch.rand(layer.weight_shape) < 0.3).to(device.name)
        right = ways.expected(problem, pattern)
        for name, choices in of_kind.items():
            for choice in choices if backend == "cuda" else choices[:1]:
                with precision(kind):
                    calls = by_options(problem, pattern, name, choice)
                    ways.check(f"{layer.name} {name}", kind, calls, right)
                    calls[ways.ALL].each[0]()
                count += 1
    return count


def _tail(name: str, backend: str, device: StandIn) -> int:
    tail = TAILS[name]
    if why_not(OPS[name], backend) is not None:
        return 0
    for dtype in (torch.float32, torch.bfloat16):
        x = [tk.to_batch_last(torch.randn(3, 5, 3, 5, device=device.name).to(dtype)).requires_grad_() for _ in range(tail.inputs)]
        weights, biases = ([torch.rand(5, device=device.name, requires_grad=True) for _ in range(3)] for _ in range(2))
        alpha, beta = (torch.tensor(v, device=device.name, requires_grad=True) for v in (0.7, 2.0))
        with tk.use_backend(backend):
            out = tail.ours(x, Parameters(weights, biases, alpha, beta))
        gradients = torch.autograd.grad(out.float().square().sum(), x)
        if not all(bool(t.isfinite().all()) for t in (out, *gradients)):
            raise ArithmeticError(f"{name}: expected {backend} to give finite results, got others ({dtype})")
    return 2


if __name__ == "__main__":
    main(sys.argv[1:])
