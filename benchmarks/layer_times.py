"""One layer, dense and sparse, at several densities and dtypes, timed in the same rounds."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

import tost_kernels as tk
from benchmarks.cases import Layer
from benchmarks.layer_calls import PARTS, Call, Problem, check, dense_calls, plan_of, sparse_calls
from benchmarks.ledger import Record
from benchmarks.timing import Times, clock_for, interleave

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
ALL = "all three"


@dataclass(frozen=True)
class LayerTimes:
    """What `time_layer` measured. A selection is the names of the variants that make up one figure.

    Attributes:
        layer, batch, plan, threads: what was measured.
        times: of every variant.
        layouts: of the dense ones.
        kept: sparsity -> how many weights its mask kept.
    """

    layer: Layer
    batch: int
    plan: str
    threads: int
    times: Times
    layouts: tuple[str, ...]
    kept: dict[float, int]

    def dense(self, dtype: str, part: str) -> tuple[str, ...]:
        """The selection of the fastest dense layout for "forward" or for all three parts."""
        parts = ("forward", "gradients") if part == ALL else (part,)
        candidates = [tuple(_dense(dtype, layout, p) for p in parts) for layout in self.layouts]
        return tuple(self.times.fastest(candidates))

    def sparse(self, dtype: str, sparsity: float, part: str) -> tuple[str, ...]:
        """The selection of a sparse figure; part: of `PARTS`, or all three."""
        return tuple(_sparse(dtype, sparsity, p) for p in (PARTS if part == ALL else (part,)))

    def records(self, question: str) -> list[Record]:
        """Everything that was measured."""
        about: dict[str, Any] = {"layer": self.layer.name, "batch": self.layer.batch or self.batch}
        records = []
        dtypes = [dtype for dtype in DTYPES if _sparse(dtype, next(iter(self.kept)), "forward") in self.times.ms]
        for dtype in dtypes:
            for part in ("forward", ALL):
                best = self.dense(dtype, part)
                case = about | {"part": part, "layout": best[0].split()[2]}
                records.append(Record(question, case, f"dense {dtype}", self.threads, self.times.summary(*best)))
        for sparsity, kept in self.kept.items():
            for dtype in dtypes:
                for part in (*PARTS, ALL):
                    case = about | {"part": part, "sparsity": sparsity, "kept": kept, "plan": self.plan}
                    names = self.sparse(dtype, sparsity, part)
                    against: dict[str | None, tuple[str, ...]] = {}
                    if part in ("forward", ALL):
                        against[f"dense {dtype}"] = self.dense(dtype, part)
                    if dtype == "bfloat16" and "float32" in dtypes:
                        against["sparse float32"] = self.sparse("float32", sparsity, part)
                    value = self.times.summary(*names)
                    for other, others in (against or {None: ()}).items():
                        ratio = self.times.ratio(others, names) if others else None
                        records.append(Record(question, case, f"sparse {dtype}", self.threads, value, ratio, other))
        return records


def time_layer(
    layer: Layer, batch: int, sparsities: Sequence[float], dtypes: Sequence[str], plan: str, rounds: int, threads: int
) -> LayerTimes:
    """Build every variant, check it against torch, and time all of them interleaved.

    Args:
        layer: what to compute.
        batch: images, unless the layer has a batch of its own.
        sparsities: of the random masks.
        dtypes: of `DTYPES`.
        plan: see `plan_of`.
        rounds: measured rounds.
        threads: decides the clock; torch's number of threads is the caller's to set.
    """
    problem = Problem.of(layer, batch)
    variants: dict[str, Call] = {}
    layouts: tuple[str, ...] = ()
    for name in dtypes:
        dense = dense_calls(problem, DTYPES[name])
        layouts = tuple(dense)
        for layout, (forward, gradients) in dense.items():
            variants[_dense(name, layout, "forward")] = forward
            variants[_dense(name, layout, "gradients")] = gradients
    kept = {}
    for sparsity in sparsities:
        pattern = tk.Pattern(torch.rand(layer.weight_shape) >= sparsity)
        kept[sparsity] = pattern.nnz
        for name in dtypes:
            chosen = plan_of(plan, layer, tk.to_batch_last(problem.x.to(DTYPES[name])), pattern)
            sparse = sparse_calls(problem, pattern, chosen, DTYPES[name])
            check(problem, pattern, sparse, DTYPES[name])
            for part, call in zip(PARTS, sparse, strict=True):
                variants[_sparse(name, sparsity, part)] = call
    times = interleave(variants, rounds, clock_for(threads))
    return LayerTimes(layer, batch, plan, threads, times, layouts, kept)


def _dense(dtype: str, layout: str, part: str) -> str:
    return f"dense {dtype} {layout} {part}"


def _sparse(dtype: str, sparsity: float, part: str) -> str:
    return f"sparse {dtype} {sparsity:g} {part}"
