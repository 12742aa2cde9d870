"""memory: the most memory a training step holds, dense, masked-dense and sparse; each in a process of its own.

Two numbers: the bytes that torch's allocator has handed out at most (exact; network and optimizer included, kernels' scratch
not), and how far the process's resident memory rises above what it was before the network was built (everything included).
"""

from __future__ import annotations

import argparse
import ctypes
import gc
import itertools
import json
import multiprocessing
import sys
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile, record_function

from benchmarks.ledger import Record
from benchmarks.networks import Step, Variant, build
from benchmarks.step import TITLES, parse
from benchmarks.table import Table
from benchmarks.timing import Summary

DEFAULT_ROUNDS = 1
DEFAULT_THREADS = (2,)
_MARK = "the measured steps"
_STEPS = 2  # the first builds the optimizer's state, the second has it


@dataclass(frozen=True)
class Peak:
    """Bytes. tensors: handed out by torch's allocator; resident: of the process, above the baseline."""

    tensors: int
    resident: int


def arguments(parser: argparse.ArgumentParser) -> None:
    """The question's own options."""
    parser.add_argument("--networks", nargs="+", default=["resnet18@64", "vgg16@64"], help="name@batch, see step")
    parser.add_argument("--sparsity", nargs="+", type=float, default=[0.75, 0.95], help="of the random masks")


def run(options: argparse.Namespace, threads: int) -> list[Record]:
    """Measure every variant in a child process; print the table. `--rounds` repeats nothing here: a peak is a peak."""
    table = Table(
        f"Peak memory of a training step: {threads} thread(s), MiB",
        ("network", "variant", "sparsity", "tensors", "dense / this", "resident", "dense / this"),
    )
    records: list[Record] = []
    for case in options.networks:
        network, batch = parse(case)
        variants = [Variant("dense", "contiguous"), Variant("dense", "channels_last"), Variant("masked", "contiguous", 0.95)]
        variants += [Variant("sparse", "batch_last", sparsity) for sparsity in options.sparsity]
        if network.startswith("resnet"):
            variants.append(Variant("ghosts", "batch_last", 0.95))
        peaks = {variant: in_a_child(network, batch, variant, threads) for variant in variants}
        dense = [peak for variant, peak in peaks.items() if variant.kind == "dense"]
        best = Peak(min(p.tensors for p in dense), min(p.resident for p in dense))
        for variant, peak in peaks.items():
            sparsity = f"{variant.sparsity:.0%}" if variant.sparsity is not None else "-"
            cells = []
            for kind in ("tensors", "resident"):
                value, base = getattr(peak, kind), getattr(best, kind)
                cells += [f"{value / 2**20:.0f}", f"{base / value:.2f}x"]
                about = asdict(variant) | {"network": network, "batch": batch, "part": kind}
                value, ratio = value / 2**20, base / value
                one = [Summary(v, v, v) for v in (value, ratio)]
                records.append(Record("memory", about, variant.kind, threads, one[0], one[1], "dense fp32", unit="MiB"))
            table.row(case, f"{TITLES[variant.kind]}, {variant.layout}", sparsity, *cells)
    print(
        f"\nThe peak over {_STEPS} steps with SGD and momentum, weights and optimizer included. tensors: what torch's allocator "
        "had handed out; resident: the process, above what it held before the network was built. dense: the smaller layout."
    )
    return records


def in_a_child(network: str, batch: int, variant: Variant, threads: int) -> Peak:
    """`measure` in a fresh process: another variant's freed memory would hide what this one takes.

    Raises:
        RuntimeError: the child failed.
    """
    context = multiprocessing.get_context("spawn")
    receiver, sender = context.Pipe(duplex=False)
    child = context.Process(target=_child, args=(sender, network, batch, variant, threads))
    child.start()
    sender.close()
    try:
        answer: dict[str, Any] = json.loads(receiver.recv())
    except EOFError:
        answer = {}
    child.join()
    if not answer:
        raise RuntimeError(f"memory: the process that measured {variant.name} of {network} ended with {child.exitcode}")
    return Peak(**answer)


def _child(sender: Any, network: str, batch: int, variant: Variant, threads: int) -> None:
    sender.send(json.dumps(asdict(measure(network, batch, variant, threads))))


def measure(network: str, batch: int, variant: Variant, threads: int) -> Peak:
    """Build the variant and take a few steps, in this process."""
    torch.set_num_threads(threads)
    # libraries load, and the optimizer's code is imported, before the baseline is read
    Step(build("resnet20"), Variant("dense", "contiguous"), 2)()
    resident = _peak_resident(network, batch, variant)
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        step = Step(build(network), variant, batch)
        with record_function(_MARK):
            _run(step)
    events = sorted(profiler.profiler.kineto_results.events(), key=lambda e: e.start_ns())
    start = next(e.start_ns() for e in events if e.name() == _MARK)
    allocations = [e for e in events if e.name() == "[memory]"]
    built = sum(e.nbytes() for e in allocations if e.start_ns() < start)
    return Peak(highest((e.nbytes() for e in allocations if e.start_ns() >= start), built), resident)


def highest(changes: Iterable[int], level: int = 0) -> int:
    """The highest level that a series of allocations (positive) and frees (negative) reaches from `level`."""
    return max(itertools.accumulate(changes, initial=level))


def _run(step: Step) -> None:
    for _ in range(_STEPS):
        step()


def _peak_resident(network: str, batch: int, variant: Variant) -> int:
    """The most that the steps hold above what this process held before; 0 where the system does not tell."""
    if not sys.platform.startswith("linux"):
        return 0
    _give_back()
    before = _status("VmRSS")
    step = Step(build(network), variant, batch)
    _give_back()  # choosing masks takes memory too, and is over
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew from here
    _run(step)
    return _status("VmHWM") - before


def _give_back() -> None:
    """Return freed memory to the system, though malloc was told to keep it."""
    gc.collect()
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # glibc's
    if trim is not None:
        trim(0)


def _status(key: str) -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(key + ":"):
            return 1024 * int(line.split()[1])
    raise OSError(f"/proc/self/status: expected a line {key}")
