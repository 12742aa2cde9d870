"""Training steps as CUDA graphs: a whole step is recorded once, then replayed by a single launch.

A small network on a large GPU waits for the host: some 300 launches of 5 microseconds each are three times the work of a
ResNet-32's step. A graph does forward, backward, clipping and the optimizer without the host, and with the numbers that the
host had while it was recorded. So everything that changes from step to step is a tensor that the graph reads: the batch (copied
into the same place each time), the learning rate (`optimizer_of`), the ghosts' strengths, the states of the optimizer. What is
left on the host (which parameters are trained, whether ghosts are alive, a dropout's rate) is compared before each replay, and
where it has changed the step is recorded anew.
"""

from __future__ import annotations

import contextlib
import math
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from tost.config import Config
from tost.snapshot import HostState, Numbers, Snapshot
from tost.update import LossOf, Update
from tost_kernels.graph_capture import undone_if_it_fails

__all__ = ["CudaGraphs", "GraphedUpdate", "Recorder", "update_of", "why_not_graphed"]

_ENOUGH_REPLAYS = 8  # a recording costs about three steps
_MOST_RECORDINGS = 4  # in a row that served fewer


class Recorder(Protocol):
    """What records a piece of work on a device, so that it can be done again without the host."""

    def rehearse(self, work: Callable[[], Tensor]) -> None:
        """Do `work` until it no longer sets anything up. RuntimeError: the host waits for the device amid it."""

    def record(self, work: Callable[[], Tensor]) -> tuple[Tensor, Callable[[], None]]:
        """Record `work`, which may or may not be done by that. Returns its result, and what does it again, into the same result.

        Raises:
            RuntimeError: something in it cannot be recorded.
        """


def why_not_graphed(config: Config, device: torch.device, processes: int = 1) -> str | None:
    """Why steps of this configuration cannot be recorded; None: as far as is known before the first one, they can."""
    if device.type != "cuda":
        return f"this run is on {device.type}, and only CUDA devices record steps"
    if processes > 1:
        return f"{processes} processes share the batches, and what they exchange is not recorded"
    if config.amp == "fp16":
        return "the gradient scaler of amp: fp16 decides on the host; bf16 needs none"
    if config.optimizer == "splitlbi":
        return "SplitLBI has its learning rate on the host"
    return None


def update_of(
    config: Config,
    net: nn.Module,
    optimizer: torch.optim.Optimizer,
    loss_of: LossOf,
    to_input: Callable[[Tensor], Tensor],
    device: torch.device,
    processes: int = 1,
) -> Update:
    """The update that `config.cuda_graph` asks for; arguments as for `Update`. Where steps on a GPU are not recorded unasked, a
    UserWarning says why.

    Raises:
        ValueError: it asks for recorded steps where there can be none.
    """
    reason = why_not_graphed(config, device, processes)
    if reason is None and config.cuda_graph is not False:
        return GraphedUpdate(config, net, optimizer, loss_of, to_input, device, CudaGraphs(device))
    if reason is not None and device.type == "cuda":
        _say(config, reason)
    elif reason is not None and config.cuda_graph:
        raise _refused(reason)
    update = Update(config, net, optimizer, loss_of, to_input, device)
    update.not_recorded = reason or "cuda_graph is false"
    return update


def _say(config: Config, reason: str) -> None:
    """Once why steps are not recorded: an error where they had to be."""
    if config.cuda_graph:
        raise _refused(reason)
    if config.cuda_graph is None:
        warnings.warn(f"cuda_graph: off: {reason}", UserWarning, stacklevel=3)


def _refused(reason: str) -> ValueError:
    return ValueError(f"cuda_graph: expected false or none, got true: {reason}")


class GraphedUpdate(Update):
    """An `Update` that records itself at its first batch and is replayed for later ones of the same shape.

    The steps are those of `Update`: before the first replay all is put back where the rehearsal began. Nothing in a recording
    can wait for the loss, so it is the device that skips: the fused optimizers take a flag (made for gradient scalers) and leave
    weights and moments alone where it is up. The host reads the loss behind the replay, once a step as ever, and puts back
    BatchNorm's statistics in the rare case. Batches of another shape are ordinary updates.

    Args:
        recorder: of the device.

    Attributes:
        not_recorded: why all steps are ordinary updates after all; None: they are not, or nothing was recorded yet.
        recordings: how many there were.

    Raises, when called:
        ValueError: `config.cuda_graph` is true and the step cannot be recorded.
    """

    def __init__(
        self,
        config: Config,
        net: nn.Module,
        optimizer: torch.optim.Optimizer,
        loss_of: LossOf,
        to_input: Callable[[Tensor], Tensor],
        device: torch.device,
        recorder: Recorder,
    ) -> None:
        self.not_recorded = None
        self.recordings = 0
        self._recorder = recorder
        self._recording: _Recording | None = None
        self._short = 0  # recordings in a row that were replayed a few times only
        self._rates = [group["lr"] for group in optimizer.param_groups]
        if not all(isinstance(rate, Tensor) for rate in self._rates):
            raise TypeError(f"GraphedUpdate: optimizer: expected learning rates that are tensors, got {self._rates}")
        super().__init__(config, net, optimizer, loss_of, to_input, device)

    def rewrap(self) -> None:
        """As in `Update`; the next step is recorded anew."""
        super().rewrap()
        self._recording = None  # its memory is free before there is another

    def __call__(self, inputs: Tensor, targets: Tensor, stop: bool = False) -> tuple[float, bool]:
        """(mean loss before the update, `stop`)."""
        recording = self._recording_for(inputs, targets)
        if recording is None:
            return super().__call__(inputs, targets, stop)
        loss = recording.replay_with(inputs, targets)
        if not math.isfinite(loss):
            self._put_back()
        return loss, stop

    def _recording_for(self, inputs: Tensor, targets: Tensor) -> _Recording | None:
        for group, rate in zip(self.optimizer.param_groups, self._rates, strict=True):
            if group["lr"] is not rate:  # somebody gave it a number of his own
                rate.fill_(group["lr"])
                group["lr"] = rate
        recording = self._recording
        if recording is not None and recording.frozen.holds(self.optimizer):
            return recording if recording.fits(inputs, targets) else None
        if self.not_recorded is None:
            self._count(recording)
        if self.not_recorded is None:
            self._recording = recording = None  # before the next one needs memory
            self._record(inputs, targets)
        return self._recording

    def _count(self, recording: _Recording | None) -> None:
        """Give up where recordings do not last."""
        if recording is None:
            return
        self._short = self._short + 1 if recording.replays < _ENOUGH_REPLAYS else 0
        if self._short == _MOST_RECORDINGS:
            self._recording = None
            self._give_up("numbers that the network or the optimizer has on the host change from step to step")

    def _record(self, inputs: Tensor, targets: Tensor) -> None:
        here, wanted = (tensor.to(self.device).clone() for tensor in (inputs, targets))

        def work() -> Tensor:
            return self._whole(here, wanted)

        before = Snapshot(self.net, self.optimizer, self.device)
        try:
            self._recorder.rehearse(work)
            host = HostState(self.net, self.device)
            self.optimizer.zero_grad(set_to_none=True)  # those of the rehearsal are no part of the recording
            loss, replay = self._recorder.record(work)
            if host.moved:
                raise RuntimeError("the network or the loss draws random numbers, or counts, on the host")
        except RuntimeError as error:
            self._give_up(" ".join(str(error).partition("\n")[0].split()))
        else:
            self.recordings += 1
        finally:
            before.put_back()
        if self.not_recorded is None:
            self._recording = _Recording(here, wanted, loss, replay, _Frozen(self.net, self.optimizer))

    def _give_up(self, reason: str) -> None:
        self.not_recorded = reason
        _say(self.config, f"the step cannot be recorded: {reason}")

    def _whole(self, inputs: Tensor, targets: Tensor) -> Tensor:
        """A step without the host: the loss, not finite where it was skipped."""
        self._remember()
        self.optimizer.zero_grad(set_to_none=True)  # gradients are made anew, in the recording's memory: nothing to fill with 0
        loss = self._backward(inputs, targets)
        if self.config.clip_norm is not None:
            norm = self._clip(self.config.clip_norm)
            loss = loss.masked_fill(loss.isfinite() & ~norm.isfinite(), math.nan)
        self.optimizer.found_inf = (~loss.isfinite()).float()  # type: ignore[attr-defined]
        try:
            self.optimizer.step()
        finally:
            del self.optimizer.found_inf  # type: ignore[attr-defined]
        return loss


class _Frozen:
    """What a recording took from the host: the modules' numbers, the optimizer's options, where parameters and moments are."""

    def __init__(self, net: nn.Module, optimizer: torch.optim.Optimizer) -> None:
        self._numbers = Numbers(net)
        self._options = _options(optimizer)
        self._moments = optimizer.state

    def holds(self, optimizer: torch.optim.Optimizer) -> bool:
        """Whether it still is as it was."""
        if optimizer.state is not self._moments:  # others were loaded
            return False
        return not self._numbers.moved and _options(optimizer) == self._options


def _options(optimizer: torch.optim.Optimizer) -> list[Any]:
    found: list[Any] = []
    for group in optimizer.param_groups:
        found += [(p.data_ptr(), p.requires_grad) for p in group["params"]]
        found.append({name: value for name, value in group.items() if name not in ("params", "lr")})
    return found


@dataclass
class _Recording:
    """A recorded step: where it reads its batch and leaves its loss."""

    inputs: Tensor
    targets: Tensor
    loss: Tensor
    replay: Callable[[], None]
    frozen: _Frozen
    replays: int = 0

    def fits(self, inputs: Tensor, targets: Tensor) -> bool:
        kinds = [(t.shape, t.dtype) for t in (inputs, targets, self.inputs, self.targets)]
        return kinds[:2] == kinds[2:]

    def replay_with(self, inputs: Tensor, targets: Tensor) -> float:
        self.inputs.copy_(inputs, non_blocking=True)
        self.targets.copy_(targets, non_blocking=True)
        self.replay()
        self.replays += 1
        return self.loss.item()


class CudaGraphs:
    """The `Recorder` of a CUDA device: CUDA graphs, on a stream of their own."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]

    def rehearse(self, work: Callable[[], Tensor]) -> None:
        """Twice: the first step chooses algorithms and compiles kernels, and may wait for the device.

        Where the second one does, torch raises at that line. Amid a capture CUDA would find it too, but would
        leave torch's allocator and generator in a state that is hard to leave again.
        """
        self._stream.wait_stream(torch.cuda.current_stream(self._device))
        try:
            with torch.cuda.stream(self._stream):
                work()
                with _waiting_is_an_error():
                    work()
        finally:
            torch.cuda.current_stream(self._device).wait_stream(self._stream)

    def record(self, work: Callable[[], Tensor]) -> tuple[Tensor, Callable[[], None]]:
        graph, pool = torch.cuda.CUDAGraph(), torch.cuda.graph_pool_handle()
        # only this thread's calls matter: others may serve the data
        capture = torch.cuda.graph(graph, pool=pool, stream=self._stream, capture_error_mode="thread_local")
        with undone_if_it_fails(pool, self._stream.device_index), capture:
            result = work()
        return result, graph.replay


@contextlib.contextmanager
def _waiting_is_an_error() -> Iterator[None]:
    before = torch.cuda.get_sync_debug_mode()
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode(before)
