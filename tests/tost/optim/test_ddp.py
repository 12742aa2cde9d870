"""Two processes with DistributedDataParallel: W, V and Gamma have the same bits in both, and are those of one process."""

import os
import subprocess
import sys
import traceback
from datetime import timedelta
from pathlib import Path

import torch
import torch.distributed as dist
from torch import nn

import tost
from tests.tost.optim.small_net import everything, loss_of, same_bits, small_lbi, small_net

RANKS, STEPS, TIMEOUT_S = 2, 10, 60


def frozen_norm() -> nn.Module:
    """Without batch statistics, so that halves of a batch give halves of its gradient."""
    net = small_net(torch.float64)
    net.norm.eval()
    return net


def one_process(rank: int, folder: Path) -> None:
    """What each rank runs on its half of the batches; leaves everything in `folder`."""
    dist.init_process_group("gloo", f"file://{folder}/store", rank=rank, world_size=RANKS, timeout=timedelta(seconds=TIMEOUT_S))
    net = frozen_norm()
    ddp = nn.parallel.DistributedDataParallel(net)
    optimizer = small_lbi(net)
    for step in range(STEPS):
        optimizer.zero_grad()
        loss_of(ddp, step, slice(4 * rank, 4 * rank + 4)).backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    torch.save(everything(net, optimizer), folder / f"{rank}.pt")
    dist.barrier()
    os._exit(0)  # gloo's threads may outlive torch's static objects: leave without tearing anything down


def test_two_processes_keep_the_same_gamma(tmp_path: Path) -> None:
    root = Path(tost.__file__).parents[1]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join([str(root), *sys.path])}
    # A process of this file, not torch.multiprocessing's: pytest's importlib mode gives it a name no child could import.
    done = subprocess.run(
        [sys.executable, __file__, str(tmp_path)], env=environment, stderr=subprocess.PIPE, text=True, timeout=2 * TIMEOUT_S
    )
    assert done.returncode == 0, done.stderr
    first, second = (torch.load(tmp_path / f"{rank}.pt") for rank in range(RANKS))
    assert same_bits(first, second)
    net = frozen_norm()
    optimizer = small_lbi(net)
    for step in range(STEPS):
        optimizer.zero_grad()
        loss_of(net, step).backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    for ours, theirs in zip(first, everything(net, optimizer), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-12)
    assert 0 < optimizer.support(net.get_parameter("stem.weight")).double().mean() < 1


def main(folder: Path) -> int:
    """Both ranks, forked from a process that has imported everything (most of the work); the larger of their exit codes."""
    small_lbi(frozen_norm()).zero_grad()  # imports a part of torch
    children = []
    for rank in range(RANKS):
        child = os.fork()
        if child == 0:
            try:
                one_process(rank, folder)
            except BaseException:
                traceback.print_exc()
                os._exit(1)
        children.append(child)
    return max(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children)


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
