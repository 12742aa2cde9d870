"""What the README shows runs."""

import dataclasses
import re
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import tost
import tost_kernels as tk
from tost.models.resnet import ResNet

README = (Path(__file__).parent.parent / "README.md").read_text()


def test_the_loop_of_the_readme() -> None:
    block = README.partition("## Your model, your loop")[2]
    code = re.search(r"```python\n(.*?)```", block, re.DOTALL)
    assert code is not None
    assert len(code[1].splitlines()) <= 10
    model = ResNet((1, 1), (4, 8), num_classes=3)
    images = torch.randn(6, 4, 3, 32, 32)
    batches = [(batch, torch.arange(4) % 3) for batch in images]
    names: dict[str, object] = {"torch": torch, "F": F, "tost": tost, "tk": tk, "model": model, "batches": batches}
    exec(code[1], names)
    plain = names["plain"]
    assert isinstance(plain, nn.Module)
    assert plain.state_dict().keys() == model.state_dict().keys()
    assert tost.account(plain).density < 0.051
    assert not torch.equal(plain.get_parameter("fc.bias"), model.get_parameter("fc.bias"))


@pytest.mark.filterwarnings("ignore:force at density:UserWarning")  # the network is tiny: layers end empty
def test_the_masks_of_the_readme(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    code = re.search(r"```python\n(.*?)```", README.partition("## Any mask")[2], re.DOTALL)
    assert code is not None
    monkeypatch.chdir(tmp_path)
    model = ResNet((1, 1), (4, 8), num_classes=3)
    tost.prune(model, "erk", 0.25).save("theirs.npz")
    batches = [(torch.randn(4, 3, 32, 32), torch.arange(4) % 3)]
    names: dict[str, object] = {"tost": tost, "model": model, "batches": batches, "dataclasses": dataclasses}
    exec(code[1], names)
    variant = names["variant"]
    assert isinstance(variant, tost.masks.Method)
    assert tost.prune(model, variant, 0.25, data=batches).kept == tost.prune(model, "erk", 0.25).kept
    assert names["masks"] == tost.prune(model, "erk", 0.25)


def test_files_and_commands_of_the_readme_exist() -> None:
    root = Path(__file__).parent.parent
    links = re.findall(r"\]\(([^)#]+)\)", README)
    assert [link for link in links if "://" not in link and not (root / link).exists()] == []
    targets = re.findall(r"`make ([a-z-]+)", README)
    makefile = (root / "Makefile").read_text()
    assert [t for t in targets if f"\n{t}:" not in makefile and not t.startswith("bench-")] == []
