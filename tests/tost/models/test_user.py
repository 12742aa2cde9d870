"""Networks of the user's own, by file or module."""

import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
import torch

from tost.models import build, check_name, source_digest

NETS = """
import blocks
from dataclasses import dataclass
from torch import nn

@dataclass
class Settings:
    width: int = 4

def small(num_classes, in_channels=3):
    return blocks.body(in_channels, Settings().width, num_classes)

def anything(**options):
    net = nn.Linear(1, 1)
    net.seen = options
    return net

def alone():
    return nn.Linear(1, 1)

def greedy(num_classes, depth):
    return nn.Linear(1, 1)

def broken(num_classes):
    return nn.Linear(1, 1, color="red")

def number(num_classes):
    return 3

class Net(nn.Sequential):
    def __init__(self, num_classes, *, image_size):
        super().__init__(nn.Flatten(), nn.Linear(image_size[0] * image_size[1], num_classes))

constant = 3
"""
BLOCKS = """
from torch import nn

def body(a, b, c):
    return nn.Sequential(nn.Conv2d(a, b, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(b, c))
"""


@pytest.fixture
def nets(tmp_path: Path) -> str:
    (tmp_path / "my_nets.py").write_text(NETS)
    (tmp_path / "blocks.py").write_text(BLOCKS)
    return str(tmp_path / "my_nets.py")


@pytest.fixture(autouse=True)
def imports_are_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "modules", dict(sys.modules))


def test_a_function_of_a_file_gets_the_arguments_it_names(nets: str) -> None:
    path = list(sys.path)
    net = build(f"{nets}:small", num_classes=7, in_channels=2)
    assert net(torch.zeros(1, 2, 5, 5)).shape == (1, 7)
    assert build(f"{nets}:anything", 7, 2, (8, 9)).seen == {"num_classes": 7, "in_channels": 2, "image_size": (8, 9)}
    assert build(f"{nets}:alone").in_features == 1
    assert build(f"{nets}:Net", 7, 1, (4, 5))(torch.zeros(2, 1, 4, 5)).shape == (2, 7)
    assert sys.path == path


def test_a_module_of_the_current_folder(nets: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(Path(nets).parent)
    assert build("my_nets:small", num_classes=7)(torch.zeros(1, 3, 5, 5)).shape == (1, 7)
    assert source_digest("my_nets:small") is None


def test_an_edited_file_is_read_again(nets: str) -> None:
    before = source_digest(f"{nets}:small")
    assert build(f"{nets}:small")[0].out_channels == 4  # type: ignore[index, union-attr]
    Path(nets).write_text(NETS.replace("width: int = 4", "width: int = 5"))
    assert build(f"{nets}:small")[0].out_channels == 5  # type: ignore[index, union-attr]
    assert source_digest(f"{nets}:small") != before


@pytest.mark.parametrize(
    ("address", "kind", "message"),
    [
        ("{}:smal", ValueError, "has no 'smal'; it has .*small"),
        ("{}:constant", TypeError, "expected a function, got int"),
        ("{}:number", TypeError, "expected it to return an nn.Module, got int"),
        ("{}:greedy", TypeError, "expected only the arguments num_classes, in_channels, image_size or .* got depth, num_classes"),
        ("{}:broken", ValueError, r"failed: TypeError: .*color.*\(my_nets.py, line 25\)"),
        ("{}:", ValueError, "expected a name of tost.models.names"),
        ("nowhere.py:f", ValueError, "cannot read nowhere.py: No such file"),
        ("no_such_module:f", ValueError, "cannot be imported: ModuleNotFoundError: No module named 'no_such_module'"),
        (":f", ValueError, "expected a name of tost.models.names"),
    ],
)
def test_what_is_wrong_is_said(nets: str, address: str, kind: type[Exception], message: str) -> None:
    with pytest.raises(kind, match=message) as error:
        build(address.format(nets))
    assert str(error.value).startswith("model: ")


def test_a_file_that_fails_is_no_module_afterwards(tmp_path: Path) -> None:
    file = tmp_path / "bad.py"
    file.write_text("import torch\n1 / 0\n")
    for _ in range(2):
        with pytest.raises(ValueError, match=r"cannot be imported: ZeroDivisionError: division by zero \(bad.py, line 2\)"):
            check_name(f"{file}:f")
    file.write_text("def f(:\n")
    with pytest.raises(ValueError, match=r"cannot be imported: SyntaxError: .* \(bad.py, line 1\)$"):
        check_name(f"{file}:f")


def test_the_command_line_takes_one(nets: str, tmp_path: Path) -> None:
    text = textwrap.dedent("""
        from torch import nn

        def net(num_classes, in_channels):
            return nn.Sequential(nn.Conv2d(in_channels, 4, 3, stride=4), nn.ReLU(), nn.Flatten(), nn.Linear(196, num_classes))
    """)
    (tmp_path / "here.py").write_text(text)
    command = [sys.executable, "-m", "tost", "prune", "--model", "here:net", "--method", "snip", "--density", "0.1", "--json"]
    root = str(Path(__file__).parents[3])
    done = subprocess.run(command, cwd=tmp_path, env={"PYTHONPATH": root}, capture_output=True, text=True, check=False)
    assert done.stderr == ""
    assert '"total": 1996' in done.stdout
    assert (tmp_path / "masks.safetensors").is_file()
