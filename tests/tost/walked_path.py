"""A run of SplitLBI as it lies on disk, without a training: a path of a few steps, and a result that nobody trained."""

from pathlib import Path
from typing import Any

from tests.tost.finished_run import made
from tests.tost.optim.small_net import small_lbi, small_net, train
from tost.config import Config
from tost.optim import SolutionPath
from tost.runs import Result, RunFolder

EPOCHS = 10


def walk(folder: Path, **options: Any) -> SolutionPath:
    """The path of a small network over ten steps, each of them an epoch."""
    net = small_net()
    optimizer = small_lbi(net, **options)
    path = SolutionPath(folder)
    for epoch in range(EPOCHS + 1):
        if epoch:
            train(net, optimizer, 1, first=epoch - 1)
        path.record(epoch, net, optimizer)
    return path


def walked_run(out: Path, lam: float = 0.21, seed: int = 0, **options: Any) -> Result:
    """A finished run with such a path; `options` of SplitLBI say what its configuration says, `lam` also what the path is."""
    config = Config.from_dict(
        {
            "out": str(out),
            "seed": seed,
            "model": "lenet5",
            "optimizer": "splitlbi",
            "backend": "dense",
            "recipe": "vanilla",
            "split_lbi": {"lam": lam, **options},
        }
    )
    folder = RunFolder.of(config)
    folder.path.mkdir(parents=True)
    folder.start(config, None)
    path = walk(folder.path_points, lam=lam)
    history = tuple(
        {
            "epoch": epoch,
            "step": epoch,
            "train_loss": 1.0 / epoch,
            "support_density": density,
            **({"test_accuracy": 0.5 + seed / 10, "test_loss": 1.0} if epoch % 5 == 0 else {}),
        }
        for epoch, density in path.densities().items()
        if epoch
    )
    folder.finish(made(config, folder.path, history=history))
    return folder.load()
