"""optimizer: a step of SplitLBI against one of torch.optim.SGD, on the parameters of a network, in time and in tensors moved."""

from __future__ import annotations

import argparse
import copy
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import nn

import tost_kernels as tk
from benchmarks.ledger import Record
from benchmarks.networks import build
from benchmarks.table import Table, ms, times
from benchmarks.timing import clock_for, interleave
from tost import models
from tost.optim import SplitLBI, split_lbi_groups

DEFAULT_ROUNDS = 25
NETWORKS = ["resnet20", "resnet18"]
BASELINE = "SGD, foreach"
MOST = 2.5  # times the baseline's step

_MOMENTUM, _DECAY, _LR = 0.9, 1e-4, 1e-6


class Rival(NamedTuple):
    """An optimizer, and how often it reads or writes a number a weight, if every operation goes through memory.

    SGD with weight decay and momentum, operation by operation: g + decay W into a new tensor (3), momentum (2), its sum with that
    (3), W (3). SplitLBI: Gamma - W in place (3), V (3), SGD's 11, W again (3), and for groups the norms (1) and Gamma (2), for
    lasso Gamma (2). Fused SGD: reads g, W and the momentum, writes the last two. Parameters without Gamma: as SGD.
    """

    make: Callable[[nn.Module], torch.optim.Optimizer]
    moved: int


def _sgd(**how: bool) -> Callable[[nn.Module], torch.optim.Optimizer]:
    return lambda net: torch.optim.SGD(tk.param_groups(net, _DECAY), lr=_LR, momentum=_MOMENTUM, **how)


def _split_lbi(prox: str, foreach: bool = True) -> Callable[[nn.Module], torch.optim.Optimizer]:
    # V stays far below lambda = 1; no operation looks at values, so a step in which filters enter takes as long
    def make(net: nn.Module) -> torch.optim.Optimizer:
        groups = split_lbi_groups(net, conv={"prox": prox})
        return SplitLBI(groups, lr=_LR, momentum=_MOMENTUM, weight_decay=_DECAY, foreach=foreach)

    return make


RIVALS = {
    BASELINE: Rival(_sgd(foreach=True), 11),
    "SGD, fused": Rival(_sgd(fused=True), 5),
    "SplitLBI, group": Rival(_split_lbi("group"), 23),
    "SplitLBI, lasso": Rival(_split_lbi("lasso"), 22),
    "SplitLBI, group, foreach=False": Rival(_split_lbi("group", foreach=False), 23),
}


def arguments(parser: argparse.ArgumentParser) -> None:
    """The question's own options."""
    parser.add_argument("--networks", nargs="+", choices=models.names(), default=NETWORKS, help="names of tost.models")


def run(options: argparse.Namespace, threads: int) -> list[Record]:
    """Time every network; print a table each."""
    return [record for network in options.networks for record in measure(network, options.rounds, threads)]


def measure(network: str, rounds: int, threads: int) -> list[Record]:
    """One table."""
    net = build(network)
    weights = sum(p.numel() for p in net.parameters())
    table = Table(
        f"The optimizer's step of {network}: {weights:,} weights in {len(list(net.parameters()))} tensors, {threads} thread(s)",
        ("optimizer", "ms [quartiles]", f"of {BASELINE} [quartiles]", "numbers moved a weight", "GB/s"),
    )
    timed = interleave({name: with_gradients(net, rival.make).step for name, rival in RIVALS.items()}, rounds, clock_for(threads))
    records = []
    for name, rival in RIVALS.items():
        value, longer = timed.summary(name), timed.ratio([name], [BASELINE])
        rate = 4e-6 * rival.moved * weights / value.median
        spread = f"{ms(value)} [{ms(value.low)}, {ms(value.high)}]"
        table.row(name, spread, times(longer, spread=True), str(rival.moved), f"{rate:.1f}")
        records.append(
            Record(
                "optimizer",
                {"network": network, "weights": weights},
                name,
                threads,
                value,
                timed.ratio([BASELINE], [name]),
                BASELINE,
            )
        )
    print(f"\nMomentum, weight decay, float32; interleaved. A step of SplitLBI with foreach is to take at most {MOST}x.")
    return records


def with_gradients(net: nn.Module, make: Callable[[nn.Module], torch.optim.Optimizer]) -> torch.optim.Optimizer:
    """The optimizer of a copy of the network that has gradients."""
    trained = copy.deepcopy(net)
    for parameter in trained.parameters():
        parameter.grad = torch.randn_like(parameter)
    return make(trained)
