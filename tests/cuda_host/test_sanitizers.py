"""The CUDA kernels themselves under the sanitizers: clean, and not because these see nothing."""

import shutil
from pathlib import Path

import pytest
import torch

import tost_kernels as tk
from tests.cuda_host.build import CSRC, SANITIZERS, build_program, exercise, run_program


@pytest.mark.parametrize("sanitizer", SANITIZERS)
def test_kernels_are_clean(sanitizer: str) -> None:
    done = exercise(sanitizer)
    assert (done.returncode, done.stderr) == (0, "")


BARRIER, BYTES = "    __syncthreads();", "std::max(stages, sums)"
MISTAKES = {  # sanitizer, algorithm, the file with the mistake, what is replaced by what
    "a barrier less in gather": ("thread", "gather", "conv_gather_kernels.h", f"{BARRIER}\n    if", "    if"),
    "a barrier less in direct": ("thread", "direct", "conv_direct_tile.h", f"{BARRIER}  // what", "    // what"),
    "too little shared memory": ("address", "gather", "conv_gather.cu", BYTES, "std::min(stages, sums)"),
}
REPORTS = {"thread": "ThreadSanitizer: data race", "address": "AddressSanitizer: use-after-poison"}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_in_a_kernel_is_caught(tmp_path: Path, mistake: str) -> None:
    sanitizer, algorithm, name, right, wrong = MISTAKES[mistake]
    shutil.copytree(CSRC, tmp_path / "csrc")
    file = tmp_path / "csrc" / "cuda" / name
    text = file.read_text()
    assert text.count(right) == 1
    file.write_text(text.replace(right, wrong))
    pattern = tk.Pattern(torch.rand(18, 9, 3, 3) < 0.2)
    index = pattern.gathered(16, 8, 8) if algorithm == "gather" else pattern.index
    index.numpy().tofile(tmp_path / "index")
    kernels = ["-include", str(tmp_path / "csrc" / "cuda" / f"conv_{algorithm}.cu"), f"-DGATHER={int(algorithm == 'gather')}"]
    program = build_program("convolution", sanitizer, *kernels, folder=tmp_path, csrc=tmp_path / "csrc")
    done = run_program(program, str(tmp_path / "index"), str(pattern.nnz))
    assert done.returncode != 0
    assert REPORTS[sanitizer] in done.stderr
    assert f"conv_{algorithm}" in done.stderr
