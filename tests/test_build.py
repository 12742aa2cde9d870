"""setup.py where something is missing: what can be built is built, and it says what is missing."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).parents[1]

pytestmark = pytest.mark.skipif(shutil.which(os.environ.get("CXX", "c++")) is None, reason="needs a C++ compiler")


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A project with a broken CUDA toolkit and an earlier build, built."""
    folder = tmp_path_factory.mktemp("project")
    shutil.copy(ROOT / "setup.py", folder)
    for part in ("pattern", "cpu", "cuda"):  # of a line each, which compile fast
        (folder / "csrc" / part).mkdir(parents=True)
        (folder / "csrc" / part / f"part.{'cu' if part == 'cuda' else 'cpp'}").write_text("int part() { return 1; }\n")
    objects = folder / "temp" / "csrc" / "cuda"
    objects.mkdir(parents=True)
    for age, name in enumerate(("new.o", "../../../csrc/cuda/header.h", "old.o")):
        (objects / name).touch()
        os.utime(objects / name, (10 - age, 10 - age))
    toolkit = folder / "toolkit"
    (toolkit / "bin").mkdir(parents=True)
    (toolkit / "include").mkdir()
    (toolkit / "include" / "cuda_runtime.h").touch()
    (toolkit / "bin" / "nvcc").write_text("#!/bin/sh\nexit 3\n")
    (toolkit / "bin" / "nvcc").chmod(0o755)
    (folder / "tost_kernels").mkdir()

    done = subprocess.run(
        [sys.executable, "setup.py", "build_ext", "--inplace", "--build-temp", "temp"],
        capture_output=True,
        text=True,
        check=False,
        cwd=folder,
        env=os.environ | {"CUDA_HOME": str(toolkit)},
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return folder


def test_a_broken_cuda_toolkit_costs_the_cuda_kernels_alone(project: Path) -> None:
    built = {path.name.split(".")[0] for path in (project / "tost_kernels").glob("*.so")}
    assert built == {"_pattern", "_cpu"}
    why = (project / "tost_kernels" / "why_not_built.txt").read_text()
    assert why.startswith(f"no CUDA kernels: the nvcc of the CUDA toolkit in {project / 'toolkit'} does not run")


def test_cuda_objects_older_than_a_header_are_forgotten(project: Path) -> None:
    kept = {path.name for path in (project / "temp" / "csrc" / "cuda").glob("*.o")}
    assert kept == ({"new.o"} if torch.version.cuda is None else {"new.o", "old.o"})
