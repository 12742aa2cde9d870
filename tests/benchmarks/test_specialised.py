"""Code made for one mask: what it computes, on the shim that runs CUDA kernels on the CPU, and what it refuses."""

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

import benchmarks.specialised.__main__ as specialised
from benchmarks.cases import Layer
from benchmarks.specialised.build import Specialised
from benchmarks.specialised.source import Shape, parts


@pytest.mark.parametrize(("images", "kernel", "rows"), [(1, 3, 5), (2, 1, 3)])
def test_it_is_the_convolution(tmp_path: Path, images: int, kernel: int, rows: int) -> None:
    torch.manual_seed(0)
    mask = torch.rand(5, 6, kernel, kernel) < 0.4
    mask[2], mask[4, 0] = False, True  # chunks of 4 of 6 channels, tiles of 2 x 4 of 5 x 5 pixels
    weight, x = torch.randn(mask.shape) * mask, torch.randn(6, 5, 5, 64)
    code = Specialised(parts(mask, Shape(5, 64, images, chunk=4), rows), tmp_path, None)
    code.set_weights(weight[mask])
    out = torch.full((5, 5, 5, 64), float("nan"))
    code.multiply(x, out)
    expected = F.conv2d(x.permute(3, 0, 1, 2).double(), weight.double(), padding=kernel // 2).permute(1, 2, 3, 0)
    torch.testing.assert_close(out.double(), expected, rtol=1e-5, atol=1e-5)


def test_each_input_is_loaded_once_and_each_weight_is_an_instruction() -> None:
    mask = specialised.random_mask(Layer.parse("40@8"), 0.9, seed=0)
    assert int(mask.sum()) == 1440
    made = parts(mask, Shape(8, 64), rows=20)
    assert [part.rows for part in made] == [(0, 20), (20, 40)]
    assert torch.cat([part.place for part in made]).sort().values.equal(torch.arange(1440, dtype=torch.int32))
    for part in made:
        first, end = part.rows
        assert part.text.count("add(s[") == len(part.place) == int(mask[first:end].sum())
        assert part.text.count("load<2>(p + ") == int(mask[first:end].any(0).sum())


@pytest.mark.parametrize(
    ("mask", "batch", "rows", "message"),
    [
        (torch.ones(4, 4, 3, 3), 64, 4, "mask: expected bool of shape"),
        (torch.ones(4, 4, 2, 2, dtype=torch.bool), 64, 4, "mask: expected bool of shape .*, k odd, got"),
        (torch.ones(4, 4, 3, 3, dtype=torch.bool), 96, 4, "batch: expected a multiple of 64, got 96"),
        (torch.zeros(4, 4, 3, 3, dtype=torch.bool), 64, 4, "rows: expected 1 to 16384 weights in rows 0 to 4, got 0"),
        (torch.ones(64, 64, 3, 3, dtype=torch.bool), 64, 32, "rows: expected 1 to 16384 weights in rows 0 to 32, got 18432"),
    ],
)
def test_what_it_refuses(mask: torch.Tensor, batch: int, rows: int, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        parts(mask, Shape(8, batch), rows)


def test_without_nvcc_it_says_so(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(specialised, "nvcc", lambda: None)
    assert specialised.main(["--layer", "64@32"]) == 2
    assert "expected nvcc on the PATH or in CUDA_HOME, found none" in capsys.readouterr().err
