"""Forcing a backend, and what an installation without compiled parts says and does."""

import json
import os
import shutil
import subprocess
import sys
import threading
import types
from pathlib import Path

import pytest
import torch

import tost_kernels as tk
from tost_kernels import backend, info
from tost_kernels.plan import Case
from tost_kernels.tuning import candidates

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


def test_an_op_that_a_backend_lacks_is_told_from_one_that_is_not_loaded() -> None:
    for name in ("triton", "cuda"):  # not: set TRITON_INTERPRET=1, install a CUDA toolkit
        assert backend.why_not("max_pool2d", name) == f"this version has no {name} kernel for max_pool2d"
        assert not backend.has_kernel("avg_pool2d", name)
    if not torch.version.cuda:
        assert backend.why_not("pswish", "cuda") == "this torch is built without CUDA: its kernels are not loaded"


def test_why_a_library_is_absent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(backend.library, "_HERE", tmp_path)
    absent = "the compiled library {!r} is not in this installation: it was never built"
    assert backend.library._load("cuda") == absent.format("cuda") + ": installing it needs the nvcc of a CUDA toolkit"
    assert backend.library._load("cpu") == absent.format("cpu")
    (tmp_path / "why_not_built.txt").write_text("nvcc crashed")
    assert backend.library._load("cuda") == "the compiled library 'cuda' is not in this installation: nvcc crashed"
    (tmp_path / "_cuda.abi3.so").write_text("no library")
    reason = backend.library._load("cuda")
    assert reason is not None
    assert reason.startswith("the compiled library 'cuda' could not be loaded: ")


def test_kernels_that_are_loaded_without_a_device_say_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(backend, "has_kernel", lambda op, name: True)
    monkeypatch.setattr(backend.library, "INTERPRETED", False)
    for name in ("cuda", "triton"):
        assert backend._why_absent("pswish", name) == "no CUDA device is available"


def python(code: str, folder: Path, **variables: str) -> subprocess.CompletedProcess[str]:
    """Run `code` in a fresh Python that finds packages in `folder` first; triton is interpreted only if `variables` say so."""
    command = [sys.executable, "-W", "error", "-c", code]
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    environment |= {"PYTHONPATH": str(folder), **variables}
    return subprocess.run(command, capture_output=True, text=True, cwd=folder, env=environment, timeout=120)


def test_import_is_silent() -> None:
    result = python("import tost_kernels, tost", PACKAGE.parent)
    assert (result.returncode, result.stdout, result.stderr) == (0, "", "")


@pytest.mark.skipif(torch.cuda.is_available(), reason="with a CUDA device the Triton kernels are wanted")
def test_triton_kernels_are_not_imported_without_a_device() -> None:
    code = "import sys, tost_kernels as tk; print('tost_kernels.triton' in sys.modules, tk.backend.why_not('pswish', 'triton'))"
    result = python(code, PACKAGE.parent)
    assert result.stdout.startswith("False no CUDA device is available (TRITON_INTERPRET=1 runs"), result.stderr


def test_a_broken_triton_is_a_reason(tmp_path: Path) -> None:
    (tmp_path / "triton.py").write_text("raise ImportError('no libcuda')")
    code = f"import sys; sys.path.append({str(PACKAGE.parent)!r}); import tost_kernels as tk; print(tk.library.reason('triton'))"
    result = python(code, tmp_path, TRITON_INTERPRET="1")
    assert result.stdout == "the Triton kernels could not be imported: ImportError: no libcuda\n", result.stderr


def test_an_old_triton_is_a_reason() -> None:
    pytest.importorskip("triton")
    code = "import triton; triton.__version__ = '3.5.1'; import tost_kernels as tk; print(tk.library.reason('triton'))"
    result = python(code, PACKAGE.parent, TRITON_INTERPRET="1")
    assert result.stdout.endswith("ImportError: expected triton 3.6 or newer, got 3.5.1\n"), result.stderr


@pytest.mark.parametrize(("name", "how"), [("triton", "interpreted"), ("cuda", "emulated")])
def test_kernels_for_tests_run_only_when_forced(name: str, how: str, monkeypatch: pytest.MonkeyPatch) -> None:
    x = torch.ones(2)
    monkeypatch.setattr(backend.library, how.upper(), True)
    monkeypatch.setitem(backend._ABSENT, ("pswish", name), None)
    assert backend.pick("pswish", (name, "reference"), x) == "reference"
    with tk.use_backend(name):
        assert backend.pick("pswish", (name, "reference"), x) == name
    assert backend.why_not_for("pswish", name, x.double()) == "it computes in float32 and bfloat16, got torch.float64"
    case = Case("pswish", (2, 2), 0, (16, 16), (2, 2), "contiguous", "float32", "", "cpu", (), False, "", 1)
    assert name not in candidates.compiled_backends(case)
    rows = {(row["op"], row["backend"]): row for row in info.report()["ops"]}
    assert rows["pswish", name]["note"] == f"{how} on the CPU, only when forced: slow, for tests"
    assert rows["pswish", "cpu"]["note"] is None


def test_elementwise_ops_prefer_kernels_compiled_ahead(monkeypatch: pytest.MonkeyPatch) -> None:
    x = types.SimpleNamespace(device=torch.device("cuda"), dtype=torch.float32)
    monkeypatch.setattr(backend.library, "INTERPRETED", False)
    for name in ("cuda", "triton"):
        monkeypatch.setitem(backend._ABSENT, ("pswish", name), None)
    assert backend.pick("pswish", backend.PREFERRED, x) == "cuda"
    monkeypatch.setitem(backend._ABSENT, ("pswish", "cuda"), "it was never built")
    assert backend.pick("pswish", backend.PREFERRED, x) == "triton"


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
