"""Checkpoints come back to the bit, or a clear error does."""

import itertools
import json
import math
import os
import pickle
import struct
import subprocess
import sys
from collections import OrderedDict, namedtuple
from collections.abc import Callable
from pathlib import Path
from typing import Any

import hypothesis.extra.numpy as arrays
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file
from torch import Tensor, nn

from tests.fuzz.mutations import sealed
from tost import checkpoint, tensor_file
from tost.files import DamagedFile
from tost.masks import Masks

ROOT = Path(__file__).parents[2]


def same(a: Any, b: Any) -> bool:
    """Equal, to the bit, type by type."""
    if type(a) is not type(b):
        return False
    if isinstance(a, Tensor):
        return a.dtype == b.dtype and a.shape == b.shape and bool(tensor_file._bytes_of(a) == tensor_file._bytes_of(b))
    if isinstance(a, float):
        return struct.pack(">d", a) == struct.pack(">d", b)
    if isinstance(a, dict):
        # types of keys too, and their order
        return [(type(k), k) for k in a] == [(type(k), k) for k in b] and all(same(a[k], b[k]) for k in a)
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(map(same, a, b))
    return bool(a == b)


def tensors() -> st.SearchStrategy[Tensor]:
    dtypes = st.sampled_from([np.float32, np.float64, np.float16, np.int64, np.uint8, np.bool_, np.complex64])
    shapes = arrays.array_shapes(min_dims=0, min_side=0, max_side=4)
    as_saved = arrays.arrays(dtypes, shapes).map(lambda array: torch.from_numpy(array.copy()))
    return st.one_of(as_saved, as_saved.map(lambda tensor: tensor.mT if tensor.dim() > 1 else tensor))


numbers = st.integers() | st.floats() | st.booleans() | st.none()
words = st.text(st.characters(exclude_categories=["Cs"]))
trees = st.recursive(
    numbers | words | tensors(),
    lambda inner: (
        st.lists(inner)
        | st.lists(inner).map(tuple)
        | st.dictionaries(words | st.integers(), inner)
        | st.dictionaries(words, inner)
    ),
    max_leaves=12,
)


@given(state=trees)
def test_every_tree_comes_back(state: Any, tmp_path_factory: pytest.TempPathFactory) -> None:
    path = tmp_path_factory.getbasetemp() / "tree.safetensors"
    checkpoint.save(path, state)
    assert same(checkpoint.load(path), state)


def test_a_training_state_comes_back(tmp_path: Path) -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4))
    optimizer = torch.optim.AdamW(net.parameters())
    net(torch.randn(5, 3)).sum().backward()
    optimizer.step()
    state = {"model": net.state_dict(), "optimizer": optimizer.state_dict(), "random": torch.get_rng_state(), "step": 7}
    checkpoint.save(tmp_path / "last.safetensors", state)
    assert os.listdir(tmp_path) == ["last.safetensors"]
    loaded = checkpoint.load(str(tmp_path / "last.safetensors"))
    assert type(loaded["model"]) is dict
    assert list(loaded["optimizer"]["state"]) == [0, 1, 2, 3]
    assert same({**loaded, "model": None}, {**state, "model": None})
    assert same(loaded["model"], dict(state["model"]))
    torch.optim.AdamW(net.parameters()).load_state_dict(loaded["optimizer"])


def test_keys_1_and_text_1_are_two(tmp_path: Path) -> None:
    state = {1: torch.tensor(1), "1": torch.tensor(2), -3: "a", "": {}}
    checkpoint.save(tmp_path / "c", state)
    assert same(checkpoint.load(tmp_path / "c"), state)


@pytest.mark.parametrize("dtype", tensor_file.DTYPES, ids=str)
def test_every_dtype_and_any_memory(tmp_path: Path, dtype: torch.dtype) -> None:
    data = torch.tensor([0, 1, 0, 1, 1, 0] * 4, dtype=torch.uint8).to(dtype)
    state = [
        data,
        data[3],
        data[:0].view(0, 3),
        data.view(2, 3, 4).permute(2, 0, 1),
        data[::2],
        data[4:5:2],
    ]  # one memory for all
    checkpoint.save(tmp_path / "c", state)
    loaded = checkpoint.load(tmp_path / "c")
    assert same(loaded, state)
    assert len({tensor.untyped_storage().data_ptr() for tensor in loaded if tensor.numel()}) == 5  # no memory is shared any more


def test_views_that_are_not_their_memory(tmp_path: Path) -> None:
    values = torch.tensor([1 + 2j, 3 - 4j])
    parameter = nn.Parameter(torch.ones(2, 3))
    state = [values.conj(), values.conj().imag, torch.ones(1).expand(2, 3), parameter]
    checkpoint.save(tmp_path / "c", state)
    loaded = checkpoint.load(tmp_path / "c")
    assert loaded[0].tolist() == [1 - 2j, 3 + 4j]
    assert loaded[1].tolist() == [-2, 4]
    assert loaded[2].tolist() == [[1.0] * 3] * 2
    assert type(loaded[3]) is Tensor
    assert not loaded[3].requires_grad


def test_floats_to_the_bit(tmp_path: Path) -> None:
    odd_nan = struct.unpack(">d", bytes.fromhex("fff8000000000123"))[0]
    state = [0.1, -0.0, 5e-324, 1.7976931348623157e308, math.inf, -math.inf, math.nan, odd_nan, 2**128 + 1, -(2**4000)]
    checkpoint.save(tmp_path / "c", state)
    assert same(checkpoint.load(tmp_path / "c"), state)


def test_other_programs_can_read_it(tmp_path: Path) -> None:
    checkpoint.save(tmp_path / "c", {"model": {"a": torch.ones(2)}, "step": [torch.zeros(1), 3]})
    assert set(load_file(tmp_path / "c")) == {"state['model']['a']", "state['step'][0]"}


@pytest.mark.parametrize(
    ("state", "message"),
    [
        ({"optimizer": {"x": {1}}}, r"^state\['optimizer'\]\['x'\]: expected a dict, list, .* or tensor, got set$"),
        ({"a": [1, b"x"]}, r"^state\['a'\]\[1\]: expected .*, got bytes$"),
        ({"a": {(1,): 2}}, r"^state\['a'\]: expected keys of type str or int, got \(1,\) of type tuple$"),
        ({True: 2}, r"^state: expected keys of type str or int, got True of type bool$"),
        (np.float64(1.0), "^state: expected .*, got float64$"),
        (nn.Linear(1, 1), "^state: expected .*, got Linear$"),
        ([torch.ones(2).to_sparse()], r"^state\[0\]: expected a dense tensor with data, got torch.sparse_coo on cpu"),
        ([torch.ones(2, device="meta")], r"^state\[0\]: expected a dense tensor with data, got torch.strided on meta"),
        ([torch.ones(2, dtype=torch.complex128)], r"^state\[0\]: expected a tensor of a dtype that .*, got torch.complex128$"),
    ],
)
def test_what_is_no_state(tmp_path: Path, state: Any, message: str) -> None:
    with pytest.raises(TypeError, match=message):
        checkpoint.save(tmp_path / "c", state)
    assert os.listdir(tmp_path) == []


def test_what_would_not_come_back(tmp_path: Path) -> None:
    loop: list[Any] = []
    loop.append(loop)
    cases = [
        (loop, "at most 100 levels"),
        ({"a": "\ud800"}, r"state\['a'\]: expected Unicode text"),
        ([1 << 5000], "an int of at most 4096 bits, got 5001"),
    ]
    for state, message in cases:
        with pytest.raises(ValueError, match=message):
            checkpoint.save(tmp_path / "c", state)
    deep: Any = None
    for _ in range(100):
        deep = {"a": deep}
    checkpoint.save(tmp_path / "c", deep)
    assert same(checkpoint.load(tmp_path / "c"), deep)


def test_a_header_that_nobody_could_read_is_not_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tensor_file, "MAX_HEADER", 1000)
    with pytest.raises(ValueError, match="expected a header of at most 1,000 bytes"):
        checkpoint.save(tmp_path / "c", ["x"] * 1000)
    assert os.listdir(tmp_path) == []


def test_plain_containers_come_back(tmp_path: Path) -> None:
    pair = namedtuple("pair", "a b")
    checkpoint.save(tmp_path / "c", OrderedDict(a=pair(1, torch.Size([2]))))
    assert same(checkpoint.load(tmp_path / "c"), {"a": (1, (2,))})


# ---- reading -------------------------------------------------------------------------------------------------------------


@pytest.fixture
def whole(tmp_path: Path) -> bytes:
    checkpoint.save(tmp_path / "c", {"a": torch.arange(5.0), 0: [torch.tensor(True), torch.empty(0), (1, 0.5, "x", math.inf)]})
    return (tmp_path / "c").read_bytes()


def test_every_flipped_byte_and_every_cut_is_noticed(tmp_path: Path, whole: bytes) -> None:
    path = tmp_path / "bad"
    for position in range(len(whole)):
        path.write_bytes(whole[:position] + bytes([whole[position] ^ 1]) + whole[position + 1 :])
        with pytest.raises(DamagedFile, match="bad: "):
            checkpoint.load(path)
        path.write_bytes(whole[:position])
        with pytest.raises(DamagedFile, match="bad: "):
            checkpoint.load(path)
    path.write_bytes(whole + b"\0")
    with pytest.raises(DamagedFile, match="bad: "):
        checkpoint.load(path)


def test_other_files(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="none: no such checkpoint"):
        checkpoint.load(tmp_path / "none")
    with pytest.raises(DamagedFile, match="expected a checkpoint, got a directory"):
        checkpoint.load(tmp_path)
    Masks({"a": torch.ones(1, 1)}).save(tmp_path / "m.safetensors")
    with pytest.raises(DamagedFile, match=r"expected a checkpoint \(format 'tost.checkpoint'\), got format 'tost.masks'"):
        checkpoint.load(tmp_path / "m.safetensors")
    torch.save({"a": 1}, tmp_path / "pickle")
    with pytest.raises(DamagedFile, match="no safetensors file at all"):
        checkpoint.load(tmp_path / "pickle")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda metadata: metadata.update(version="2"), "expected version 1 of the checkpoint's format, got '2'"),
        (lambda metadata: metadata.pop("tree"), r"its tree cannot be read \(KeyError\)"),
        (lambda metadata: metadata.update(tree="["), r"tree cannot be read \(JSONDecodeError\)"),
        (lambda metadata: metadata.update(tree="[" * 100_000), r"tree cannot be read \(RecursionError\)"),
        (lambda metadata: metadata.update(tree='{"dict":' * 50_000), r"tree cannot be read \(RecursionError\)"),
        (lambda metadata: metadata.update(tree="1" * 5000), r"tree cannot be read \(ValueError\)"),
        (lambda metadata: metadata.update(tree="NaN"), r"tree cannot be read \(ValueError\)"),
        (lambda metadata: metadata.update(tree='{"float":"00"}'), r"tree cannot be read \(error\)"),
        (lambda metadata: metadata.update(tree='{"float":1}'), r"tree cannot be read \(TypeError\)"),
        (lambda metadata: metadata.update(tree='{"tuple":1}'), r"tree cannot be read \(ValueError\)"),
        (lambda metadata: metadata.update(tree='{"set":[]}'), r"tree cannot be read \(ValueError\)"),
        (lambda metadata: metadata.update(tree="{}"), r"tree cannot be read \(ValueError\)"),
        (lambda metadata: metadata.update(tree='{"tuple":[],"tuple":[]}'), r"tree cannot be read \(ValueError\)"),
        (lambda metadata: metadata.update(tree='{"dict":[["a",1],["a",2]]}'), r"tree cannot be read \(ValueError\)"),
        (lambda metadata: metadata.update(tree='{"dict":[[null,1]]}'), r"tree cannot be read \(ValueError\)"),
        (lambda metadata: metadata.update(tree='{"dict":3}'), r"tree cannot be read \(TypeError\)"),
        (lambda metadata: metadata.update(tree='{"tensor":"b"}'), r"tree cannot be read \(KeyError\)"),
        (lambda metadata: metadata.update(tree='[{"tensor":"a"},{"tensor":"a"}]'), r"tree cannot be read \(KeyError\)"),
        (lambda metadata: metadata.update(tree='{"tensor":[]}'), r"tree cannot be read \(TypeError\)"),
        (lambda metadata: metadata.update(tree="3"), "'a' has no place in its tree"),
    ],
)
def test_a_tree_with_a_right_checksum_is_not_trusted(tmp_path: Path, change: Callable[[Any], Any], message: str) -> None:
    metadata = {"format": "tost.checkpoint", "version": "1", "tree": json.dumps({"tensor": "a"})}
    tensor_file.write(tmp_path / "c", {"a": torch.ones(2)}, metadata)
    assert checkpoint.load(tmp_path / "c").tolist() == [1, 1]
    change(metadata)
    tensor_file.write(tmp_path / "c", {"a": torch.ones(2)}, metadata)
    with pytest.raises(DamagedFile, match=message):
        checkpoint.load(tmp_path / "c")


def test_a_shape_that_torch_cannot_hold(tmp_path: Path) -> None:
    checkpoint.save(tmp_path / "c", torch.empty(0, 1234))
    header = (tmp_path / "c").read_bytes()[8:].replace(b"[0,1234]", b"[0,9223372036854775808]")
    (tmp_path / "c").write_bytes(sealed(len(header).to_bytes(8, "little") + header))
    with pytest.raises(DamagedFile, match="c: damaged: 'state' is no tensor: "):
        checkpoint.load(tmp_path / "c")


WRITER = """
import sys
import torch
from tost import checkpoint
number = 0
while True:
    checkpoint.save(sys.argv[1], {"number": number, "weights": torch.full((20_000 + number % 3,), float(number))})
    if number == 0:
        print("started", flush=True)
    number += 1
"""


def test_a_reader_beside_a_writer_sees_whole_files(tmp_path: Path) -> None:
    writer = subprocess.Popen([sys.executable, "-c", WRITER, str(tmp_path / "c")], cwd=ROOT, stdout=subprocess.PIPE)
    assert writer.stdout is not None
    seen = set()
    try:
        writer.stdout.readline()
        for _ in range(500):
            loaded = checkpoint.load(tmp_path / "c")
            assert loaded["weights"].unique().tolist() == [loaded["number"]]
            seen.add(loaded["number"])
    finally:
        writer.kill()
        writer.communicate()
    assert len(seen) > 1  # it was replaced meanwhile


def test_what_is_replaced_while_it_is_opened_is_read_as_one_version(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "c"
    checkpoint.save(path, torch.zeros(1))
    opened = Path.open
    versions = itertools.count(1)

    def replace_and_open(self: Path, *args: Any, **options: Any) -> Any:
        if self == path:
            checkpoint.save(path, torch.full((100,), next(versions)))
        file = opened(self, *args, **options)
        if self == path:
            checkpoint.save(path, torch.full((100,), next(versions)))
        return file

    monkeypatch.setattr(Path, "open", replace_and_open)
    assert checkpoint.load(path).tolist() == [1] * 100


def test_memory_is_twice_the_file(tmp_path: Path) -> None:
    if sys.platform != "linux":
        pytest.skip("reads the memory of a process from /proc")
    checkpoint.save(tmp_path / "c", [torch.zeros(1 << 20) for _ in range(16)])  # 64 MB
    most = int(
        subprocess.run([sys.executable, "-c", PEAK, str(tmp_path / "c")], capture_output=True, text=True, check=True).stdout
    )
    assert most < 2.2 * (64 << 10)


PEAK = """
import re, sys
from pathlib import Path
from tost import checkpoint
now = lambda key: int(re.search(rf"{key}:\\s+(\\d+) kB", Path("/proc/self/status").read_text())[1])
before = now("VmRSS")
state = checkpoint.load(sys.argv[1])
print(now("VmHWM") - before)
"""


def test_the_error_travels_between_processes(tmp_path: Path) -> None:
    error = pickle.loads(pickle.dumps(DamagedFile(tmp_path / "c", "cut")))
    assert (error.path, error.reason, str(error)) == (tmp_path / "c", "cut", f"{tmp_path / 'c'}: cut")
