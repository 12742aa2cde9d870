"""Lower instruction sets than this machine's best, for every test file of the kernels."""

import os
import subprocess
import sys
from collections.abc import Callable

import pytest
import torch

LADDER = ["portable", "avx2", "avx512", "avx512bf16"]


@pytest.fixture
def run_on(request: pytest.FixtureRequest) -> Callable[[str, str], None]:
    """Runs code in a process held to an instruction set, where the requesting test's own file can be imported by its name."""

    def run(isa: str, code: str) -> None:
        if LADDER.index(torch.ops.tost.cpu_isa()) < LADDER.index(isa):
            pytest.skip(f"this machine has no {isa}")
        folder = str(request.path.parent)
        head = f"import sys, torch, tost_kernels\nsys.path.insert(0, {folder!r})\nprint(torch.ops.tost.cpu_isa())\n"
        done = subprocess.run(
            [sys.executable, "-c", head + code],
            env={**os.environ, "TOST_CPU_ISA": isa, "OMP_NUM_THREADS": "1"},
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        assert done.stdout.split() == [isa]

    return run
