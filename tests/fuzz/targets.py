"""What is fuzzed. A new kind of file is one more `Target` in `TARGETS`."""

from __future__ import annotations

import dataclasses
import shutil
import struct
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from torch import Tensor

from tests.fuzz.mutations import Mutation, mutate_bytes, mutate_safetensors
from tests.tost.data.tiny_files import FORMATS, Files
from tests.tost.finished_run import finished
from tests.tost.small_grid import small_grid
from tost import checkpoint, models
from tost.data import Dataset, MemoryImages
from tost.files import DamagedFile, read_json, read_yaml, write_json
from tost.grid import Grid
from tost.masks import Masks, mask_file, npz_file
from tost.report.from_runs import grids_of
from tost.report.grids import grid_sheets
from tost.runs import RunFolder, find_runs
from tost.shrinking import load_shrunk, shrink
from tost.teacher import load_teacher
from tost_kernels import sparsify


@dataclass(frozen=True)
class Target:
    """A kind of file.

    Attributes:
        write: writes valid files into an empty folder. One of them at a time is damaged.
        load: reads them.
        same: whether (what was loaded from the valid file, what was loaded now) is right: damage that changed nothing.
        accepted: the errors that `load` may raise; their text must name the file or its folder.
        mutate: (valid content, seed) -> damaged content.
        sealed: a checksum covers every byte, so that no changed file may be read as the same, and one with a new checksum
            (`Mutation.forged`) may be read as anything.
        count: mutations in a full run (`make fuzz`).
        memory: bytes of address space by which loading one damaged file may grow the process.
    """

    write: Callable[[Path], None]
    load: Callable[[Path], Any]
    same: Callable[[Any, Any], bool]
    accepted: tuple[type[Exception], ...] = (DamagedFile,)
    mutate: Callable[[bytes, str], Mutation] = mutate_bytes
    sealed: bool = False
    count: int = 10_000
    memory: int = 64 << 20


def valid_files(target: Target, folder: Path) -> list[tuple[Path, bytes]]:
    """Write the valid files of `target` into an empty folder: path and content of each, the same bytes at any time."""
    with mock.patch("time.time", return_value=0.0):  # gzip writes down when
        target.write(folder)
    return [(path, path.read_bytes()) for path in sorted(folder.rglob("*")) if path.is_file()]


def _some_masks() -> Masks:
    random = torch.Generator().manual_seed(0)
    shapes = {"conv1": (8, 3, 3, 3), "layer1.0.conv1": (8, 8, 3, 3), "layer1.0.conv2": (8, 8, 3, 3), "fc": (10, 8)}
    masks = {name: torch.rand(shape, generator=random) < 0.2 for name, shape in shapes.items()}
    return Masks({**masks, "empty": torch.zeros(4, 4)})


def _write_masks(folder: Path) -> None:
    _some_masks().save(folder / "masks.safetensors")


def _load_masks(folder: Path) -> Masks:
    """What has lost all that says it is ours may be another program's file, with other masks."""
    path = folder / "masks.safetensors"
    masks = Masks.load(path)
    if mask_file.load(path)[1] is None:
        raise DamagedFile(path, "not one of ours")
    return masks


def _write_archive(folder: Path) -> None:
    _some_masks().save(folder / "masks.npz")


def _load_archive(folder: Path) -> Masks:
    path = folder / "masks.npz"
    masks = Masks.load(path)
    if npz_file.load(path)[1] is None:
        raise DamagedFile(path, "not one of ours")
    return masks


def _same_masks(valid: Masks, loaded: Masks) -> bool:
    return valid == loaded and valid.fingerprint == loaded.fingerprint


def _write_checkpoint(folder: Path) -> None:
    random = torch.Generator().manual_seed(0)
    weights = {f"layer{i}.weight": torch.randn(4, 3, generator=random) for i in range(3)}
    state = {
        "model": weights,
        "optimizer": {"state": {i: {"step": torch.tensor(3.0), "exp_avg": w + 1} for i, w in enumerate(weights.values())}},
        "random": {"torch": random.get_state()[:64], "python": (3, (1, 2, 3), None), "numpy": {"state": 2**100}},
        "best": [float("inf"), float("nan"), 0.1, True, "text", torch.empty(0, 2), torch.tensor([True, False])],
        "step": 7,
    }
    checkpoint.save(folder / "last.safetensors", state)


def _same_tree(valid: Any, loaded: Any) -> bool:
    if type(valid) is not type(loaded):
        return False
    if isinstance(valid, Tensor):
        return valid.dtype == loaded.dtype and torch.equal(valid, loaded)
    if isinstance(valid, float):
        return struct.pack(">d", valid) == struct.pack(">d", loaded)
    if isinstance(valid, dict):
        return list(valid) == list(loaded) and all(_same_tree(valid[key], loaded[key]) for key in valid)
    if isinstance(valid, list | tuple):
        return len(valid) == len(loaded) and all(map(_same_tree, valid, loaded))
    return bool(valid == loaded)


def _anything(valid: Any, loaded: Any) -> bool:
    """For formats without checksum: a changed digit is another number. Only the type is looked at."""
    return type(valid) is type(loaded)


def _write_config(folder: Path) -> None:
    (folder / "config.yaml").write_text(
        "model: resnet20\ndensity: 0.05\nmilestones: [0.5, 0.75]\nrecipe:\n  ghost_skip: true\nsteps: null\nlr: 2e-4\n"
    )


def _write_json(folder: Path) -> None:
    (folder / "comparison.json").write_text('{"a": [1, 2.5, null, true, "text \\u20ac"],\n "b": {"c": {"d": -1e-5}}}\n')


def _write_run(folder: Path) -> None:
    result = finished(folder / "made", density=0.05, milestones=[0.5, 0.75], recipe="tost")
    shutil.rmtree(folder / "made")
    anywhere = dataclasses.replace(result, run_dir=Path("runs/x"), config=dataclasses.replace(result.config, out="runs"))
    RunFolder(folder).finish(anywhere)


def _load_run(folder: Path) -> list[str]:
    """The result, and the tables that are made of it: a value of a wrong type would show there."""
    (result,) = find_runs(folder)
    return [str(sheet.cells) for grid in grids_of([result]) for sheet in grid_sheets(grid)] + [str(result)]


def _write_comparison(folder: Path) -> None:
    small_grid(folder / "made", {"vanilla": [(0.5, 0.6), (0.4, 0.5)], "tost": [(0.6, 0.7), (None, 0.4)]}).save(folder / "c.json")
    shutil.rmtree(folder / "made")


def _load_comparison(folder: Path) -> list[str]:
    """The tables, and the record once more: a value of a wrong type would show there."""
    grid = Grid.load(folder / "c.json")
    return [str(sheet.cells) for sheet in grid_sheets(grid)] + [str(grid.as_dict())]


_ONE = MemoryImages(torch.zeros(1, 1, 4, 4, dtype=torch.uint8), torch.zeros(1, dtype=torch.int64))
_TOY = Dataset("toy", _ONE, _ONE, 10, torch.tensor([0.5]), torch.tensor([0.5]), 0, False)


def _write_teacher(folder: Path) -> None:
    torch.manual_seed(0)
    write_json(folder / "config.json", {"model": "lenet300100"})
    RunFolder(folder).save_model(models.build("lenet300100", 10, 1, (4, 4)))


def _load_teacher(folder: Path) -> dict[str, Tensor]:
    return dict(load_teacher(folder, _TOY).state_dict())


def _same_pictures(valid: Dataset, loaded: Dataset) -> bool:
    """Another pixel is another picture, without a word; their numbers are what the reader was told."""
    return (len(valid.train), len(valid.test)) == (len(loaded.train), len(loaded.test))


def _data(files: Files) -> Target:
    # Two thousand of each format: they share most of their readers.
    return Target(files.write, files.load, _same_pictures, (ValueError, FileNotFoundError), count=2000)


def _net() -> torch.nn.Sequential:
    torch.manual_seed(0)
    first, groups, last = torch.nn.Conv2d(2, 6, 3), torch.nn.Conv2d(6, 6, 1, groups=3), torch.nn.Conv2d(6, 3, 1, bias=False)
    with torch.no_grad():
        first.weight[[0, 5]], groups.weight[:2] = 0, 0
    return torch.nn.Sequential(first, torch.nn.BatchNorm2d(6), groups, last)


def _write_shrunk(folder: Path) -> None:
    masks = {"0": _net()[0].weight != 0}
    shrink(sparsify(_net(), masks), input_shape=(2, 5, 5)).save(folder / "shrunk.safetensors")


TARGETS = {
    "masks": Target(
        _write_masks,
        _load_masks,
        _same_masks,
        mutate=mutate_safetensors,
        count=50_000,
    ),
    "archive": Target(_write_archive, _load_archive, _same_masks),
    "checkpoint": Target(
        _write_checkpoint,
        lambda folder: checkpoint.load(folder / "last.safetensors"),
        _same_tree,
        mutate=mutate_safetensors,
        sealed=True,
        count=50_000,
    ),
    "shrunk": Target(
        _write_shrunk,
        lambda folder: dict(load_shrunk(_net, folder / "shrunk.safetensors").state_dict()),
        _same_tree,
        (ValueError,),
        mutate=mutate_safetensors,
        sealed=True,
    ),
    "result": Target(_write_run, _load_run, _anything),
    "comparison": Target(_write_comparison, _load_comparison, _anything, count=1000),
    "teacher": Target(_write_teacher, _load_teacher, _same_tree, (ValueError,)),
    "yaml": Target(_write_config, lambda folder: read_yaml(folder / "config.yaml"), _anything, (ValueError,)),
    "json": Target(_write_json, lambda folder: read_json(folder / "comparison.json"), lambda valid, loaded: True),
    **{name: _data(files) for name, files in FORMATS.items()},
}
