import copy
import hashlib
import pickle
import struct
import subprocess
import sys

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tost.masks import Masks


def table() -> dict[str, torch.Tensor]:
    conv = torch.zeros(2, 1, 2, 2, dtype=torch.bool)
    conv[0, 0, 1, 0] = conv[1, 0, 0, 1] = True
    return {"z": conv, "a": torch.tensor([[True, False, True]])}


def test_counts_by_hand():
    masks = Masks(table())
    assert list(masks) == ["z", "a"]
    assert len(masks) == 2
    assert (masks.kept, masks.total, masks.density) == (4, 11, 4 / 11)
    assert masks.per_layer() == (("z", (2, 1, 2, 2), 2, 8), ("a", (1, 3), 2, 3))
    assert masks.per_layer()[0].density == 0.25
    assert masks.empty_layers() == ()
    assert repr(masks) == "Masks(2 layers, 4 of 11 weights kept, density 0.3636)"


def test_empty_layers_are_named():
    assert Masks({"a": torch.zeros(2, 2), "b": torch.ones(2, 2), "c": torch.zeros(1, 3)}).empty_layers() == ("a", "c")


@pytest.mark.parametrize(
    "same",
    [
        lambda m: m,
        lambda m: m.float(),
        lambda m: m.to(torch.int64),
        lambda m: m.to(torch.bfloat16),
        lambda m: m.numpy(),
        lambda m: m.numpy().astype(">f8"),
        lambda m: m.float().numpy()[::-1][::-1],
        lambda m: torch.nn.Parameter(m.float()),
        lambda m: -m.float(),  # overwritten below: -0.0 is a zero
    ],
)
def test_any_zero_one_numbers_are_taken(same):
    converted = {name: same(mask) for name, mask in table().items()}
    if any(isinstance(m, torch.Tensor) and (m < 0).any() for m in converted.values()):
        converted = {name: torch.where(m < 0, 1.0, m) for name, m in converted.items()}
    assert Masks(converted) == Masks(table())


@pytest.mark.parametrize(
    ("masks", "error", "text"),
    [
        ([("a", torch.ones(2, 2))], TypeError, "mapping"),
        ({}, ValueError, "at least one"),
        ({1: torch.ones(2, 2)}, TypeError, "names as strings"),
        ({"": torch.ones(2, 2)}, ValueError, "non-empty"),
        ({"a": [[1, 0]]}, TypeError, r"masks\['a'\].*list"),
        ({"a": np.array([["x"]])}, TypeError, "dtype"),
        ({"a": np.ma.masked_array(np.ones((2, 2)), np.eye(2))}, TypeError, "expected a plain array, got a masked one"),
        ({"a": torch.ones(3)}, ValueError, r"\(3,\)"),
        ({"a": torch.ones(3, 2, 1)}, ValueError, r"\(3, 2, 1\)"),
        ({"a": torch.ones(0, 3)}, ValueError, r"\(0, 3\)"),
        ({"a": torch.tensor([[1.0, float("nan")]])}, ValueError, "nan"),
        ({"a": torch.tensor([[1.0, 0.5]])}, ValueError, r"0\.5"),
        ({"a": torch.tensor([[2, 0]])}, ValueError, "2"),
        ({"a": torch.tensor([[-1, 0]])}, ValueError, "-1"),
        ({"a": torch.ones(2, 2).to_sparse()}, TypeError, "sparse"),
        ({"a": torch.ones(2, 2, device="meta")}, TypeError, "meta"),
    ],
)
def test_refused(masks, error, text):
    with pytest.raises(error, match=text):
        Masks(masks)


def test_nothing_handed_in_or_out_can_change_it():
    given = table()
    masks = Masks(given)
    before = masks.fingerprint
    given["a"].zero_()
    masks["a"].zero_()
    for _, mask in masks.items():
        mask.fill_(True)
    next(iter(masks.values())).zero_()
    array = np.ones((2, 2), dtype=bool)
    from_array = Masks({"a": array})
    array[:] = False
    assert from_array.kept == 4
    assert masks == Masks(table())
    assert Masks(dict(masks)).fingerprint == before
    with pytest.raises(AttributeError, match="immutable"):
        masks.density = 1
    with pytest.raises(AttributeError, match="immutable"):
        masks._tensors = {}
    with pytest.raises(AttributeError, match="immutable"):
        del masks._tensors
    with pytest.raises(TypeError):
        masks["a"] = torch.ones(1, 3)


def test_equality_ignores_order_and_nothing_else():
    masks, other = Masks(table()), Masks(dict(reversed(table().items())))
    assert list(masks) != list(other)
    assert masks == other
    assert hash(masks) == hash(other)
    assert masks.fingerprint == other.fingerprint
    flipped = table()
    flipped["z"][1, 0, 1, 1] = True
    reshaped = table() | {"a": table()["a"].reshape(3, 1)}
    renamed = {("b" if name == "a" else name): mask for name, mask in table().items()}
    for different in (flipped, reshaped, renamed, {"a": table()["a"]}):
        assert Masks(different) != masks
        assert Masks(different).fingerprint != masks.fingerprint
    assert masks != table()


def test_fingerprint_is_the_same_in_another_process():
    code = (
        "import torch; from tost.masks import Masks; c = torch.zeros(2, 1, 2, 2); c[0, 0, 1, 0] = c[1, 0, 0, 1] = 1;"
        "print(Masks({'a': torch.tensor([[1, 0, 1]]), 'z': c}).fingerprint)"
    )
    printed = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert printed.strip() == Masks(table()).fingerprint
    # A change of the format would make old files unreadable, so it must be a deliberate one.
    words = b"tost.masks/1"
    words += struct.pack("<4q", 1, 2, 1, 3) + b"a" + bytes([0b10100000])  # length of the name, dimensions, shape
    words += struct.pack("<6q", 1, 4, 2, 1, 2, 2) + b"z" + bytes([0b00100100])
    assert printed.strip() == hashlib.sha256(words).hexdigest()


def test_copies():
    masks = Masks(table())
    assert copy.copy(masks) is masks
    assert copy.deepcopy({"masks": masks})["masks"] is masks
    again = pickle.loads(pickle.dumps(masks))
    assert again == masks
    assert list(again) == list(masks)
    assert again.fingerprint == masks.fingerprint


def test_missing_name_says_which_there_are():
    masks = Masks(table())
    with pytest.raises(KeyError, match=r"no mask for 'b'.*z, a"):
        masks["b"]
    assert masks.get("b") is None
    assert "a" in masks
    assert "b" not in masks


@settings(max_examples=30, deadline=None)
@given(shape=st.tuples(st.integers(1, 6), st.integers(1, 6)), kept=st.floats(0, 1), seed=st.integers(0, 2**40))
def test_shuffled_keeps_the_counts(shape, kept, seed):
    masks = Masks({"a": torch.rand(shape) < kept, "b": torch.rand(2, 1, 3, 3) < kept})
    shuffled = masks.shuffled(seed)
    assert shuffled.per_layer() == masks.per_layer()
    assert shuffled == masks.shuffled(seed)


def test_shuffled_places():
    masks = Masks({"a": torch.arange(400).reshape(20, 20) < 100, "b": torch.arange(400).reshape(20, 20) < 100})
    shuffled = masks.shuffled(0)
    assert shuffled != masks
    assert shuffled != masks.shuffled(1)
    assert not torch.equal(shuffled["a"], shuffled["b"])  # each layer has places of its own,
    assert torch.equal(Masks({"b": masks["b"]}).shuffled(0)["b"], shuffled["b"])  # whatever other layers there are
    places = torch.stack([masks.shuffled(seed)["a"].flatten() for seed in range(400)]).float().mean(0)
    assert (places - 0.25).abs().max() < 0.11  # five standard deviations
    with pytest.raises(ValueError, match="seed: expected a whole number of at least 0"):
        masks.shuffled(-1)
