"""ceilings: what this device reaches at best, measured: the lines of the roofline."""

from __future__ import annotations

from collections.abc import Callable

import torch

from benchmarks.gpu.device import DTYPES, precision
from benchmarks.gpu.measure import Calls, per_second, timed
from benchmarks.gpu.suite import Suite
from benchmarks.ledger import Record
from benchmarks.timing import Summary

COPY, CACHED, LAUNCH = "copy", "copy in the L2", "one kernel in a graph"
PRODUCTS = {"fp32": "product fp32", "tf32": "product tf32", "bf16": "product bf16"}


def run(suite: Suite) -> None:
    """Copies in GB/s (read plus written), matrix products in TFLOP/s, the shortest kernel in microseconds."""
    device, settings = suite.device, suite.settings

    def copy_of(size: int) -> Callable[[], object]:
        source, target = (torch.randn(size // 4, device=device.name) for _ in range(2))
        return lambda: target.copy_(source)

    sizes = {COPY: settings.copied, CACHED: settings.cached, LAUNCH: 4}
    for name, size in sizes.items():
        if suite.wants(name):
            with suite.attempt(name):
                calls = [copy_of(size)] * (1 if size >= settings.copied else 20)  # short ones many times in one graph
                ms = timed(suite, {name: Calls(calls)}).summary(name)
                if name == LAUNCH:
                    one = Summary(*(1e3 * t for t in (ms.median, ms.low, ms.high)))
                    suite.add([Record("ceilings", {"limit": name}, "torch", 1, one, unit="us")])
                else:
                    speed = per_second(2e-9 * size, ms)
                    suite.add([Record("ceilings", {"limit": name, "bytes": size}, "torch", 1, speed, unit="GB/s")])
    for kind, name in PRODUCTS.items():
        if suite.wants(name):
            with suite.attempt(name), precision(kind):
                side = settings.product[kind]
                a, b = (torch.randn(side, side, device=device.name, dtype=DTYPES[kind]) for _ in range(2))
                ms = timed(suite, {name: Calls([lambda a=a, b=b: a @ b])}).summary(name)  # type: ignore[misc]
                case = {"limit": name, "precision": kind, "side": side}
                suite.add([Record("ceilings", case, "cuBLAS", 1, per_second(2e-12 * side**3, ms), unit="TFLOP/s")])
