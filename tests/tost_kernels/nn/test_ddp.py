"""Two processes with DistributedDataParallel: the same step as one process, and traffic of kept weights only."""

import json
import os
import subprocess
import sys
from datetime import timedelta
from pathlib import Path

import torch
import torch.distributed as dist
from torch import nn

import tost_kernels as tk

RANKS, BATCH, TIMEOUT_S = 2, 32, 60


def lenet_300_100():
    """LeNet-300-100 in float64 at 5 % density, the same in every process."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(784, 300), nn.ReLU(), nn.Linear(300, 100), nn.ReLU(), nn.Linear(100, 10)).double()
    return tk.sparsify(net, {name: torch.rand(net.get_submodule(name).weight.shape) < 0.05 for name in ("0", "2", "4")})


def global_batch():
    generator = torch.Generator().manual_seed(1)
    return torch.randn(BATCH, 784, generator=generator).double(), torch.randint(10, (BATCH,), generator=generator)


def step(net, x, y):
    optimizer = torch.optim.SGD(tk.param_groups(net, 1e-2), lr=0.5, momentum=0.9)
    nn.functional.cross_entropy(net(x), y).backward()
    optimizer.step()


def one_process(rank: int, folder: Path) -> None:
    """What each rank runs: a step on its half of the batch. Leaves its parameters and the bytes it exchanged in `folder`."""
    from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import allreduce_hook

    dist.init_process_group("gloo", f"file://{folder}/store", rank=rank, world_size=RANKS, timeout=timedelta(seconds=TIMEOUT_S))
    sent = 0

    def counting(group, bucket):
        nonlocal sent
        sent += bucket.buffer().numel() * bucket.buffer().element_size()
        return allreduce_hook(group, bucket)

    broadcasts = []
    broadcast = dist._broadcast_coalesced

    def counting_broadcast(group, tensors, *arguments):
        broadcasts.extend(tuple(t.shape) for t in tensors)
        return broadcast(group, tensors, *arguments)

    net = lenet_300_100()
    dist._broadcast_coalesced = counting_broadcast
    ddp = nn.parallel.DistributedDataParallel(net)
    ddp.register_comm_hook(dist.group.WORLD, counting)
    x, y = global_batch()
    step(ddp, x.chunk(RANKS)[rank], y.chunk(RANKS)[rank])
    torch.save(net.state_dict(), folder / f"{rank}.pt")
    (folder / f"{rank}.json").write_text(json.dumps({"sent": sent, "broadcasts": broadcasts}))
    dist.barrier()
    # Once in a while gloo's threads outlive torch's static objects and abort a process that has done all its work ("terminate
    # called without an active exception"): leave without tearing anything down.
    os._exit(0)


def test_a_step_of_two_processes_is_the_step_of_one(tmp_path):
    # Processes of this file, not torch.multiprocessing's: pytest's importlib mode gives it a name no child could import.
    root = Path(tk.__file__).parents[1]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join([str(root), *sys.path])}
    ranks = [
        subprocess.Popen([sys.executable, __file__, str(rank), str(tmp_path)], env=environment, stderr=subprocess.PIPE, text=True)
        for rank in range(RANKS)
    ]
    try:
        for process in ranks:
            _, errors = process.communicate(timeout=TIMEOUT_S)
            assert process.returncode == 0, errors
    finally:
        for process in ranks:
            process.kill()

    alone = lenet_300_100()
    first = [p.detach().clone() for p in alone.parameters()]
    step(alone, *global_batch())
    assert all((p - q).abs().max() > 1e-4 for p, q in zip(alone.parameters(), first, strict=True))
    states = [torch.load(tmp_path / f"{rank}.pt") for rank in range(RANKS)]
    for name, expected in alone.state_dict().items():
        assert torch.equal(states[0][name], states[1][name])
        torch.testing.assert_close(states[0][name], expected, rtol=0, atol=1e-12)

    kept = sum(layer.pattern.nnz for layer in (alone[0], alone[2], alone[4]))
    elements = kept + 300 + 100 + 10
    assert kept < 0.06 * (784 * 300 + 300 * 100 + 100 * 10)
    for rank in range(RANKS):
        record = json.loads((tmp_path / f"{rank}.json").read_text())
        assert record["sent"] == elements * 8
        # Only parameters, once, when DDP starts: no pattern, and nothing at the forward.
        assert sorted(record["broadcasts"]) == sorted([list(p.shape) for p in alone.parameters()])


if __name__ == "__main__":
    one_process(int(sys.argv[1]), Path(sys.argv[2]))
