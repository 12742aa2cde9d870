"""Lottery tickets: what each round keeps, what it goes back to, and that a lottery cut off anywhere ends with the same bits."""

import dataclasses
import itertools
import json
import os
import subprocess
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

import tost
from tost import Config, Masks, Recipe, tickets, training
from tost.callbacks import Callback, Run, Stopped
from tost.cli import main
from tost.data import Dataset
from tost.files import DamagedFile
from tost.models.resnet import ResNet
from tost.runs import find_runs
from tost.tickets import Lottery, lottery, rewind_step

GHOSTS = Recipe(rescale_init=False)


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch, toy_images: Dataset) -> None:
    """Every run of this file is on the toy images and a network of two blocks: 3 steps an epoch."""
    for module in (training, tickets):
        monkeypatch.setattr(module, "load", lambda name, folder: toy_images)
    monkeypatch.setattr(tost.models, "build", lambda name, classes, channels, size: ResNet((1, 1), (4, 8), classes, channels))


@pytest.fixture
def config(tmp_path: Path) -> Callable[..., Config]:
    def make(**changes: Any) -> Config:
        values = {"steps": 8, "batch_size": 16, "density": 0.3, "recipe": "vanilla", "out": str(tmp_path / "runs"), **changes}
        return Config(**values)

    return make


class Watch(Callback):
    """What a training begins with, and what each of its steps has."""

    def __init__(self) -> None:
        self.states: dict[int, dict[str, Tensor]] = {}  # steps done -> the network then
        self.lines: dict[int, dict[str, Any]] = {}  # number of a step -> learning rate and strength of the ghosts
        self.inputs: list[Tensor] = []
        self.momentum = 0

    def on_start(self, run: Run) -> None:
        self.momentum = len(run.optimizer.state)
        self.after_step(run)
        run.net.register_forward_pre_hook(lambda net, args: self.inputs.append(args[0].clone()) if net.training else None)

    def before_step(self, run: Run) -> None:
        self.lines[run.step] = {name: run.line.get(name) for name in ("lr", "alpha", "beta")}

    def after_step(self, run: Run) -> None:
        self.states[run.step] = {name: value.clone() for name, value in run.net.state_dict().items()}


def watched(config: Config, **options: Any) -> tuple[Lottery, list[Watch]]:
    watches: list[Watch] = []

    def watch(number: int) -> list[Callback]:
        watches.append(Watch())
        assert len(watches) == number + 1
        return [watches[-1]]

    return lottery(config, callbacks=watch, **options), watches


def in_a_process(*arguments: str) -> subprocess.CompletedProcess[str]:
    """A script beside this file, or a module of Python's."""
    first = [str(Path(__file__).with_name(arguments[0]))] if arguments[0].endswith(".py") else [arguments[0]]
    return subprocess.run(
        [sys.executable, *first, *arguments[1:]],
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(sys.path)},
        capture_output=True,
        text=True,
        timeout=300,
    )


def masks_of(one: tickets.Round) -> Masks:
    return Masks.load(one.result.run_dir / "masks.safetensors")


def test_each_round_keeps_the_largest_weights_of_the_round_before(config: Callable[..., Config]) -> None:
    found = lottery(config(density=0.1, exclude=("fc",), ema=0.5), rate=0.4)
    total = found.rounds[0].total
    layers = [m for n, m in ResNet((1, 1), (4, 8), 3, 1).named_modules() if isinstance(m, nn.Conv2d | nn.Linear) and n != "fc"]
    assert total == sum(layer.weight.numel() for layer in layers)
    counts = [round(0.6**i * total) for i in range(5)] + [round(0.1 * total)]
    assert [one.kept for one in found.rounds] == counts
    assert [one.density for one in found.rounds] == [kept / total for kept in counts]
    before = None
    for one, following in itertools.pairwise(found.rounds):
        weights, masks = load_file(one.result.run_dir / "model.safetensors"), masks_of(following)
        assert "fc" not in masks
        assert masks.kept == following.kept
        assert masks.fingerprint.startswith(following.result.masks_fingerprint or "none")
        old = {name: before[name] if before else torch.ones_like(masks[name]) for name in masks}
        assert not any((masks[name] & ~old[name]).any() for name in masks)
        kept = torch.cat([weights[f"{name}.weight"][masks[name]].abs() for name in masks])
        removed = torch.cat([weights[f"{name}.weight"][old[name] & ~masks[name]].abs() for name in masks])
        assert kept.min() >= removed.max() > 0
        before = masks
        final = load_file(following.result.run_dir / "model.safetensors")
        assert all((final[f"{name}.weight"][~masks[name]] == 0).all() for name in masks)


@pytest.mark.parametrize(
    ("rewind", "step", "changes"),
    [
        ("init", 0, {}),
        (0, 0, {"recipe": Recipe(rescale_iterations=2), "backend": "masked-dense"}),
        ("4it", 4, {"backend": "reference"}),
        (2, 2, {"recipe": GHOSTS, "ema": 0.5}),
        ("1ep", 3, {"backend": "masked-dense", "amp": "bf16"}),
        ("2ep", 6, {"recipe": GHOSTS, "validation": 0.25, "batch_size": 12}),
        (1, 1, {"recipe": Recipe(permanent=True, rescale_init=False), "optimizer": "adam"}),
    ],
)
def test_a_round_goes_back_to_the_step(
    config: Callable[..., Config], rewind: str | int, step: int, changes: dict[str, Any]
) -> None:
    settings = config(schedule="cosine", warmup_steps=2, density=0.4, **changes)
    found, (dense, *rounds) = watched(settings, rate=0.45, rewind=rewind)
    assert found.rewind == step
    assert [one.kept for one in found.rounds[1:]] == [round(d * found.rounds[0].total) for d in (0.55, 0.4)]
    saved = load_file(found.rounds[0].result.run_dir / "rewind.safetensors")
    wanted = dense.states[step]
    assert saved.keys() == wanted.keys()
    assert all(torch.equal(saved[name], value) for name, value in wanted.items())
    for one, watch in zip(found.rounds[1:], rounds, strict=True):
        masks, start = masks_of(one), watch.states[step]
        assert min(watch.states) == step
        names = set()
        for name, value in wanted.items():
            layer = name.removesuffix(".weight")
            if layer not in masks:
                assert torch.equal(start[name], value), name
                names.add(name)
            else:
                stored = name if name in start else f"{name}_orig"
                assert torch.equal(start[stored] * masks[layer], value * masks[layer]), name
                assert torch.equal(start[f"{name}_mask"].bool(), masks[layer])
                names |= {stored, f"{name}_mask"}
        # the sparse form fuses without ghosts too, and its ghosts' convolutions have masks that keep all
        assert {name for name in start if not name.startswith("ghosts.") or name in wanted} == names
        assert watch.lines == {i: line for i, line in dense.lines.items() if i >= step}
        assert one.result.batches_fingerprint == found.rounds[0].result.batches_fingerprint
        assert len(watch.inputs) == 8 - step
        assert all(torch.equal(a, b) for a, b in zip(watch.inputs, dense.inputs[step:], strict=True))
        assert watch.momentum == 0
        assert [line["step"] for line in one.result.history] == [i for i in (3, 6, 8) if i > step]
        # a fade ends at the first drop of a cosine, half of the steps
        ghosts_live = settings.recipe.has_ghosts and (settings.recipe.permanent or step < 4)
        assert (one.result.ms_per_step_with_ghosts is not None) == ghosts_live


def test_the_initialization_is_rescaled_once(config: Callable[..., Config]) -> None:
    found = lottery(config(recipe=Recipe(ghost_skip=False, ghost_swish=False, rescale_iterations=3)), rate=0.6)
    state = load_file(found.rounds[0].result.run_dir / "rewind.safetensors")
    with tost.isolation.isolated(tost.seeds.derive_seed("weights", 0), ()):
        drawn = ResNet((1, 1), (4, 8), 3, 1).state_dict()
    ratios = state["conv1.weight"] / drawn["conv1.weight"]
    assert ratios.std() < 1e-6 < (ratios.mean() - 1).abs()  # one scale a tensor
    assert found.rounds[0].result.weights_fingerprint != found.rounds[1].result.weights_fingerprint
    assert found.rounds[1].result.weights_fingerprint == found.rounds[2].result.weights_fingerprint


def test_without_rewinding_the_weights_go_on(config: Callable[..., Config]) -> None:
    found, watches = watched(config(recipe=GHOSTS), rate=0.5, rewind="none")
    assert found.rewind is None
    assert not (found.rounds[0].result.run_dir / "rewind.safetensors").exists()
    for before, one, watch in zip(found.rounds, found.rounds[1:], watches[1:], strict=False):
        trained, masks, start = load_file(before.result.run_dir / "model.safetensors"), masks_of(one), watch.states[0]
        for name, value in trained.items():
            layer = name.removesuffix(".weight")
            assert torch.equal(start[name], value * masks[layer] if layer in masks else value)
        assert watch.lines == watches[0].lines


def outcome(found: Lottery) -> list[Any]:
    """All that may not depend on how often a lottery was cut off."""
    files = ("model.safetensors", "masks.safetensors", "best.safetensors", "rewind.safetensors")
    weights = [(one.result.run_dir / name for name in files) for one in found.rounds]
    rounds = [{**one.as_dict(), "run_dir": one.result.run_dir.name} for one in found.rounds]
    return [rounds, [[path.read_bytes() if path.exists() else None for path in paths] for paths in weights]]


def load_bytes(result: tost.Result) -> bytes:
    return (result.run_dir / "model.safetensors").read_bytes()


class StopAfter(Callback):
    """Wants to stop when it has seen `steps` steps."""

    def __init__(self, steps: int) -> None:
        self.left = steps

    def after_step(self, run: Run) -> None:
        self.left -= 1

    def before_step(self, run: Run) -> None:
        run.stop_wanted = self.left == 1


@pytest.mark.parametrize(
    ("rewind", "changes"), [("init", {"recipe": GHOSTS, "validation": 0.25, "batch_size": 12}), (4, {"ema": 0.5})]
)
def test_a_lottery_cut_off_again_and_again_ends_with_the_same_bits(
    config: Callable[..., Config], tmp_path: Path, rewind: int | str, changes: dict[str, Any]
) -> None:
    wanted = outcome(lottery(config(**changes), rate=0.4, rewind=rewind))
    again = config(**changes, out=str(tmp_path / "again"))
    lines: list[str] = []
    stops = 0
    while True:
        stop = StopAfter(5)  # amid rounds, a round later each time
        try:
            found = lottery(again, rate=0.4, rewind=rewind, callbacks=lambda number, stop=stop: [stop], report=lines.append)
            break
        except Stopped:
            stops += 1
            assert not list(Path(again.out).rglob("lottery.json"))
    assert stops >= 3
    assert outcome(found) == wanted
    assert not list(Path(again.out).rglob("checkpoint.safetensors"))
    assert any("finished earlier" in line for line in lines)


def test_a_lottery_that_fails_between_two_rounds_goes_on(config: Callable[..., Config], tmp_path: Path) -> None:
    wanted = outcome(lottery(config(), rate=0.4, rewind=2))
    again = config(out=str(tmp_path / "again"))

    def fail(line: str) -> None:
        if "finished earlier" not in line:
            raise OSError(line)

    for number in range(4):
        with pytest.raises(OSError, match=f"round {number} of 3"):
            lottery(again, rate=0.4, rewind=2, report=fail)
    assert outcome(lottery(again, rate=0.4, rewind=2, report=fail)) == wanted


def test_a_lottery_that_goes_further_takes_up_the_rounds_there_are(config: Callable[..., Config]) -> None:
    first, watches = watched(config(density=0.36), rate=0.4)
    assert [len(watch.inputs) for watch in watches] == [8, 8, 8]
    further, watches = watched(config(density=0.2), rate=0.4)
    assert [len(watch.inputs) for watch in watches] == [0, 0, 0, 8, 8]
    assert further.rounds[:3] == first.rounds
    assert first.path.is_file()
    nearer, watches = watched(config(density=0.5), rate=0.4)
    assert [len(watch.inputs) for watch in watches] == [0, 0, 8]
    assert nearer.rounds[2].result.run_dir not in {one.result.run_dir for one in further.rounds}
    others = [{"rate": 0.3}, {"rate": 0.4, "rewind": 2}, {"rate": 0.4, "rewind": "none"}]
    for options in others:
        assert watched(config(density=0.5), **options)[1][0].inputs


def test_rounds_are_ordinary_runs(config: Callable[..., Config], capsys: pytest.CaptureFixture[str]) -> None:
    found = lottery(config(validation=0.25, batch_size=12), rate=0.5)
    results = find_runs(config().out)
    assert {result.run_dir for result in results} == {one.result.run_dir for one in found.rounds}
    assert [one.result.accounting.weights_kept for one in found.rounds[1:]] == [one.kept for one in found.rounds[1:]]
    assert [one.result.config.backend for one in found.rounds] == ["dense", "sparse", "sparse"]
    assert json.loads(found.path.read_text()) == json.loads(json.dumps(found.as_dict()))
    entry, last = found.as_dict()["rounds"][2], found.rounds[2]
    assert (entry["kept"], entry["density"], entry["best"]) == (last.kept, last.density, last.result.best)
    assert Lottery.load(found.path) == found
    (found.rounds[1].result.run_dir / "result.json").rename(found.path.parent / "away")
    with pytest.raises(FileNotFoundError, match=r"no finished run in .*round-01"):
        Lottery.load(found.path)
    with warnings.catch_warnings():
        warnings.simplefilter("default")
        assert main(["report", config().out]) == 0
    said = capsys.readouterr()
    assert said.err.startswith("tost: note: lottery: left out: no finished run in")
    assert "lottery rate=0.5 rewind=0 mask" in said.out  # its other rounds, as any runs
    for text in ("[]", "{}", found.path.read_text().replace('"rate": 0.5', '"rate": "x"')):
        found.path.write_text(text)
        with pytest.raises(DamagedFile, match="not a lottery's record"):
            Lottery.load(found.path)


def test_report_shows_each_lottery_once(
    config: Callable[..., Config], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    short = lottery(config(density=0.5), rate=0.5)
    long = lottery(config(density=0.25), rate=0.5)
    assert short.path != long.path
    for density in (0.1, 0.4, 0.2):
        training.train(config(density=density, method="random", steps=1))
    assert main(["report", config().out, "--json", "--figure", f"{config().out}/f.png"]) == 0
    first, *others = json.loads(capsys.readouterr().out)
    assert first == long.as_dict()
    assert [cell["density"] for grid in others for cell in grid["cells"]] == [0.4, 0.2, 0.1]
    assert sorted(path.name for path in Path(config().out).glob("*.png")) == [
        "f-1.png",
        "f-2.png",
    ]  # one comparison has all densities
    assert main(["report", config().out]) == 0
    text = capsys.readouterr().out
    assert text.count("lottery tickets rewound") == text.count("lottery") == 1
    # in the folder of the last round, from inside
    monkeypatch.chdir(long.path.parent)
    assert main(["report", "."]) == 0
    assert "lottery tickets rewound" in capsys.readouterr().out


def test_a_round_that_empties_a_layer_is_told_with_its_number(config: Callable[..., Config]) -> None:
    class Shrink(Callback):
        def on_start(self, run: Run) -> None:
            with torch.no_grad():
                run.net.fc.weight.mul_(1e-6)  # type: ignore[union-attr, operator]

    settings = config(steps=1, density=0.4, lr=1e-9, weight_decay=0.0)
    with pytest.warns(UserWarning, match="leaves no weight in fc; where") as said:
        lottery(settings, rate=0.4, callbacks=lambda number: [] if number else [Shrink()])
    assert [str(one.message).partition(";")[0] for one in said] == [
        "round 1 of 2, density 0.5997, leaves no weight in fc",
        "round 2 of 2, density 0.4003, leaves no weight in fc",
    ]


def test_what_ends_a_lottery_says_in_which_round(config: Callable[..., Config]) -> None:
    with pytest.raises(Stopped, match=r"^round 1 of 2: stopped after step 4 of 8, which is saved"):
        lottery(config(density=0.4), rate=0.4, callbacks=lambda number: [StopAfter(4)] if number == 1 else [])
    with pytest.raises(training.NonFiniteLoss, match=r"^round 0 of 2: the loss became (nan|inf)"):
        lottery(config(density=0.4, lr=1e30, seed=1, max_skipped=0), rate=0.4)


def test_train_with_the_masks_of_a_ticket_repeats_its_round(config: Callable[..., Config]) -> None:
    last = lottery(config(recipe=GHOSTS), rate=0.5).rounds[-1].result
    ticket = config(recipe=GHOSTS, masks=str(last.run_dir / "masks.safetensors"))
    assert load_bytes(training.train(ticket)) == load_bytes(last)
    control = training.train(dataclasses.replace(ticket, mask_check="reinitialised"))
    assert control.masks_fingerprint == last.masks_fingerprint
    assert control.weights_fingerprint != last.weights_fingerprint


def test_a_finished_lottery_is_read_back(config: Callable[..., Config], monkeypatch: pytest.MonkeyPatch) -> None:
    found, _ = watched(config(), rate=0.5)

    def no_write(*args: object) -> None:
        raise OSError(30, "Read-only file system")

    with monkeypatch.context() as patch:
        patch.setattr(tickets, "write_json", no_write)
        again, watches = watched(config(), rate=0.5)
    assert again == found
    assert not any(watch.inputs for watch in watches)
    repeated, watches = watched(config(), rate=0.5, overwrite=True)
    assert [len(watch.inputs) for watch in watches] == [8, 8, 8]
    assert outcome(repeated) == outcome(found)


def test_rounds_that_do_not_follow_are_told(config: Callable[..., Config]) -> None:
    found = lottery(config(), rate=0.5)
    folder = found.rounds[1].result.run_dir
    masks = masks_of(found.rounds[1])
    Masks({name: ~mask for name, mask in masks.items()}).save(folder / "masks.safetensors")
    with pytest.raises(ValueError, match=r"masks\.safetensors: expected the masks that follow from the round before, got others"):
        lottery(config(), rate=0.5)
    lottery(config(), rate=0.5, overwrite=True)
    found.path.unlink()
    (found.rounds[2].result.run_dir / "result.json").unlink()
    point = found.rounds[0].result.run_dir / "rewind.safetensors"
    content = bytearray(point.read_bytes())
    content[-5] ^= 1
    point.write_bytes(content)
    with pytest.raises(DamagedFile, match=r"rewind\.safetensors: damaged.*repeat the lottery \(--overwrite\)"):
        lottery(config(), rate=0.5)
    point.unlink()
    with pytest.raises(FileNotFoundError, match=r"rewind\.safetensors.*repeat the lottery \(--overwrite\)"):
        lottery(config(), rate=0.5)


@pytest.mark.parametrize(
    ("changes", "options", "error", "message"),
    [
        ({}, {"rate": 1.0}, ValueError, r"rate: expected a number in \(0, 1\), got 1.0"),
        ({}, {"rate": "much"}, TypeError, r"rate: expected a number in \(0, 1\), got str \('much'\)"),
        ({}, {"rewind": "soon"}, ValueError, "rewind: expected 'init', 'none', a step as in 500 or '500it', .* got 'soon'"),
        ({}, {"rewind": "-1it"}, ValueError, "rewind: expected 'init', .* got '-1it'"),
        ({}, {"rewind": 8}, ValueError, r"rewind: expected a step before the last of 8, got 8 \(step 8\)"),
        ({}, {"rewind": "3ep"}, ValueError, r"rewind: expected a step before the last of 8, got '3ep' \(step 9\)"),
        ({}, {"rewind": 1.5}, TypeError, "rewind: expected a whole number of at least 0, got float"),
        ({"backend": "dense"}, {}, ValueError, "backend: expected that of the sparse rounds .*, got 'dense'"),
        ({"masks": "m.safetensors"}, {}, ValueError, "masks: expected None, for a lottery finds masks and weights by itself"),
        ({"mask_check": "shuffled"}, {}, ValueError, "mask_check: expected 'none', .* got 'shuffled'"),
        ({"keep_alive": True}, {}, ValueError, "keep_alive: expected False, .* got True"),
        ({"density": 1.0}, {}, ValueError, "density: expected less than 1, or there is nothing to prune, got 1.0"),
        ({"density": 1e-6}, {}, ValueError, "density: 1e-06 of 1244 weights is less than one weight"),
        ({"model": "resnet19"}, {}, ValueError, "model: unknown name 'resnet19'"),
        ({"include": ("layer9*",)}, {}, ValueError, r"include: pattern 'layer9\*' matches no layer"),
    ],
)
def test_wrong_arguments(
    config: Callable[..., Config], changes: dict[str, Any], options: dict[str, Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        lottery(config(**changes), **options)
    assert not Path(config().out).exists()


def test_rewind_step() -> None:
    said = {"init": 0, "none": None, "0": 0, 7: 7, "7": 7, "7it": 7, "0ep": 0, "2ep": 20}
    assert {rewind: rewind_step(rewind, 10, 100) for rewind in said} == said


@pytest.mark.parametrize(
    ("total", "rate", "density", "counts"),
    [
        (1000, 0.2, 0.5, [1000, 800, 640, 512, 500]),
        (1000, 0.2, 0.64, [1000, 800, 640]),  # 0.8 ** 2 > 0.64
        (1000, 0.9, 0.5, [1000, 500]),
        (10, 0.04, 0.8, [10, 9, 8]),  # rounds that would remove nothing are left out
        (3, 0.5, 0.4, [3, 2, 1]),
    ],
)
def test_how_many_weights_each_round_keeps(total: int, rate: float, density: float, counts: list[int]) -> None:
    assert tickets._counts(total, rate, density) == counts


def test_the_command_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.chdir(tmp_path)
    words = ["lottery", "--recipe", "vanilla", "--steps", "8", "--batch-size", "16", "--density", "0.3", "--rate", "0.4"]
    assert main([*words, "--rewind", "1ep", "--figure", "f.png", "--validation", "0.25", "--batch-size", "12"]) == 0
    said = capsys.readouterr()
    assert "lottery tickets rewound to step 3, 40% removed a round" in said.out
    assert "best validation %" in said.out
    assert said.err.count("round 3 of 3") == 1
    assert (tmp_path / "f.png").read_bytes().startswith(b"\x89PNG")
    assert main([*words, "--rewind", "none", "--json"]) == 0
    said = capsys.readouterr()
    assert [entry["round"] for entry in json.loads(said.out)["rounds"]] == [0, 1, 2, 3]
    assert main([*words, "--rewind", "3ep"]) == 2
    assert capsys.readouterr().err.startswith("tost: error: rewind: expected a step before the last of 8, got '3ep'")


def test_a_lottery_killed_at_any_moment_ends_with_the_same_bits(tmp_path: Path) -> None:
    done = in_a_process("kill_lotteries.py", str(tmp_path), "12", "0")
    assert done.returncode == 0, done.stderr
    assert len(set(json.loads(done.stdout)["killed_in"])) > 2  # in rounds, and between them


def test_two_processes_share_a_lottery(tmp_path: Path) -> None:
    torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    done = in_a_process(*torchrun, str(Path(__file__).with_name("ddp_run.py")), str(tmp_path), "--lottery")
    assert done.returncode == 0, done.stderr
    first, second = (json.loads(line) for line in done.stdout.splitlines())
    assert {first["rank"], second["rank"]} == {0, 1}
    assert first["loss"] == second["loss"]
    assert len(list(tmp_path.rglob("lottery.json"))) == 1
    results = find_runs(tmp_path)
    assert {result.processes for result in results} == {2}
    assert len({result.batches_fingerprint for result in results}) == 1
    assert len({result.masks_fingerprint for result in results}) == 3
