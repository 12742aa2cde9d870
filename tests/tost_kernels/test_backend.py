"""Forcing a backend, and what an installation without compiled parts says and does."""

import json
import os
import shutil
import subprocess
import sys
import threading
from pathlib import Path

import pytest
import torch

import tost_kernels as tk
from tost_kernels import backend, info

PACKAGE = Path(tk.__file__).parent


def test_blocks_nest_and_end() -> None:
    assert backend.forced() is None
    with tk.use_backend("dense"):
        with tk.use_backend("reference"):
            assert backend.forced() == "reference"
        assert backend.forced() == "dense"
        with pytest.raises(KeyError), tk.use_backend("cpu"):
            raise KeyError
        assert backend.forced() == "dense"
    assert backend.forced() is None


def test_a_forced_backend_is_this_threads_own() -> None:
    seen = []
    with tk.use_backend("dense"):
        thread = threading.Thread(target=lambda: seen.append(backend.forced()))
        thread.start()
        thread.join()
    assert seen == [None]


def test_backward_uses_what_forward_chose() -> None:
    reason = backend.why_not("masked_linear", "cpu")
    if reason is not None:
        pytest.skip(reason)
    pattern = tk.Pattern(torch.eye(4))
    values = torch.ones(4, requires_grad=True)
    with tk.use_backend("cpu"):
        out = tk.masked_linear(torch.ones(8, 4), values, pattern)
    with tk.use_backend("triton"):  # would raise if backward asked again
        out.sum().backward()
    assert values.grad.tolist() == [8.0] * 4


def test_unknown_names() -> None:
    with pytest.raises(ValueError, match="expected an op of"):
        backend.why_not("masked_conv3d", "cpu")
    with pytest.raises(RuntimeError, match=r"masked_linear: none of the backends \('cuda',\) can be used"):
        backend.pick("masked_linear", ["cuda"], torch.zeros(1))


def test_report_and_its_text(capsys: pytest.CaptureFixture[str]) -> None:
    info.main(["--json"])
    data = json.loads(capsys.readouterr().out)
    rows = {(row["op"], row["backend"]): row for row in data["ops"]}
    assert set(rows) == {(op, name) for op in backend.OPS for name in backend.BACKENDS}
    assert all(rows[op, name]["usable"] for op in backend.OPS for name in ("reference", "dense"))
    assert all((row["reason"] is None) == row["usable"] for row in rows.values())
    info.main([])
    text = capsys.readouterr().out
    assert all(op in text for op in backend.OPS)


def python(code: str, folder: Path) -> subprocess.CompletedProcess[str]:
    """Run `code` in a fresh Python that finds packages in `folder` first."""
    command = [sys.executable, "-W", "error", "-c", code]
    environment = os.environ | {"PYTHONPATH": str(folder)}
    return subprocess.run(command, capture_output=True, text=True, cwd=folder, env=environment, timeout=120)


def test_import_is_silent() -> None:
    result = python("import tost_kernels, tost", PACKAGE.parent)
    assert (result.returncode, result.stdout, result.stderr) == (0, "", "")


def test_without_compiled_parts_everything_runs_on_the_references(tmp_path: Path) -> None:
    shutil.copytree(PACKAGE, tmp_path / "tost_kernels", ignore=shutil.ignore_patterns("*.so", "__pycache__"))
    code = """
import json, torch, tost_kernels as tk
from tost_kernels import info
x = tk.to_batch_last(torch.randn(8, 4, 6, 6))
conv = tk.SparseConv2d.from_dense(torch.nn.Conv2d(4, 5, 3), torch.rand(5, 4, 3, 3) < 0.3)
out, _ = tk.ghost_skip_add(conv(x), act="relu")
tk.pswish(out, 2.0).sum().backward()
assert conv.values.grad.isfinite().all() and tk.is_batch_last(out)
try:
    with tk.use_backend("cpu"):
        conv(x)
except RuntimeError as error:
    print(error)
"""
    result = python(code, tmp_path)
    assert result.returncode == 0, result.stderr
    assert result.stdout.startswith("masked_conv2d: the backend 'cpu' cannot be used: the compiled library 'cpu' is not in")
