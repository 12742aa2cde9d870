"""Two real processes over gloo: the script they run is this file, `python test_distributed.py SCENARIO FOLDER`."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn

import tost
import tost_kernels as tk
from tost import distributed
from tost.ghosts import ghost_parameters, set_strength

WORLD = 2
LIMIT_S = 120  # for a machine that is busy; nothing below waits for a clock, except where it says so
RECIPES = {"vanilla": tost.Recipe.vanilla(), "ghosts": tost.Recipe(rescale_init=False)}
STEPS_WITH_GHOSTS, STEPS = 3, 5

# ---- what a rank runs ------------------------------------------------------------------------------------------------


def sparse_resnet(recipe: tost.Recipe, seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    model = tost.models.build("resnet20", num_classes=10, in_channels=1)
    net = tk.sparsify(model, tost.prune(model, "random", density=0.1, input_shape=(1, 8, 8)))
    return tost.add_ghosts(net, recipe, inplace=True)


def batch(step: int) -> tuple[Tensor, Tensor]:
    """The batch of all processes at one step."""
    generator = torch.Generator().manual_seed(100 + step)
    return torch.randn(16, 1, 8, 8, generator=generator), torch.randint(10, (16,), generator=generator)


def shard(step: int, rank: int) -> tuple[Tensor, Tensor]:
    inputs, targets = batch(step)
    return tk.to_batch_last(inputs.chunk(WORLD)[rank]), targets.chunk(WORLD)[rank]


def strength(step: int) -> tuple[float, float]:
    return (1 - step / STEPS_WITH_GHOSTS, 1.0 + step) if step < STEPS_WITH_GHOSTS else (0.0, float("inf"))


def optimizer_of(net: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.SGD(tk.param_groups(net, 1e-3), lr=0.1, momentum=0.9)


def bury(net: nn.Module) -> None:
    """After the fade: dead ghosts have no gradient any more."""
    for parameter in ghost_parameters(net):
        parameter.requires_grad_(False)
        parameter.grad = None


def tensors_of(net: nn.Module) -> dict[str, Tensor]:
    return {name: t.detach().clone() for name, t in (*net.named_parameters(), *net.named_buffers())}


def threads() -> list[str]:
    tasks = Path("/proc/self/task")
    return [(task / "comm").read_text().strip() for task in tasks.iterdir()] if tasks.is_dir() else []


def training(folder: Path) -> dict[str, Any]:
    """Ghosts alive, then dead: DDP has to be wrapped anew between, and the old wrapper is still referred to."""
    for name, recipe in RECIPES.items():
        with distributed.processes(device="cpu") as me:
            net = sparse_resnet(recipe, seed=me.rank)  # wrap takes rank 0's
            optimizer = optimizer_of(net)
            ddp = distributed.wrap(net)
            wrappers, record = [ddp], []
            for step in range(STEPS):
                set_strength(net, *strength(step))
                if step == STEPS_WITH_GHOSTS:
                    bury(net)
                    ddp = distributed.wrap(ddp)
                    wrappers.append(ddp)
                inputs, targets = shard(step, me.rank)
                optimizer.zero_grad()
                F.cross_entropy(ddp(inputs), targets).backward()
                optimizer.step()
                record.append(tensors_of(net))
        torch.save(record, folder / f"{name}.{me.rank}.pt")
        # Outside, the network trains on alone: no hook is left on its parameters.
        F.cross_entropy(net(inputs), targets).backward()
    return {"threads": threads(), "wrappers": len(wrappers)}


def exchanges(folder: Path) -> dict[str, Any]:
    said: dict[str, Any] = {}

    def refusal(work: Callable[[], object]) -> str:
        try:
            work()
        except RuntimeError as error:
            return f"{type(error).__name__}: {error}"
        return "nothing"

    with distributed.processes(device="cpu") as me:
        said["me"] = [me.rank, me.world, me.is_main, str(me.device)]
        torch.manual_seed(me.rank)
        own = tost.Masks({"b.odd": torch.rand(7, 5) < 0.3, "a": torch.rand(4, 3, 3, 3) < 0.3})
        masks = distributed.broadcast_masks(own if me.is_main else None)
        assert masks is not None
        said["own"], said["received"], said["order"] = own.fingerprint, masks.fingerprint, list(masks)
        said["dense"] = distributed.broadcast_masks(None) is None
        said["equal"] = distributed.broadcast_masks(masks) == masks
        said["differ"] = refusal(lambda: distributed.broadcast_masks(own))
        said["weights"] = refusal(lambda: distributed.assert_same("initial weights", f"hash{me.rank}"))
        said["empty"] = refusal(lambda: distributed.assert_same("nothing", ""))
        said["ragged"] = refusal(lambda: distributed.assert_same("lengths", "abc"[: 1 + me.rank]))
        said["agreed"] = [
            list(distributed.agree(loss, stop))
            for loss, stop in ((1.0 + me.rank, False), (1.0, me.rank == 1), ([2.0, float("nan")][me.rank], False))
        ]
        said["infinite"] = str(distributed.agree([float("-inf"), float("inf")][me.rank]).loss)
    said["left"] = not dist.is_initialized()
    return said


def small_net() -> nn.Module:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 6 * 6, 10)).double()
    return tk.sparsify(net, {name: torch.rand(net.get_submodule(name).weight.shape) < 0.2 for name in ("0", "3")})


def accumulated(folder: Path) -> dict[str, Any]:
    """In a group that the caller made: two parts of the shard, one exchange of gradients."""
    from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import allreduce_hook

    dist.init_process_group("gloo")
    sent: list[int] = []

    def counting(group, bucket):  # no annotations: torch would read them, and these are strings
        sent.append(bucket.buffer().numel())
        return allreduce_hook(group, bucket)

    with distributed.processes(device="cpu") as me:
        net = small_net()
        ddp = distributed.wrap(net)
        ddp.register_comm_hook(dist.group.WORLD, counting)
        inputs, targets = (t.chunk(WORLD)[me.rank] for t in batch(0))
        first, second = zip(inputs.double().chunk(2), targets.chunk(2), strict=True)
        with distributed.no_sync(ddp):
            (F.cross_entropy(ddp(first[0]), first[1]) / 2).backward()
        before = list(sent)
        (F.cross_entropy(ddp(second[0]), second[1]) / 2).backward()
        torch.save([p.grad for p in net.parameters()], folder / f"gradients.{me.rank}.pt")
    said = {"before": before, "sent": sum(sent), "kept_group": dist.is_initialized()}
    dist.barrier()
    del ddp
    dist.destroy_process_group()
    return said


def stepping(me: distributed.Processes, at_step_2: Callable[[], None]) -> None:
    """Steps for ever; rank 1 does `at_step_2` in the midst of a backward."""
    net = small_net()
    ddp = distributed.wrap(net)
    step = 0
    if me.rank == 1:
        next(net.parameters()).register_hook(lambda gradient: at_step_2() if step == 2 else None)
    while True:
        F.cross_entropy(ddp(batch(step)[0].double()), batch(step)[1]).backward()
        distributed.agree(0.0)
        step += 1


def killed(folder: Path) -> None:
    with distributed.processes(device="cpu") as me:
        stepping(me, lambda: os.kill(os.getpid(), signal.SIGKILL))


def failing(folder: Path) -> None:
    def fail() -> None:
        raise KeyError("of rank 1")

    with distributed.processes(device="cpu") as me:
        stepping(me, fail)


def hanging(folder: Path) -> None:
    # Both are here before the short timeout begins to count: a slow import is not what is tested.
    (folder / os.environ["RANK"]).touch()
    while not all((folder / str(rank)).exists() for rank in range(WORLD)):
        time.sleep(0.01)
    with distributed.processes(device="cpu", timeout_seconds=4) as me:
        stepping(me, lambda: time.sleep(10 * LIMIT_S))


SCENARIOS = (training, exchanges, accumulated, killed, failing, hanging)

# ---- starting them ---------------------------------------------------------------------------------------------------


def environment(**more: str) -> dict[str, str]:
    root = str(Path(tost.__file__).parents[1])
    return {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join([root, *sys.path]), **more}


def start(scenario: Callable[[Path], Any], folder: Path) -> list[subprocess.Popen[str]]:
    """A process a rank, as torchrun would start it, but nobody ends the others when one fails. Warnings are errors."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = str(free.getsockname()[1])
    return [
        subprocess.Popen(
            [sys.executable, "-W", "error", __file__, scenario.__name__, str(folder)],
            env=environment(
                RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE=str(WORLD), MASTER_ADDR="localhost", MASTER_PORT=port
            ),
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(WORLD)
    ]


def outcome(processes: list[subprocess.Popen[str]], ranks: tuple[int, ...] = (0, 1)) -> list[tuple[int, str]]:
    """(exit code, standard error) of `ranks`; the others are killed then."""
    try:
        errors = [processes[rank].communicate(timeout=LIMIT_S)[1] for rank in ranks]
        return [(processes[rank].returncode, text) for rank, text in zip(ranks, errors, strict=True)]
    finally:
        for process in processes:
            process.kill()
            process.communicate()


def said_by(scenario: Callable[[Path], Any], folder: Path) -> list[dict[str, Any]]:
    """What the ranks return; they have to end well and in silence."""
    for code, errors in outcome(start(scenario, folder)):
        assert (code, errors) == (0, "")
    return [json.loads((folder / f"{rank}.json").read_text()) for rank in range(WORLD)]


# ---- training --------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[dict[str, Any]]]:
    folder = tmp_path_factory.mktemp("training")
    return folder, said_by(training, folder)


def emulated(recipe: tost.Recipe) -> list[dict[str, Tensor]]:
    """One process does what all ranks do: each shard with its own batch statistics, the mean gradient, one update."""
    net = sparse_resnet(recipe)
    optimizer = optimizer_of(net)
    record = []
    for step in range(STEPS):
        set_strength(net, *strength(step))
        if step == STEPS_WITH_GHOSTS:
            bury(net)
        before = {name: buffer.clone() for name, buffer in net.named_buffers()}
        after: list[dict[str, Tensor]] = []
        optimizer.zero_grad()
        for rank in range(WORLD):
            for name, buffer in net.named_buffers():
                buffer.copy_(before[name])
            inputs, targets = shard(step, rank)
            (F.cross_entropy(net(inputs), targets) / WORLD).backward()
            after.append({name: buffer.clone() for name, buffer in net.named_buffers()})
        for name, buffer in net.named_buffers():
            buffer.copy_(after[0][name])  # running statistics are rank 0's
        optimizer.step()
        record.append(tensors_of(net))
    return record


@pytest.mark.parametrize("recipe", RECIPES)
def test_training_equals_an_emulation_with_batch_statistics_of_each_shard(
    recipe: str, trained: tuple[Path, list[dict[str, Any]]]
) -> None:
    folder, _ = trained
    ranks = [torch.load(folder / f"{recipe}.{rank}.pt") for rank in range(WORLD)]
    net = sparse_resnet(RECIPES[recipe])
    threads_before = torch.get_num_threads()
    torch.set_num_threads(1)  # as the ranks: torch's own dense layers (stem, classifier) sum differently otherwise
    try:
        expected = emulated(RECIPES[recipe])
    finally:
        torch.set_num_threads(threads_before)
    parameters = dict(net.named_parameters())
    for step in range(STEPS):
        for name, tensor in expected[step].items():
            assert torch.equal(ranks[0][step][name], tensor), (step, name)
            if name in parameters:
                assert torch.equal(ranks[1][step][name], tensor), (step, name)
    ghosts = {name for name in parameters if "ghost" in name}
    assert bool(ghosts) == (recipe == "ghosts")
    for name in parameters:  # everything was trained, and dead ghosts were not
        assert not torch.equal(ranks[0][0][name], ranks[0][1][name]), name
        still = torch.equal(ranks[0][STEPS_WITH_GHOSTS - 1][name], ranks[0][STEPS - 1][name])
        assert still == (name in ghosts), name
    # The test tells shards apart: their own statistics differ.
    assert not torch.equal(ranks[0][0]["bn1.running_mean"], ranks[1][0]["bn1.running_mean"])


def test_no_thread_of_the_group_is_left_behind(trained: tuple[Path, list[dict[str, Any]]]) -> None:
    if not Path("/proc/self/task").is_dir():
        pytest.skip("the names of threads are read from /proc")
    for said in trained[1]:
        assert said["threads"]
        assert not [name for name in said["threads"] if "gloo" in name]


def test_accumulated_gradients_equal_those_of_one_big_batch_and_are_exchanged_once(tmp_path: Path) -> None:
    said = said_by(accumulated, tmp_path)
    net = small_net()
    inputs, targets = batch(0)
    F.cross_entropy(net(inputs.double()), targets).backward()
    for rank in range(WORLD):
        gradients = torch.load(tmp_path / f"gradients.{rank}.pt")
        for gradient, parameter in zip(gradients, net.parameters(), strict=True):
            torch.testing.assert_close(gradient, parameter.grad, rtol=0, atol=1e-14)
        # Kept weights and biases alone.
        elements = sum(layer.pattern.nnz + layer.bias.numel() for layer in (net[0], net[3]))
        assert elements < 0.3 * (4 * 9 + 144 * 10)
        assert said[rank] == {"before": [], "sent": elements, "kept_group": True}


# ---- agreeing --------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def exchanged(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """By the real torchrun."""
    folder = tmp_path_factory.mktemp("exchanges")
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(WORLD)]
    command = [*launcher, __file__, "exchanges", str(folder)]
    run = subprocess.run(command, env=environment(), capture_output=True, text=True, timeout=LIMIT_S)
    assert run.returncode == 0, run.stderr
    assert "Warning" not in run.stderr
    return [json.loads((folder / f"{rank}.json").read_text()) for rank in range(WORLD)]


def test_every_process_knows_itself(exchanged: list[dict[str, Any]]) -> None:
    assert [said["me"] for said in exchanged] == [[0, 2, True, "cpu"], [1, 2, False, "cpu"]]
    assert all(said["left"] for said in exchanged)


def test_all_get_the_masks_of_rank_0(exchanged: list[dict[str, Any]]) -> None:
    main, other = exchanged
    assert main["own"] != other["own"]
    assert main["received"] == other["received"] == main["own"]
    assert main["order"] == other["order"] == ["b.odd", "a"]
    assert main["dense"]
    assert other["dense"]


def test_masks_that_differ_are_noticed_by_all(exchanged: list[dict[str, Any]]) -> None:
    fingerprints = [said["own"] for said in exchanged]
    for said in exchanged:
        assert said["equal"]
        assert said["differ"] == (
            "RuntimeError: masks: expected the same in all 2 processes, "
            f"got {fingerprints[0]} on rank 0; {fingerprints[1]} on rank 1"
        )


def test_anything_else_that_differs_is_noticed_by_all(exchanged: list[dict[str, Any]]) -> None:
    for said in exchanged:
        assert said["weights"].endswith(
            "initial weights: expected the same in all 2 processes, got hash0 on rank 0; hash1 on rank 1"
        )
        assert said["ragged"].endswith("got a on rank 0; ab on rank 1")
        assert said["empty"] == "nothing"


def test_loss_and_stop_are_agreed_on(exchanged: list[dict[str, Any]]) -> None:
    for said in exchanged:
        (mean, go_on), (one, stop), (nan, _) = said["agreed"]
        assert (mean, go_on) == (1.5, False)
        assert (one, stop) == (1.0, True)
        assert nan != nan  # though rank 0 had a finite loss
        assert said["infinite"] == "nan"


# ---- losing a process ------------------------------------------------------------------------------------------------


def lost(errors: str) -> str:
    """The last line of a traceback, before which torch writes the rank."""
    return errors.strip().splitlines()[-1].removeprefix("[rank0]: ")


LINE = (
    "tost.distributed.PeerLost: rank 0 of 2: another process of this run died or does not answer (its own output may say why); "
    "the same command goes on from the last checkpoint ("
)


def test_a_killed_process_ends_the_other_with_one_clear_line(tmp_path: Path) -> None:
    (code, errors), (other, _) = outcome(start(killed, tmp_path))
    assert other == -signal.SIGKILL
    assert code == 1
    assert lost(errors).startswith(LINE)


def test_a_failing_process_ends_the_other(tmp_path: Path) -> None:
    (code, errors), (other, own) = outcome(start(failing, tmp_path))
    assert (code, other) == (1, 1)
    assert lost(errors).startswith(LINE)
    assert "KeyError: 'of rank 1'" in own
    assert "PeerLost" not in own


def test_a_process_that_hangs_is_noticed_after_the_timeout(tmp_path: Path) -> None:
    [(code, errors)] = outcome(start(hanging, tmp_path), ranks=(0,))
    assert code == 1
    assert lost(errors).startswith(LINE + "Timed out waiting")


def test_a_process_that_never_comes_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {
        "RANK": "1",
        "LOCAL_RANK": "1",
        "WORLD_SIZE": "2",
        "MASTER_ADDR": "localhost",
        "MASTER_PORT": "1",
    }.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(distributed.PeerLost, match="rank 1 of 2"), distributed.processes(device="cpu", timeout_seconds=1):
        pytest.fail("there is nobody else")
    assert not dist.is_initialized()


# ---- alone -----------------------------------------------------------------------------------------------------------

VARIABLES = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")


@pytest.fixture
def alone(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    for name in VARIABLES:
        monkeypatch.delenv(name, raising=False)
    return monkeypatch


@pytest.mark.parametrize("world_size", [None, "1"])
def test_a_single_process_does_without_torch_distributed(alone: pytest.MonkeyPatch, world_size: str | None) -> None:
    if world_size is not None:
        alone.setenv("WORLD_SIZE", world_size)
    alone.setattr(dist, "init_process_group", lambda *a, **k: pytest.fail("a process group was made"))
    net = nn.Linear(2, 2)
    masks = tost.Masks({"a": torch.ones(2, 2)})
    with distributed.processes(device="cpu") as me:
        assert me == distributed.Processes(0, 1, torch.device("cpu"))
        assert me.is_main
        assert distributed.broadcast_masks(masks) is masks
        assert distributed.broadcast_masks(None) is None
        distributed.assert_same("anything", "x")
        assert distributed.agree(0.5, True) == (0.5, True)
        assert distributed.wrap(net) is net
        with distributed.no_sync(net):
            net(torch.ones(1, 2)).sum().backward()
        assert net.weight.grad is not None


def test_errors_of_the_work_pass_unchanged(alone: pytest.MonkeyPatch) -> None:
    with pytest.raises(RuntimeError, match=r"^Connection closed by peer$") as caught, distributed.processes(device="cpu"):
        raise RuntimeError("Connection closed by peer")  # of the user's own database, say: there is no peer here
    assert caught.type is RuntimeError


@pytest.mark.parametrize(
    ("set_to", "message"),
    [
        ({"WORLD_SIZE": "2"}, r"RANK: expected what torchrun sets, got nothing; .*unset WORLD_SIZE"),
        ({"WORLD_SIZE": "two"}, "WORLD_SIZE: expected what torchrun sets, got 'two'"),
        (dict.fromkeys(VARIABLES, "2"), "environment: RANK: expected .* below 2, got 2"),
        ({**dict.fromkeys(VARIABLES, "2"), "RANK": "-1"}, "RANK: expected what torchrun sets, got '-1'"),
    ],
)
def test_an_environment_that_torchrun_did_not_make_is_refused(
    alone: pytest.MonkeyPatch, set_to: dict[str, str], message: str
) -> None:
    for name, value in set_to.items():
        alone.setenv(name, value)
    with pytest.raises(ValueError, match=message), distributed.processes(device="cpu"):
        pytest.fail("it went on")


def test_wrong_arguments_are_named() -> None:
    with pytest.raises(TypeError, match=r"broadcast_masks: masks: expected tost.Masks or None, got dict"):
        distributed.broadcast_masks({"a": torch.ones(2, 2)})  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="assert_same: fingerprint: expected a string, got int"):
        distributed.assert_same("x", 1)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match=r"wrap: net: expected a torch.nn.Module, got int"):
        distributed.wrap(1)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="timeout_seconds: expected a number > 0"), distributed.processes(timeout_seconds=0):
        pytest.fail("it went on")


if __name__ == "__main__":
    scenario, place = sys.argv[1:]
    found = {function.__name__: function for function in SCENARIOS}[scenario](Path(place))
    Path(place, f"{os.environ['RANK']}.json").write_text(json.dumps(found))
