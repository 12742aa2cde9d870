"""pytest-benchmark entry points, for what it is good at: one op alone, saved and compared between commits.

    pytest benchmarks --benchmark-only [-k "64x32 and 0.95"] [--benchmark-autosave, --benchmark-compare]

Questions of dense against sparse are answered by run.py, which interleaves them. `make test` does not collect this file.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch

import tost_kernels as tk
from benchmarks.cases import LAYERS, Layer
from benchmarks.fused import TAILS, calls
from benchmarks.layer_calls import PARTS, Problem, check, dense_calls, plan_of, sparse_calls
from benchmarks.networks import Step, Variant, build
from tost.allocator import keep_freed_memory

_LAYERS = [*LAYERS["resnet"], *LAYERS["stride2"]]


def _id(layer: Layer) -> str:
    return layer.name.replace("@", "x")  # -k takes no @


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.manual_seed(0)
    torch.set_num_threads(1)
    keep_freed_memory()


@pytest.mark.parametrize("part", PARTS)
@pytest.mark.parametrize("sparsity", [0.9, 0.95, 0.98])
@pytest.mark.parametrize("layer", _LAYERS, ids=_id)
def test_sparse_layer(benchmark: Any, layer: Layer, sparsity: float, part: str) -> None:
    problem = Problem.of(layer, 64)
    pattern = tk.Pattern(torch.rand(layer.weight_shape) >= sparsity)
    ours = sparse_calls(problem, pattern, plan_of("kernel", layer, tk.to_batch_last(problem.x), pattern))
    check(problem, pattern, ours)
    benchmark.group = f"{layer.name} {part}"
    benchmark(ours[PARTS.index(part)])


@pytest.mark.parametrize("part", ["forward", "gradients"])
@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
@pytest.mark.parametrize("layer", _LAYERS, ids=_id)
def test_dense_layer(benchmark: Any, layer: Layer, layout: str, part: str) -> None:
    benchmark.group = f"{layer.name} {part}"
    benchmark(dense_calls(Problem.of(layer, 64))[layout][part == "gradients"])


@pytest.mark.parametrize("part", ["forward", "backward"])
@pytest.mark.parametrize("side", ["ours", "contiguous", "channels_last"])
@pytest.mark.parametrize("op", TAILS)
def test_fused(benchmark: Any, op: str, side: str, part: str) -> None:
    benchmark.group = f"{op} {part}"
    benchmark(calls(TAILS[op], (64, 64, 32, 32), torch.float32)[side, part])


@pytest.mark.parametrize(
    "variant",
    [Variant("dense", "channels_last"), Variant("masked", "channels_last", 0.95), Variant("sparse", "batch_last", 0.95)],
    ids=lambda variant: variant.name,
)
def test_step(benchmark: Any, variant: Variant) -> None:
    benchmark.group = "step of resnet20"
    benchmark(Step(build("resnet20"), variant, 64))
