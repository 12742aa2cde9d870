"""memory: what the kept weights cost in weights, gradients and momentum; and the most that a step holds."""

from __future__ import annotations

import torch
from torch import Tensor, nn

import tost_kernels as tk
from benchmarks.gpu.step import build
from benchmarks.gpu.suite import Suite
from benchmarks.ledger import Record
from benchmarks.networks import Step, Variant
from benchmarks.timing import Summary

STATE, PEAK, INDEX = "weights, gradients and momentum", "most allocated in a step", "index of the masks"


def run(suite: Suite) -> None:
    """The first network of the step section: dense, masked-dense, and ours at every density."""
    settings = suite.settings
    network = settings.steps[0]
    variants = [Variant("dense", "channels_last"), Variant("masked", "channels_last", settings.step_sparsity)]
    variants += [Variant("sparse", "batch_last", sparsity) for sparsity in settings.sparsities]
    for variant in variants:
        case = f"{network} {variant.name}"
        if suite.wants(case):
            with suite.attempt(case):
                _measure(suite, network, variant)


def _measure(suite: Suite, network: str, variant: Variant) -> None:
    settings, device = suite.settings, suite.device
    model = build(network, settings.image)
    device.release()
    before = device.allocated_bytes()
    step = Step(model, variant, settings.step_batch, device.name, settings.image)
    step()
    device.reset_peak()
    step()
    peak = device.peak_bytes() - before
    layers = [
        module for module in step.net.modules() if isinstance(module, nn.Conv2d | nn.Linear | tk.SparseConv2d | tk.SparseLinear)
    ]
    weights = [parameter for layer in layers for name, parameter in layer.named_parameters(recurse=False) if name != "bias"]
    kept = sum(layer.values.numel() for layer in layers if isinstance(layer, tk.SparseConv2d | tk.SparseLinear))
    patterns = {id(layer.pattern): layer.pattern for layer in layers if isinstance(layer, tk.SparseConv2d | tk.SparseLinear)}
    index = sum(pattern.index.nbytes for pattern in patterns.values())
    state = sum(_bytes(weight, step.optimizer) for weight in weights)
    state += sum(buffer.nbytes for name, buffer in step.net.named_buffers() if name.endswith("_mask"))
    about = {"network": network, "sparsity": variant.sparsity, "batch": settings.step_batch, "kept": kept}
    for what, size in ((STATE, state), (PEAK, peak), (INDEX, index)):
        value = Summary(size / 2**20, size / 2**20, size / 2**20)
        suite.add([Record("memory", about | {"part": what, "bytes": size}, variant.kind, 1, value, unit="MiB")])


def _bytes(weight: Tensor, optimizer: torch.optim.Optimizer) -> int:
    kept = [weight, weight.grad, *optimizer.state.get(weight, {}).values()]
    return sum(tensor.nbytes for tensor in kept if isinstance(tensor, Tensor))
