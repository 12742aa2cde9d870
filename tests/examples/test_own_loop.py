"""The examples run as they stand, only shorter."""

from __future__ import annotations

import importlib.util
import math
import os
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest
from safetensors.torch import load_file

import tost

EXAMPLES = Path(__file__).parents[2] / "examples"


def example(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, EXAMPLES / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_own_loop_leaves_a_plain_sparse_network(tmp_path: Path) -> None:
    path = tmp_path / "net.safetensors"
    accuracy = example("own_loop").main(str(path), steps=4, batch_size=8)
    assert 0 <= accuracy <= 1
    plain = tost.models.build("resnet20", num_classes=10, in_channels=1)
    plain.load_state_dict(load_file(path))  # the plain network's names, nothing of the ghosts
    assert tost.Masks.from_model(plain).density == pytest.approx(0.05, abs=1e-4)


def test_own_loop_ddp_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    assert math.isfinite(example("own_loop_ddp").main(steps=4, batch_size=8))


def test_own_loop_ddp_in_two_processes(tmp_path: Path) -> None:
    script = tmp_path / "short.py"
    script.write_text(
        "import os, pathlib, own_loop_ddp\n"
        "loss = own_loop_ddp.main(steps=4, batch_size=8)\n"
        "pathlib.Path(__file__).with_name(os.environ['RANK']).write_text(repr(loss))\n"
    )
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    folders = [str(EXAMPLES), str(EXAMPLES.parent), *sys.path]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(folders)}
    run = subprocess.run([*launcher, str(script)], env=environment, capture_output=True, text=True, timeout=240)
    assert run.returncode == 0, run.stderr
    first, second = (float((tmp_path / rank).read_text()) for rank in "01")
    assert first == second
    assert math.isfinite(first)
