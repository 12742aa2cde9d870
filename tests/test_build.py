"""setup.py where something is missing: what can be built is built, and it says what is missing."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


@pytest.mark.skipif(shutil.which(os.environ.get("CXX", "c++")) is None, reason="needs a C++ compiler")
def test_a_broken_cuda_toolkit_costs_the_cuda_kernels_alone(tmp_path: Path) -> None:
    shutil.copy(ROOT / "setup.py", tmp_path)
    for folder in ("pattern", "cpu", "cuda"):  # parts of a line each, which compile fast
        (tmp_path / "csrc" / folder).mkdir(parents=True)
        (tmp_path / "csrc" / folder / f"part.{'cu' if folder == 'cuda' else 'cpp'}").write_text("int part() { return 1; }\n")
    toolkit = tmp_path / "toolkit"
    (toolkit / "bin").mkdir(parents=True)
    (toolkit / "include").mkdir()
    (toolkit / "include" / "cuda_runtime.h").touch()
    (toolkit / "bin" / "nvcc").write_text("#!/bin/sh\nexit 3\n")
    (toolkit / "bin" / "nvcc").chmod(0o755)
    (tmp_path / "tost_kernels").mkdir()

    done = subprocess.run(
        [sys.executable, "setup.py", "build_ext", "--inplace"],
        capture_output=True,
        text=True,
        check=False,
        cwd=tmp_path,
        env=os.environ | {"CUDA_HOME": str(toolkit)},
    )
    assert done.returncode == 0, done.stdout + done.stderr
    built = {path.name.split(".")[0] for path in (tmp_path / "tost_kernels").glob("*.so")}
    assert built == {"_pattern", "_cpu"}
    why = (tmp_path / "tost_kernels" / "why_not_built.txt").read_text()
    assert why.startswith(f"no CUDA kernels: the nvcc of the CUDA toolkit in {toolkit} does not run")
