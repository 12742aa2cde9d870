"""`tost shrink`: from the folder of a run to a smaller network in a file."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

import tost
from tests.tost.analysis.short_runs import short_run, small_world
from tests.tost.shrinking.dead_filters import assert_same, randomised
from tost.cli import main
from tost.data import Dataset
from tost.models.resnet import ResNet
from tost.runs import RunFolder


@pytest.fixture(autouse=True)
def small(toy_images: Dataset) -> Iterator[None]:
    with small_world(toy_images):
        yield


def test_from_a_run_to_a_smaller_network(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = RunFolder(short_run(tmp_path / "runs", "vanilla", density=0.9).run_dir)
    net = ResNet((1, 1), (4, 8), 3, 1)
    net.load_state_dict(folder.load_model())
    randomised(net)
    with torch.no_grad():
        net.layer1[0].conv1.weight[[0, 2]] = 0
        net.layer1[0].bn1.running_mean.zero_()
        net.layer1[0].bn1.bias[:] = torch.tensor([0.5, 0.5, -0.5, 0.5])
    folder.save_model(net)

    assert main(["shrink", str(folder.path), "--passes", "2", "--batch", "3"]) == 0
    text, said = capsys.readouterr()
    assert said == ""
    line = f"net = tost.load_shrunk(tost.models.build('resnet20', 3, 1, (8, 8)), '{folder.path / 'shrunk.safetensors'}').eval()"
    assert text.endswith(f"\nin Python: {line}\n")
    assert "resnet20 without its dead filters" in text
    assert "its constant would leak into the padding of 'layer1.0.conv2'" in text
    assert "ms of a batch of 3" in text
    loaded = tost.load_shrunk(lambda: ResNet((1, 1), (4, 8), 3, 1), folder.path / "shrunk.safetensors").eval()
    assert_same(net, loaded, torch.randn(2, 1, 8, 8), 1e-5)
    assert loaded.layer1[0].conv1.out_channels == 3

    out = tmp_path / "small.safetensors"
    command = ["shrink", str(folder.path), "--out", str(out), "--zero_constants", "--passes", "0", "--json"]
    assert main(command) == 0
    values = json.loads(capsys.readouterr().out)
    assert values["file"] == str(out)
    assert values["ms"] is None
    assert values["zeroed"] == {"layer1.0.bn1": [0]}
    assert values["kept"] == []
    assert values["parameters"][1] < values["parameters"][0]
    assert values["macs"][1] < values["macs"][0]
    conv1 = next(layer for layer in values["layers"] if layer["name"] == "layer1.0.conv1")
    assert (conv1["outputs"], conv1["dead"], conv1["outputs_left"]) == (4, 2, 2)
    assert tost.load_shrunk(net, out).layer1[0].conv1.out_channels == 2
    assert main([*command[:-1]]) == 0
    assert "1 constants were made 0 first, which changes the outputs" in " ".join(capsys.readouterr().out.split())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nowhere"], "tost: error: run: expected the folder of a run, got nowhere without config.json"),
        (["nowhere", "--out", "no/folder.safetensors"], "tost: error: out: no such folder: no"),
        (["nowhere", "--out", "."], "tost: error: out: expected a file to write, got a folder: ."),
        (["nowhere", "--batch", "0"], "tost: error: batch: expected a whole number of at least 1, got 0"),
        (["nowhere", "--passes", "-1"], "tost: error: passes: expected a whole number of at least 0, got -1"),
    ],
)
def test_errors_are_one_line(
    arguments: list[str], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["shrink", *arguments]) == 2
    assert capsys.readouterr().err == message + "\n"
