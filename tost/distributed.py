"""Several processes that train one network (DDP under torchrun): joining them, agreeing, and noticing that one is gone.

For the trainer and for loops of your own; in a single process every function below does nothing, so that one script serves
both `python script.py` and `torchrun --nproc-per-node 2 script.py`::

    with distributed.processes() as me:
        masks = distributed.broadcast_masks(tost.prune(...) if me.is_main else None)
        net = tk.sparsify(model, masks)
        ddp = distributed.wrap(net)
        ...
        loss.backward()
        mean_loss, stop = distributed.agree(loss.item(), stop)
"""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import signal
import threading
import traceback
import weakref
from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from datetime import timedelta
from typing import NamedTuple

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from tost.checks import integer, number
from tost.masks import Masks

__all__ = [
    "Agreement",
    "PeerLost",
    "Processes",
    "agree",
    "assert_same",
    "broadcast_masks",
    "from_main",
    "no_sync",
    "peer_errors",
    "processes",
    "share_of",
    "sync_buffers",
    "totals",
    "wrap",
]

# How long a process waits for one that is alive but does not answer. It must be longer than anything that one process does
# while the others wait for it: pruning a large network, a final evaluation. A dead process is noticed at once.
TIMEOUT_SECONDS = 3600.0

# What torchrun tells each of its processes.
_VARIABLES = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")

# Errors of gloo are plain RuntimeErrors; only their text tells them from others. Errors of NCCL and of the store have a type.
_PEER_MESSAGES = ("gloo/transport", "Connection closed by peer", "Connection reset by peer", "Broken pipe", "Timed out waiting")


class PeerLost(RuntimeError):
    """Another process of the run died or no longer answers, so this one cannot go on."""


class Agreement(NamedTuple):
    """What all processes know after a step; the same values in each of them.

    Attributes:
        loss: mean over the processes; not finite if the loss of any of them is not.
        stop: whether any process wants to stop.
    """

    loss: float
    stop: bool


@dataclass(frozen=True)
class Processes:
    """This process among all that train together.

    Attributes:
        rank: number of this process, from 0.
        world: number of processes.
        device: where this process computes.
    """

    rank: int
    world: int
    device: torch.device

    @property
    def is_main(self) -> bool:
        """Whether this is rank 0: the one that prints and writes files."""
        return self.rank == 0


@contextlib.contextmanager
def processes(device: str | torch.device | None = None, timeout_seconds: float = TIMEOUT_SECONDS) -> Iterator[Processes]:
    """Join the other processes of a run; at the end, or when anything is raised, leave them.

    Under torchrun with more than one process this makes the default process group: NCCL for CUDA tensors, gloo for CPU tensors.
    A group that exists already is used and left as it is. Otherwise this is rank 0 of 1, and torch.distributed is not touched.

    Args:
        device: "cpu" or "cuda"; None: CUDA where there is some. Under torchrun "cuda" is the device number LOCAL_RANK, which
            becomes the current one.
        timeout_seconds: how long to wait for a process that does not answer, at joining and in each exchange later.

    Raises:
        ValueError: WORLD_SIZE says that there are several processes, and another variable of torchrun is absent or wrong.
        PeerLost: another process is gone, also where that shows as an error of torch inside the `with`.

    Once all is done the processes wait for each other, so that none leaves while another still reads from it.
    """
    seconds = number("processes: timeout_seconds", timeout_seconds, above=0.0)
    chosen = _checked_device(device)
    if _joined():
        with peer_errors():
            yield Processes(dist.get_rank(), dist.get_world_size(), _current(chosen))
        return
    if _variable("WORLD_SIZE", least=1, default=1) == 1:
        yield Processes(0, 1, _current(chosen))
        return

    if missing := [name for name in _VARIABLES if name not in os.environ]:
        raise ValueError(_not_from_torchrun(missing[0], "nothing"))
    world = _variable("WORLD_SIZE", least=1)
    rank = _variable("RANK", least=0, below=world)
    local_rank = _variable("LOCAL_RANK", least=0)
    if chosen.type == "cuda":
        torch.cuda.set_device(local_rank)
        # Without it NCCL's own thread aborts the process when a peer is gone, and nobody learns why.
        os.environ.setdefault("TORCH_NCCL_BLOCKING_WAIT", "1")
    backend = "cpu:gloo,cuda:nccl" if chosen.type == "cuda" else "gloo"
    with contextlib.ExitStack() as leaving:
        try:
            with _translated(rank, world):
                wait = timedelta(seconds=seconds)
                store, _, _ = next(dist.rendezvous("env://", rank, world, timeout=wait))  # type: ignore[attr-defined]
                # a prefix of its own: a group joined earlier has left its addresses in torchrun's store
                own = dist.PrefixStore(f"tost/{next(_joins)}", store)  # type: ignore[attr-defined]
                dist.init_process_group(backend, store=own, rank=rank, world_size=world, timeout=wait)
                yield Processes(rank, world, _current(chosen))
                dist.barrier()
        except BaseException as error:
            if isinstance(error, PeerLost):
                leaving.enter_context(_sigterm_ignored())
            _forget_group(error)
            raise
        finally:
            if _joined():
                _leave()


@contextlib.contextmanager
def _sigterm_ignored() -> Iterator[None]:
    """torchrun sends SIGTERM some 30 ms after a process died, and leaving takes that long: the reason must be told first."""
    if threading.current_thread() is not threading.main_thread():
        yield  # only the main thread may set handlers
        return
    before = signal.signal(signal.SIGTERM, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def broadcast_masks(masks: Masks | None) -> Masks | None:
    """Rank 0's masks, in every process (None, if rank 0 has none: a dense run).

    Args:
        masks: rank 0: what to send. Elsewhere None, or masks that are expected to equal rank 0's.

    Raises:
        TypeError: `masks` is neither.
        RuntimeError: the masks of some process differ from rank 0's; raised in all of them.
        PeerLost: another process is gone.
    """
    if masks is not None and not isinstance(masks, Masks):
        raise TypeError(f"broadcast_masks: masks: expected tost.Masks or None, got {type(masks).__name__}")
    if _world() == 1:
        return masks
    with peer_errors():
        received = _unpack(_broadcast(_pack(masks)))
    own = masks if masks is not None else received
    assert_same("masks", own.fingerprint if own is not None else "none")
    return received


def assert_same(name: str, fingerprint: str) -> None:
    """Raises RuntimeError in every process, unless `fingerprint` (of initial weights, a configuration, ...) is the same in all.

    Raises:
        RuntimeError: they differ; the message names `name` and says which ranks have which fingerprint.
        PeerLost: another process is gone.
    """
    if not isinstance(fingerprint, str):
        raise TypeError(f"assert_same: fingerprint: expected a string, got {type(fingerprint).__name__}")
    if _world() == 1:
        return
    with peer_errors():
        everyones = _gather(fingerprint)
    if len(set(everyones)) == 1:
        return
    ranks_of: dict[str, list[str]] = {}
    for rank, theirs in enumerate(everyones):
        ranks_of.setdefault(theirs, []).append(str(rank))
    groups = "; ".join(f"{theirs} on rank{'s' * (len(ranks) > 1)} {', '.join(ranks)}" for theirs, ranks in ranks_of.items())
    raise RuntimeError(f"{name}: expected the same in all {len(everyones)} processes, got {groups}")


def agree(loss: float, stop: bool = False) -> Agreement:
    """Mean loss of all processes and whether any of them wants to stop: one exchange of 16 bytes, to be done every step.

    Every process gets the same answer, hence skips an update or stops in the same step as the others do. A process must not
    decide on its own loss: the others would wait for it for ever.

    Args:
        loss: of this process; may be NaN or infinite, and then the mean is not finite either.
        stop: whether this process wants to stop (a signal came, say).

    Raises:
        PeerLost: another process is gone.
    """
    world = _world()
    if world == 1:
        return Agreement(float(loss), bool(stop))
    with peer_errors():
        both = torch.tensor([float(loss), float(stop)], dtype=torch.float64, device=_exchange_device())
        dist.all_reduce(both)
    total, stops = both.tolist()
    return Agreement(total / world, stops > 0)


def from_main(value: bool) -> bool:
    """Rank 0's answer to a question that each process might answer differently, such as whether a file exists.

    Raises:
        PeerLost: another process is gone.
    """
    if _world() == 1:
        return value
    with peer_errors():
        return bool(_broadcast(b"\x01" if value else b"\x00")[0])


def share_of(index: Tensor) -> Tensor:
    """This process's part of `index` (n,): every one of its elements is in the part of exactly one process."""
    return index[dist.get_rank() :: _world()] if _world() > 1 else index


def totals(*values: float) -> tuple[float, ...]:
    """Each of `values`, summed over all processes.

    Raises:
        PeerLost: another process is gone.
    """
    if _world() == 1:
        return values
    with peer_errors():
        sums = torch.tensor(values, dtype=torch.float64, device=_exchange_device())
        dist.all_reduce(sums)
    return tuple(sums.tolist())


def sync_buffers(net: nn.Module) -> None:
    """Give every process rank 0's buffers (BatchNorm's statistics): between two steps each has its own.

    Raises:
        PeerLost: another process is gone.
    """
    if _world() > 1:
        with peer_errors():
            for buffer in net.buffers():
                dist.broadcast(buffer, src=0)


def wrap(net: nn.Module) -> nn.Module:
    """`net` in DistributedDataParallel, which averages the gradients of all processes; `net` itself in a single process.

    Parameters and buffers become rank 0's. Only parameters that require a gradient now take part, and each of them has to get
    one in every step. So wrap again when the ghosts are gone, after `requires_grad_(False)` on their parameters. Given what
    `wrap` returned, it wraps the network inside anew; the old wrapper is of no use then.

    Raises:
        TypeError: `net` is no module. PeerLost: another process is gone.
    """
    if not isinstance(net, nn.Module):
        raise TypeError(f"wrap: net: expected a torch.nn.Module, got {type(net).__name__}")
    if isinstance(net, DistributedDataParallel):
        # Its hooks on the parameters are idle after a whole backward, but not after one that missed a parameter or was cut off.
        net._remove_autograd_hooks()  # type: ignore[no-untyped-call]
        net = net.module
    if _world() == 1:
        return net
    with peer_errors():
        ddp = DistributedDataParallel(net)
    _wrapped.add(ddp)
    return ddp


def no_sync(net: nn.Module) -> AbstractContextManager[None]:
    """For all but the last backward of accumulated gradients: what `wrap` returned does not exchange gradients inside."""
    return net.no_sync() if isinstance(net, DistributedDataParallel) else nullcontext()


@contextlib.contextmanager
def peer_errors() -> Iterator[None]:
    """Turns what torch raises inside the `with` when another process is gone into PeerLost; all else passes."""
    if _joined():
        with _translated(dist.get_rank(), dist.get_world_size()):
            yield
    else:
        yield


@contextlib.contextmanager
def _translated(rank: int, world: int) -> Iterator[None]:
    try:
        yield
    except PeerLost:
        raise
    except RuntimeError as error:
        if not isinstance(error, dist.DistError) and not any(message in str(error) for message in _PEER_MESSAGES):
            raise
        what = str(error).splitlines()[0].partition(". This is typically")[0]
        what = what.partition("] ")[2] or what  # gloo begins with the line of its source
        raise PeerLost(
            f"rank {rank} of {world}: another process of this run died or does not answer (its own output may say why); "
            f"the same command goes on from the last checkpoint ({what})"
        ) from error


_joins = itertools.count()  # as many in every process

# Every DistributedDataParallel that `wrap` made and somebody still holds.
_wrapped: weakref.WeakSet[DistributedDataParallel] = weakref.WeakSet()


def _leave() -> None:
    """Ends the process group and its threads.

    `destroy_process_group` leaves gloo's threads running while anything refers to the group. One that drops its last work
    when the interpreter ends already finds no GIL to take and aborts the process (seen in 2 to 20 of 100 runs): a run that
    had succeeded would exit with 134, not 0. Without references the group joins its threads.
    """
    group = dist.group.WORLD
    dist.destroy_process_group()
    for ddp in list(_wrapped):
        ddp._remove_autograd_hooks()  # type: ignore[no-untyped-call]
        for name in ("reducer", "logger", "process_group"):
            ddp.__dict__[name] = None
    _wrapped.clear()
    del group  # last, and from Python: only so it joins its threads without the GIL, which they may be waiting for


def _forget_group(error: BaseException | None) -> None:
    """Empties torch's own frames in the traceback: their local variables would keep the group alive."""
    while error is not None:
        for frame, _ in traceback.walk_tb(error.__traceback__):
            if frame.f_globals.get("__name__", "").startswith(("torch.distributed.", "torch.nn.parallel.")):
                frame.clear()
        error = error.__context__


def _joined() -> bool:
    return dist.is_available() and dist.is_initialized()


def _world() -> int:
    return dist.get_world_size() if _joined() else 1


def _checked_device(device: str | torch.device | None) -> torch.device:
    if device is None:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        chosen = torch.device(device)
    except RuntimeError:
        chosen = None
    if chosen is None or chosen.type not in ("cpu", "cuda"):
        raise ValueError(f"device: expected 'cpu' or 'cuda', got {str(device)!r}")
    if chosen.type == "cuda" and (chosen.index or 0) >= torch.cuda.device_count():
        here = torch.cuda.device_count()
        raise ValueError(f"device: expected 'cpu' or one of the {here} CUDA devices that are here, got {str(device)!r}")
    return chosen


def _current(device: torch.device) -> torch.device:
    return torch.device("cuda", torch.cuda.current_device()) if device.type == "cuda" and device.index is None else device


def _variable(name: str, least: int, below: int | None = None, default: int | None = None) -> int:
    text = os.environ.get(name, "" if default is None else str(default))
    if not text.isdecimal():
        raise ValueError(_not_from_torchrun(name, repr(text) if text else "nothing"))
    return integer(f"environment: {name}", int(text), least, below)


def _not_from_torchrun(name: str, got: str) -> str:
    return (
        f"environment: {name}: expected what torchrun sets, got {got}; start several processes by torchrun, "
        "or unset WORLD_SIZE for a single one"
    )


def _exchange_device() -> torch.device:
    """Where the small messages live: the CPU, unless the group of a user knows only CUDA tensors."""
    if "cpu" in dist.get_backend_config():
        return torch.device("cpu")
    return torch.device("cuda", torch.cuda.current_device())


def _broadcast(data: bytes) -> bytes:
    """Rank 0's `data` in every process."""
    device = _exchange_device()
    length = torch.tensor([len(data)], device=device)
    dist.broadcast(length, src=0)
    content = _tensor_of(data, device) if dist.get_rank() == 0 else torch.zeros(int(length), dtype=torch.uint8, device=device)
    dist.broadcast(content, src=0)
    return content.cpu().numpy().tobytes()


def _gather(text: str) -> list[str]:
    """The texts of all processes, by rank."""
    device = _exchange_device()
    data = _tensor_of(text.encode(), device)
    length = torch.tensor([len(data)], device=device)
    lengths = [torch.zeros_like(length) for _ in range(_world())]
    dist.all_gather(lengths, length)
    longest = max(int(n) for n in lengths)
    padded = torch.zeros(longest, dtype=torch.uint8, device=device)
    padded[: len(data)] = data
    everyones = [torch.zeros_like(padded) for _ in lengths]
    dist.all_gather(everyones, padded)
    return [theirs[: int(n)].cpu().numpy().tobytes().decode() for theirs, n in zip(everyones, lengths, strict=True)]


def _tensor_of(data: bytes, device: torch.device) -> Tensor:
    return torch.from_numpy(np.frombuffer(data, np.uint8).copy()).to(device)


def _pack(masks: Masks | None) -> bytes:
    """A line of JSON with names and shapes, then the bits of all masks. Never pickle: it would run what it is sent."""
    if masks is None:
        return b"null\n"
    header = json.dumps([[layer.name, layer.shape] for layer in masks.per_layer()])
    bits = np.concatenate([masks[name].numpy().ravel() for name in masks])
    return header.encode() + b"\n" + np.packbits(bits).tobytes()


def _unpack(data: bytes) -> Masks | None:
    line, _, packed = data.partition(b"\n")
    header = json.loads(line)
    if header is None:
        return None
    sizes = [int(np.prod(shape)) for _, shape in header]
    bits = np.unpackbits(np.frombuffer(packed, np.uint8), count=sum(sizes)).astype(bool)
    parts = np.split(bits, np.cumsum(sizes)[:-1])
    return Masks({name: part.reshape(shape) for (name, shape), part in zip(header, parts, strict=True)})
