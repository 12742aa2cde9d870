"""Every Triton kernel on small, odd shapes, forward and backward, checked against dense: what compute-sanitizer looks at."""

from __future__ import annotations

import sys

import torch

import tost_kernels as tk
from benchmarks.cases import Layer
from benchmarks.fused import TAILS, Parameters
from benchmarks.gpu import layer_variants as ways
from benchmarks.gpu.device import Cuda, StandIn, precision
from benchmarks.gpu.fused import OPS
from benchmarks.gpu.layers import LAYOUTS
from benchmarks.gpu.settings import Settings, tiny
from tost_kernels.backend import why_not
from tost_kernels.plan import Plan

LAYERS = ("5-7@2n3", "5-7@5n3", "20-18@4s2n2", "8@5g2n2", "17-9@3k1n3", "6@7d2n2")


def main(arguments: list[str]) -> None:
    """Run them all; the last line says how many."""
    dry = "--dry-run" in arguments
    device = StandIn() if dry else Cuda()
    settings = tiny() if dry else Settings()
    torch.manual_seed(0)
    count = 0
    with device.stream():
        for name in LAYERS[: 1 if dry else None]:
            count += _layer(Layer.parse(name), settings, device)
        for name in settings.fused_ops:
            count += _tail(name, device)
        device.synchronize()
    print(f"{count} calls of Triton kernels on small shapes" if count else f"no Triton kernels: {why_not('pswish', 'triton')}")


def _layer(layer: Layer, settings: Settings, device: StandIn) -> int:
    if why_not("masked_conv2d", "triton") is not None:
        return 0
    count = 0
    for kind in ("fp32", "bf16"):
        problem = ways.Problem.of(layer, 1, kind, 1, device.name)
        pattern = tk.Pattern(torch.rand(layer.weight_shape) < 0.3).to(device.name)
        right = ways.expected(problem, pattern)
        for algo, choices in settings.options.items():
            with precision(kind):
                calls = ways.ours(problem, pattern, Plan("triton", choices[0]), LAYOUTS[algo])
                ways.check(f"{layer.name} {algo}", kind, calls, right)
                calls[ways.ALL].each[0]()
            count += 1
    return count


def _tail(name: str, device: StandIn) -> int:
    tail = TAILS[name]
    if why_not(OPS[name], "triton") is not None:
        return 0
    for dtype in (torch.float32, torch.bfloat16):
        x = [tk.to_batch_last(torch.randn(3, 5, 3, 5, device=device.name).to(dtype)).requires_grad_() for _ in range(tail.inputs)]
        weights, biases = ([torch.rand(5, device=device.name, requires_grad=True) for _ in range(3)] for _ in range(2))
        alpha, beta = (torch.tensor(v, device=device.name, requires_grad=True) for v in (0.7, 2.0))
        with tk.use_backend("triton"):
            out = tail.ours(x, Parameters(weights, biases, alpha, beta))
        gradients = torch.autograd.grad(out.float().square().sum(), x)
        if not all(bool(t.isfinite().all()) for t in (out, *gradients)):
            raise ArithmeticError(f"{name}: expected finite results, got others ({dtype})")
    return 2


if __name__ == "__main__":
    main(sys.argv[1:])
