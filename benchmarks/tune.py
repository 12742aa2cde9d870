"""Sparse layers of odd sizes after `tune`, against dense: is any slower?

    OMP_NUM_THREADS=1 THP_MEM_ALLOC_ENABLE=1 python benchmarks/tune.py

Tunes each layer of CASES alone, cache off, then times forward and both gradients anew: the layer as tuned; torch's dense op on
the same batch-last input, layout changes counted; and plain dense F.conv2d, the faster of contiguous and channels_last. The
tuned layer can only beat the last one by a kernel: where `tune` chose dense, it pays two layout changes more.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable

import torch
import torch.nn.functional as F

import tost_kernels as tk
from tost_kernels.plan import Plan
from tost_kernels.tuning.search import Trial, interleaved

# name: (N, C, H, W), (O, kernel, stride, padding, dilation, groups)
CASES = {
    "N=1, 64@32 3x3": ((1, 64, 32, 32), (64, 3, 1, 1, 1, 1)),
    "N=8, 64@32 3x3": ((8, 64, 32, 32), (64, 3, 1, 1, 1, 1)),
    "N=50, 64@32 3x3": ((50, 64, 32, 32), (64, 3, 1, 1, 1, 1)),
    "N=8, 256@8 3x3": ((8, 256, 8, 8), (256, 3, 1, 1, 1, 1)),
    "96@28 3x3": ((64, 96, 28, 28), (96, 3, 1, 1, 1, 1)),
    "64@16 5x5": ((64, 64, 16, 16), (64, 5, 1, 2, 1, 1)),
    "128@16 3x3 dilation 2": ((64, 128, 16, 16), (128, 3, 1, 2, 2, 1)),
    "128@16 3x3 groups 4": ((64, 128, 16, 16), (128, 3, 1, 1, 1, 4)),
    "64@16 3x3 depthwise": ((64, 64, 16, 16), (64, 3, 1, 1, 1, 64)),
    "64@15 1x1 stride 2": ((64, 64, 15, 15), (128, 1, 2, 0, 1, 1)),
}
SPARSITIES = (0.5, 0.75, 0.9, 0.98)


def step(layer: Callable[[torch.Tensor], torch.Tensor], x: torch.Tensor, weight: torch.Tensor) -> Callable[[], object]:
    """Forward and the gradients of input and weight."""
    x = x.detach().requires_grad_()
    grad = torch.randn_like(layer(x))
    return lambda: torch.autograd.grad(layer(x), (x, weight), grad)


def measure(name: str, sparsity: float, rounds: int) -> tuple[tk.TuneReport, list[float]]:
    """The report of `tune`, and milliseconds: tuned, dense from and to batch-last, dense contiguous, dense channels_last."""
    shape, (outputs, kernel, stride, padding, dilation, groups) = CASES[name]
    mask = torch.rand(outputs, shape[1] // groups, kernel, kernel) >= sparsity
    conv = tk.SparseConv2d(shape[1], outputs, kernel, stride, padding, dilation, groups, bias=False, mask=mask)
    x = tk.to_batch_last(torch.randn(shape))
    report = tk.tune(conv, x.requires_grad_(), cache=False)

    geometry = (None, stride, padding, dilation, groups)
    in_place = Plan("dense")
    calls = [
        step(conv, x, conv.values),
        step(lambda x: tk.masked_conv2d(x, conv.values, conv.pattern, *geometry, plan=in_place), x, conv.values),
    ]
    for layout in (torch.contiguous_format, torch.channels_last):
        a, w = (t.detach().contiguous(memory_format=layout).requires_grad_() for t in (x, conv.weight))
        calls.append(step(lambda x, w=w: F.conv2d(x, w, *geometry), a, w))  # type: ignore[misc]
    return report, interleaved([Trial("whole", Plan("dense"), call) for call in calls], rounds)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default="", help="cases whose name holds this text")
    parser.add_argument("--rounds", type=int, default=7, help="measured rounds (default: 7)")
    options = parser.parse_args()
    torch.manual_seed(0)
    isa = torch.ops.tost.cpu_isa() if tk.backend.has_kernel("masked_conv2d", "cpu") else "no kernels"
    print(f"torch {torch.__version__}, {isa}, {torch.get_num_threads()} threads; ms, forward and both gradients\n")
    print("| layer | sparsity | plan | tuned | dense in its place | plain dense |")
    print("|---|---|---|---|---|---|")
    for name in CASES:
        if options.only not in name:
            continue
        for sparsity in SPARSITIES:
            report, (tuned, in_place, *plain) = measure(name, sparsity, options.rounds)
            plan = report.cases[0].plan
            ratios = [f"{ms:.2f} ({ms / tuned:.2f}x)" for ms in (in_place, min(plain))]
            text = f"{plan.backend} {plan.options}".strip()
            print(f"| {name} | {sparsity:.0%} | {text} | {tuned:.2f} | {' | '.join(ratios)} |", flush=True)


if __name__ == "__main__":
    main()
