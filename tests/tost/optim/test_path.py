"""The solution path on disk: what comes back, masks from it, and what an interrupted writer leaves."""

import os
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from tests.tost.optim.small_net import small_lbi, small_net, train
from tost import Masks
from tost.files import DamagedFile
from tost.optim import SolutionPath, SplitLBI


class Walked:
    """A path of ten epochs of one step each, and what the optimizer said at each."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.net = small_net()
        self.optimizer = small_lbi(self.net)
        self.path = SolutionPath(folder)
        self.masks: list[Masks] = []
        self.norms: list[dict[str, Tensor]] = []
        for epoch in range(11):
            self.path.record(epoch, self.net, self.optimizer)
            point = self.optimizer.path_point(self.net)
            self.masks.append(Masks(point.masks))
            self.norms.append(dict(point.norms))
            train(self.net, self.optimizer, 1, first=epoch)


@pytest.fixture(scope="module")
def walked(tmp_path_factory: pytest.TempPathFactory) -> Walked:
    return Walked(tmp_path_factory.mktemp("walked") / "new" / "path")


def test_everything_comes_back(walked: Walked) -> None:
    path = SolutionPath.load(walked.folder)
    assert path.epochs == tuple(range(11))
    for epoch in path.epochs:
        assert path.masks(epoch=epoch) == walked.masks[epoch]
        assert list(path.masks(epoch=epoch)) == ["stem", "depthwise", "head"]
    assert path.densities() == {epoch: masks.density for epoch, masks in enumerate(walked.masks)}
    assert path.densities()[0] == 0 < path.densities()[10]
    for layer in ("stem", "head"):
        assert torch.equal(path.norms(layer), torch.stack([norms[layer] for norms in walked.norms]))
        inside = torch.stack([masks[layer].flatten(1).any(1) for masks in walked.masks])
        assert torch.equal(path.in_support(layer), inside)
        entered = [next((epoch for epoch in range(11) if inside[epoch, o]), -1) for o in range(inside.shape[1])]
        assert path.entry_epochs(layer).tolist() == entered
    assert -1 in path.entry_epochs("stem")
    assert path.entry_epochs("stem").max() > 0


def test_masks_of_a_density(walked: Walked) -> None:
    densities = [masks.density for masks in walked.masks]
    assert densities == sorted(densities)
    for epoch, density in enumerate(densities):
        if density > 0:
            last = max(e for e in range(11) if densities[e] == density)
            assert walked.path.masks(density=density) == walked.masks[last]
            assert walked.path.masks(density=density + 1e-6) == walked.masks[last]
            before = [e for e in range(epoch) if densities[e] < density]
            if densities[before[-1]] > 0:
                assert walked.path.masks(density=density - 1e-6) == walked.masks[before[-1]]
            else:  # an empty mask is nobody's wish
                with pytest.raises(ValueError, match=rf"density: expected .* epoch, {density:.4g} \(or exact=True\), got"):
                    walked.path.masks(density=density - 1e-6)
    assert walked.path.masks(density=1.0) == walked.masks[10]


def test_exact_masks_take_what_entered_first(walked: Walked) -> None:
    total, most = walked.masks[10].total, walked.masks[10].kept
    previous = None
    for count in [*range(0, most, 7), most]:
        masks = walked.path.masks(density=max(count, 0.1) / total, exact=True)
        assert masks.kept == count
        kept = {name: masks[name] for name in masks}
        if previous is not None:  # they nest
            assert all((kept[name] | ~previous[name]).all() for name in kept)
        previous = kept
        for epoch, whole in enumerate(walked.masks):  # all of an epoch before any of the next
            if count >= whole.kept:
                assert all((kept[name] | ~whole[name]).all() for name in kept), epoch
            else:
                assert all((whole[name] | ~kept[name]).all() for name in kept), epoch
    with pytest.raises(ValueError, match=f"density: expected at most {most / total:.4g}, the weights that ever entered, got 1"):
        walked.path.masks(density=1.0, exact=True)


class Told(SplitLBI):
    """Its supports are what it is told."""

    inside: Tensor

    def support(self, param: Tensor) -> Tensor:
        return self.inside


def test_ties_of_an_epoch_go_to_the_largest_filters(tmp_path: Path) -> None:
    """By hand: filters 0 and 3 enter at epoch 1, filter 2 at 2; ||W_3|| > ||W_0|| at the end; filter 0 leaves again."""
    net = nn.Sequential(nn.Conv2d(1, 4, (1, 2), bias=False))
    with torch.no_grad():
        net[0].weight.copy_(torch.tensor([1.0, 9.0, 5.0, 2.0]).view(4, 1, 1, 1).expand(4, 1, 1, 2))
    optimizer, path = Told(net.parameters(), lr=0.1), SolutionPath(tmp_path)
    for epoch, filters in ((1, [0, 3]), (2, [0, 2, 3]), (7, [2, 3])):
        optimizer.inside = torch.zeros(4, 1, 1, 2, dtype=torch.bool)
        optimizer.inside[filters] = True
        path.record(epoch, net, optimizer)
    assert path.entry_epochs("0").tolist() == [1, -1, 2, 1]
    orders = [[3], [3, 0], [3, 0, 2]]
    for filters in orders:
        kept = path.masks(density=len(filters) / 4, exact=True)["0"].flatten(1)
        assert kept.all(1).nonzero().flatten().tolist() == sorted(filters)
    assert path.masks(density=3 / 8, exact=True)["0"].flatten(1).tolist() == [[True, False], [False] * 2, [False] * 2, [True] * 2]
    assert path.masks(density=0.5)["0"].flatten(1).any(1).tolist() == [False, False, True, True]  # the last epoch, not the first


def test_a_resumed_run_overwrites_what_was_later(tmp_path: Path) -> None:
    walked = Walked(tmp_path)
    resumed = small_net()
    optimizer = small_lbi(resumed, lam=0.1)
    train(resumed, optimizer, 8)
    SolutionPath(tmp_path).record(6, resumed, optimizer)
    path = SolutionPath.load(tmp_path)
    assert path.epochs == tuple(range(7))
    assert path.masks(epoch=5) == walked.masks[5]
    assert path.masks(epoch=6) == Masks(optimizer.supports(resumed)) != walked.masks[6]


class Killed(BaseException):
    pass


def test_a_kill_at_any_moment_leaves_whole_epochs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every call that changes the folder is the last one once."""
    walked = Walked(tmp_path / "whole")
    other = small_lbi(small := small_net(), lam=0.1)
    train(small, other, 8)
    moments = 0
    while True:
        folder = tmp_path / str(moments)
        folder.mkdir()
        for file in walked.folder.iterdir():
            os.link(file, folder / file.name)
        left = moments

        def dying(call: Callable[..., object]) -> Callable[..., object]:
            def wrapper(*arguments: object, **options: object) -> object:
                nonlocal left
                if left == 0:
                    raise Killed
                left -= 1
                return call(*arguments, **options)

            return wrapper

        with monkeypatch.context() as patch:
            for name in ("open", "fsync", "replace", "unlink"):
                patch.setattr(os, name, dying(getattr(os, name)))
            try:
                SolutionPath(folder).record(8, small, other)
            except Killed:
                died = True
            else:
                died = False
        path = SolutionPath.load(folder)
        assert path.epochs in [tuple(range(n)) for n in (9, 10, 11)]
        new = Masks(other.supports(small))
        assert path.masks(epoch=8) in (walked.masks[8], new)
        assert all(path.masks(epoch=epoch) == walked.masks[epoch] for epoch in range(8))
        if not died:
            break
        moments += 1
        SolutionPath(folder).record(8, small, other)  # the next run cleans up and goes on
        assert {file.name for file in folder.iterdir()} == {f"epoch-{epoch:06d}.safetensors" for epoch in range(9)}
        assert SolutionPath.load(folder).masks(epoch=8) == new
    assert moments >= 5
    assert path.epochs == tuple(range(9))


def test_bad_arguments(walked: Walked, tmp_path: Path) -> None:
    path = walked.path
    for both in ({}, {"epoch": 1, "density": 0.5}):
        with pytest.raises(TypeError, match="epoch, density: expected one of them"):
            path.masks(**both)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="exact: expected it with a density, got an epoch"):
        path.masks(epoch=1, exact=True)
    with pytest.raises(ValueError, match=r"epoch: expected a recorded one of .*, of 11 from 0 to 10, got 11"):
        path.masks(epoch=11)
    with pytest.raises(ValueError, match="density: expected a number"):
        path.masks(density=0.0)
    with pytest.raises(ValueError, match=r"layer: expected one of stem, depthwise, head, got 'conv'"):
        path.norms("conv")
    with pytest.raises(ValueError, match="epoch: expected a whole number of at least 0, got -1"):
        path.record(-1, walked.net, walked.optimizer)
    with pytest.raises(TypeError, match="optimizer: expected a SplitLBI, got SGD"):
        path.record(11, walked.net, torch.optim.SGD(walked.net.parameters(), lr=0.1))  # type: ignore[arg-type]
    assert path.epochs == tuple(range(11))
    empty = SolutionPath(tmp_path / "empty")
    with pytest.raises(ValueError, match=r"epoch: expected a recorded one of .*, of which there is none, got 0"):
        empty.point(0)
    for read in (lambda: empty.masks(density=0.5), lambda: empty.masks(density=0.5, exact=True), lambda: empty.norms("stem")):
        with pytest.raises(ValueError, match="expected a recorded epoch, found none"):
            read()
    for folder in (tmp_path / "empty", tmp_path / "none"):
        with pytest.raises(FileNotFoundError, match="expected the folder of a solution path"):
            SolutionPath.load(folder)
    assert not (tmp_path / "none").exists()


def test_no_epoch_is_sparse_enough(walked: Walked, tmp_path: Path) -> None:
    path = SolutionPath(tmp_path)
    path.record(3, walked.net, walked.optimizer)
    density = path.densities()[3]
    with pytest.raises(ValueError, match=f"density: expected at least that of a recorded epoch, {density:.4g} "):
        path.masks(density=0.001)


def test_damaged_files_are_named(walked: Walked, tmp_path: Path) -> None:
    for epoch in (1, 2):
        SolutionPath(tmp_path).record(epoch, walked.net, walked.optimizer)
    file = tmp_path / "epoch-000002.safetensors"
    whole = file.read_bytes()
    file.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    with pytest.raises(DamagedFile, match=r"epoch-000002.safetensors: damaged"):
        SolutionPath.load(tmp_path).densities()
    save_file({name: tensor.clone() for name, tensor in load_file(tmp_path / "epoch-000001.safetensors").items()}, file)
    with pytest.raises(DamagedFile, match=r"expected a point of a solution path"):
        SolutionPath.load(tmp_path).densities()
    other = nn.Sequential(nn.Linear(3, 2))
    SolutionPath(tmp_path / "other").record(2, other, SplitLBI(other.parameters(), lr=0.1))
    file.write_bytes((tmp_path / "other" / file.name).read_bytes())
    with pytest.raises(DamagedFile, match="of other layers than epoch 1: another network's"):
        SolutionPath.load(tmp_path).norms("stem")
