"""Networks of the user's own, by file or module."""

import dataclasses
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
import torch

from tost import Config, tickets, training
from tost.data import Dataset
from tost.models import build, check_name, source_digest
from tost.models.sources import sources_of_module
from tost.preparation import initial_model

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

built = nn.Linear(1, 1)

def unnamed(num_classes, /):
    return nn.Linear(1, 1)

def leaves(num_classes):
    raise SystemExit(3)
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
    assert source_digest("json:loads") != source_digest("my_nets:small") != source_digest("no_such_module:f") is None


def test_an_edited_file_is_read_again(nets: str) -> None:
    before = source_digest(f"{nets}:small")
    assert build(f"{nets}:small")[0].out_channels == 4  # type: ignore[index, union-attr]
    Path(nets).write_text(NETS.replace("width: int = 4", "width: int = 5"))
    assert build(f"{nets}:small")[0].out_channels == 5  # type: ignore[index, union-attr]
    assert source_digest(f"{nets}:small") != before


@pytest.mark.parametrize("as_module", [False, True])
@pytest.mark.parametrize(
    ("main", "edited"),
    [
        ("import blocks\n\ndef net(): return blocks.net()", "blocks"),
        ("from blocks import net", "blocks"),
        ("def net():\n    import blocks\n    return blocks.net()", "blocks"),
        ("import middle\n\ndef net(): return middle.net()", "blocks"),
        ("from parts.deep.blocks import net", "parts/deep/blocks"),
        ("from parts.deep import blocks\n\ndef net(): return blocks.net()", "parts/deep/blocks"),
        ("from parts import net", "parts/sibling"),
    ],
)
def test_what_a_network_imports_belongs_to_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, main: str, edited: str, as_module: bool
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "parts" / "deep").mkdir(parents=True)  # deep is a package without __init__.py
    (tmp_path / "parts" / "__init__.py").write_text("from .sibling import net")
    (tmp_path / "middle.py").write_text("from blocks import *")
    for file in ("blocks", "parts/deep/blocks", "parts/sibling"):
        (tmp_path / f"{file}.py").write_text("from torch import nn\n\ndef net(): return nn.Linear(1, 4)")
    (tmp_path / "mine.py").write_text(main)
    (tmp_path / "stranger.py").write_text("")
    address = "mine:net" if as_module else "mine.py:net"
    before, built = source_digest(address), build(address)
    assert built.out_features == 4
    (tmp_path / "stranger.py").write_text("1")
    assert source_digest(address) == before
    (tmp_path / f"{edited}.py").write_text("from torch import nn\n\ndef net(): return nn.Linear(1, 25)")
    assert source_digest(address) != before
    assert build(address).out_features == 25


def test_installed_packages_count_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    place = tmp_path / "site-packages"
    (place / "theirs").mkdir(parents=True)
    monkeypatch.syspath_prepend(str(place))
    (place / "theirs" / "__init__.py").write_text("import beside")
    (place / "theirs" / "nets.py").write_text("from . import parts\nimport torch")
    for name in ("beside", "theirs/parts"):
        (place / f"{name}.py").write_text("")
    assert {path.name for path in sources_of_module("theirs.nets")} == {"__init__.py", "nets.py", "parts.py"}


def test_the_same_files_elsewhere_are_the_same_network(nets: str, tmp_path: Path) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    for name, text in (("renamed.py", NETS), ("blocks.py", BLOCKS)):
        (elsewhere / name).write_text(text)
    assert source_digest(f"{elsewhere / 'renamed.py'}:small") == source_digest(f"{nets}:small")


def test_a_file_that_nothing_can_parse_is_left_to_the_import(nets: str) -> None:
    Path(nets).with_name("blocks.py").write_text("x = " + "-" * 20000 + "1")
    assert source_digest(f"{nets}:small") is not None


OUTPUTS = """
import threading
from torch import nn

class Net(nn.Linear):
    def __init__(self, wanted, classes):
        super().__init__(64, classes)
        self.wanted = wanted
    def forward(self, x):
        return self.wanted(self, super().forward(x.flatten(1)))

def good(num_classes):
    return Net(lambda net, y: y, num_classes)
def keys(num_classes):
    return Net(lambda net, y: {}["x"], num_classes)
def asserts(num_classes):
    return Net(lambda net, y: net.no_such_layer, num_classes)
def shape(num_classes):
    return nn.Linear(3, num_classes)
def mapping(num_classes):
    return Net(lambda net, y: {"logits": y}, num_classes)
def classes():
    return Net(lambda net, y: y, 5)
def whole(num_classes):
    return Net(lambda net, y: y.argmax(1), num_classes)
def trained(num_classes):
    return Net(lambda net, y: (y, y) if net.training else y, num_classes)
def locked(num_classes):
    net = Net(lambda net, y: y, num_classes)
    net.lock = threading.Lock()
    return net
class Picky(Net):
    def forward(self, x):
        assert len(x) == 4, "four at a time"
        assert x.std() > 0, "a picture"
        return super().forward(x)
def picky(num_classes):
    return Picky(lambda net, y: y, num_classes)
"""


@pytest.mark.parametrize(
    ("name", "kind", "message"),
    [
        ("keys", ValueError, r"failed on images \(4, 1, 8, 8\) in train mode: KeyError: 'x' \(outputs.py, line 15\)"),
        ("asserts", ValueError, r"AttributeError: 'Net' object has no attribute 'no_such_layer' \(outputs.py, line 17\)"),
        ("shape", ValueError, r"RuntimeError: mat1 and mat2 shapes cannot be multiplied .*"),
        ("mapping", TypeError, r"expected it to return logits, .* \(4, 3\) for images \(4, 1, 8, 8\), got dict in train mode"),
        ("classes", TypeError, r"got torch.float32 \(4, 5\) in train mode"),
        ("whole", TypeError, r"got torch.int64 \(4,\) in train mode"),
        ("trained", TypeError, r"got tuple in train mode"),
        ("locked", ValueError, r"cannot be copied: TypeError: cannot pickle '_thread.lock' object \(copy.py, line \d+\)"),
    ],
)
def test_a_network_that_gives_no_logits_is_told_before_anything_is_written(
    tmp_path: Path, toy_images: Dataset, monkeypatch: pytest.MonkeyPatch, name: str, kind: type[Exception], message: str
) -> None:
    file = tmp_path / "outputs.py"
    file.write_text(OUTPUTS)
    for module in (training, tickets):
        monkeypatch.setattr(module, "load", lambda name, folder: toy_images)
    out = tmp_path / "runs"
    config = Config(model=f"{file}:{name}", recipe="vanilla", steps=2, batch_size=4, out=str(out))
    for run in (training.train, tickets.lottery):
        with pytest.raises(kind, match=rf"^model: {file}:{name}:? .*{message}$"):
            run(config)
        assert not list(out.glob("*"))
    for good in ("good", "picky"):  # real images, as many as in a step
        assert initial_model(dataclasses.replace(config, model=f"{file}:{good}"), toy_images).training


@pytest.mark.parametrize(
    ("address", "kind", "message"),
    [
        ("{}:smal", ValueError, "has no 'smal'; it has .*small"),
        ("{}:constant", TypeError, "expected a function, got int"),
        ("{}:number", TypeError, "expected it to return an nn.Module, got int"),
        ("{}:greedy", TypeError, "expected only the arguments num_classes, in_channels, image_size or .* got depth, num_classes"),
        ("{}:broken", ValueError, r"failed: TypeError: .*color.*\(my_nets.py, line 25\)"),
        ("{}:built", TypeError, "expected a function or class that gives a network, got a network"),
        ("{}:unnamed", TypeError, "expected arguments that take a name, got positional-only num_classes"),
        ("{}:leaves", ValueError, r"failed: SystemExit: 3 \(my_nets.py, line 42\)"),
        ("{}", ValueError, r"expected .*my_nets.py:function, got .* without the function"),
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
