"""The CUDA kernels themselves under the sanitizers: clean, and not because these see nothing."""

import shutil
from pathlib import Path

import pytest

from tests.cuda_host.build import CSRC, SANITIZERS, build_library, exercise, shared_library


@pytest.mark.parametrize("sanitizer", SANITIZERS)
def test_kernels_are_clean(sanitizer: str) -> None:
    done = exercise(shared_library(sanitizer), sanitizer)
    assert (done.returncode, done.stderr) == (0, "")


BARRIER, TABLE = "    __syncthreads();", "SHARED(int, targets, kMostPixels"
MISTAKES = {  # sanitizer, kernels that run, the file compiled, the header with the mistake, what is replaced by what
    "a barrier less in gather": ("thread", "gather", "conv_gather", "conv_gather_kernels.h", f"{BARRIER}\n    if", "    if"),
    "a barrier less in direct": ("thread", "direct", "conv_direct", "conv_direct_tile.h", f"{BARRIER}  // what", "    //"),
    "a shared array too short": ("address", "gather", "conv_gather", "conv_gather_kernels.h", TABLE, f"{TABLE} - 1"),
}
REPORTS = {"thread": "ThreadSanitizer: data race", "address": "AddressSanitizer: use-after-poison"}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_in_a_kernel_is_caught(tmp_path: Path, mistake: str) -> None:
    sanitizer, kernels, compiled, header, right, wrong = MISTAKES[mistake]
    shutil.copytree(CSRC, tmp_path / "csrc")
    file = tmp_path / "csrc" / "cuda" / header
    text = file.read_text()
    assert text.count(right) == 1
    file.write_text(text.replace(right, wrong))
    done = exercise(build_library(tmp_path, sanitizer, csrc=tmp_path / "csrc", only=compiled), sanitizer, kernels)
    assert done.returncode != 0
    assert REPORTS[sanitizer] in done.stderr
